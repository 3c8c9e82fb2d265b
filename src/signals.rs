//! Translates signals into commands: SIGHUP reloads, SIGTERM and SIGINT stop (a second one at once), SIGUSR1 reopens the access
//! log.
//!
//! Called by [`crate::server`]: [`catch`] runs first, so that no signal ends the process during the start; [`Caught::listen`]
//! runs last and handles the signals that arrived in between. Its thread never waits for the controller, so that SIGTERM is handled
//! whatever the controller does. SIGQUIT is ignored on purpose: it means "upgrade" to Pingora's server and "quit" to nginx, and a
//! habit from either must not stop this one.

use std::{
    io,
    sync::mpsc::{Receiver, channel},
    thread,
};

use log::{info, warn};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1},
    iterator::Signals,
};
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    oneshot,
};

use crate::{
    access_log::AccessLog,
    controller::{Accepted, Command, CommandError, Commands, Trigger},
    systemd,
};

/// The reply to a SIGHUP.
type Reloaded = oneshot::Receiver<Result<Accepted, CommandError>>;

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
    /// Handles signals on a separate thread. The receiver gets one message for each SIGTERM or SIGINT.
    pub fn listen(mut self, commands: Commands, access_log: Option<AccessLog>) -> mpsc::UnboundedReceiver<()> {
        let (stop, stops) = mpsc::unbounded_channel();
        let (asked, replies) = channel();
        thread::spawn(move || notify_of(&replies));
        thread::spawn(move || {
            for signal in self.0.forever() {
                match signal {
                    SIGHUP => {
                        let (reply, reloaded) = oneshot::channel();
                        let reload = Command::Reload { trigger: Trigger::Signal, reply: Some(reply) };
                        match commands.try_send(reload) {
                            Ok(()) => asked.send(reloaded).unwrap_or_default(),
                            Err(e) => warn!("SIGHUP is ignored: {}", ignored(&e)),
                        }
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

/// Notifies systemd of each reload. The controller logs its outcome.
fn notify_of(replies: &Receiver<Reloaded>) {
    for reloaded in replies {
        systemd::reloading();
        match reloaded.blocking_recv() {
            Ok(_) => systemd::ready(),
            Err(_) => warn!("SIGHUP is ignored: the controller has ended"),
        }
    }
}

fn ignored(error: &TrySendError<Command>) -> &'static str {
    match error {
        TrySendError::Full(_) => "too many commands are waiting",
        TrySendError::Closed(_) => "the controller has ended",
    }
}
