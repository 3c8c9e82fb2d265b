//! What a supervisor is told of the process: ready, reloading, stopping, as `sd_notify(3)` has it.
//!
//! Called by the composition root and by the signal handler. Without `NOTIFY_SOCKET`, outside systemd, nothing happens; nobody
//! waits for an answer, and one who cannot be told is not worth failing for.

use log::debug;
use sd_notify::NotifyState;

/// Everything that has to be there is there, also after a reload.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The configuration is read again, because SIGHUP asked for it; [`ready`] is said when that is done.
pub fn reloading() {
    // `Type=notify-reload` wants to know since when.
    if let Ok(since) = NotifyState::monotonic_usec_now() {
        tell(&[NotifyState::Reloading, since]);
    }
}

/// Running requests are waited for, then the process ends.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState]) {
    if let Err(e) = sd_notify::notify(state) {
        debug!("the supervisor cannot be told error={e}");
    }
}
