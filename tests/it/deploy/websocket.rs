//! WebSocket as its specification has it: Autobahn's test suite asks a server of the ecosystem directly, and through switchover.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};

use crate::support::{Authority, ConfigFile, Switchover};

struct Echo(Child, SocketAddr);

impl Echo {
    fn start() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut command = Command::new(root.join("target/deploy/venv/bin/python"));
        let mut child = command
            .arg(root.join("tests/deploy/websocket/echo.py"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port: u16 = line.trim().parse().unwrap_or_else(|e| panic!("it said {line:?}: {e}"));
        Self(child, ([127, 0, 0, 1], port).into())
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.0.kill().unwrap_or_default();
        self.0.wait().map(drop).unwrap_or_default();
    }
}

#[test]
#[ignore = "needs Autobahn's test suite: make test-deploy"]
fn every_case_of_autobahn_ends_as_it_does_without_switchover() {
    let (echo, authority) = (Echo::start(), Authority::new());
    let start = |listener: &str| {
        let config = ConfigFile::new(&[("blue", &[echo.1])]).service("    health_check: {tcp: true}\n");
        authority.sign(config.folder(), "shop", &["localhost"], 2040);
        let config = config.listener(listener);
        let switchover = Switchover::start(&config);
        switchover.await_ready("blue");
        (switchover, config)
    };
    let (plain, _plain) = start("");
    let (tls, _tls) = start("    tls: {certificates: [{certificate: shop.crt, key: shop.key}]}\n");

    let python2 = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/deploy/python2");
    let server = |agent: &str, url: String| json!({"agent": agent, "url": url});
    let spec = json!({
        "outdir": "/reports",
        "servers": [
            server("direct", format!("ws://{}", echo.1)),
            server("plain", format!("ws://{}", plain.address)),
            server("tls", format!("wss://{}", tls.address)),
        ],
        "cases": ["*"],
        "exclude-cases": ["9.*", "12.*", "13.*"],
        "exclude-agent-cases": {},
    });
    fs::write(python2.join("spec.json"), spec.to_string()).unwrap();
    let output =
        Command::new("chroot").arg(&python2).args(["wstest", "-m", "fuzzingclient", "-s", "/spec.json"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");

    let report: BTreeMap<String, BTreeMap<String, Value>> =
        serde_json::from_slice(&fs::read(python2.join("reports/index.json")).unwrap()).unwrap();
    // What the suite calls not strict is right as well: the server has echoed a message before it noticed what is wrong with the
    // next one, as it has when they come apart.
    let ends = |agent: &str| -> Vec<String> {
        let behavior = |end: &Value| end["behavior"].as_str().unwrap().replace("NON-STRICT", "OK");
        report[agent].iter().map(|(case, end)| format!("{case} {} {}", behavior(end), end["behaviorClose"])).collect()
    };
    let direct = ends("direct");
    let passed = direct.iter().filter(|end| end.ends_with(" OK \"OK\"")).count();
    assert!(passed > 240, "only {passed} of {} pass directly", direct.len());
    for agent in ["plain", "tls"] {
        let other: Vec<_> = ends(agent).into_iter().filter(|end| !direct.contains(end)).collect();
        assert!(other.is_empty() && report[agent].len() == direct.len(), "{agent}: {other:?}");
    }
}
