//! The change of the file that goes with `promote`: prepared when the command comes, written when the new pool is proven.
//!
//! Written first, a pool that never becomes ready would be the active one of the next start, and a refused release would leave
//! its mark. So the file says what serves, at every moment.

use std::{fs, io, path::PathBuf};

use crate::config::edit;

/// One change of the configuration file.
pub(super) struct Edit {
    pub path: PathBuf,
    /// The text that the change was made to.
    pub before: String,
    /// The text to be written.
    pub after: String,
}

/// Why a change could not be made.
pub(super) enum Refused {
    /// Somebody else has changed the file since.
    Overtaken,
    /// The file could not be read or written.
    Io(io::Error),
}

impl Edit {
    /// Writes the file, unless somebody else was quicker.
    pub(super) fn commit(&self) -> Result<(), Refused> {
        let now = fs::read_to_string(&self.path).map_err(Refused::Io)?;
        if now == self.after {
            return Ok(());
        }
        if now != self.before {
            return Err(Refused::Overtaken);
        }
        edit::write_atomically(&self.path, &self.after).map_err(Refused::Io)
    }
}
