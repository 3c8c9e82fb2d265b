//! deploy/prometheus and deploy/grafana: a real Prometheus scrapes real swaps with the scrape configuration that is handed out;
//! every query of the dashboard has an answer, and the alerts that should fire do.

use std::{
    fs,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpSocket;

use crate::support::{Client, ConfigFile, Edit, Load, Origin, Switchover, eventually, origin::Act, origin::status};

/// Prometheus with our configuration, but for the address it scrapes and how often.
struct Prometheus {
    _folder: TempDir,
    address: SocketAddr,
    child: Child,
}

impl Prometheus {
    fn scraping(admin: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let from = deploy().join("prometheus");
        let text = fs::read_to_string(from.join("prometheus.yml")).unwrap();
        let quick = text.replace("\"switchover:9901\"", &format!("\"{admin}\"")).replace("_interval: 5s", "_interval: 1s");
        assert!(quick.contains(&admin.to_string()) && quick.contains("_interval: 1s"), "{text}");
        fs::write(folder.path().join("prometheus.yml"), quick).unwrap();
        fs::copy(from.join("alerts.yml"), folder.path().join("alerts.yml")).unwrap();
        let port = TcpSocket::new_v4().unwrap();
        port.set_reuseaddr(true).unwrap();
        port.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let address = port.local_addr().unwrap();
        drop(port);
        let child = Command::new("prometheus")
            .current_dir(folder.path())
            .args(["--config.file=prometheus.yml", "--storage.tsdb.path=data", "--log.level=error"])
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self { _folder: folder, address, child }
    }

    fn ask(&self, what: &str, parameters: &[(&str, &str)]) -> Result<Value, String> {
        let encode = |text: &str| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
        let parameters: Vec<_> = parameters.iter().map(|(name, value)| format!("{name}={}", encode(value))).collect();
        let path = format!("/api/v1/{what}?{}", parameters.join("&"));
        let answer = Client::connect(self.address).and_then(|mut client| client.get(&path)).map_err(|e| e.to_string())?;
        let json: Value = serde_json::from_slice(&answer.body).map_err(|e| format!("{e}: {}", answer.text()))?;
        if json["status"] == "success" { Ok(json["data"].clone()) } else { Err(json.to_string()) }
    }

    /// The series of a query over these seconds.
    fn range(&self, query: &str, (start, end): (u64, u64)) -> Vec<Value> {
        let (start, end) = (start.to_string(), end.to_string());
        let data = self.ask("query_range", &[("query", query), ("start", &start), ("end", &end), ("step", "1")]);
        data.unwrap_or_else(|e| panic!("{query}: {e}"))["result"].as_array().unwrap().clone()
    }

    fn await_value(&self, query: &str) {
        eventually(query, || match self.ask("query", &[("query", query)]) {
            Ok(data) if data["result"].as_array().is_some_and(|series| !series.is_empty()) => Ok(()),
            other => Err(other),
        });
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.child.kill().unwrap_or_default();
        self.child.wait().map(drop).unwrap_or_default();
    }
}

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn promtool(args: &[&str], input: &str) -> String {
    let mut child = Command::new("promtool")
        .current_dir(deploy().join("prometheus"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success(), "promtool {args:?}: {said}");
    said
}

/// Every query of the dashboard: of panels, of annotations, and of the variables' lists.
fn queries() -> Vec<(String, String)> {
    let text = fs::read_to_string(deploy().join("grafana/switchover.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            queries.push((panel["title"].as_str().unwrap().to_owned(), target["expr"].as_str().unwrap().to_owned()));
        }
    }
    for annotation in dashboard["annotations"]["list"].as_array().unwrap() {
        queries.push((annotation["name"].as_str().unwrap().to_owned(), annotation["expr"].as_str().unwrap().to_owned()));
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        // label_values(SERIES, LABEL): asked as the series that have the label.
        if let Some(inner) = variable["definition"].as_str().and_then(|text| text.strip_prefix("label_values(")) {
            let (series, label) = inner.trim_end_matches(')').rsplit_once(", ").unwrap();
            queries.push((variable["name"].as_str().unwrap().to_owned(), format!("count by ({label}) ({series})")));
        }
    }
    queries
}

#[test]
#[ignore = "needs promtool: make test-deploy"]
fn the_alert_rules_and_the_scrape_configuration_are_valid_and_fire_as_they_should() {
    promtool(&["check", "config", "prometheus.yml"], "");
    promtool(&["check", "rules", "alerts.yml"], "");
    promtool(&["test", "rules", "alerts_test.yml"], "");
    let rules = fs::read_to_string(deploy().join("prometheus/alerts.yml")).unwrap();
    let cases = fs::read_to_string(deploy().join("prometheus/alerts_test.yml")).unwrap();
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(cases.contains(&format!("alertname: {alert}\n")), "{alert} has no case that fires");
    }
}

#[test]
#[ignore = "needs Prometheus: make test-deploy"]
fn a_real_swap_is_seen_in_prometheus_by_every_query_of_the_dashboard() {
    let [first, second, green, red] = ["blue", "blue", "green", "red"].map(Origin::start);
    red.readiness(503, "out of service");
    let config = ConfigFile::new(&[
        ("blue", &[first.address(), second.address()]),
        ("green", &[green.address()]),
        ("red", &[red.address()]),
    ])
    .service("    promotion: {ready_timeout: 500ms}\n    health_check: {interval: 200ms}\n");
    let text = config.text().replace("      green:\n", "      green:\n        version: \"2\"\n");
    config.write_in_place(&text);
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    let prometheus = Prometheus::scraping(switchover.admin);
    let began = now();
    prometheus.await_value("switchover_active_pool{pool=\"blue\"} == 1");
    // GET alone: a POST whose peer dies under it is not sent twice.
    let load = Load::start(switchover.address, 4, |_| ("GET", "/", b""));

    // Swaps by both ways, one refused, one file that is refused.
    config.set_active("green", Edit::Rename);
    switchover.await_safe_to_stop("blue");
    prometheus.await_value("switchover_active_pool{pool=\"green\", version=\"2\"} == 1");
    prometheus.await_value("switchover_http_requests_total{pool=\"green\"} > 0");
    assert_eq!(switchover.cli(&["promote", "red"]).code, 3);
    assert_eq!(switchover.cli(&["promote", "blue", "--wait", "drained"]).code, 0);
    prometheus.await_value("switchover_active_pool{pool=\"blue\"} == 1");
    prometheus.await_value("ALERTS{alertname=\"SwitchoverSwapFailed\", alertstate=\"firing\"}");
    // One peer goes while it is in use: failures, retries, one ready peer left.
    first.kill();
    prometheus.await_value("switchover_upstream_errors_total > 0");
    prometheus.await_value("switchover_retries_total{outcome=\"success\"} > 0");
    load.stop().assert_no_failures();

    let connection = {
        second.on("/socket", Act::Echo);
        let mut client = switchover.client();
        client.send("GET /socket HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").unwrap();
        assert_eq!(client.read_head().unwrap().status, 101);
        client
    };
    prometheus.await_value("switchover_upgraded_connections > 0");
    drop(connection);
    second.on("/broken", Act::Say(status(500, "broken")));
    let broken = || switchover.get("/broken").status;
    eventually("the errors are seen", || {
        assert_eq!(broken(), 500);
        let seen = prometheus.range("rate(switchover_http_requests_total{code=\"500\"}[4s]) > 0", (began, now()));
        if seen.is_empty() { Err(seen) } else { Ok(()) }
    });
    let end = now();

    for (title, query) in queries() {
        let query = query
            .replace("$service", ".*")
            .replace("$instance", ".*")
            .replace("$__rate_interval", "4s")
            .replace("$__interval", "4s");
        assert!(!query.contains("$__"), "{title}: {query}");
        let series = prometheus.range(&query, (began, end));
        let is_number = |series: &Value| {
            let values = series["values"].as_array().unwrap();
            values.iter().any(|value| value[1].as_str().unwrap().parse::<f64>().is_ok_and(f64::is_finite))
        };
        assert!(series.iter().any(is_number), "{title}: {query}: {series:?}");
    }

    // Lint warnings, too, are something that the people of Prometheus have asked for.
    let said = promtool(&["check", "metrics"], &switchover.metrics());
    assert_eq!(said.trim(), "", "promtool check metrics");

    drop(switchover);
    prometheus.await_value("ALERTS{alertname=\"SwitchoverDown\"}");
}
