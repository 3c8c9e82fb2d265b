//! The admin API and the commands that use it.

use std::process::Command;

use switchover::status::ReloadResult;

use crate::support::{
    ConfigFile, Edit, Gate, Origin, Switchover, eventually, not_tested,
    origin::{Act, ok},
    two_pools,
};

fn started() -> (Origin, Origin, ConfigFile, Switchover) {
    two_pools(|config| config)
}

#[test]
fn every_endpoint_answers() {
    let (blue, _green, config, switchover) = started();
    assert_eq!(switchover.admin_get("/livez").0, 200);
    assert_eq!(switchover.admin_get("/readyz").0, 200);
    let status = switchover.read_status();
    assert_eq!(status.config.file, config.path.to_str().unwrap());
    assert_eq!(status.config.last_reload.result, ReloadResult::Applied);
    assert_eq!(status.listeners, [switchover.address.to_string()]);
    let shop = &status.services[0];
    assert_eq!((shop.name.as_str(), shop.active.as_str()), ("shop", "blue"));
    let peer = &shop.pools[0].peers[0];
    let address = blue.address().to_string();
    assert!(peer.address == address && peer.ready && peer.last_probe.as_ref().is_some_and(|probe| probe.ok), "{peer:?}");
    assert_eq!(peer.resolved, [address]);
    let (code, applied) = switchover.admin_post("/v1/services/shop/promote?wait=drained", "{\"pool\": \"green\"}");
    assert_eq!(
        (code, &applied["result"], &applied["swaps"][0]["outcome"]),
        (200, &"applied".into(), &"drained".into()),
        "{applied}"
    );
    assert_eq!(
        (&applied["swaps"][0]["service"], &applied["swaps"][0]["from"], &applied["swaps"][0]["to"]),
        (&"shop".into(), &"blue".into(), &"green".into())
    );
    let (code, applied) = switchover.admin_post("/v1/services/shop/promote?wait=drained", "{\"pool\": \"green\"}");
    assert_eq!((code, &applied["result"]), (200, &"unchanged".into()));
    assert_eq!(switchover.admin_get("/v1/services/shop/pools/blue/safe-to-stop").0, 200);
    assert_eq!(switchover.admin_get("/v1/services/shop/pools/green/safe-to-stop?wait=50ms").0, 504);
}

#[test]
fn the_running_configuration_is_shown_without_secrets() {
    let (blue, green) = (Origin::start("blue"), Origin::start("green"));
    let config = ConfigFile::new(&[("blue", &[blue.address()]), ("green", &[green.address()])]);
    let config = config.service("    health_check: {interval: 100ms, headers: {Authorization: Bearer hush}}\n");
    let switchover = Switchover::start(&config);
    let (code, text) = switchover.admin_get("/v1/config");
    assert!(code == 200 && text.contains("retries: 2") && !text.contains("hush"), "{text}");
    let as_written = switchover::config::parse(&config.text().replace("Bearer hush", "'***'"));
    assert_eq!(switchover::config::parse(&text), as_written);
    // What is still being proven does not run.
    green.readiness(503, "");
    config.set_active("green", Edit::InPlace);
    eventually("green is being proven", || switchover.read_status().services[0].swap.clone().ok_or("no swap"));
    assert_eq!(switchover.admin_get("/v1/config").1, text);
}

#[test]
fn every_error_has_one_shape() {
    let (_blue, _green, _config, switchover) = started();
    let post = |path: &str, body: &str| {
        let (status, error) = switchover.admin_post(path, body);
        assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()), "{error}");
        (status, error["code"].as_str().unwrap().to_owned())
    };
    let is = |status: u16, code: &str| (status, code.to_owned());
    assert_eq!(post("/v1/services/shop/promote", "{\"pool\": \"red\"}"), is(404, "unknown-pool"));
    assert_eq!(post("/v1/services/stop/promote", "{\"pool\": \"blue\"}"), is(404, "unknown-service"));
    for body in ["", "nonsense", "{}", "{\"pool\": 5}", "{\"pool\": \"green\", \"x\": 1}"] {
        assert_eq!(post("/v1/services/shop/promote", body), is(400, "bad-request"), "{body}");
    }
    assert_eq!(post("/v1/reload?wait=forever", ""), is(400, "bad-request"));
    assert_eq!(post("/v1/reload", "{\"x\": 1}"), is(400, "bad-request"));
    for (method, path, expected) in [
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/reload", 405),
        ("DELETE", "/v1/status", 405),
        ("GET", "/v1/services/shop/pools/red/safe-to-stop", 404),
        ("GET", "/v1/services/shop/pools/blue/safe-to-stop?wait=soon", 400),
    ] {
        let (status, body) = switchover.admin_request(&format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        let error: serde_json::Value = serde_json::from_str(&body).unwrap_or_else(|e| panic!("{method} {path}: {e}: {body:?}"));
        assert_eq!(status, expected, "{method} {path}");
        assert!(error["code"].is_string() && error["message"].is_string(), "{error}");
    }
}

#[test]
fn pages_of_other_origins_can_change_nothing() {
    let (_blue, _green, _config, switchover) = started();
    let admin = switchover.admin;
    let body = "{\"pool\": \"green\"}";
    for (headers, expected) in [
        ("Host: evil.example.com\r\nContent-Type: application/json".to_owned(), 403),
        (format!("Host: {admin}\r\nContent-Type: application/json\r\nOrigin: http://evil.example.com"), 403),
        (format!("Host: {admin}\r\nContent-Type: application/json\r\nOrigin: null"), 403),
        (format!("Host: {admin}\r\nContent-Type: text/plain"), 415),
        (format!("Host: {admin}\r\nContent-Type: application/x-www-form-urlencoded"), 415),
        (format!("Host: {admin}"), 415),
        (format!("Host: {admin}\r\nContent-Type: application/json; charset=utf-8\r\nOrigin: http://{admin}"), 200),
    ] {
        let request =
            format!("POST /v1/services/shop/promote HTTP/1.1\r\n{headers}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        assert_eq!(switchover.admin_request(&request).0, expected, "{headers}");
        if expected != 200 {
            assert_eq!(switchover.service().active, "blue");
        }
    }
    switchover.await_active("green");
}

#[test]
fn commands_print_what_they_did() {
    let (_blue, _green, config, switchover) = started();
    let status = switchover.cli(&["status"]);
    for word in ["shop  active blue", "POOL", "LAST PROBE", "standby, safe to stop", "ok, "] {
        assert!(status.stdout.contains(word), "{word}: {}", status.stdout);
    }
    let json: serde_json::Value = serde_json::from_str(&switchover.cli(&["status", "--json"]).stdout).unwrap();
    assert_eq!(json["services"][0]["active"], "blue");
    let promoted = switchover.cli(&["promote", "shop", "green"]);
    assert_eq!(promoted.code, 0, "{promoted:?}");
    assert!(
        promoted.stdout.contains("shop: promoted green in ") && promoted.stdout.contains("safe to stop blue"),
        "{promoted:?}"
    );
    let text = std::fs::read_to_string(&config.path).unwrap();
    assert_eq!(text, config.text().replace("active: blue", "active: green"));
    let again = switchover.cli(&["promote", "green"]);
    assert_eq!((again.code, again.stdout.trim()), (0, "shop: nothing to do, this pool already serves"));
    let wrong = switchover.cli(&["promote", "gren"]);
    assert_eq!(wrong.code, 2);
    assert!(wrong.stderr.contains("no pool \"gren\"; pools are blue, green"), "{wrong:?}");
    assert_eq!(switchover.cli(&["promote", "stranger", "green"]).code, 2);
    assert!(switchover.cli(&["status"]).stdout.contains("blue -> green, drained"));
    let unreachable = crate::support::switchover::run(&["status", "--admin", "127.0.0.1:1"]);
    assert_eq!(unreachable.code, 1);
    assert!(unreachable.stderr.contains("no answer from the admin address 127.0.0.1:1"), "{unreachable:?}");
}

#[test]
fn a_promotion_into_a_file_that_cannot_be_written_is_refused() {
    let (_blue, _green, config, switchover) = started();
    // Root may write to anything else; an immutable file cannot be replaced by a rename either.
    let immutable = Command::new("chattr").args(["+i", config.path.to_str().unwrap()]).output();
    if !immutable.as_ref().is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("CI").is_none(), "CI has to be able to make a file immutable: {immutable:?}");
        not_tested("a promotion into a file that cannot be written", "this system does not let us make a file immutable");
        return;
    }
    let output = switchover.cli(&["promote", "green"]);
    Command::new("chattr").args(["-i", config.path.to_str().unwrap()]).output().unwrap();
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.stderr.contains("the configuration file cannot be written"), "{output:?}");
    assert_eq!(switchover.get("/").text(), "blue");
}

#[test]
fn an_edit_of_the_service_during_its_promotion_supersedes_the_promotion() {
    let (_blue, green, config, switchover) = started();
    green.readiness(503, "starting");
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| switchover.cli(&["promote", "green"]));
        switchover.await_proving();
        config.replace_by_rename(&format!("# mine\n{}    drain: {{timeout: 7s}}\n", config.text()));
        let output = waiter.join().unwrap();
        assert_eq!(output.code, 1, "{output:?}");
    });
    green.readiness(200, "up");
    switchover.await_ready("green");
    let text = std::fs::read_to_string(&config.path).unwrap();
    assert!(text.starts_with("# mine") && text.contains("active: blue"), "{text}");
    assert_eq!(switchover.get("/").text(), "blue");
}

#[test]
fn a_promotion_survives_edits_that_do_not_concern_it() {
    let (_blue, green, config, switchover) = started();
    green.readiness(503, "starting");
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| switchover.cli(&["promote", "green"]));
        switchover.await_proving();
        config.replace_by_rename(&format!("# mine\n{}", config.text()));
        assert_eq!(switchover.admin_post("/v1/reload", "").1["result"], "unchanged");
        green.readiness(200, "up");
        let output = waiter.join().unwrap();
        assert_eq!(output.code, 0, "{output:?}");
    });
    let text = std::fs::read_to_string(&config.path).unwrap();
    assert!(text.starts_with("# mine") && text.contains("active: green"), "{text}");
}

#[test]
fn a_promotion_that_needs_no_proof_is_written_as_well() {
    let (blue, _green, config, switchover) = started();
    let gate = Gate::new();
    blue.on("/slow", Act::SayHeld(gate.clone(), Vec::new(), ok("slow")));
    let mut slow = switchover.client();
    slow.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    switchover.await_in_flight("blue", 1);
    for (pool, wait) in [("green", "promoted"), ("blue", "drained")] {
        assert_eq!(switchover.cli(&["promote", pool, "--wait", wait]).code, 0);
        let text = std::fs::read_to_string(&config.path).unwrap();
        assert!(text.contains(&format!("active: {pool}")), "{text}");
    }
    gate.open();
    slow.read_response().unwrap();
}

#[test]
fn with_a_token_file_v1_requires_the_token() {
    let blue = Origin::start("blue");
    let config = ConfigFile::new(&[("blue", &[blue.address()]), ("green", &[blue.address()])]);
    let text = config.text().replace("admin:\n", "admin:\n  token_file: token\n").replace("      green:\n", "      red:\n");
    let text = text.split("      red:").next().unwrap().to_owned();
    let token = "0123456789abcdef0123456789abcdef";
    for (content, said) in
        [(None, "No such file"), (Some("short"), "16 characters or more"), (Some("two words in one token"), "one token")]
    {
        if let Some(content) = content {
            std::fs::write(config.folder().join("token"), content).unwrap();
        }
        config.write_in_place(&text);
        let output = crate::support::switchover::run(&["run", "--config", config.path.to_str().unwrap()]);
        assert!(output.code == 78 && output.stderr.contains(said) && output.stderr.contains("admin.token_file"), "{output:?}");
    }
    std::fs::write(config.folder().join("token"), format!("{token}\n")).unwrap();
    let switchover = Switchover::start(&config);
    for path in ["/livez", "/readyz", "/metrics"] {
        crate::support::eventually(path, || match switchover.admin_get(path).0 {
            200 => Ok(()),
            other => Err(other),
        });
    }
    let ask = |authorization: &str| {
        let request = format!("GET /v1/status HTTP/1.1\r\nHost: x\r\n{authorization}Connection: close\r\n\r\n");
        switchover.admin_request(&request).0
    };
    for (authorization, status) in [
        ("", 401),
        ("Authorization: Bearer wrong\r\n", 401),
        ("Authorization: Bearer 0123456789abcdef0123456789abcdeX\r\n", 401),
        ("Authorization: Basic 0123456789abcdef0123456789abcdef\r\n", 401),
        ("Authorization: Bearer 0123456789abcdef0123456789abcdef\r\n", 200),
    ] {
        assert_eq!(ask(authorization), status, "{authorization}");
    }
    assert_eq!(switchover.admin_post("/v1/reload", "{}").0, 401);
    // Commands find the token where the configuration says that it is, and a new one is taken without a restart.
    assert_eq!(switchover.cli(&["status"]).code, 0);
    std::fs::write(config.folder().join("token"), "another-token-of-some-length").unwrap();
    assert_eq!(ask("Authorization: Bearer 0123456789abcdef0123456789abcdef\r\n"), 401);
    assert_eq!(switchover.cli(&["reload"]).code, 0);
}

#[test]
fn without_a_token_v1_is_for_loopback_and_not_for_pages() {
    let blue = Origin::start("blue");
    let config = ConfigFile::new(&[("blue", &[blue.address()])]);
    config.write_in_place(&config.text().replace("admin:\n  address: 127.0.0.1:0", "admin:\n  address: 0.0.0.0:0"));
    let switchover = Switchover::start(&config);
    // An address of this machine that is not loopback: a client that connects to it comes from it.
    let probe = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let elsewhere = probe.connect("192.0.2.1:9").and_then(|()| probe.local_addr()).map(|address| address.ip());
    if let Ok(ip) = elsewhere
        && !ip.is_loopback()
    {
        let mut client = crate::support::Client::connect((ip, switchover.admin.port()).into()).unwrap();
        assert_eq!(client.get("/livez").unwrap().status, 200);
        assert_eq!(client.get("/metrics").unwrap().status, 200);
        let answer = client.get("/v1/status").unwrap();
        assert!(answer.status == 403 && answer.text().contains("admin.token_file"), "{answer:?}");
    } else {
        assert!(std::env::var_os("CI").is_none(), "CI has to have an address other than loopback");
        not_tested("the admin API from another address", "this machine has loopback alone");
    }
    let status = |head: &str| switchover.admin_request(&format!("GET /v1/status HTTP/1.1\r\n{head}Connection: close\r\n\r\n")).0;
    assert_eq!(status("Host: localhost\r\n"), 200);
    assert_eq!(status("Host: evil.example.com\r\n"), 403, "DNS rebinding");
    assert_eq!(status("Host: localhost\r\nOrigin: http://evil.example.com\r\n"), 403);
}
