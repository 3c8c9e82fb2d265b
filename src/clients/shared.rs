//! What all connections share: the application, the counting and logging of rejections, and the closing of idle connections.
//!
//! [`super::edge`] and [`super::http2`] reject through here only, so that every rejection is counted and logged once, whichever the
//! protocol.

use std::{net::IpAddr, sync::Arc, time::SystemTime};

use super::{closing::Closing, listener::ListenerState, reject::Rejection};
use crate::{
    access_log::{AccessLog, Entry},
    metrics::Metrics,
};

/// Shared by all connections of all listeners.
pub(super) struct Shared<A> {
    /// Answers requests.
    pub(super) app: Arc<A>,
    pub(super) closing: Closing,
    metrics: Arc<Metrics>,
    access_log: Option<AccessLog>,
}

impl<A> Shared<A> {
    pub(super) fn new(app: Arc<A>, metrics: Arc<Metrics>, access_log: Option<AccessLog>) -> Self {
        Self { app, closing: Closing::default(), metrics, access_log }
    }

    /// Counts and logs a rejection of a connection, or of a request of which nothing is known.
    pub(super) fn reject(&self, rejection: Rejection, client: IpAddr, listener: &ListenerState) {
        self.reject_request(rejection, client, listener, Entry::default());
    }

    /// Counts and logs a rejected request; `request` is what is known of it.
    pub(super) fn reject_request(&self, rejection: Rejection, client: IpAddr, listener: &ListenerState, request: Entry) {
        log::debug!("rejected listener={} client={client} reason={rejection}", listener.label);
        // A connection that times out without a request is usual, and has no line.
        if let (Some(log), true) = (&self.access_log, rejection != Rejection::Idle) {
            log.write(Box::new(Entry {
                at: Some(SystemTime::now()),
                client: client.to_string(),
                listener: listener.label.to_string(),
                status: rejection.status(),
                ended: rejection.reason(),
                ..request
            }));
        }
        self.count(rejection, listener);
    }

    /// Counts a rejection that already has its log line, as the end of a request.
    pub(super) fn count(&self, rejection: Rejection, listener: &ListenerState) {
        self.metrics.rejected.with_label_values(&[&*listener.label, rejection.reason()]).inc();
    }
}
