//! Whether the file says something else of a service than what serves, and why.
//!
//! Kept by [`super::service`]. A wish of the file that was refused or cancelled is remembered, so that reading the file again
//! does not begin it again: a release that was refused in the evening must not be promoted by an unrelated edit at night.

use std::time::SystemTime;

use log::{info, warn};

use super::view::rfc3339;
use crate::{config, status};

/// The drift of one service.
#[derive(Default)]
pub(super) struct Drift {
    refused: Option<(config::Service, String)>,
    shown: Option<status::Drift>,
}

impl Drift {
    /// The file's wish was refused or cancelled.
    pub(super) fn refuse(&mut self, wish: config::Service, reason: &str) {
        self.refused = Some((wish, reason.to_owned()));
    }

    /// The file's wish is tried again, or serves.
    pub(super) fn forget(&mut self) {
        self.refused = None;
    }

    /// Whether `wish` is the refused one still: nothing has changed that its proof depends on. Other settings wait with it,
    /// since a service's configuration is published as a whole.
    pub(super) fn holds(&self, wish: &config::Service) -> bool {
        let same = |refused: &config::Service| {
            refused.active == wish.active
                && refused.pools.get(&refused.active) == wish.pools.get(&wish.active)
                && refused.health_check == wish.health_check
                && refused.upstream == wish.upstream
                && refused.promotion == wish.promotion
        };
        self.refused.as_ref().is_some_and(|(refused, _)| same(refused))
    }

    /// Brings what is shown up to date, and logs where it begins and ends. `proving`: the file's wish is being proven.
    pub(super) fn update(&mut self, service: &str, file: &config::Service, running: &config::Service, proving: bool) {
        if file == running || (proving && !self.holds(file)) {
            if self.shown.take().is_some() {
                info!("the file and what serves agree again service={service} serves={}", running.active);
            }
            return;
        }
        let reason = self.refused.as_ref().map_or("it was not taken", |(_, reason)| reason).to_owned();
        let (file, serves) = (file.active.clone(), running.active.clone());
        let same = |shown: &&status::Drift| (&shown.file, &shown.serves, &shown.reason) == (&file, &serves, &reason);
        if self.shown.as_ref().filter(same).is_none() {
            warn!("the file and what serves differ service={service} file={file} serves={serves} reason={reason}");
            let since = self.shown.take().map_or_else(|| rfc3339(SystemTime::now()), |shown| shown.since);
            self.shown = Some(status::Drift { file, serves, reason, since });
        }
    }

    pub(super) fn shown(&self) -> Option<&status::Drift> {
        self.shown.as_ref()
    }
}
