//! Counts and logs rejections.
//!
//! All of [`crate::clients`] rejects through here, so that every rejection is counted once, whatever the protocol. One that ends a
//! request in the proxy is counted by [`super::connection::Connection::reject`] and gets the log line of that request.

use std::{net::IpAddr, sync::Arc, time::SystemTime};

use super::reject::Rejection;
use crate::{
    access_log::{AccessLog, Entry},
    metrics::Metrics,
};

/// The counters and the log of rejections, of all listeners.
pub(crate) struct Rejections {
    metrics: Arc<Metrics>,
    access_log: Option<AccessLog>,
}

impl Rejections {
    pub(super) fn new(metrics: Arc<Metrics>, access_log: Option<AccessLog>) -> Self {
        Self { metrics, access_log }
    }

    /// Counts and logs a rejected connection, or a rejected request of which nothing is known.
    pub(super) fn connection(&self, rejection: Rejection, client: IpAddr, listener: &str) {
        self.request(rejection, client, listener, Entry::default());
    }

    /// Counts and logs a rejected request; `request` is what is known of it.
    pub(super) fn request(&self, rejection: Rejection, client: IpAddr, listener: &str, request: Entry) {
        log::debug!("rejected listener={listener} client={client} reason={rejection}");
        // A connection that times out without a request is usual, and has no line.
        if let (Some(log), true) = (&self.access_log, rejection != Rejection::Idle) {
            log.write(Box::new(Entry {
                at: Some(SystemTime::now()),
                client: client.to_string(),
                listener: listener.to_owned(),
                status: rejection.status(),
                ended: rejection.reason(),
                ..request
            }));
        }
        self.count(rejection, listener);
    }

    /// Counts a rejection whose log line is that of its request.
    pub(super) fn count(&self, rejection: Rejection, listener: &str) {
        self.metrics.rejected.with_label_values(&[listener, rejection.reason()]).inc();
    }
}
