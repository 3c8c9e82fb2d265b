//! `canary`: a share of the clients for a pool that is not active.

use std::{collections::BTreeMap, path::PathBuf};

use switchover::status::PoolState;

use crate::support::{
    Authority, ConfigFile, Load, Response, Switchover, curl, eventually,
    load::mixed,
    origin::{Act, Gate, ok, status},
    two_pools,
};

const CLIENTS: u16 = 200;

/// Sends a request with these header lines.
fn ask(switchover: &Switchover, path: &str, headers: &str) -> Response {
    let mut client = switchover.client();
    client.send(format!("GET {path} HTTP/1.1\r\nHost: shop.test\r\n{headers}\r\n")).unwrap();
    client.read_response().unwrap()
}

/// The pool that serves a request with these header lines.
fn served_by(switchover: &Switchover, headers: &str) -> String {
    let response = ask(switchover, "/", headers);
    assert_eq!(response.status, 200, "{response:?}");
    response.text()
}

fn with_position(position: u16) -> String {
    format!("Cookie: a=b; switchover_side={position}\r\n")
}

fn with_address(client: u16) -> String {
    format!("X-Real-IP: 10.1.{}.{}\r\n", client / 100, client % 100)
}

/// The pool of each client, by the header lines of that client.
fn pools(switchover: &Switchover, client: impl Fn(u16) -> String) -> BTreeMap<u16, String> {
    (0..CLIENTS).map(|number| (number, served_by(switchover, &client(number)))).collect()
}

fn on_green(pools: &BTreeMap<u16, String>) -> Vec<u16> {
    pools.iter().filter(|(_, pool)| *pool == "green").map(|(client, _)| *client).collect()
}

/// Replaces a part of the file, and waits for the share that follows from it.
fn edit(switchover: &Switchover, config: &ConfigFile, from: &str, to: &str, share: &str) {
    let before = std::fs::read_to_string(&config.path).unwrap();
    assert!(before.contains(from), "{before}");
    config.replace_by_rename(&before.replace(from, to));
    switchover.await_service(share, |service| service.canary.as_ref().map_or("none", |canary| &canary.share) == share);
}

#[test]
fn clients_without_cookies_get_about_the_share_and_a_position() {
    let (_blue, green, _config, switchover) = two_pools(|config| config.service("canary: {pool: green, share: 25%}"));
    let mut client = switchover.client();
    let mut on_green = 0;
    for _ in 0..600 {
        let response = client.get("/").unwrap();
        let cookie = response.header("Set-Cookie").unwrap();
        let value =
            cookie.strip_prefix("switchover_side=").and_then(|rest| rest.strip_suffix("; Path=/; HttpOnly; SameSite=Lax"));
        let position: u16 = value.unwrap().parse().unwrap();
        assert_eq!(response.text(), if position < 2500 { "green" } else { "blue" });
        on_green += usize::from(position < 2500);
    }
    // 150 are expected, with a standard deviation of 10.6; these are six of them.
    assert!((86..=214).contains(&on_green), "{on_green} of 600");
    assert_eq!(green.heads().len(), on_green);
    let series = "switchover_canary_share{pool=\"green\",service=\"shop\"}";
    assert_eq!(switchover.metric(series), Some(0.25));
    let shown = switchover.cli(&["status"]).stdout;
    assert!(shown.contains("\n  canary  25% of the clients to green\n"), "{shown}");
}

#[test]
fn a_client_with_a_position_keeps_it_and_one_with_an_invalid_one_gets_another() {
    let (_blue, green, _config, switchover) = two_pools(|config| config.service("canary: {pool: green, share: 50%}"));
    for (position, pool) in [("0", "green"), ("4999", "green"), ("5000", "blue"), ("9999", "blue"), ("0042", "green")] {
        let response = ask(&switchover, "/", &format!("Cookie: switchover_side={position}\r\n"));
        assert_eq!((response.text().as_str(), response.header("Set-Cookie")), (pool, None), "{position}");
    }
    for position in ["", "10000", "-1", "x", "99999999999999999999"] {
        let response = ask(&switchover, "/", &format!("Cookie: switchover_side={position}\r\n"));
        assert!(response.header("Set-Cookie").is_some_and(|cookie| cookie.starts_with("switchover_side=")), "{position}");
    }
    assert!(green.heads()[0].contains("Cookie: switchover_side=0\r\n"), "the cookie is forwarded");
}

/// A larger share moves clients to the new pool and none back, up to the promotion, and over a restart.
#[test]
fn clients_stay_on_their_pool_while_the_share_grows() {
    type Client = fn(u16) -> String;
    let cookie: Client = |number| with_position(number * 50);
    for (stick, client, exact) in [("cookie", cookie, true), ("client_address", with_address as Client, false)] {
        let canary = format!("canary: {{pool: green, share: 5%, stick: {stick}}}");
        let (_blue, _green, config, switchover) =
            two_pools(|config| config.service(&canary).top("trusted_proxies: [127.0.0.0/8]\n"));
        let mut before = on_green(&pools(&switchover, client));
        for (from, to, expected) in [("5%", "30%", 60), ("30%", "70.5%", 141)] {
            edit(&switchover, &config, &format!("share: {from}"), &format!("share: {to}"), to);
            let now = on_green(&pools(&switchover, client));
            assert!(before.iter().all(|client| now.contains(client)), "{stick}: {before:?} {now:?}");
            // With addresses, 42 are more than six standard deviations.
            let about = if exact { expected..=expected } else { expected - 42..=expected + 42 };
            assert!(about.contains(&now.len()), "{stick}, {to}: {}", now.len());
            before = now;
        }
        drop(switchover);
        let switchover = Switchover::start(&config);
        switchover.await_ready("blue");
        switchover.await_ready("green");
        assert_eq!(on_green(&pools(&switchover, client)), before, "{stick}, after a restart");
        assert_eq!(switchover.cli(&["promote", "green", "--wait", "drained"]).code, 0);
        assert_eq!(on_green(&pools(&switchover, client)).len(), usize::from(CLIENTS), "{stick}");
        if !exact {
            assert_eq!(ask(&switchover, "/", &with_address(1)).header("Set-Cookie"), None);
        }
    }
}

#[test]
fn a_header_and_a_cookie_choose_whatever_the_share() {
    let all = "canary: {pool: green, share: 100%, header: X-Canary, cookie: canary}";
    let (_blue, green, config, switchover) = two_pools(|config| config.service(all));
    let cases = |other: &str| {
        for (headers, pool) in [
            ("X-Canary: always\r\n", "green"),
            ("X-Canary: never\r\n", "blue"),
            ("Cookie: canary=always\r\n", "green"),
            ("Cookie: canary=never\r\n", "blue"),
            ("X-Canary: never\r\nCookie: canary=always\r\n", "blue"),
            ("X-Canary: yes\r\nCookie: canary=never\r\n", "blue"),
            ("X-Canary: yes\r\n", other),
            ("", other),
        ] {
            assert_eq!(served_by(&switchover, headers), pool, "{headers} {other}");
        }
    };
    cases("green");
    assert!(green.heads()[0].contains("X-Canary: always\r\n"), "the header is forwarded");
    edit(&switchover, &config, "share: 100%", "share: 0%", "0%");
    cases("blue");
    let pool = switchover.pool_status("green");
    assert_eq!(
        (pool.state, pool.not_safe_because.as_deref()),
        (PoolState::Canary, Some("green gets the requests that choose it"))
    );
}

#[test]
fn the_active_pool_serves_what_a_pool_without_a_ready_peer_would_get() {
    let (_blue, green, _config, switchover) = two_pools(|config| config.service("canary: {pool: green, share: 100%}"));
    assert_eq!(served_by(&switchover, ""), "green");
    green.readiness(503, "");
    switchover.await_pool("green", "it is not ready", |pool| !pool.peers[0].ready);
    assert_eq!(served_by(&switchover, ""), "blue");
    let why = switchover.service().canary.unwrap().no_effect_because;
    assert_eq!(why.as_deref(), Some("no peer of green is ready"));
    assert_eq!(switchover.metric("switchover_no_ready_peer_total{service=\"shop\"}"), Some(0.0));
    green.readiness(200, "");
    switchover.await_ready("green");
    assert_eq!(served_by(&switchover, ""), "green");
}

/// Probes find a failure later than requests do.
#[test]
fn a_request_that_fails_on_the_canary_is_served_by_the_active_pool() {
    let service = "retries: 1\nhealth_check: {interval: 60s, ready_after: 1}\ncanary: {pool: green, share: 100%}";
    let (_blue, green, _config, switchover) = two_pools(|config| config.service(service));
    green.on("/", Act::Close);
    for _ in 0..5 {
        assert_eq!(served_by(&switchover, ""), "blue");
    }
    green.on("/", Act::Say(status(500, "broken")));
    assert_eq!(ask(&switchover, "/", "").status, 500, "a response is a response");
    green.kill();
    // The idle connection is closed, and no other one can be opened.
    for _ in 0..5 {
        assert_eq!(served_by(&switchover, ""), "blue");
        assert_eq!(switchover.client().request("POST", "/", b"x").unwrap().text(), "blue");
    }
}

/// A peer may close an idle connection at any time. That must not move a client.
#[test]
fn a_closed_idle_connection_moves_no_client() {
    let (blue, green, _config, switchover) = two_pools(|config| config.service("canary: {pool: green, share: 100%}"));
    green.on("/", Act::CloseAtSecond);
    for _ in 0..6 {
        assert_eq!(served_by(&switchover, ""), "green");
    }
    assert_eq!(blue.heads().len(), 0);
}

#[test]
fn a_canary_is_not_safe_to_stop_and_drains_when_it_ends() {
    let (_blue, green, config, switchover) = two_pools(|config| config.service("canary: {pool: green, share: 5%}"));
    let pool = switchover.pool_status("green");
    assert_eq!((pool.state, pool.not_safe_because.as_deref()), (PoolState::Canary, Some("green gets 5% of the clients")));
    assert_eq!(switchover.admin_get("/v1/services/shop/pools/green/safe-to-stop").0, 504);
    let gate = Gate::new();
    green.on("/held", Act::SayHeld(gate.clone(), Vec::new(), ok("held")));
    std::thread::scope(|scope| {
        let held = scope.spawn(|| ask(&switchover, "/held", &with_position(0)));
        switchover.await_in_flight("green", 1);
        edit(&switchover, &config, "    canary: {pool: green, share: 5%}\n", "", "none");
        let pool = switchover.pool_status("green");
        assert_eq!((pool.state, pool.not_safe_because.as_deref()), (PoolState::Draining, Some("1 request still runs")));
        assert_eq!(served_by(&switchover, &with_position(0)), "blue");
        gate.open();
        assert_eq!(held.join().unwrap().text(), "held");
    });
    switchover.await_safe_to_stop("green");
    assert!(!switchover.metrics().contains("switchover_canary_share{"));
}

#[test]
fn a_canary_of_the_active_pool_has_no_effect_and_begins_again_after_a_swap_back() {
    let (_blue, _green, _config, switchover) = two_pools(|config| config.service("canary: {pool: green, share: 5%}"));
    assert_eq!(switchover.cli(&["promote", "green", "--wait", "drained"]).code, 0);
    let canary = switchover.service().canary.unwrap();
    assert_eq!(canary.no_effect_because.as_deref(), Some("green is the active pool"));
    assert_eq!(served_by(&switchover, &with_position(9999)), "green");
    assert_eq!(ask(&switchover, "/", "").header("Set-Cookie"), None);
    assert!(switchover.pool_status("blue").safe_to_stop);
    let output = switchover.cli(&["promote", "blue", "--wait", "drained"]);
    assert!(output.code == 3 && output.stderr.contains("green gets 5% of the clients"), "{output:?}");
    assert_eq!([9999, 0].map(|position| served_by(&switchover, &with_position(position))), ["blue", "green"]);
}

#[test]
fn the_cookie_is_secure_with_tls_and_also_set_over_http2() {
    let authority = Authority::new();
    let mut ca = PathBuf::new();
    let (_blue, _green, _config, switchover) = two_pools(|config| {
        ca = authority.write(config.folder());
        authority.sign(config.folder(), "shop", &["shop.test"], 2040);
        let config = config.listener("    tls: {certificates: [{certificate: shop.crt, key: shop.key}]}\n");
        config.service("canary: {pool: green, share: 100%}")
    });
    let resolve = format!("shop.test:{}:127.0.0.1", switchover.address.port());
    let url = format!("https://shop.test:{}/", switchover.address.port());
    for version in ["--http1.1", "--http2"] {
        let shown = curl(&url, &["-f", "-i", version, "--cacert", ca.to_str().unwrap(), "--resolve", &resolve]).unwrap();
        assert!(shown.ends_with("green") && shown.contains("; Path=/; HttpOnly; SameSite=Lax; Secure\r\n"), "{shown}");
    }
}

#[test]
fn previews_and_copies_are_apart_from_a_canary() {
    let service = "preview: {from: [127.0.0.0/8]}\nmirror: {pool: green, share: 100%}\ncanary: {pool: green, share: 100%}";
    let (blue, green, _config, switchover) = two_pools(|config| config.service(service));
    let response = ask(&switchover, "/", "X-Switchover-Pool: blue\r\n");
    assert_eq!((response.text().as_str(), response.header("Set-Cookie")), ("blue", None));
    assert!(switchover.service().mirror.is_none(), "the pool gets clients, and no copies");
    assert_eq!(served_by(&switchover, ""), "green");
    assert_eq!((blue.heads().len(), green.heads().len()), (1, 1));
}

#[test]
fn changes_of_the_share_under_load_fail_no_request() {
    let (_blue, _green, config, switchover) =
        two_pools(|config| config.service("canary: {pool: green, share: 0%, header: X-Canary}"));
    let load = Load::start(switchover.address, 6, mixed);
    let mut share = "0%";
    for next in ["50%", "100%", "20%", "0%", "50%", "0%"] {
        edit(&switchover, &config, &format!("share: {share}"), &format!("share: {next}"), next);
        share = next;
        load.await_sent(100);
    }
    edit(&switchover, &config, "share: 0%, header: X-Canary", "share: 30%", "30%");
    load.await_sent(50);
    assert_eq!(switchover.cli(&["promote", "green", "--wait", "drained"]).code, 0);
    load.await_sent(50);
    load.stop().assert_no_failures();
    assert!(switchover.pool_status("blue").safe_to_stop);
}

/// Otherwise the canary of the file would send clients to the release that was just taken back.
#[test]
fn a_pool_that_was_taken_back_gets_no_clients_until_an_edit() {
    let service = "canary: {pool: green, share: 50%}\npromotion: {observe: 60s, take_back: {errors: 10%, at_least: 1}}";
    let (_blue, green, config, switchover) = two_pools(|config| config.service(service));
    assert_eq!(switchover.cli(&["promote", "green", "--wait", "promoted"]).code, 0);
    green.on("/", Act::Say(status(500, "broken")));
    eventually("green is taken back", || {
        ask(&switchover, "/", "");
        match switchover.service() {
            service if service.active == "blue" => Ok(()),
            service => Err(service),
        }
    });
    switchover.await_safe_to_stop("green");
    for position in [0, 4999, 9999] {
        assert_eq!(served_by(&switchover, &with_position(position)), "blue");
    }
    let why = switchover.service().canary.unwrap().no_effect_because.unwrap();
    assert!(why.starts_with("green was taken back"), "{why}");
    green.on("/", Act::Say(ok("green")));
    edit(&switchover, &config, "share: 50%", "share: 20%", "20%");
    assert_eq!(served_by(&switchover, &with_position(0)), "green");
}
