//! The drift of a service: whether its configuration in the file differs from the running one, and why.
//!
//! Kept by [`super::service`]. A configuration that failed or was cancelled is remembered, so that a reload does not try it
//! again: a release that failed in the evening must not be promoted at night by an unrelated edit.

use std::time::SystemTime;

use log::{info, warn};

use super::view::rfc3339;
use crate::{config, status};

/// The drift of one service.
#[derive(Default)]
pub(super) struct Drift {
    failed: Option<(config::Service, String)>,
    shown: Option<status::Drift>,
}

impl Drift {
    /// Records that the configuration of the file failed or was cancelled.
    pub(super) fn failed(&mut self, wanted: config::Service, reason: &str) {
        self.failed = Some((wanted, reason.to_owned()));
    }

    /// Adds to the failure why the file could not be set back to what serves.
    pub(super) fn not_set_back(&mut self, why: &str) {
        if let Some((_, reason)) = &mut self.failed {
            *reason = format!("{reason}; the file could not be set back: {why}");
        }
    }

    /// Forgets the failure, because the configuration of the file is retried or runs.
    pub(super) fn forget(&mut self) {
        self.failed = None;
    }

    /// Whether `wanted` has already failed: nothing that its proof depends on has changed since. Other changed settings are not
    /// applied either, because the configuration of a service is published as a whole.
    pub(super) fn has_failed(&self, wanted: &config::Service) -> bool {
        let same = |failed: &config::Service| {
            failed.active == wanted.active
                && failed.pools.get(&failed.active) == wanted.pools.get(&wanted.active)
                && failed.health_check == wanted.health_check
                && failed.upstream == wanted.upstream
                && failed.promotion == wanted.promotion
        };
        self.failed.as_ref().is_some_and(|(failed, _)| same(failed))
    }

    /// Updates the published drift, and logs its start and end. `proving` means that the configuration of the file is being
    /// proven.
    pub(super) fn update(&mut self, service: &str, file: &config::Service, running: &config::Service, proving: bool) {
        if file == running || (proving && !self.has_failed(file)) {
            if self.shown.take().is_some() {
                info!("the running service matches the file again service={service} serves={}", running.active);
            }
            return;
        }
        let reason = self.failed.as_ref().map_or("it was not applied", |(_, reason)| reason).to_owned();
        let (file, serves) = (file.active.clone(), running.active.clone());
        let same = |shown: &&status::Drift| (&shown.file, &shown.serves, &shown.reason) == (&file, &serves, &reason);
        if self.shown.as_ref().filter(same).is_none() {
            warn!("the running service differs from the file service={service} file={file} serves={serves} reason={reason}");
            let since = self.shown.take().map_or_else(|| rfc3339(SystemTime::now()), |shown| shown.since);
            self.shown = Some(status::Drift { file, serves, reason, since });
        }
    }

    pub(super) fn shown(&self) -> Option<&status::Drift> {
        self.shown.as_ref()
    }
}
