//! gRPC: the ecosystem's own client and server, with switchover between them.

use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::support::{Authority, ConfigFile, Edit, Switchover};

const SERVICE: &str = "    upstream: {protocol: h2c}\n    health_check: {tcp: true, interval: 100ms}\n";

fn python(script: &str) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(root.join("target/deploy/venv/bin/python"));
    // Nothing between it and loopback.
    command.arg(root.join("tests/deploy/grpc").join(script)).env("no_proxy", "*").env("GRPC_ENABLE_FORK_SUPPORT", "0");
    command
}

struct Server {
    name: &'static str,
    address: SocketAddr,
    child: Child,
}

impl Server {
    fn start(name: &'static str, port: u16) -> Self {
        let mut child = python("server.py").args([name, &port.to_string()]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port: u16 = line.trim().parse().unwrap_or_else(|e| panic!("{name} said {line:?}: {e}"));
        Self { name, address: ([127, 0, 0, 1], port).into(), child }
    }

    fn restart(&mut self, politely: bool) {
        if politely {
            kill(Pid::from_raw(self.child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        } else {
            self.child.kill().unwrap();
        }
        self.child.wait().unwrap();
        *self = Self::start(self.name, self.address.port());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().unwrap_or_default();
        self.child.wait().map(drop).unwrap_or_default();
    }
}

fn client(mode: &str, address: SocketAddr, ca: Option<&PathBuf>) -> Output {
    python("client.py").args([mode, &address.to_string()]).args(ca).output().unwrap()
}

#[test]
#[ignore = "needs grpcio: make test-deploy"]
fn all_four_kinds_of_calls_deadlines_cancellation_and_trailers_over_h2c_and_tls() {
    let (server, authority) = (Server::start("blue", 0), Authority::new());
    for tls in [false, true] {
        let config = ConfigFile::new(&[("blue", &[server.address])]).service(SERVICE);
        let ca = authority.write(config.folder());
        authority.sign(config.folder(), "shop", &["shop.test"], 2040);
        let listener = if tls { "    tls: {certificates: [{certificate: shop.crt, key: shop.key}]}\n" } else { "" };
        let config = config.listener(listener);
        let switchover = Switchover::start(&config);
        switchover.await_ready("blue");
        let output = client("calls", switchover.address, tls.then_some(&ca));
        assert!(output.status.success(), "{output:?}");
        switchover.await_in_flight("blue", 0);
    }
}

#[test]
#[ignore = "needs grpcio: make test-deploy"]
fn an_error_of_ours_is_one_that_grpc_understands() {
    let server = Server::start("blue", 0);
    let config = ConfigFile::new(&[("blue", &[server.address])]).service(&format!("{SERVICE}    fail_open: false\n"));
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    drop(server);
    let output = client("status", switchover.address, None);
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "UNAVAILABLE", "{output:?}");
    config.write_in_place(&config.text().replace("    active: blue\n", "    active: blue\n    hosts: [other.test]\n"));
    assert_eq!(switchover.cli(&["reload"]).code, 0);
    let output = client("status", switchover.address, None);
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "UNIMPLEMENTED", "{output:?}");
}

#[test]
#[ignore = "needs grpcio: make test-deploy"]
fn swaps_under_calls_fail_none_of_them_and_a_stream_lives_on_until_it_ends() {
    // The stream holds the first server, which is why that one is never stopped; green comes and goes with each swap, and
    // blue has a second life beside the first.
    let (first, mut others) = (Server::start("first", 0), [Server::start("blue", 0), Server::start("green", 0)]);
    let config = ConfigFile::new(&[("first", &[first.address]), ("blue", &[others[0].address]), ("green", &[others[1].address])])
        .service(&format!("{SERVICE}    drain: {{timeout: 500ms}}\n"));
    let switchover = Switchover::start(&config);
    switchover.await_ready("first");
    let mut load = python("client.py")
        .args(["load", &switchover.address.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(load.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    switchover.await_service("the stream is there", |service| service.pools.iter().any(|pool| pool.in_flight != 0));
    for swap in 0..50 {
        let name = ["blue", "green"];
        let (new, old) = (swap % 2, (swap + 1) % 2);
        switchover.await_ready(name[new]);
        config.set_active(name[new], Edit::Rename);
        switchover.await_active(name[new]);
        if swap > 0 {
            switchover.await_safe_to_stop(name[old]);
            others[old].restart(swap % 4 < 2);
        }
    }
    assert!(switchover.pool_status("first").in_flight > 0, "the stream is still there");
    load.stdin.take().unwrap().write_all(b"\n").unwrap();
    let output = load.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    switchover.await_safe_to_stop("first");
}
