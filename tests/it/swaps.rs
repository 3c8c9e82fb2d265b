//! Swaps under load: the old application is stopped as soon as it is safe to stop, and no request fails.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::support::{App, Authority, ConfigFile, Edit, Load, Protocol, Switchover, load::mixed};

/// Requests that each load sends for every swap: about two for each client, so that some are in flight at every step.
const REQUESTS_PER_SWAP: u64 = 16;

/// The way to start a swap.
#[derive(Clone, Copy, Debug)]
enum Ask {
    File(Edit),
    Promote,
}

/// A series of swaps between two applications.
struct Swaps {
    count: usize,
    /// The ways to start the swaps, in turn.
    ask: &'static [Ask],
    /// Whether the old application gets SIGTERM, or SIGKILL, in turn.
    politely: &'static [bool],
    /// Additional lines of the service.
    service: &'static str,
    /// Additional lines of the listener.
    listener: &'static str,
    /// Starts the load; gets the switchover and the certificate of its authority.
    load: fn(&Switchover, &Path) -> Vec<Load>,
}

const PLAIN: Swaps = Swaps {
    count: 50,
    ask: &[Ask::File(Edit::Rename)],
    politely: &[false],
    service: "",
    listener: "",
    load: |switchover, _| vec![Load::start(switchover.address, 8, mixed)],
};

impl Swaps {
    fn run(&self) {
        let authority = Authority::new();
        let mut blue = App::start("blue", "0", "0s");
        let mut green = App::start("green", "1", "0s");
        let config = ConfigFile::new(&[("blue", &[blue.address]), ("green", &[green.address])]);
        let ca = authority.write(config.folder());
        authority.sign(config.folder(), "shop", &["shop.test"], 2040);
        let config = config.listener(self.listener).service(&format!("health_check: {{interval: 20ms}}\n{}", self.service));
        let links = self.ask.iter().any(|ask| matches!(ask, Ask::File(Edit::Symlink)));
        let config = if links { config.into_config_map() } else { config };
        let mut switchover = Switchover::start(&config);
        let loads = (self.load)(&switchover, &ca);
        // When each application was reported drained. Each restart has a new version, and counts as another application.
        let mut drained: Vec<(String, Instant)> = Vec::new();
        for swap in 0..self.count {
            let (old, new) = if swap % 2 == 0 { (&mut blue, &mut green) } else { (&mut green, &mut blue) };
            if swap > 0 {
                new.restart(&(swap + 1).to_string(), "50ms");
            }
            match self.ask[swap % self.ask.len()] {
                Ask::File(edit) => {
                    config.set_active(&new.name, edit);
                    switchover.await_active(&new.name);
                    switchover.await_safe_to_stop(&old.name);
                }
                Ask::Promote => {
                    let output = switchover.cli(&["promote", &new.name, "--wait", "drained"]);
                    assert_eq!(output.code, 0, "{output:?}");
                }
            }
            drained.push((format!("{} {swap}", old.name), Instant::now()));
            old.stop(self.politely[swap % self.politely.len()]);
            loads.iter().for_each(|load| load.await_sent(REQUESTS_PER_SWAP));
        }
        for load in loads {
            let tally = load.stop();
            tally.assert_no_failures();
            for (app, at) in &drained {
                let last =
                    tally.last_sent.get(app).unwrap_or_else(|| panic!("{app} never answered: {:?}", tally.last_sent.keys()));
                assert!(last <= at, "{app} answered a request that was sent {:?} after it was drained", *last - *at);
            }
        }
        switchover.signal(Signal::SIGTERM);
        assert!(switchover.await_exit().0.success());
    }
}

#[test]
fn fifty_swaps_by_rename_with_the_old_application_stopped_politely() {
    Swaps { politely: &[true], ..PLAIN }.run();
}

#[test]
fn fifty_swaps_by_promote_with_the_old_application_killed() {
    Swaps { ask: &[Ask::Promote], ..PLAIN }.run();
}

#[test]
fn swaps_by_writing_in_place_with_the_old_application_killed() {
    Swaps { count: 20, ask: &[Ask::File(Edit::InPlace)], ..PLAIN }.run();
}

#[test]
fn swaps_of_a_config_map_with_the_old_application_killed() {
    Swaps { count: 20, ask: &[Ask::File(Edit::Symlink)], ..PLAIN }.run();
}

/// Every kind of edit; every second old application is killed.
const MANY_KINDS: Swaps = Swaps {
    ask: &[Ask::File(Edit::Rename), Ask::File(Edit::InPlace), Ask::Promote],
    politely: &[true, true, false, false],
    ..PLAIN
};

#[test]
fn fifty_swaps_over_tls_and_none_of_the_requests_fails() {
    let listener = "    tls: {certificates: [{certificate: shop.crt, key: shop.key}]}\n";
    let load = |switchover: &Switchover, ca: &Path| {
        [Protocol::H2, Protocol::Https1]
            .map(|protocol| Load::start_over(protocol, switchover.address, ca, 4, mixed))
            .into_iter()
            .collect()
    };
    Swaps { listener, load, ..MANY_KINDS }.run();
}

#[test]
fn fifty_swaps_over_h2c_and_none_of_the_requests_fails() {
    let load = |switchover: &Switchover, ca: &Path| vec![Load::start_over(Protocol::H2c, switchover.address, ca, 4, mixed)];
    Swaps { load, ..MANY_KINDS }.run();
}

#[test]
fn twenty_swaps_with_a_warm_up_and_a_check_and_none_of_the_requests_fails() {
    let service = "promotion: {warm_up: {requests: 20, concurrency: 2}, check: {command: [sh, -c, \"sleep 0.05\"]}}";
    Swaps { count: 20, service, ..MANY_KINDS }.run();
}

#[test]
fn forty_edits_in_four_seconds_and_the_last_one_serves() {
    let (blue, green) = (App::start("blue", "1", "0s"), App::start("green", "1", "0s"));
    let config = ConfigFile::new(&[("blue", &[blue.address]), ("green", &[green.address])]);
    let switchover = Switchover::start(&config);
    switchover.await_ready("green");
    let load = Load::start(switchover.address, 8, mixed);
    for edit in 0..40 {
        config.set_active(if edit % 2 == 0 { "green" } else { "blue" }, Edit::Rename);
        std::thread::sleep(Duration::from_millis(100)); // The pace is what is tested.
    }
    config.set_active("green", Edit::Rename);
    switchover.await_active("green");
    switchover.await_safe_to_stop("blue");
    load.stop().assert_no_failures();
    assert!(switchover.get("/").text().starts_with("green"));
}

#[test]
fn two_edits_ten_milliseconds_apart_and_the_last_one_serves() {
    let (blue, green) = (App::start("blue", "1", "0s"), App::start("green", "1", "0s"));
    let config = ConfigFile::new(&[("blue", &[blue.address]), ("green", &[green.address])]);
    let switchover = Switchover::start(&config);
    let load = Load::start(switchover.address, 4, mixed);
    for _ in 0..5 {
        config.set_active("blue", Edit::InPlace);
        std::thread::sleep(Duration::from_millis(10)); // The gap is what is tested.
        config.set_active("green", Edit::InPlace);
        switchover.await_active("green");
        switchover.await_safe_to_stop("blue");
    }
    load.stop().assert_no_failures();
}
