//! The promise itself: swap after swap under load, the old application stopped the moment it is safe, and nobody notices.

use std::time::{Duration, Instant};

use crate::support::{App, ConfigFile, Edit, Load, Switchover, load::mixed};

/// How a swap is asked for.
#[derive(Clone, Copy, Debug)]
enum Ask {
    File(Edit),
    Promote,
}

fn swap_under_load(swaps: usize, politely: bool, ask: Ask) {
    let mut blue = App::start("blue", "0", "0s");
    let mut green = App::start("green", "1", "0s");
    let config = ConfigFile::new(&[("blue", &[blue.address]), ("green", &[green.address])]);
    let config = if matches!(ask, Ask::File(Edit::Symlink)) { config.into_config_map() } else { config };
    let switchover = Switchover::start(&config);
    let load = Load::start(switchover.address, 8, mixed);
    // When each application was reported drained; it is named by its version, so that its next life is another.
    let mut drained: Vec<(String, Instant)> = Vec::new();
    for swap in 0..swaps {
        let (old, new) = if swap % 2 == 0 { (&mut blue, &mut green) } else { (&mut green, &mut blue) };
        if swap > 0 {
            new.restart(&(swap + 1).to_string(), "50ms");
        }
        match ask {
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
        old.stop(politely);
    }
    let tally = load.stop();
    tally.assert_no_failures();
    for (app, at) in &drained {
        let last = tally.last_sent.get(app).unwrap_or_else(|| panic!("{app} never answered: {:?}", tally.last_sent.keys()));
        assert!(last <= at, "{app} answered a request that was sent {:?} after it was drained", *last - *at);
    }
    assert!(tally.slowest < Duration::from_secs(3), "{:?}", tally.slowest);
}

#[test]
fn fifty_swaps_by_rename_with_the_old_application_stopped_politely() {
    swap_under_load(50, true, Ask::File(Edit::Rename));
}

#[test]
fn fifty_swaps_by_promote_with_the_old_application_killed() {
    swap_under_load(50, false, Ask::Promote);
}

#[test]
fn swaps_by_writing_in_place_with_the_old_application_killed() {
    swap_under_load(20, false, Ask::File(Edit::InPlace));
}

#[test]
fn swaps_of_a_config_map_with_the_old_application_killed() {
    swap_under_load(20, false, Ask::File(Edit::Symlink));
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
