//! Signals, caught before anything else can be interrupted by them.
//!
//! `run` catches them first and listens once everything runs; what came in between is not lost. SIGHUP reads the file again,
//! SIGTERM and SIGINT stop, a second one stops at once, SIGUSR1 opens the access log anew. SIGQUIT means "upgrade" to Pingora's own server and "quit" to nginx;
//! here it does nothing, so that nobody shuts a server down by a habit.

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
    supervisor,
};

/// Caught signals, waiting for somebody to listen.
pub struct Caught(Signals);

/// Catches signals from now on.
///
/// # Errors
/// When the system does not let the process catch them.
pub fn catch() -> io::Result<Caught> {
    Signals::new([SIGHUP, SIGINT, SIGTERM, SIGQUIT, SIGUSR1]).map(Caught)
}

impl Caught {
    /// Sends reloads to the controller, and a message for each signal that asks to stop.
    pub fn listen(mut self, commands: Commands, access_log: Option<AccessLog>) -> mpsc::UnboundedReceiver<()> {
        let (stop, stops) = mpsc::unbounded_channel();
        thread::spawn(move || {
            for signal in self.0.forever() {
                match signal {
                    SIGHUP => {
                        supervisor::reloading();
                        let (reply, read) = oneshot::channel();
                        let reload = Command::Reload { trigger: Trigger::Signal, reply: Some(reply) };
                        if commands.blocking_send(reload).is_err() || read.blocking_recv().is_err() {
                            // The process is stopping; signals that ask to stop are still listened to.
                            warn!("SIGHUP is ignored: the controller has ended");
                            continue;
                        }
                        supervisor::ready();
                    }
                    SIGUSR1 => access_log.iter().for_each(AccessLog::reopen),
                    SIGQUIT => info!("SIGQUIT is ignored: SIGTERM stops, SIGHUP reads the configuration again"),
                    _ if stop.send(()).is_err() => return,
                    _ => warn!("asked to stop signal={signal}"),
                }
            }
        });
        stops
    }
}
