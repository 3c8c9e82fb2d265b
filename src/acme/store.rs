//! The folder that keeps an ACME account and its certificates across restarts.
//!
//! [`super::Acme`] writes the files, the listeners' TLS reads the certificate, and [`crate::preflight`] checks the folder.

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
    /// Computes the paths; relative ones are relative to `folder`. Reads and writes nothing.
    pub fn new(config: &config::Acme, folder: &Path) -> Self {
        // Without `.`, so that `store` and `./store` are the same path.
        let store = config.store.components().filter(|component| *component != Component::CurDir).collect::<PathBuf>();
        // One folder per authority: a certificate from a staging environment must never be served to clients.
        let authority = config.directory.split('/').nth(2).unwrap_or_default().replace(':', "_");
        let name = config.names.first().cloned().unwrap_or_default();
        Self { folder: folder.join(store).join(authority), name }
    }

    /// The folder of all files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The file with the private key, the certificate and its chain.
    pub fn certificate(&self) -> PathBuf {
        self.folder.join(format!("{}.pem", self.name))
    }

    /// The file with the account's key and URL.
    pub(super) fn account(&self) -> PathBuf {
        self.folder.join("account.json")
    }

    /// Creates the folder, and checks that files can be written into it.
    pub(super) fn create(&self) -> Result<(), String> {
        let unwritable = |e: io::Error| format!("store: {} cannot be written: {e}", self.folder.display());
        fs::create_dir_all(&self.folder).and_then(|()| NamedTempFile::new_in(&self.folder).map(drop)).map_err(unwritable)
    }
}

/// Replaces a file atomically. A new file is readable by its owner only; a replaced one keeps its permissions.
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
