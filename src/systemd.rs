//! Reports the state of the process to systemd: ready, reloading, stopping (`sd_notify(3)`).
//!
//! Called by the composition root and by the signal handler. Does nothing without `NOTIFY_SOCKET`, that is, outside systemd.
//! A report that fails is logged and never stops the process.

use log::debug;
use sd_notify::NotifyState;

/// Reports that switchover serves, after the start and after each reload.
pub fn ready() {
    notify(&[NotifyState::Ready]);
}

/// Reports that SIGHUP started a reload; [`ready`] has to follow when the reload is done.
pub fn reloading() {
    // `Type=notify-reload` requires the time at which the reload began.
    if let Ok(since) = NotifyState::monotonic_usec_now() {
        notify(&[NotifyState::Reloading, since]);
    }
}

/// Reports that the process ends once its running requests have ended.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

fn notify(state: &[NotifyState]) {
    if let Err(e) = sd_notify::notify(state) {
        debug!("cannot notify systemd error={e}");
    }
}
