//! The folder that keeps an ACME account and its certificates over restarts: where each file is, and how it is written.
//!
//! Used by [`super::Acme`], which writes, by the listeners' TLS, which reads the certificate, and by the checks before a start.

use std::{
    fs,
    io::{self, Write},
    path::{Component, Path, PathBuf},
};

use tempfile::NamedTempFile;

use crate::config;

/// The files of one certificate.
pub struct Store {
    folder: PathBuf,
    name: String,
}

impl Store {
    /// Relative paths of `config` are in `folder`. Touches nothing.
    pub fn new(config: &config::Acme, folder: &Path) -> Self {
        // Without any `.`, so that `store` and `./store` are one folder.
        let store = config.store.components().filter(|component| *component != Component::CurDir).collect::<PathBuf>();
        // Apart for each authority, since a certificate of a staging environment is not one for clients.
        let authority = config.directory.split('/').nth(2).unwrap_or_default().replace(':', "_");
        let name = config.names.first().cloned().unwrap_or_default();
        Self { folder: folder.join(store).join(authority), name }
    }

    /// Holds every other file.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The certificate, its chain and its key.
    pub fn certificate(&self) -> PathBuf {
        self.folder.join(format!("{}.pem", self.name))
    }

    /// The account's key, and where the authority keeps the account.
    pub(super) fn account(&self) -> PathBuf {
        self.folder.join("account.json")
    }

    /// Makes the folder, and proves that files can be written into it.
    pub(super) fn create(&self) -> Result<(), String> {
        let unwritable = |e: io::Error| format!("store: {} cannot be written: {e}", self.folder.display());
        fs::create_dir_all(&self.folder).and_then(|()| NamedTempFile::new_in(&self.folder).map(drop)).map_err(unwritable)
    }
}

/// Writes a file that is seen whole or not at all. A new one is for its owner alone; one that is replaced keeps its permissions.
pub(super) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = NamedTempFile::new_in(path.parent().unwrap_or(Path::new("")))?;
    file.write_all(bytes)?;
    if let Ok(before) = fs::metadata(path) {
        file.as_file().set_permissions(before.permissions())?;
    }
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}
