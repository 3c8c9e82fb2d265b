//! A listener's limits, and the counts that they are compared with.
//!
//! The composition root makes a [`ListenerState`] for each listener; [`super::edge`] counts its connections by [`ConnectionGuard`].

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use parking_lot::Mutex;
use prometheus::IntGauge;
use tokio::sync::Notify;

use super::{backpressure::Stalled, reject::Rejection, tls::Tls};
use crate::{
    config::{self, Limits},
    metrics::Metrics,
};

/// One address that clients connect to.
pub struct ListenerState {
    pub(super) label: Arc<str>,
    pub(super) local_port: u16,
    pub(super) config: config::Listener,
    pub(super) limits: Arc<Limits>,
    pub(super) tls: Option<Arc<Tls>>,
    open: AtomicUsize,
    pub(super) stalled: Stalled,
    per_client: Mutex<HashMap<IpAddr, usize>>,
}

/// Connections of all listeners.
pub(super) struct Connections {
    open: AtomicUsize,
    /// Sockets that still accept connections.
    accepting: AtomicUsize,
    gauge: IntGauge,
    all_closed: Notify,
}

/// One socket that accepts connections, counted until it is dropped.
pub(super) struct AcceptingGuard(Arc<Connections>);

/// One open connection, counted until it is dropped.
pub(super) struct ConnectionGuard {
    all: Arc<Connections>,
    listening: Arc<ListenerState>,
    /// The address that it is also counted for, if connections per client are limited.
    client: Option<IpAddr>,
}

impl ListenerState {
    /// `address` is the bound one, `tls` the TLS settings of the configuration.
    pub fn new(config: config::Listener, address: SocketAddr, tls: Option<Arc<Tls>>, metrics: &Metrics) -> Self {
        let label: Arc<str> = Arc::from(config.address.to_string());
        // Create every series with 0, so that the first rejection is an increase.
        for rejection in Rejection::ALL {
            metrics.rejected.with_label_values(&[&*label, rejection.reason()]);
        }
        let (open, per_client) = (AtomicUsize::new(0), Mutex::default());
        let limits = Arc::new(config.limits.clone());
        Self { label, local_port: address.port(), config, limits, tls, open, stalled: Stalled::default(), per_client }
    }

    /// Whether `unread_responses` is reached.
    pub(super) fn has_too_many_unread(&self) -> bool {
        self.stalled.count() >= self.limits.unread_responses
    }
}

impl Connections {
    pub(super) fn new(gauge: IntGauge) -> Self {
        Self { open: AtomicUsize::new(0), accepting: AtomicUsize::new(0), gauge, all_closed: Notify::new() }
    }

    /// Connections open now.
    pub(super) fn open(&self) -> usize {
        self.open.load(SeqCst)
    }

    /// Counts a socket that accepts connections.
    pub(super) fn accepting(self: &Arc<Self>) -> AcceptingGuard {
        self.accepting.fetch_add(1, SeqCst);
        AcceptingGuard(Arc::clone(self))
    }

    /// Returns when no socket accepts connections and no connection is open.
    pub(super) async fn all_closed(&self) {
        loop {
            let closed = self.all_closed.notified();
            // In this order: a socket that has ended opens no connection after the second read.
            if self.accepting.load(SeqCst) == 0 && self.open() == 0 {
                return;
            }
            closed.await;
        }
    }
}

impl ConnectionGuard {
    pub(super) fn new(all: &Arc<Connections>, listening: &Arc<ListenerState>) -> Result<Self, Rejection> {
        all.open.fetch_add(1, SeqCst);
        all.gauge.inc();
        let open = Self { all: Arc::clone(all), listening: Arc::clone(listening), client: None };
        // Count first, so that two connections at the same time cannot both take the last place.
        let others = listening.open.fetch_add(1, SeqCst);
        if others < listening.limits.connections { Ok(open) } else { Err(Rejection::Connections) }
    }

    /// Counts it for this client.
    pub(super) fn count(&mut self, client: IpAddr) -> Result<(), Rejection> {
        let Some(most) = self.listening.limits.connections_per_client else { return Ok(()) };
        self.client = Some(client);
        let mut per_client = self.listening.per_client.lock();
        let open = per_client.entry(client).or_default();
        *open += 1;
        if *open <= most { Ok(()) } else { Err(Rejection::ConnectionsPerClient) }
    }
}

impl Drop for AcceptingGuard {
    fn drop(&mut self) {
        if self.0.accepting.fetch_sub(1, SeqCst) == 1 {
            self.0.all_closed.notify_waiters();
        }
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        if let Some(client) = self.client {
            let mut per_client = self.listening.per_client.lock();
            if let Some(open) = per_client.get_mut(&client) {
                *open -= 1;
                if *open == 0 {
                    per_client.remove(&client);
                }
            }
        }
        self.listening.open.fetch_sub(1, SeqCst);
        self.all.gauge.dec();
        if self.all.open.fetch_sub(1, SeqCst) == 1 {
            self.all.all_closed.notify_waiters();
        }
    }
}
