//! The setup of most tests: applications that respond with their name, behind a ready switchover.

use super::{ConfigFile, Origin, Switchover};

/// Starts a switchover with one pool, `blue`, and one peer; `with` changes the configuration.
pub fn one_pool(with: impl FnOnce(ConfigFile) -> ConfigFile) -> (Origin, ConfigFile, Switchover) {
    let blue = Origin::start("blue");
    let config = with(ConfigFile::new(&[("blue", &[blue.address()])]));
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    (blue, config, switchover)
}

/// Starts a switchover with the pools `blue`, which is active, and `green`, with one peer each; `with` changes the configuration.
pub fn two_pools(with: impl FnOnce(ConfigFile) -> ConfigFile) -> (Origin, Origin, ConfigFile, Switchover) {
    let (blue, green) = (Origin::start("blue"), Origin::start("green"));
    let config = with(ConfigFile::new(&[("blue", &[blue.address()]), ("green", &[green.address()])]));
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    switchover.await_ready("green");
    (blue, green, config, switchover)
}
