//! The warm-up of a new pool before its promotion.

use std::fs;

use serde_json::Value;
use switchover::status::{Outcome, Phase};

use crate::support::{
    ConfigFile, HyperPeer, Origin, Switchover, eventually,
    origin::{Act, Gate, status},
    two_pools,
};

fn warmed(warm_up: &str) -> (Origin, Origin, ConfigFile, Switchover) {
    two_pools(|config| config.service(&format!("promotion: {{warm_up: {warm_up}}}")))
}

fn promote(switchover: &Switchover, pool: &str) -> (u16, Value) {
    switchover.admin_post("/v1/services/shop/promote?wait=drained", &format!("{{\"pool\": \"{pool}\"}}"))
}

fn count(switchover: &Switchover, result: &str) -> Option<f64> {
    switchover.metric(&format!("switchover_warm_up_requests_total{{pool=\"green\",result=\"{result}\",service=\"shop\"}}"))
}

#[test]
fn a_new_pool_gets_requests_before_its_promotion_and_the_serving_one_none() {
    // Fewer than 20 requests never end early, so the number is exact.
    let warm_up = "{paths: [/, \"/items?page=1\"], requests: 18, concurrency: 3}";
    let (blue, green, _config, switchover) =
        two_pools(|config| config.service(&format!("hosts: [\"*.test\", shop.test]\npromotion: {{warm_up: {warm_up}}}")));
    green.on("/items", Act::Say(status(404, "no such page")));
    assert!(blue.own_requests().0.is_empty(), "no warm-up at the start: {:?}", blue.own_requests());
    let (status, applied) = promote(&switchover, "green");
    assert_eq!(status, 200, "{applied}");
    let (heads, _) = green.own_requests();
    let of = |path: &str| heads.iter().filter(|head| head.starts_with(&format!("GET {path} HTTP/1.1\r\n"))).count();
    assert_eq!((heads.len(), of("/"), of("/items?page=1")), (18, 9, 9), "{heads:?}");
    for head in heads {
        let head = head.to_ascii_lowercase();
        assert!(head.contains("\r\nx-switchover-warm-up: 1\r\n") && head.contains("\r\nhost: shop.test\r\n"), "{head}");
    }
    assert_eq!((count(&switchover, "success"), count(&switchover, "failure")), (Some(18.0), Some(0.0)));
    assert!(blue.own_requests().0.is_empty());
    switchover.await_log("warmed up service=shop pool=green requests=\"18 of 18 requests, p95 ");
}

#[test]
fn a_pool_whose_warm_up_fails_is_not_promoted() {
    let (_blue, green, config, switchover) = warmed("{paths: [/, /broken], requests: 40, concurrency: 1}");
    let before = fs::read_to_string(&config.path).unwrap();
    green.on("/broken", Act::Say(status(500, "no database")));
    let (status, error) = promote(&switchover, "green");
    assert_eq!((status, &error["code"]), (504, &"not-ready".into()), "{error}");
    // Five failed requests are not more than a tenth of 40; the fifth is the tenth request.
    let reason = format!("{}: 5 of 10 warm-up requests failed, the last one: GET /broken: 500", green.address());
    assert_eq!(error["message"], format!("promotion of green failed: {reason}"));
    assert_eq!(fs::read_to_string(&config.path).unwrap(), before);
    assert_eq!((switchover.get("/").text(), count(&switchover, "failure")), ("blue".to_owned(), Some(5.0)));
    green.on("/broken", Act::Close);
    let (_, error) = promote(&switchover, "green");
    let reason = "GET /broken: closed the connection before its response was complete";
    assert!(error["message"].as_str().unwrap().ends_with(reason), "{error}");
}

#[test]
fn a_warm_up_that_takes_too_long_ends_and_the_pool_is_promoted() {
    let (_blue, green, _config, switchover) = warmed("{paths: [/, /slow], requests: 50, concurrency: 2, within: 300ms}");
    green.on("/slow", Act::Hang);
    // On a busy machine, no request may be successful in this time.
    let applied = eventually("the pool is promoted", || match promote(&switchover, "green") {
        (200, applied) => Ok(applied),
        (_, error) if error["message"].as_str().is_some_and(|why| why.contains("no warm-up request was successful")) => {
            Err(error)
        }
        (status, other) => panic!("{status} {other}"),
    });
    assert!(applied["swaps"][0]["prove_seconds"].as_f64().unwrap() >= 0.3, "{applied}");
}

#[test]
fn a_pool_that_answers_no_request_of_its_warm_up_is_not_promoted() {
    let (_blue, green, _config, switchover) = warmed("{within: 300ms}");
    green.on("/", Act::Hang);
    let (status, error) = promote(&switchover, "green");
    assert_eq!((status, &error["code"]), (504, &"not-ready".into()), "{error}");
    let reason = format!("{}: no warm-up request was successful: no response within 300ms", green.address());
    assert_eq!(error["message"], format!("promotion of green failed: {reason}"));
}

#[test]
fn its_progress_is_shown_and_it_can_be_cancelled() {
    let (_blue, green, _config, switchover) = warmed("{requests: 10, concurrency: 1, within: 1h}");
    let gate = Gate::new();
    green.on("/", Act::SayHeld(gate.clone(), Vec::new(), status(200, "green")));
    std::thread::scope(|scope| {
        let command = scope.spawn(|| switchover.cli(&["promote", "green"]));
        let shop = switchover
            .await_service("warming up", |service| service.swap.as_ref().is_some_and(|swap| swap.phase == Phase::WarmingUp));
        assert_eq!(shop.swap.unwrap().reason.as_deref(), Some("0 of 10 requests, p95 0 ms"));
        let text = switchover.cli(&["status"]).stdout;
        assert!(text.contains("blue -> green, warming up: 0 of 10 requests, p95 0 ms"), "{text}");
        assert_eq!(switchover.cli(&["cancel"]).code, 0);
        let output = command.join().unwrap();
        assert_eq!(output.code, 1, "{output:?}");
    });
    assert_eq!(switchover.service().swap.unwrap().outcome, Some(Outcome::Cancelled));
    gate.open();
}

#[test]
fn peers_are_warmed_up_over_the_protocol_that_they_speak() {
    let (blue, green) = (HyperPeer::start(true, None), HyperPeer::start(true, None));
    let config = ConfigFile::new(&[("blue", &[blue.address]), ("green", &[green.address])]);
    let config = config.service("upstream: {protocol: h2c}\npromotion: {warm_up: {requests: 10}}");
    let switchover = Switchover::start(&config);
    let (status, applied) = promote(&switchover, "green");
    assert_eq!(status, 200, "{applied}");
    assert_eq!(count(&switchover, "success"), Some(10.0));
}
