//! What becomes of the process when one of its tasks panics.

use std::{fs, path::PathBuf};

use nix::sys::signal::Signal;

use crate::{
    acme::ordering,
    support::{Authority, ConfigFile, Origin, Switchover, eventually, switchover::command},
};

/// A switchover in which a test can make a task panic.
struct Fragile {
    blue: Origin,
    config: ConfigFile,
    switchover: Switchover,
    asks: PathBuf,
}

fn fragile() -> Fragile {
    let blue = Origin::start("blue");
    let config = ConfigFile::new(&[("blue", &[blue.address()])])
        .top("access_log: {format: text, file: access.log}\nshutdown_timeout: 60s\n");
    Authority::new().sign(config.folder(), "shop", &["shop.test"], 2040);
    let tls = "  - address: 127.0.0.1:0\n    tls: {certificates: [{certificate: shop.crt, key: shop.key}]}\n";
    let config = config.listener(tls);
    let asks = config.folder().join("panic");
    let mut run = command(&["run", "--config", config.path.to_str().unwrap()]);
    run.env("SWITCHOVER_TEST_PANIC", &asks);
    let switchover = Switchover::spawn(run, &config);
    switchover.await_ready("blue");
    Fragile { blue, config, switchover, asks }
}

impl Fragile {
    fn panic(&self, task: &str) {
        let new = self.config.folder().join("panic.new");
        fs::write(&new, task).unwrap();
        fs::rename(new, &self.asks).unwrap();
    }
}

/// The process cannot work without these tasks: it lets running requests end, and stops with 1 for its supervisor to see.
#[test]
fn the_process_stops_when_a_task_that_it_needs_has_ended() {
    for task in ["controller", "watcher", "admin", "listener"] {
        let mut fragile = fragile();
        let name = if task == "listener" { format!("listener {}", fragile.switchover.address) } else { task.to_owned() };
        // The request runs until its body is complete.
        let mut running = fragile.switchover.client();
        running.send("POST / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 4\r\n\r\nab").unwrap();
        fragile.switchover.await_in_flight("blue", 1);
        assert_eq!(fragile.switchover.admin_get("/livez").0, 200);
        fragile.panic(&name);
        let reason = format!("task=\"{name}\" reason=\"a panic: a test asked {name} to panic\"");
        fragile.switchover.await_log(&reason);
        fragile.switchover.await_log("] stopping ");
        if task != "admin" {
            assert_eq!(fragile.switchover.admin_get("/livez").0, 503, "{task}");
        }
        // A reload does not change the exit code.
        fragile.switchover.signal(Signal::SIGHUP);
        running.send("cd").unwrap();
        assert_eq!(running.read_response().unwrap().text(), "blue", "{task}: what runs ends");
        let (status, _) = fragile.switchover.await_exit();
        assert_eq!(status.code(), Some(1), "{task}: {}", fragile.switchover.log());
        fragile.switchover.await_log(&format!("stopped because {name} has ended"));
    }
}

/// Other tasks are restarted and work again.
#[test]
fn a_task_that_can_begin_again_does() {
    let fragile = fragile();
    let Fragile { blue, config, switchover, .. } = &fragile;
    for task in ["probe", "access_log", "certificates"] {
        fragile.panic(task);
        let reason = format!("is restarted task=\"{task}\" reason=\"a panic: a test asked {task} to panic\"");
        eventually("it is restarted", || {
            // The thread of the access log checks for a panic only when it writes a line.
            switchover.get("/");
            match switchover.log() {
                log if log.contains(&reason) => Ok(()),
                log => Err(log),
            }
        });
        assert_eq!(switchover.metric(&format!("switchover_task_restarts_total{{task=\"{task}\"}}")), Some(1.0));
    }
    let lines = || fs::read_to_string(config.folder().join("access.log")).unwrap().matches("/after").count();
    eventually("lines are written again", || {
        switchover.get("/after");
        if lines() > 0 { Ok(()) } else { Err(lines()) }
    });
    blue.readiness(503, "down");
    switchover.await_pool("blue", "probed again", |pool| !pool.peers[0].ready);
    assert_eq!(switchover.admin_get("/livez").0, 200);
}

#[test]
fn a_resolver_begins_again() {
    let blue = Origin::start("blue");
    let mut config = ConfigFile::new(&[("blue", &[blue.address()])]);
    let name = format!("localhost:{}", blue.address().port());
    config.set_peers("blue", &[&name]);
    let asks = config.folder().join("panic");
    let mut run = command(&["run", "--config", config.path.to_str().unwrap()]);
    run.env("SWITCHOVER_TEST_PANIC", &asks);
    let switchover = Switchover::spawn(run, &config);
    switchover.await_ready("blue");
    fs::write(asks, "resolver").unwrap();
    eventually("it begins again", || match switchover.metric("switchover_task_restarts_total{task=\"resolver\"}") {
        Some(1.0) => Ok(()),
        other => Err(other),
    });
    assert_eq!(switchover.get("/").text(), "blue");
}

/// A certificate that is lost while the task restarts is ordered again.
#[test]
fn the_renewal_of_an_acme_certificate_begins_again() {
    let blue = Origin::start("blue");
    let (config, server) = ordering(&blue, 2040);
    let asks = config.folder().join("panic");
    let mut run = command(&["run", "--config", config.path.to_str().unwrap()]);
    run.env("SWITCHOVER_TEST_PANIC", &asks);
    let switchover = Switchover::spawn(run, &config);
    let obtained = |times: usize| {
        eventually("a certificate is obtained", || {
            match switchover.log().matches("certificate obtained names=shop.test").count() {
                count if count == times => Ok(()),
                _ => Err(switchover.log()),
            }
        });
        assert_eq!(server.orders(), times);
    };
    obtained(1);
    let store = fs::read_dir(config.folder().join("store")).unwrap().next().unwrap().unwrap().path();
    fs::remove_file(store.join("shop.test.pem")).unwrap();
    fs::write(asks, "acme").unwrap();
    switchover.await_log("is restarted task=\"acme\" reason=\"a panic: a test asked acme to panic\"");
    assert_eq!(switchover.metric("switchover_task_restarts_total{task=\"acme\"}"), Some(1.0));
    obtained(2);
}
