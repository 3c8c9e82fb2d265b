//! Start, stop and signals of the process.

use std::{
    fs,
    net::TcpListener,
    os::unix::net::UnixDatagram,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::{Signal, kill};

use crate::support::{
    Client, ConfigFile, Gate, Load, Origin, Switchover, TIMEOUT, eventually,
    load::mixed,
    one_pool,
    origin::{Act, ok},
    switchover::{command, run},
};

#[test]
fn a_busy_port_ends_the_process_and_is_named() {
    let blue = Origin::start("blue");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let config = ConfigFile::new(&[("blue", &[blue.address()])]);
    for (first, key) in [(true, "listeners[0].address"), (false, "admin.address")] {
        let text = config.text();
        let text = if first {
            text.replacen("127.0.0.1:0", &address.to_string(), 1)
        } else {
            text.replace("admin:\n  address: 127.0.0.1:0", &format!("admin:\n  address: {address}"))
        };
        config.write_in_place(&text);
        let output = run(&["run", "--config", config.path.to_str().unwrap()]);
        assert_eq!(output.code, 1, "{output:?}");
        assert!(output.stderr.contains(&format!("{key}: {address} is in use")), "{output:?}");
    }
}

#[test]
fn an_invalid_or_missing_file_ends_the_process_with_78() {
    let config = ConfigFile::new(&[("blue", &[([127, 0, 0, 1], 1).into()])]);
    config.write_in_place("listeners: []\n");
    let path = config.path.to_str().unwrap();
    let output = run(&["run", "--config", path]);
    assert_eq!(output.code, 78, "{output:?}");
    assert!(output.stderr.contains("services: is missing") && output.stderr.contains("listeners: is empty"), "{output:?}");
    assert_eq!(run(&["check", "--config", path]).code, 78);
    assert_eq!(run(&["run", "--config", "/nowhere/x.yaml"]).code, 78);
    assert_eq!(run(&["walk"]).code, 2);
    assert_eq!(run(&["promote"]).code, 2);
}

/// Longer than any test waits, so that a stop that waits until its timeout does not count as finished.
const NEVER: &str = "shutdown_timeout: 30m\n";

#[test]
fn a_stop_waits_for_running_requests_and_for_nothing_else() {
    let gate = Gate::new();
    let (blue, _config, mut switchover) = one_pool(|config| config.top(NEVER));
    blue.on("/slow", Act::SayHeld(gate.clone(), Vec::new(), ok("slow")));
    let mut slow = switchover.client();
    let mut idle = switchover.client();
    assert_eq!(idle.get("/").unwrap().status, 200);
    slow.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    switchover.await_in_flight("blue", 1);
    switchover.signal(Signal::SIGTERM);
    eventually("it is not ready", || match switchover.admin_get("/readyz") {
        (503, _) => Ok(()),
        other => Err(other),
    });
    eventually("no new client is let in", || Client::connect(switchover.address).map_or(Ok(()), |_| Err("let in")));
    gate.open();
    let response = slow.read_response().unwrap();
    assert_eq!((response.text().as_str(), response.closes()), ("slow", true));
    let (status, _) = switchover.await_exit();
    assert_eq!(status.code(), Some(0), "{}", switchover.log());
    assert!(idle.is_closed());
}

#[test]
fn a_stop_with_nothing_in_flight_waits_for_nothing() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (_blue, _config, mut switchover) = one_pool(|config| config.top(NEVER));
        switchover.signal(signal);
        let (status, _) = switchover.await_exit();
        assert_eq!(status.code(), Some(0));
    }
}

#[test]
fn a_stop_under_load_fails_no_request_that_was_let_in() {
    let blue = Origin::start("blue");
    blue.on("/slow", Act::SayAfter(Duration::from_millis(200), ok("slow")));
    let config = ConfigFile::new(&[("blue", &[blue.address()])]);
    let mut switchover = Switchover::start(&config);
    let load = Load::start(switchover.address, 8, mixed);
    load.await_sent(200);
    switchover.signal(Signal::SIGTERM);
    let (status, _) = switchover.await_exit();
    assert_eq!(status.code(), Some(0));
    let tally = load.stop();
    let cut: Vec<_> = tally.failures.iter().filter(|(_, reason)| !reason.contains("refused")).collect();
    assert!(cut.is_empty(), "{cut:?}");
}

/// The connections that wait to be accepted: `rx_queue` of the socket that listens (state 0A) at this port, in proc_net_tcp(5).
fn accept_queue(port: u16) -> usize {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let of_listener = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).find(|fields| {
        fields.get(1).is_some_and(|local| local.ends_with(&format!(":{port:04X}"))) && fields.get(3) == Some(&"0A")
    });
    let (_, rx_queue) = of_listener.unwrap()[4].split_once(':').unwrap();
    usize::from_str_radix(rx_queue, 16).unwrap()
}

#[test]
fn a_stop_serves_the_connections_that_the_kernel_has_established() {
    let (_blue, _config, mut switchover) = one_pool(|config| config);
    // While every thread of the process is halted, the kernel establishes connections for it.
    switchover.signal(Signal::SIGSTOP);
    eventually("the process is halted", || {
        let threads = fs::read_dir(format!("/proc/{}/task", switchover.pid())).unwrap();
        let states = threads.map(|thread| fs::read_to_string(thread.unwrap().path().join("stat")).unwrap());
        if states.into_iter().all(|stat| stat.contains(") T ")) { Ok(()) } else { Err("it runs") }
    });
    let clients: Vec<Client> = (0..500)
        .map(|_| {
            let mut client = switchover.client();
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            client
        })
        .collect();
    eventually("the last packet of each handshake is processed", || match accept_queue(switchover.address.port()) {
        500 => Ok(()),
        others => Err(others),
    });
    switchover.signal(Signal::SIGTERM);
    switchover.signal(Signal::SIGCONT);
    let answered = clients.into_iter().map(|mut client| client.read_response().map(|response| response.status));
    let failed: Vec<_> = answered.filter(|status| !matches!(status, Ok(200))).collect();
    assert!(failed.is_empty(), "{} of 500: {:?}", failed.len(), failed.first());
    let (status, _) = switchover.await_exit();
    assert_eq!(status.code(), Some(0));
}

#[test]
fn shutdown_timeout_bounds_a_stop() {
    let (blue, _config, mut switchover) = one_pool(|config| config.top("shutdown_timeout: 700ms\n"));
    blue.on("/hang", Act::Hang);
    let mut client = switchover.client();
    client.send("GET /hang HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    switchover.await_in_flight("blue", 1);
    let began = Instant::now();
    switchover.signal(Signal::SIGTERM);
    switchover.await_exit();
    assert!(began.elapsed() >= Duration::from_millis(700), "{:?}", began.elapsed());
}

#[test]
fn a_second_signal_stops_without_waiting() {
    let (blue, _config, mut switchover) = one_pool(|config| config.top(NEVER));
    blue.on("/hang", Act::Hang);
    let mut client = switchover.client();
    client.send("GET /hang HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    switchover.await_in_flight("blue", 1);
    switchover.signal(Signal::SIGTERM);
    switchover.await_log("stopping connections=1");
    switchover.signal(Signal::SIGTERM);
    let (status, _) = switchover.await_exit();
    assert_eq!(status.code(), Some(1));
}

#[test]
fn sigquit_and_sighup_stop_nothing() {
    let blue = Origin::start("blue");
    let config = ConfigFile::new(&[("blue", &[blue.address()])]);
    let mut switchover = Switchover::start(&config);
    for _ in 0..20 {
        switchover.signal(Signal::SIGQUIT);
        switchover.signal(Signal::SIGHUP);
    }
    switchover.await_log("SIGQUIT is ignored");
    assert_eq!(switchover.get("/").text(), "blue");
    assert!(switchover.child.try_wait().unwrap().is_none());
}

#[test]
fn a_sighup_during_the_start_is_taken_when_it_has_started() {
    let blue = Origin::start("blue");
    let config = ConfigFile::new(&[("blue", &[blue.address()])]);
    for delay in [0, 2, 5, 10, 20, 40] {
        let run = command(&["run", "--config", config.path.to_str().unwrap()]);
        let switchover = Switchover::spawn_and(run, &config, |pid| {
            // switchover catches signals first, long before it listens. A signal before that ends the process.
            eventually("it catches SIGHUP", || {
                let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
                let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim().to_owned();
                if u64::from_str_radix(&caught, 16).unwrap() & 1 == 1 { Ok(()) } else { Err(caught) }
            });
            thread::sleep(Duration::from_millis(delay)); // The moment that is tested.
            kill(pid, Signal::SIGHUP).unwrap();
        });
        eventually("the file is read again", || {
            match switchover.metric("switchover_config_reloads_total{result=\"unchanged\"}") {
                Some(1.0) => Ok(()),
                other => Err((delay, other)),
            }
        });
        assert_eq!(switchover.get("/").text(), "blue", "after {delay} ms");
    }
}

#[test]
fn health_is_an_exit_code_and_does_not_depend_on_a_file_that_is_being_edited() {
    let blue = Origin::start("blue");
    let config = ConfigFile::new(&[("blue", &[blue.address()])]);
    let switchover = Switchover::start(&config);
    let admin = switchover.admin.to_string();
    let named = config.text().replace("admin:\n  address: 127.0.0.1:0", &format!("admin:\n  address: {admin}"));
    for text in [named.clone(), named.clone() + "nonsense: 1\n", named + "unfinished: [\n"] {
        config.write_in_place(&text);
        let path = config.path.to_str().unwrap();
        // With a syntax error, the address comes from the environment, as in the image.
        let output = command(&["health", "--config", path]).env("SWITCHOVER_ADMIN", &admin).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        if !text.contains("unfinished") {
            assert_eq!(run(&["health", "--config", path]).code, 0, "{text}");
        }
    }
    drop(switchover);
    let output = run(&["health", "--admin", &admin]);
    assert_eq!(output.code, 1);
    assert!(output.stderr.contains(&format!("no answer from the admin address {admin}")), "{output:?}");
}

#[test]
fn systemd_is_notified_of_ready_reloading_and_stopping() {
    let blue = Origin::start("blue");
    let config = ConfigFile::new(&[("blue", &[blue.address()])]);
    let path = config.folder().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    let notified = || {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    let mut run = command(&["run", "--config", config.path.to_str().unwrap()]);
    run.env("NOTIFY_SOCKET", &path);
    let mut switchover = Switchover::spawn(run, &config);
    assert_eq!(notified(), "READY=1\n");
    switchover.signal(Signal::SIGHUP);
    let reloading = notified();
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    assert_eq!(notified(), "READY=1\n");
    switchover.signal(Signal::SIGTERM);
    assert_eq!(notified(), "STOPPING=1\n");
    assert!(switchover.await_exit().0.success());
}
