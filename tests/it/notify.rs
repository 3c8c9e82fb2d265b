//! Notifications of swaps: their events, their signature, and a URL that is slow or down.

use std::fs;

use ring::hmac;
use serde_json::Value;

use crate::support::{
    ConfigFile, Edit, Origin, Port, Switchover, eventually,
    origin::{Act, status},
    two_pools,
};

fn notifying(hook: &Origin, more: &str) -> (Origin, Origin, ConfigFile, Switchover) {
    let notify = format!("notify: {{url: \"http://{}/events?key=hush\"{more}}}\n", hook.address());
    two_pools(|config| {
        fs::write(config.folder().join("secret"), "a secret of the test\n").unwrap();
        config.top(&notify)
    })
}

fn promote(switchover: &Switchover, pool: &str) -> (u16, Value) {
    switchover.admin_post("/v1/services/shop/promote?wait=drained", &format!("{{\"pool\": \"{pool}\"}}"))
}

fn events(hook: &Origin) -> Vec<Value> {
    hook.own_requests().1.iter().map(|body| serde_json::from_slice(body).unwrap()).collect()
}

/// Waits for this number of events.
fn await_events(hook: &Origin, count: usize) -> Vec<Value> {
    eventually(&format!("{count} events"), || match events(hook) {
        events if events.len() >= count => Ok(events),
        events => Err(events),
    })
}

fn hooks(switchover: &Switchover, result: &str) -> f64 {
    switchover.metric(&format!("switchover_hooks_total{{hook=\"notify\",result=\"{result}\"}}")).unwrap()
}

fn await_hooks(switchover: &Switchover, result: &str, count: f64) {
    eventually(&format!("{count} {result}"), || match hooks(switchover, result) {
        seen if seen == count => Ok(()),
        seen => Err(seen),
    });
}

/// `EVENT FROM TO OUTCOME`.
fn line(event: &Value) -> String {
    let field = |name: &str| event[name].as_str().unwrap_or("-").to_owned();
    ["event", "from", "to", "outcome"].map(field).join(" ")
}

#[test]
fn every_event_of_a_swap_is_sent_once_and_signed() {
    let hook = Origin::start("hook");
    let (_blue, green, config, switchover) = notifying(&hook, ", secret_file: secret");
    let output = switchover.cli(&["promote", "green", "--version", "2.0.0"]);
    assert_eq!(output.code, 0, "{output:?}");
    await_events(&hook, 5);
    green.readiness(503, "starting");
    assert_eq!(promote(&switchover, "blue").0, 200);
    await_events(&hook, 8);
    let body = "{\"pool\": \"green\", \"timeout\": \"10ms\"}";
    assert_eq!(switchover.admin_post("/v1/services/shop/promote?wait=drained", body).0, 504);
    config.set_active("green", Edit::Rename);
    switchover.await_proving();
    assert_eq!(switchover.admin_post("/v1/services/shop/cancel", "").0, 200);
    let events = await_events(&hook, 12);
    assert_eq!(
        events.iter().map(line).collect::<Vec<_>>(),
        [
            "proving - blue -",
            "promoted - blue -",
            "proving blue green -",
            "promoted blue green -",
            "drained blue green drained",
            "proving green blue -",
            "promoted green blue -",
            "drained green blue drained",
            "proving blue green -",
            "refused blue green not_ready",
            "proving blue green -",
            "cancelled blue green cancelled",
        ]
    );
    let refused = &events[9];
    assert!(refused["reason"].as_str().unwrap().contains("503 starting"), "{refused}");
    assert_eq!((&events[3]["version"], &events[3]["service"]), (&"2.0.0".into(), &"shop".into()));
    assert!(humantime::parse_rfc3339(refused["at"].as_str().unwrap()).is_ok() && refused["seconds"].is_f64(), "{refused}");
    let ids: std::collections::BTreeSet<_> = events.iter().map(|event| event["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 12, "{ids:?}");
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"a secret of the test");
    let (heads, bodies) = hook.own_requests();
    for (head, body) in heads.iter().zip(bodies) {
        assert!(head.starts_with("POST /events?key=hush HTTP/1.1\r\n") && head.contains("Content-Type: application/json\r\n"));
        let tag: String = hmac::sign(&key, &body).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(head.contains(&format!("X-Switchover-Signature: sha256={tag}\r\n")), "{head}");
    }
    await_hooks(&switchover, "success", 12.0);
    assert!(!switchover.log().contains("hush"), "the log names no path of the URL");
}

#[test]
fn an_event_that_is_not_accepted_is_sent_again_with_the_same_id() {
    let hook = Origin::start("hook");
    hook.on("/events", Act::SayInTurn(vec![status(500, "busy"), status(200, "")]));
    let (_blue, _green, _config, switchover) = notifying(&hook, "");
    let events = await_events(&hook, 4);
    let ids: Vec<&Value> = events.iter().map(|event| &event["id"]).collect();
    assert!(ids[0] == ids[1] && ids[1] != ids[2] && ids[2] == ids[3], "{events:?}");
    await_hooks(&switchover, "success", 2.0);
    assert!(!hook.own_requests().0[0].contains("X-Switchover-Signature"), "there is no secret");
    switchover
        .await_log("a notification is sent again in 1 s service=shop event=Proving to=blue reason=responded with 500: busy");
}

#[test]
fn a_url_that_does_not_respond_holds_up_no_swap_and_events_are_dropped() {
    let hook = Origin::start("hook");
    hook.on("/events", Act::Hang);
    let (_blue, _green, _config, switchover) = notifying(&hook, "");
    // A hundred events wait, and one is being delivered. Each swap has three.
    for swap in 0..36 {
        let (status, applied) = promote(&switchover, if swap % 2 == 0 { "green" } else { "blue" });
        assert_eq!(status, 200, "{applied}");
    }
    assert!(hooks(&switchover, "dropped") >= 1.0);
    assert_eq!(hooks(&switchover, "success"), 0.0);
    switchover.await_log("a notification was dropped");
}

#[test]
fn a_reload_changes_the_url_and_an_event_that_is_never_accepted_is_counted() {
    let (port, hook) = (Port::reserve(), Origin::start("hook"));
    let (_blue, _green, config, switchover) =
        two_pools(|config| config.top(&format!("notify: {{url: \"http://{}/\"}}\n", port.address)));
    await_hooks(&switchover, "failure", 2.0);
    switchover
        .await_log("a notification was not delivered service=shop event=Promoted to=blue reason=no connection to 127.0.0.1");
    let before = fs::read_to_string(&config.path).unwrap();
    config.replace_by_rename(&before.replace(&port.address.to_string(), &hook.address().to_string()));
    eventually("the file is read", || match switchover.admin_get("/v1/config") {
        (200, text) if text.contains(&hook.address().to_string()) => Ok(()),
        other => Err(other),
    });
    assert_eq!(promote(&switchover, "green").0, 200);
    await_events(&hook, 3);
    let (status, error) = {
        let text = fs::read_to_string(&config.path).unwrap();
        config.replace_by_rename(&text.replace("/\"}\n", "/\", secret_file: none}\n"));
        switchover.admin_post("/v1/reload?wait=none", "{}")
    };
    assert_eq!((status, &error["code"]), (422, &"invalid-config".into()), "{error}");
    assert!(error["message"].as_str().unwrap().contains("notify.secret_file: "), "{error}");
    let output = crate::support::switchover::run(&["check", "--config", config.path.to_str().unwrap()]);
    assert!(output.code == 78 && output.stderr.contains("notify.secret_file: "), "{output:?}");
}
