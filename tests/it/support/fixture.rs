//! What most tests begin with: applications that answer with their name, and a switchover in front of them that is ready.

use super::{ConfigFile, Origin, Switchover};

/// One pool, `blue`, with one peer; `with` adds to the configuration.
pub fn one_pool(with: impl FnOnce(ConfigFile) -> ConfigFile) -> (Origin, ConfigFile, Switchover) {
    let blue = Origin::start("blue");
    let config = with(ConfigFile::new(&[("blue", &[blue.address()])]));
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    (blue, config, switchover)
}

/// Two pools, `blue`, which serves, and `green`, with one peer each; `with` adds to the configuration.
pub fn two_pools(with: impl FnOnce(ConfigFile) -> ConfigFile) -> (Origin, Origin, ConfigFile, Switchover) {
    let (blue, green) = (Origin::start("blue"), Origin::start("green"));
    let config = with(ConfigFile::new(&[("blue", &[blue.address()]), ("green", &[green.address()])]));
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    switchover.await_ready("green");
    (blue, green, config, switchover)
}
