//! How much memory the process takes.

use crate::support::{Load, load::mixed, two_pools};

#[test]
fn memory_is_bounded() {
    // The stacks and caches of two worker threads, on a machine with any number of cores.
    let (_blue, _green, _config, switchover) = two_pools(|config| config.top("threads: 2\n"));
    let idle = switchover.memory();
    let load = Load::start(switchover.address, 64, mixed);
    load.await_sent(3000);
    let loaded = switchover.memory();
    load.stop().assert_no_failures();
    println!("memory: {idle:.1} MiB idle, {loaded:.1} MiB under 64 connections");
    assert!(idle < 10.0 && loaded < 20.0, "{idle} {loaded}");
}
