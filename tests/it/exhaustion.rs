//! The behavior of a process that runs out of descriptors.

use std::{
    fs,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    process::Command,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use crate::support::{Client, ConfigFile, Origin, Switchover, eventually, switchover::command, two_pools};

/// Starts switchover with these limits of descriptors.
fn within(soft: &str, hard: &str, config: &ConfigFile) -> Switchover {
    let program = command(&[]).get_program().to_owned();
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("ulimit -Sn {soft} && ulimit -Hn {hard} && exec \"$0\" run --config \"$1\"")]);
    shell.arg(program).arg(&config.path).env_remove("RUST_LOG");
    Switchover::spawn(shell, config)
}

fn shop(limits: &str) -> (Origin, ConfigFile) {
    let blue = Origin::start("blue");
    let config = ConfigFile::new(&[("blue", &[blue.address()])]).listener(&format!("    limits: {limits}\n"));
    (blue, config)
}

fn descriptors(switchover: &Switchover) -> usize {
    fs::read_dir(format!("/proc/{}/fd", switchover.child.id())).unwrap().count()
}

#[test]
fn the_limit_of_descriptors_is_raised_and_one_that_does_not_fit_is_warned_of() {
    let (_blue, config) = shop("{connections: 400}");
    let switchover = within("200", "4096", &config);
    let limits = fs::read_to_string(format!("/proc/{}/limits", switchover.child.id())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().nth(3), Some("4096"), "{files}");
    assert!(!switchover.log().contains("too low"), "{}", switchover.log());
    drop(switchover);

    let switchover = within("200", "200", &config);
    let log = switchover.log();
    assert!(log.contains("the limit of file descriptors is too low") && log.contains("limit=200 connections=400"), "{log}");
}

/// Clients use all descriptors for clients. Open connections are served, the peer stays ready, and the admin API responds.
#[test]
fn a_process_without_descriptors_serves_on() {
    let (blue, config) = shop("{header_timeout: 60s, connections: 1000}");
    let switchover = within("160", "160", &config);
    switchover.await_ready("blue");
    let mut served = switchover.client();
    assert_eq!(served.get("/").unwrap().text(), "blue");
    let silent: Vec<TcpStream> = (0..300).map(|_| TcpStream::connect(switchover.address).unwrap()).collect();
    eventually("accepting waits", || {
        if switchover.log().contains("no descriptor is left for a client") { Ok(()) } else { Err(descriptors(&switchover)) }
    });
    let series = format!("switchover_probes_total{{peer=\"{}\",pool=\"blue\",result=\"pass\",service=\"shop\"}}", blue.address());
    let probed = || switchover.metric(&series).unwrap();
    let seen = probed();
    for _ in 0..20 {
        assert_eq!(served.get("/").unwrap().text(), "blue");
        assert_eq!(switchover.admin_get("/livez").0, 200);
        assert!(switchover.pool_status("blue").peers[0].ready);
    }
    eventually("it is still probed", || if probed() > seen { Ok(()) } else { Err(seen) });
    assert!(descriptors(&switchover) < 160);
    drop(silent);
    eventually("others are served again", || match switchover.client().get("/") {
        Ok(answer) if answer.status == 200 => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

/// A local lack of descriptors does not change the readiness of a peer.
#[test]
fn a_probe_that_cannot_be_sent_is_no_verdict() {
    let (_blue, config) = shop("{header_timeout: 60s}");
    let switchover = within("160", "160", &config);
    switchover.await_ready("blue");
    let mut kept = switchover.client();
    assert_eq!(kept.get("/").unwrap().status, 200);
    // No further socket can be created: the limit is below the number of open descriptors.
    let pid = switchover.child.id().to_string();
    assert!(Command::new("prlimit").args(["--pid", &pid, "--nofile=10:160"]).status().unwrap().success());
    let local = || switchover.log().matches("cannot probe service=shop").count();
    eventually("probes cannot be sent", || if local() > 5 { Ok(()) } else { Err(local()) });
    assert!(!switchover.log().contains("peer is not ready"), "{}", switchover.log());
    // A reused connection works. A new one cannot be created, which does not count as a failure of the peer.
    assert_eq!(kept.get("/").unwrap().status, 200);
    assert!(Command::new("prlimit").args(["--pid", &pid, "--nofile=160:160"]).status().unwrap().success());
    let series = "switchover_probes_total{";
    let counted = |result: &str| {
        let metrics = switchover.metrics();
        let line = metrics.lines().find(|line| line.starts_with(series) && line.contains(&format!("result=\"{result}\"")));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or_else(|| panic!("{metrics}"))
    };
    assert!(counted("local") > 5.0);
    assert!(counted("fail") == 0.0);
    assert!(switchover.pool_status("blue").peers[0].ready);
}

/// A rejected connection keeps its descriptor until the client has the response. The number of these is bounded.
#[test]
fn refused_connections_do_not_pile_up() {
    let (_blue, config) = shop("{connections: 5, header_timeout: 60s}");
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    let _open: Vec<Client> = (0..5).map(|_| switchover.client()).collect();
    eventually("all are there", || match switchover.metric("switchover_downstream_connections") {
        Some(5.0) => Ok(()),
        other => Err(other),
    });
    let before = descriptors(&switchover);
    let mut most = 0;
    let refused: Vec<TcpStream> = (0..500)
        .map(|_| {
            let stream = TcpStream::connect(switchover.address).unwrap();
            most = most.max(descriptors(&switchover));
            stream
        })
        .collect();
    eventually("all were refused", || {
        most = most.max(descriptors(&switchover));
        let series = "switchover_rejected_requests_total{listener=\"127.0.0.1:0\",reason=\"connections\"}";
        match switchover.metric(series) {
            Some(500.0) => Ok(()),
            other => Err(other),
        }
    });
    assert!(most < before + 150, "{before} before, {most} at most");
    drop(refused);
}

#[test]
fn a_silent_connection_of_the_admin_api_is_closed_and_many_do_not_stop_it() {
    let (_blue, config) = shop("{}");
    let switchover = Switchover::start(&config);
    let began = Instant::now();
    let mut clients: Vec<Client> = (0..100).map(|_| Client::connect(switchover.admin).unwrap()).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        match n % 3 {
            0 => {}
            1 => client.stream.write_all(b"GET /livez HTTP/1.1\r\nHost:").unwrap(),
            _ => client
                .stream
                .write_all(
                    b"POST /v1/reload HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{",
                )
                .unwrap(),
        }
    }
    // These use all connections; the oldest of them is closed for the request.
    assert_eq!(switchover.admin_get("/livez").0, 200);
    for client in &mut clients {
        client.stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let closed = client.stream.read_to_end(&mut Vec::new());
        assert!(!closed.is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock), "after {:?}", began.elapsed());
    }
}

/// Each thread keeps `count` connections to `address` open with `bytes` on them, and opens each again as soon as it is closed.
fn crowd<'a>(scope: &'a thread::Scope<'a, '_>, address: SocketAddr, bytes: &'static [u8], count: usize, done: &'a AtomicBool) {
    let open = move || {
        let mut stream = TcpStream::connect(address).ok()?;
        stream.write_all(bytes).ok()?;
        stream.set_nonblocking(true).ok()?;
        Some(stream)
    };
    scope.spawn(move || {
        let mut streams: Vec<Option<TcpStream>> = (0..count).map(|_| open()).collect();
        while !done.load(Relaxed) {
            for stream in &mut streams {
                let is_open = stream.as_mut().is_some_and(|stream| match stream.read(&mut [0; 4096]) {
                    Ok(read) => read > 0,
                    Err(e) => e.kind() == io::ErrorKind::WouldBlock,
                });
                if !is_open {
                    *stream = open();
                }
            }
            thread::sleep(Duration::from_millis(1));
        }
    });
}

/// `/livez` is a liveness probe: without a response, Kubernetes restarts the pod.
#[test]
fn connections_without_a_request_do_not_keep_a_request_to_the_admin_api_waiting() {
    let (_blue, _green, _config, switchover) = two_pools(|config| config);
    const HALF_A_HEADER: &[u8] = b"GET /livez HTTP/1.1\r\nHost:";
    const HALF_A_BODY: &[u8] =
        b"POST /v1/reload HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{";
    const IDLE: &[u8] = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for bytes in [b"", HALF_A_HEADER, HALF_A_BODY, IDLE] {
            crowd(scope, switchover.admin, bytes, 75, &done);
        }
        // Ends the crowd also when an assertion fails.
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for turn in 0..50 {
                let mut client = Client::connect(switchover.admin).unwrap();
                // The limit of a probe. Without the crowd, this takes a millisecond.
                client.stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                assert_eq!(client.get("/livez").expect("a response in time").status, 200, "{turn}");
            }
            let output = switchover.cli(&["promote", "green"]);
            assert_eq!(output.code, 0, "{output:?}");
            assert_eq!(switchover.cli(&["health"]).code, 0);
        }));
        done.store(true, Relaxed);
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    assert_eq!(switchover.service().active, "green");
}

/// A connection that waits for the response to its request is never closed for another one.
#[test]
fn a_request_to_the_admin_api_that_is_handled_is_not_ended_by_other_connections() {
    let (_blue, green, _config, switchover) = two_pools(|config| config.service("promotion: {ready_timeout: 60s}"));
    green.readiness(503, "starting");
    switchover.await_pool("green", "not ready", |pool| !pool.peers[0].ready);
    let mut promotes = Client::connect(switchover.admin).unwrap();
    let body = b"{\"pool\": \"green\"}";
    let head = format!(
        "POST /v1/services/shop/promote?wait=drained HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    promotes.send([head.as_bytes(), body].concat()).unwrap();
    switchover.await_proving();
    let mut silent: Vec<Client> = (0..200).map(|_| Client::connect(switchover.admin).unwrap()).collect();
    // The oldest silent ones have been closed, so the limit was reached.
    assert!(silent[0].is_closed());
    assert_eq!(switchover.admin_get("/livez").0, 200);
    green.readiness(200, "up");
    assert_eq!(promotes.read_response().unwrap().status, 200);
}
