//! The limit on connections of the admin API, and the choice of the connection that is closed when the limit is reached.
//!
//! [`super::serve`] takes a [`Place`] for every connection that it accepts. At the limit, the connection that has waited longest
//! for a request is closed: otherwise clients that send no request could keep a liveness probe waiting, and the process would be
//! killed. A connection whose request is handled is never closed.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// The places of all connections.
pub(super) struct Places {
    free: Arc<Semaphore>,
    /// The connections that wait for a request, by the order in which they began to wait.
    waiting: Mutex<BTreeMap<u64, Arc<Notify>>>,
    next: AtomicU64,
    /// Signals that a connection has been added to `waiting`.
    added: Notify,
}

/// The place of one connection. Dropping it frees the place.
pub(super) struct Place {
    places: Arc<Places>,
    closed: Arc<Notify>,
    /// The key in `waiting`, of the last time that the connection began to wait.
    turn: AtomicU64,
    _permit: OwnedSemaphorePermit,
}

impl Places {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            free: Arc::new(Semaphore::new(limit)),
            waiting: Mutex::default(),
            next: AtomicU64::new(0),
            added: Notify::new(),
        })
    }

    /// Takes a place for a connection that waits for its first request. At the limit, it closes the connection that has waited
    /// longest. Waits only while every connection has a request that is handled.
    pub(super) async fn take(self: &Arc<Self>) -> Place {
        let permit = loop {
            let added = self.added.notified();
            if let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() {
                break permit;
            }
            let is_closing = self.close_oldest();
            tokio::select! {
                Ok(permit) = Arc::clone(&self.free).acquire_owned() => break permit,
                () = added, if !is_closing => {}
            }
        };
        let place = Place { places: Arc::clone(self), closed: Arc::default(), turn: AtomicU64::new(0), _permit: permit };
        place.wait_for_request();
        place
    }

    fn close_oldest(&self) -> bool {
        let oldest = self.waiting.lock().pop_first();
        oldest.inspect(|(_, closed)| closed.notify_one()).is_some()
    }
}

impl Place {
    /// Resolves when the connection has to be closed for a new one.
    pub(super) async fn closed(&self) {
        self.closed.notified().await;
    }

    /// From now on, the connection may be closed for a new one.
    pub(super) fn wait_for_request(&self) {
        let turn = self.places.next.fetch_add(1, Relaxed);
        self.turn.store(turn, Relaxed);
        self.places.waiting.lock().insert(turn, Arc::clone(&self.closed));
        self.places.added.notify_waiters();
    }

    /// From now on, the connection is not closed for a new one.
    pub(super) fn handle_request(&self) {
        self.places.waiting.lock().remove(&self.turn.load(Relaxed));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.handle_request();
    }
}
