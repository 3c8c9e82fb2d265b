//! Translates signals into commands: SIGHUP reloads, SIGTERM and SIGINT stop (a second one at once), SIGUSR1 reopens the access
//! log.
//!
//! Called by [`crate::server`]: [`catch`] runs first, so that no signal ends the process during the start; [`Caught::listen`]
//! runs last and handles the signals that arrived in between. SIGQUIT is ignored on purpose: it means "upgrade" to Pingora's
//! server and "quit" to nginx, and a habit from either must not stop this one.

use std::{io, thread};

use log::{info, warn};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1},
    iterator::Signals,
};
use tokio::sync::{mpsc, oneshot};

use crate::{
    access_log::AccessLog,
    controller::{Command, Commands, Trigger},
    systemd,
};

/// Signals that are caught and wait for [`Self::listen`].
pub struct Caught(Signals);

/// Catches signals from now on, and queues them.
///
/// # Errors
/// When a signal handler cannot be installed.
pub fn catch() -> io::Result<Caught> {
    Signals::new([SIGHUP, SIGINT, SIGTERM, SIGQUIT, SIGUSR1]).map(Caught)
}

impl Caught {
    /// Handles signals on a thread of its own. The receiver gets one message for each SIGTERM or SIGINT.
    pub fn listen(mut self, commands: Commands, access_log: Option<AccessLog>) -> mpsc::UnboundedReceiver<()> {
        let (stop, stops) = mpsc::unbounded_channel();
        thread::spawn(move || {
            for signal in self.0.forever() {
                match signal {
                    SIGHUP => {
                        systemd::reloading();
                        let (reply, read) = oneshot::channel();
                        let reload = Command::Reload { trigger: Trigger::Signal, reply: Some(reply) };
                        if commands.blocking_send(reload).is_err() || read.blocking_recv().is_err() {
                            // The process is stopping; signals that ask to stop are still listened to.
                            warn!("SIGHUP is ignored: the controller has ended");
                            continue;
                        }
                        systemd::ready();
                    }
                    SIGUSR1 => access_log.iter().for_each(AccessLog::reopen),
                    SIGQUIT => info!("SIGQUIT is ignored; SIGTERM stops switchover, SIGHUP reloads the configuration"),
                    _ if stop.send(()).is_err() => return,
                    _ => warn!("stopping signal={signal}"),
                }
            }
        });
        stops
    }
}
