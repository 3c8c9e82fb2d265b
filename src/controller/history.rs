//! The swaps of one service that the status shows: the current or last one, and the last that has ended.
//!
//! Kept by [`super::service`]. Only [`History::announce`] notifies waiters, after the view is published.

use std::sync::Arc;

use super::swap::Swap;
use crate::{metrics::Metrics, status};

/// The swaps of one service.
pub(super) struct History {
    service: String,
    metrics: Arc<Metrics>,
    current: Option<Swap>,
    last: Option<status::Swap>,
    /// Steps of which the waiters are not notified yet.
    news: Vec<Swap>,
}

impl History {
    pub(super) fn new(service: &str, metrics: Arc<Metrics>) -> Self {
        Self { service: service.to_owned(), metrics, current: None, last: None, news: Vec::new() }
    }

    /// Records a swap that was promoted or cancelled; the status shows it from now on.
    pub(super) fn show(&mut self, swap: &Swap) {
        self.current = Some(swap.clone());
        self.news.push(swap.clone());
    }

    /// Records a swap that has ended; the status shows it unless a newer one is in progress.
    pub(super) fn ended(&mut self, swap: &Swap) {
        let status = swap.status();
        if let Some(outcome) = status.outcome {
            self.metrics.swap_ended(&self.service, outcome.label(), swap.prove_took(), swap.drain_took(), swap.took());
        }
        self.last = Some(status);
        if self.current.as_ref().is_some_and(|current| current.same_as(swap)) {
            self.current = Some(swap.clone());
        }
        self.news.push(swap.clone());
    }

    /// Updates the swap that the status shows, if it is this one.
    pub(super) fn update(&mut self, swap: &Swap) {
        if self.current.as_ref().is_some_and(|current| current.same_as(swap)) {
            self.show(swap);
        }
    }

    /// Notifies the waiters of all recorded steps.
    pub(super) fn announce(&mut self) {
        self.news.drain(..).for_each(|swap| swap.announce());
    }

    pub(super) fn current(&self) -> Option<&Swap> {
        self.current.as_ref()
    }

    pub(super) fn last(&self) -> Option<&status::Swap> {
        self.last.as_ref()
    }
}
