//! Requests that choose their pool: by the header of `preview`, or by a listener with `pool: standby`.

use std::{fs, net::SocketAddr};

use switchover::status::PoolState;

use crate::support::{
    Client, ConfigFile, Origin, Response, Switchover, curl, eventually,
    origin::{Act, Gate, ok},
    two_pools,
};

const FROM_HERE: &str = "preview: {from: [127.0.0.0/8]}";
const TO_GREEN: &str = "X-Switchover-Pool: green\r\n";

/// Sends a request with these header lines over a connection of its own.
fn ask(address: SocketAddr, path: &str, headers: &str) -> Response {
    let mut client = Client::connect(address).unwrap();
    client.send(format!("GET {path} HTTP/1.1\r\nHost: shop.test\r\n{headers}\r\n")).unwrap();
    client.read_response().unwrap()
}

/// The status and the body of a request to the first listener.
fn answer(switchover: &Switchover, headers: &str) -> (u16, String) {
    let response = ask(switchover.address, "/", headers);
    (response.status, response.text())
}

fn served_by(pool: &str) -> (u16, String) {
    (200, pool.to_owned())
}

/// The address of the second listener.
fn second(switchover: &Switchover) -> SocketAddr {
    switchover.read_status().listeners[1].parse().unwrap()
}

fn forbidden() -> (u16, String) {
    (403, "403 this client is not allowed to choose a pool\n".to_owned())
}

/// A configuration whose admin API has a token, which is in the returned text.
fn with_token(config: ConfigFile, service: &str) -> (ConfigFile, String) {
    let token = "0123456789abcdef".to_owned();
    fs::write(config.folder().join("token"), format!("{token}\n")).unwrap();
    let config = config.service(service);
    config.write_in_place(&config.text().replace("admin:\n", "admin:\n  token_file: token\n"));
    (config, token)
}

#[test]
fn a_request_with_the_header_goes_to_the_pool_that_it_names() {
    let (blue, green, _config, switchover) = two_pools(|config| config.service(FROM_HERE));
    for (headers, pool) in
        [("", "blue"), (TO_GREEN, "green"), ("x-switchover-pool: green\r\n", "green"), ("X-Switchover-Pool: blue\r\n", "blue")]
    {
        assert_eq!(answer(&switchover, headers), served_by(pool), "{headers}");
    }
    // It went the whole way, and the application does not see that it was a preview.
    let heads: Vec<String> = [green.heads(), blue.heads()].concat();
    assert_eq!(heads.len(), 4);
    for head in heads.iter().map(|head| head.to_lowercase()) {
        assert!(!head.contains("x-switchover") && head.contains("x-forwarded-for: 127.0.0.1\r\n"), "{head}");
        assert!(head.contains("host: shop.test\r\n") && head.contains("x-request-id: "), "{head}");
    }
    let of = |pool: &str, origin: &Origin| {
        let labels = format!("code=\"200\",method=\"GET\",peer=\"{}\",pool=\"{pool}\",service=\"shop\"", origin.address());
        let duration = format!("switchover_http_request_duration_seconds_count{{pool=\"{pool}\",service=\"shop\"}}");
        [switchover.metric(&format!("switchover_http_requests_total{{{labels}}}")), switchover.metric(&duration)]
    };
    eventually("each pool has its own requests", || match [of("blue", &blue), of("green", &green)] {
        [[Some(2.0), Some(2.0)], [Some(2.0), Some(2.0)]] => Ok(()),
        other => Err(other),
    });
}

#[test]
fn without_preview_the_headers_are_the_applications() {
    let (blue, green, _config, switchover) = two_pools(|config| config);
    assert_eq!(answer(&switchover, &format!("{TO_GREEN}X-Switchover-Token: mine\r\n")), served_by("blue"));
    assert!(blue.heads()[0].contains(TO_GREEN) && blue.heads()[0].contains("X-Switchover-Token: mine\r\n"));
    assert_eq!(green.heads().len(), 0);
}

#[test]
fn a_client_that_is_in_no_network_is_rejected_and_served_by_no_pool() {
    let (blue, green, _config, switchover) = two_pools(|config| config.service("preview: {from: [10.0.0.0/8]}"));
    for name in ["green", "blue", "gren", ""] {
        assert_eq!(answer(&switchover, &format!("X-Switchover-Pool: {name}\r\n")), forbidden(), "{name}");
    }
    switchover.await_rejected("preview", 4);
    assert_eq!((blue.heads().len(), green.heads().len()), (0, 0));
    assert_eq!(answer(&switchover, ""), served_by("blue"));
}

#[test]
fn a_pool_that_does_not_exist_is_an_error_and_not_the_active_pool() {
    let (blue, green, _config, switchover) = two_pools(|config| config.service(FROM_HERE));
    let twice = format!("{TO_GREEN}X-Switchover-Pool: blue\r\n");
    for headers in ["X-Switchover-Pool: gren\r\n", "X-Switchover-Pool: \r\n", "X-Switchover-Pool: GREEN\r\n", &twice] {
        assert_eq!(answer(&switchover, headers), (400, "400 the service has no pool with this name\n".to_owned()), "{headers}");
    }
    switchover.await_rejected("preview_pool", 4);
    assert_eq!((blue.heads().len(), green.heads().len()), (0, 0));
}

/// A proxy may set only one of the two headers, and forward what a client says in the other one.
#[test]
fn behind_a_trusted_proxy_every_address_that_is_reported_has_to_be_allowed() {
    let service = "preview: {from: [10.0.0.0/8]}";
    let (_blue, _green, _config, switchover) =
        two_pools(|config| config.service(service).top("trusted_proxies: [127.0.0.0/8]\n"));
    for (reported, allowed) in [
        ("X-Forwarded-For: 10.1.2.3\r\n", true),
        ("X-Real-IP: 10.1.2.3\r\n", false),
        ("X-Forwarded-For: 10.1.2.3\r\nX-Real-IP: 10.1.2.3\r\n", true),
        ("X-Forwarded-For: 203.0.113.9\r\n", false),
        ("X-Forwarded-For: 10.1.2.3, 203.0.113.9\r\n", false),
        ("X-Forwarded-For: 203.0.113.9, 10.1.2.3\r\n", true),
        ("X-Forwarded-For: 203.0.113.9\r\nX-Real-IP: 10.1.2.3\r\n", false),
        ("X-Forwarded-For: 10.1.2.3\r\nX-Real-IP: 203.0.113.9\r\n", false),
        ("X-Forwarded-For: 10.1.2.3\r\nX-Real-IP: 10.1.2.3\r\nX-Real-IP: 203.0.113.9\r\n", false),
        ("X-Forwarded-For: nonsense\r\n", false),
        ("", false),
    ] {
        let expected = if allowed { served_by("green") } else { forbidden() };
        assert_eq!(answer(&switchover, &format!("{reported}{TO_GREEN}")), expected, "{reported}");
    }
}

#[test]
fn a_client_with_the_token_is_allowed_and_the_token_is_never_forwarded() {
    let (blue, green) = (Origin::start("blue"), Origin::start("green"));
    let config = ConfigFile::new(&[("blue", &[blue.address()]), ("green", &[green.address()])]);
    let (config, token) = with_token(config, "preview: {header: X-Pool, from: []}");
    let switchover = Switchover::start(&config);
    let with = |token: &str| answer(&switchover, &format!("X-Pool: green\r\nX-Switchover-Token: {token}\r\n"));
    // The status needs the token too, so the test waits by previews.
    eventually("green is ready", || match with(&token) {
        answer if answer == served_by("green") => Ok(()),
        other => Err(other),
    });
    for wrong in ["", "0123456789abcdeF", "0123456789abcde", "0123456789abcdef0"] {
        assert_eq!(with(wrong), forbidden(), "{wrong}");
    }
    assert_eq!(answer(&switchover, "X-Pool: green\r\n"), forbidden());
    assert_eq!(answer(&switchover, &format!("X-Switchover-Token: {token}\r\n")), served_by("blue"));
    assert_eq!(answer(&switchover, TO_GREEN), served_by("blue"), "another header is not the configured one");
    for head in [blue.heads(), green.heads()].concat() {
        assert!(!head.contains("X-Switchover-Token") && !head.contains(&token) && !head.contains("X-Pool"), "{head}");
    }
    let new = "fedcba9876543210";
    fs::write(config.folder().join("token"), new).unwrap();
    eventually("the new token is read", || match with(new) {
        answer if answer == served_by("green") => Ok(()),
        other => Err(other),
    });
    assert_eq!(with(&token), forbidden());
}

#[test]
fn a_preview_over_http2_is_like_one_over_http1() {
    let (_blue, green, _config, switchover) = two_pools(|config| config.service(FROM_HERE));
    let url = format!("http://{}/", switchover.address);
    let h2 = |header: &str| curl(&url, &["--http2-prior-knowledge", "-w", " %{http_code}", "-H", header]).unwrap();
    assert_eq!(h2("X-Switchover-Pool: green"), "green 200");
    assert_eq!(h2("X-Other: green"), "blue 200");
    assert_eq!(h2("X-Switchover-Pool: red"), "400 the service has no pool with this name\n 400");
    assert!(!green.heads()[0].to_lowercase().contains("x-switchover"));
}

#[test]
fn a_preview_of_a_pool_that_is_not_ready_says_why_and_concerns_no_other_client() {
    let (_blue, green, _config, switchover) = two_pools(|config| config.service(FROM_HERE));
    green.readiness(503, "{\"status\":\"OUT_OF_SERVICE\"}");
    switchover.await_pool("green", "it is not ready", |pool| !pool.peers[0].ready);
    let response = ask(switchover.address, "/", TO_GREEN);
    let expected = format!("503 green is not ready: {}: 503 {{\"status\":\"OUT_OF_SERVICE\"}}\n", green.address());
    assert_eq!((response.status, response.text()), (503, expected));
    assert_eq!(response.header("Retry-After"), Some("1"));
    assert_eq!(switchover.metric("switchover_no_ready_peer_total{service=\"shop\"}"), Some(0.0), "clients had a ready peer");
    assert_eq!(answer(&switchover, ""), served_by("blue"));
    assert_eq!(green.heads().len(), 0);
}

#[test]
fn a_preview_is_retried_on_its_own_pool_only() {
    let [blue, one, two] = ["blue", "one", "two"].map(Origin::start);
    let config = ConfigFile::new(&[("blue", &[blue.address()]), ("green", &[one.address(), two.address()])]).service(FROM_HERE);
    let switchover = Switchover::start(&config);
    switchover.await_ready("green");
    one.on("/", Act::Close);
    for _ in 0..4 {
        assert_eq!(answer(&switchover, TO_GREEN), served_by("two"));
    }
    two.on("/", Act::Close);
    assert_eq!(answer(&switchover, TO_GREEN), (502, "502 the application did not answer\n".to_owned()));
    assert_eq!(blue.heads().len(), 0);
}

/// Sends a request to green that its peer holds until the gate is opened; reads its response in another thread.
struct Held {
    gate: Gate,
    client: std::thread::JoinHandle<Response>,
}

impl Held {
    fn on(origin: &Origin, address: SocketAddr, pool: &str) -> Self {
        let gate = Gate::new();
        origin.on("/held", Act::SayHeld(gate.clone(), Vec::new(), ok("held")));
        let headers = format!("X-Switchover-Pool: {pool}\r\n");
        Self { gate, client: std::thread::spawn(move || ask(address, "/held", &headers)) }
    }

    fn end(self) {
        self.gate.open();
        let response = self.client.join().unwrap();
        assert_eq!((response.status, response.text()), (200, "held".to_owned()));
    }
}

#[test]
fn a_pool_is_not_safe_to_stop_while_a_preview_runs_on_it() {
    let (_blue, green, _config, switchover) = two_pools(|config| config.service(FROM_HERE));
    let safe = |wait: &str| switchover.admin_get(&format!("/v1/services/shop/pools/green/safe-to-stop{wait}"));
    assert_eq!(safe("").0, 200);
    let held = Held::on(&green, switchover.address, "green");
    let pool = switchover.await_pool("green", "a preview runs", |pool| pool.in_flight == 1);
    assert_eq!((pool.state, pool.safe_to_stop), (PoolState::Standby, false));
    assert_eq!(pool.not_safe_because.as_deref(), Some("a preview runs on green"));
    assert!(safe("").1.contains("a preview runs on green"), "{:?}", safe(""));
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| safe("?wait=60s"));
        held.end();
        assert_eq!(waits.join().unwrap().0, 200);
    });
}

#[test]
fn a_websocket_can_be_a_preview() {
    let (_blue, green, _config, switchover) = two_pools(|config| config.service(FROM_HERE));
    green.on("/ws", Act::Echo);
    let mut socket = switchover.client();
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    socket.send(format!("GET /ws HTTP/1.1\r\nHost: a\r\n{upgrade}{TO_GREEN}\r\n")).unwrap();
    assert_eq!(socket.read_head().unwrap().status, 101);
    socket.send("hello").unwrap();
    assert_eq!(socket.read_exactly(5).unwrap(), b"hello");
    let pool = switchover.pool_status("green");
    assert_eq!((pool.upgraded, pool.not_safe_because.as_deref()), (1, Some("a preview runs on green")));
    drop(socket);
    switchover.await_safe_to_stop("green");
}

#[test]
fn a_swap_does_not_end_the_previews_of_either_pool() {
    let (blue, green, _config, switchover) = two_pools(|config| config.service(FROM_HERE));
    let (on_green, on_blue) = (Held::on(&green, switchover.address, "green"), Held::on(&blue, switchover.address, "blue"));
    switchover.await_in_flight("green", 1);
    switchover.await_in_flight("blue", 1);
    assert_eq!(switchover.cli(&["promote", "green", "--wait", "promoted"]).code, 0);
    assert_eq!(answer(&switchover, ""), served_by("green"));
    assert_eq!(answer(&switchover, "X-Switchover-Pool: blue\r\n"), served_by("blue"), "a draining pool can be chosen");
    let pool = switchover.await_pool("blue", "only the first preview runs", |pool| pool.in_flight == 1);
    assert_eq!((pool.state, pool.not_safe_because.as_deref()), (PoolState::Draining, Some("a preview runs on blue")));
    on_blue.end();
    switchover.await_safe_to_stop("blue");
    on_green.end();
    switchover.await_in_flight("green", 0);
}

/// One edit may change a pool and promote it. What a preview tests then has to be what is going to be promoted.
#[test]
fn a_preview_of_a_pool_that_is_being_proven_reaches_its_new_peers() {
    let (_blue, _green, config, switchover) = two_pools(|config| config.service(FROM_HERE));
    let [new, late] = ["new", "late"].map(Origin::start);
    late.readiness(503, "");
    assert_eq!(answer(&switchover, TO_GREEN), served_by("green"));
    let text = config.text().replace("active: blue", "active: green");
    let (before, _) = text.rsplit_once("peers: ").unwrap();
    config.replace_by_rename(&format!("{before}peers: [\"{}\", \"{}\"]\n", new.address(), late.address()));
    switchover.await_proving();
    eventually("the new peer is reached", || match answer(&switchover, TO_GREEN) {
        answer if answer == served_by("new") => Ok(()),
        other => Err(other),
    });
    assert_eq!(answer(&switchover, ""), served_by("blue"));
    assert_eq!(switchover.cli(&["cancel"]).code, 0);
    eventually("the earlier peer is reached again", || match answer(&switchover, TO_GREEN) {
        answer if answer == served_by("green") => Ok(()),
        other => Err(other),
    });
}

#[test]
fn a_standby_listener_follows_the_swap_and_needs_no_header() {
    let (_blue, green, _config, switchover) = two_pools(|config| config.listener("- address: 127.0.0.1:0\npool: standby\n"));
    let standby = second(&switchover);
    let served = |address: SocketAddr| ask(address, "/", "").text();
    assert_eq!((served(switchover.address), served(standby)), ("blue".to_owned(), "green".to_owned()));
    assert_eq!(switchover.cli(&["promote", "green"]).code, 0);
    assert_eq!((served(switchover.address), served(standby)), ("green".to_owned(), "blue".to_owned()));
    assert_eq!(switchover.cli(&["promote", "blue"]).code, 0);
    green.kill();
    switchover.await_pool("green", "it is not ready", |pool| !pool.peers[0].ready);
    let response = ask(standby, "/", "");
    assert_eq!(response.status, 503);
    assert!(response.text().starts_with(&format!("503 green is not ready: {}: connection refused", green.address())));
}

#[test]
fn a_standby_listener_rejects_services_without_exactly_one_standby_pool() {
    let [a, b, c] = ["a", "b", "c"].map(Origin::start);
    let listener = "- address: 127.0.0.1:0\npool: standby\n";
    let config = ConfigFile::new(&[("a", &[a.address()]), ("b", &[b.address()]), ("c", &[c.address()])]);
    let config = config.listener(listener).service("preview: {from: [127.0.0.0/8]}");
    let switchover = Switchover::start(&config);
    let standby = second(&switchover);
    let response = ask(standby, "/", "");
    assert_eq!(response.status, 503);
    assert!(response.text().starts_with("503 this listener serves the standby pool of services with two pools"), "{response:?}");
    switchover.await_ready("c");
    assert_eq!(ask(standby, "/", "X-Switchover-Pool: c\r\n").text(), "c", "the header works on every listener");
    let output = crate::support::switchover::run(&["check", "--config", config.path.to_str().unwrap()]);
    let warning = "listeners[1].pool: responds with 503 to requests of services.shop, because it has 3 pools and not two";
    assert!(output.code == 0 && output.stderr.contains(warning), "{output:?}");
}
