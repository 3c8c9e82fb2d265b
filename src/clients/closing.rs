//! Closes the connections without a request when the process stops. [`crate::clients`] shares one value with all connections.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use tokio::sync::Notify;

/// Closes connections that carry no request, now and as soon as they carry none.
#[derive(Default)]
pub(super) struct Closing {
    closed: AtomicBool,
    notify: Notify,
}

impl Closing {
    pub(super) fn close(&self) {
        self.closed.store(true, SeqCst);
        self.notify.notify_waiters();
    }

    /// Returns once [`Self::close`] was called, before this or after.
    pub(super) async fn closed(&self) {
        // Create the future before the check of `closed`, so that a call of `close` in between is not missed.
        let notified = self.notify.notified();
        if !self.closed.load(SeqCst) {
            notified.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waiting_before_or_after_the_close_ends() {
        let closing = Closing::default();
        let waits = closing.closed();
        closing.close();
        waits.await;
        closing.closed().await;
    }
}
