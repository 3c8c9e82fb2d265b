//! The metrics: each has its labels, clients cannot create series, and series of removed peers are removed.

use std::collections::BTreeSet;

use crate::support::{ConfigFile, Origin, Switchover, eventually, one_pool};

/// Each metric with its labels.
const LISTED: &[(&str, &[&str])] = &[
    ("http_requests_total", &["code", "method", "peer", "pool", "service"]),
    ("http_request_duration_seconds", &["pool", "service"]),
    ("upstream_connect_seconds", &["pool", "service"]),
    ("upstream_response_header_seconds", &["pool", "service"]),
    ("http_requests_in_flight", &["peer", "pool", "service"]),
    ("upgraded_connections", &["peer", "pool", "service"]),
    ("upstream_errors_total", &["kind", "peer", "pool", "service"]),
    ("broken_responses_total", &["by", "peer", "pool", "service"]),
    ("retries_total", &["outcome", "service"]),
    ("no_ready_peer_total", &["service"]),
    ("peer_ready", &["peer", "pool", "service"]),
    ("peer_draining", &["peer", "pool", "service"]),
    ("probes_total", &["peer", "pool", "result", "service"]),
    ("probe_duration_seconds", &["peer", "pool", "service"]),
    ("active_pool", &["pool", "service", "version"]),
    ("swaps_total", &["result", "service"]),
    ("swap_duration_seconds", &["phase", "service"]),
    ("swap_last_success_timestamp_seconds", &["service"]),
    ("config_reloads_total", &["result"]),
    ("config_last_reload_successful", &[]),
    ("config_last_reload_success_timestamp_seconds", &[]),
    ("config_generation", &[]),
    ("build_info", &["version"]),
    ("downstream_connections", &[]),
    ("rejected_requests_total", &["listener", "reason"]),
    ("access_log_dropped_total", &[]),
];

/// Name and label names of every sample.
fn samples(text: &str) -> BTreeSet<(String, Vec<String>)> {
    let samples = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    samples
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
            value.parse::<f64>().unwrap_or_else(|e| panic!("{line}: {e}"));
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let labels = labels.strip_suffix('}').unwrap_or_else(|| panic!("{line}"));
            let labels =
                labels.split("\",").filter(|label| !label.is_empty()).map(|label| label.split_once("=\"").unwrap().0.to_owned());
            (name.to_owned(), labels.filter(|label| label != "le").collect())
        })
        .collect()
}

#[test]
fn every_listed_metric_is_there_with_its_labels() {
    let (blue, green) = (Origin::start("blue"), Origin::start("green"));
    let config = ConfigFile::new(&[("blue", &[blue.address()]), ("green", &[green.address()])]);
    let switchover = Switchover::start(&config);
    assert_eq!(switchover.get("/").status, 200);
    assert_eq!(switchover.cli(&["promote", "green"]).code, 0);
    let text = switchover.metrics();
    let samples = samples(&text);
    for (name, labels) in LISTED {
        let name = format!("switchover_{name}");
        let labels: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
        let found: Vec<_> = samples.iter().filter(|(n, _)| *n == name || n.strip_suffix("_bucket") == Some(&name)).collect();
        assert!(!found.is_empty(), "{name} is missing\n{text}");
        assert!(found.iter().all(|(_, of)| *of == labels), "{name}: {found:?}");
        assert!(text.contains(&format!("# HELP {name} ")) && text.contains(&format!("# TYPE {name} ")), "{name}");
    }
    assert!(text.contains("process_resident_memory_bytes"));
    assert!(text.contains("switchover_active_pool{pool=\"green\",service=\"shop\",version=\"\"} 1"), "{text}");
    assert!(text.contains("switchover_active_pool{pool=\"blue\",service=\"shop\",version=\"\"} 0"), "{text}");
}

#[test]
fn nothing_grows_with_what_clients_send() {
    let (blue, _config, switchover) = one_pool(|config| config);
    let ask = |i: usize| {
        let mut client = switchover.client();
        client.send(format!("BREW{i} /path{i} HTTP/1.1\r\nHost: host{i}.test\r\nX-Forwarded-For: 10.0.0.{i}\r\n\r\n")).unwrap();
        client.read_response().unwrap();
    };
    (0..5).for_each(ask);
    let series = |text: &str| text.lines().filter(|line| !line.starts_with('#')).count();
    let before = switchover.metrics();
    (5..100).for_each(ask);
    let after = switchover.metrics();
    assert_eq!(series(&before), series(&after));
    let counted = format!(
        "switchover_http_requests_total{{code=\"200\",method=\"OTHER\",peer=\"{}\",pool=\"blue\",service=\"shop\"}} 100",
        blue.address()
    );
    eventually("all are counted", || if switchover.metrics().contains(&counted) { Ok(()) } else { Err(switchover.metrics()) });
    assert!(!after.contains("path5") && !after.contains("host5") && !after.contains("BREW"));
}

#[test]
fn a_peer_that_leaves_takes_its_series_along() {
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let mut config = ConfigFile::new(&[("blue", &[a.address(), b.address()])]);
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    (0..10).for_each(|_| assert_eq!(switchover.get("/").status, 200));
    let of_b = b.address().to_string();
    assert!(switchover.metrics().contains(&of_b));
    config.set_peers("blue", &[&format!("\"{}\"", a.address())]);
    eventually("nothing is left of it", || {
        let text = switchover.metrics();
        if text.contains(&of_b) { Err(text) } else { Ok(()) }
    });
}

#[test]
fn connections_are_counted() {
    let (_blue, _config, switchover) = one_pool(|config| config);
    let clients: Vec<_> = (0..7).map(|_| switchover.client()).collect();
    let is = |n: f64| {
        eventually("the gauge follows", || match switchover.metric("switchover_downstream_connections") {
            Some(now) if now == n => Ok(()),
            other => Err(other),
        });
    };
    is(7.0);
    drop(clients);
    is(0.0);
}
