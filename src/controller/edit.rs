//! The change of the file that goes with `promote`: asked for when the command comes, made when the new pool is proven.
//!
//! Made first, a pool that never becomes ready would be the active one of the next start, and a refused release would leave its
//! mark. So the file says what serves, at every moment. What else is in the file by then stays as it is.

use std::{io, path::PathBuf};

use crate::config::{self, edit};

/// One change of one service's `active:` line.
#[derive(Clone)]
pub(super) struct Edit {
    pub path: PathBuf,
    pub service: String,
    pub pool: String,
    /// The service as the file had it when the change was asked for.
    pub base: config::Service,
}

/// Why a change could not be made.
pub(super) enum Refused {
    /// Somebody has changed the service in the file since.
    Overtaken,
    /// The file could not be written.
    Io(io::Error),
}

impl Edit {
    /// Writes the file, and gives its text, unless somebody else was quicker.
    pub(super) fn commit(&self) -> Result<String, Refused> {
        let (text, config) = config::load(&self.path).map_err(|_| Refused::Overtaken)?;
        if config.services.get(&self.service) != Some(&self.base) {
            return Err(Refused::Overtaken);
        }
        let text = edit::set_active(&text, &self.service, &self.pool).map_err(|_| Refused::Overtaken)?;
        edit::write_atomically(&self.path, &text).map_err(Refused::Io)?;
        Ok(text)
    }
}
