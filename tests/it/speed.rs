//! How long a swap takes, and how much memory the process does.

use std::time::{Duration, Instant};

use crate::support::{
    ConfigFile, Edit, Load, Origin, Switchover, eventually,
    load::mixed,
    median,
    origin::{Act, ok},
};

fn shop() -> (Origin, Origin, ConfigFile, Switchover) {
    let (blue, green) = (Origin::start("blue"), Origin::start("green"));
    let config = ConfigFile::new(&[("blue", &[blue.address()]), ("green", &[green.address()])]).service("");
    let switchover = Switchover::start(&config);
    switchover.await_ready("green");
    (blue, green, config, switchover)
}

/// The least of three medians: other tests run beside this one, and what they take is not what a swap takes.
fn median_of_20(mut swap: impl FnMut(usize) -> Duration) -> Duration {
    (0..3).map(|_| median((0..20).map(&mut swap).collect())).min().unwrap()
}

#[test]
fn a_swap_takes_less_than_150_ms_from_the_edit_to_the_first_answer() {
    let (_blue, _green, config, switchover) = shop();
    let mut client = switchover.client();
    let median = median_of_20(|i| {
        let pool = if i % 2 == 0 { "green" } else { "blue" };
        let began = Instant::now();
        config.set_active(pool, if i % 4 < 2 { Edit::Rename } else { Edit::InPlace });
        eventually("it answers", || match client.get("/").unwrap().text() {
            text if text == pool => Ok(()),
            text => Err(text),
        });
        began.elapsed()
    });
    println!("edit to first answer: median {median:?}");
    assert!(median < Duration::from_millis(150), "{median:?}");
}

#[test]
fn a_promote_takes_less_than_50_ms() {
    let (_blue, _green, _config, switchover) = shop();
    let median = median_of_20(|i| {
        let began = Instant::now();
        let output = switchover.cli(&["promote", if i % 2 == 0 { "green" } else { "blue" }]);
        assert_eq!(output.code, 0, "{output:?}");
        began.elapsed()
    });
    println!("promote, the whole command: median {median:?}");
    assert!(median < Duration::from_millis(50), "{median:?}");
}

#[test]
fn memory_is_bounded() {
    let (blue, _green, _config, switchover) = shop();
    blue.on("/slow", Act::SayAfter(Duration::from_millis(20), ok("slow")));
    let idle = switchover.memory();
    let load = Load::start(switchover.address, 64, mixed);
    eventually("it runs", || if load.done() > 5000 { Ok(()) } else { Err(load.done()) });
    let loaded = switchover.memory();
    load.stop().assert_no_failures();
    println!("memory: {idle:.1} MiB idle, {loaded:.1} MiB under 64 connections");
    assert!(idle < 20.0 && loaded < 30.0, "{idle} {loaded}");
}
