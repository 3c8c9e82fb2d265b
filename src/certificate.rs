//! Reads certificates and private keys from PEM files, and checks that they belong together.
//!
//! Called for the listeners' TLS, ACME, the upstream CA and the checks before a start, so that all of them accept the same files
//! and report the same problems. This module only reads files; its callers decide what to do about a bad one.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use chrono::DateTime;
use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::CertifiedKey,
};
use x509_parser::{extensions::GeneralName, prelude::parse_x509_certificate};

use crate::config::file;

/// A certificate chain with its private key, ready to use.
pub struct Pair {
    /// The pair for rustls.
    pub key: Arc<CertifiedKey>,
    /// Names and validity period of the first certificate.
    pub metadata: Metadata,
}

/// Names and validity period of the first certificate of a file.
pub struct Metadata {
    /// Its DNS names, lower case.
    pub names: Vec<String>,
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970.
    pub not_after: i64,
}

impl Metadata {
    /// The reason if `now` (seconds since 1970) is outside of the validity period, so that clients reject the certificate.
    pub fn untimely(&self, now: i64) -> Option<String> {
        let date = |seconds| DateTime::from_timestamp(seconds, 0).map_or("?".to_owned(), |at| at.format("%Y-%m-%d").to_string());
        let names = self.names.join(",");
        if self.not_after < now {
            return Some(format!("the certificate for {names} expired on {}", date(self.not_after)));
        }
        (self.not_before > now).then(|| format!("the certificate for {names} is not valid before {}", date(self.not_before)))
    }
}

/// Seconds since 1970.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// Reads a file of certificates or keys, of the size of a configuration file at most.
///
/// # Errors
/// When it cannot be read; names the file and the reason.
pub fn read(path: &Path) -> Result<Vec<u8>, String> {
    file::read(path, file::LARGEST).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => format!("there is no file {}", path.display()),
        io::ErrorKind::PermissionDenied => format!("{} may not be read by this user", path.display()),
        _ => format!("{} cannot be read: {e}", path.display()),
    })
}

/// Reads the names and validity period of the first certificate in a file.
///
/// # Errors
/// When the file cannot be read or holds no certificate.
pub fn metadata(path: &Path) -> Result<Metadata, String> {
    metadata_of(&certificates(&read(path)?, path)?, path)
}

/// Parses a certificate and its private key from the bytes of their files, which may be one file; the paths are for messages.
///
/// # Errors
/// When either holds no PEM of its kind, or the key does not belong to the certificate.
pub fn pair(certificate: (&[u8], &Path), key: (&[u8], &Path), provider: &CryptoProvider) -> Result<Pair, String> {
    let chain = certificates(certificate.0, certificate.1)?;
    let (key_file, certificate_file) = (key.1.display(), certificate.1.display());
    let key = PrivateKeyDer::from_pem_slice(key.0)
        .map_err(|_| format!("{key_file} holds no private key in PEM; expected -----BEGIN PRIVATE KEY-----"))?;
    let metadata = metadata_of(&chain, certificate.1)?;
    let key = CertifiedKey::from_der(chain, key, provider)
        .map_err(|e| format!("{key_file} is not the key of {certificate_file}, or one of the two cannot be used: {e}"))?;
    Ok(Pair { key: Arc::new(key), metadata })
}

/// A verifier that accepts clients with a certificate signed by a CA in the file.
///
/// # Errors
/// When the file holds no certificate, or one that cannot sign others.
pub fn client_verifier(bytes: &[u8], path: &Path, provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let unusable = |e: &dyn std::fmt::Display| format!("{} cannot be used: {e}", path.display());
    let mut roots = RootCertStore::empty();
    for certificate in certificates(bytes, path)? {
        roots.add(certificate).map_err(|e| unusable(&e))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build().map_err(|e| unusable(&e))
}

/// Reads a CA file; every certificate in it has to parse.
///
/// # Errors
/// When the file holds no certificate, or one that is not X.509.
pub fn authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = certificates(&read(path)?, path)?;
    for certificate in &certificates {
        parse_x509_certificate(certificate).map_err(|e| format!("{} holds no X.509 certificate: {e}", path.display()))?;
    }
    Ok(certificates)
}

fn certificates(bytes: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    let chain = chain.map_err(|e| format!("{} is not valid PEM: {e}", path.display()))?;
    if chain.is_empty() {
        return Err(format!("{} holds no certificate in PEM; expected -----BEGIN CERTIFICATE-----", path.display()));
    }
    Ok(chain)
}

fn metadata_of(chain: &[CertificateDer<'_>], path: &Path) -> Result<Metadata, String> {
    let first = chain.first().map(|first| first.as_ref()).unwrap_or_default();
    let (_, parsed) = parse_x509_certificate(first).map_err(|e| format!("{} holds no X.509 certificate: {e}", path.display()))?;
    let alternative = parsed.subject_alternative_name().ok().flatten();
    let names = alternative.iter().flat_map(|extension| &extension.value.general_names);
    let names = names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        })
        .collect();
    let validity = parsed.validity();
    Ok(Metadata { names, not_before: validity.not_before.timestamp(), not_after: validity.not_after.timestamp() })
}

/// Files that may be replaced at any time: the value parsed from their last good content, and their present problem.
pub struct Source<T> {
    /// The path as written in the configuration.
    pub label: String,
    /// The files, which are read together.
    pub files: Vec<PathBuf>,
    /// Whether the files may be missing or bad at the start.
    pub optional: bool,
    /// The last good content.
    bytes: Vec<Vec<u8>>,
    /// The value parsed from the last good content; none before the first.
    pub used: Option<T>,
    /// Why the present content is not used, or why clients reject it.
    pub problem: Option<String>,
}

impl<T> Source<T> {
    /// Reads nothing yet.
    pub fn new(label: &Path, files: Vec<PathBuf>) -> Self {
        Self { label: label.display().to_string(), files, optional: false, bytes: Vec::new(), used: None, problem: None }
    }

    /// Allows the files to be missing until an authority has issued the certificate.
    pub fn optional(self) -> Self {
        Self { optional: true, ..self }
    }

    /// Reads the files, even if their date and length are unchanged: corrected content may keep both. Returns whether `used` has
    /// changed. `untimely` gives the reason if the parsed value is outside of its validity period.
    pub fn refresh(
        &mut self,
        parse: impl Fn(&[Vec<u8>], &[PathBuf]) -> Result<T, String>,
        untimely: impl Fn(&T) -> Option<String>,
    ) -> bool {
        let expired = self.used.as_ref().and_then(&untimely);
        let bytes: Result<Vec<_>, _> = self.files.iter().map(|file| read(file)).collect();
        let bytes = match bytes {
            Ok(bytes) if self.used.is_some() && bytes == self.bytes => {
                self.problem = expired;
                return false;
            }
            Ok(bytes) => bytes,
            Err(_) if self.optional && self.used.is_none() && self.files.iter().all(|file| !file.exists()) => {
                self.problem = None;
                return false;
            }
            Err(why) => {
                self.problem = Some(why);
                return false;
            }
        };
        let (problem, new) = match parse(&bytes, &self.files) {
            Err(why) => (Some(why), None),
            Ok(new) => match untimely(&new) {
                // An untimely certificate is used only if the alternative is none, or another untimely one.
                Some(why) if self.used.is_none() || expired.is_some() => (Some(why), Some(new)),
                Some(why) => (Some(why), None),
                None => (None, Some(new)),
            },
        };
        self.problem = problem;
        let Some(new) = new else { return false };
        (self.used, self.bytes) = (Some(new), bytes);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_outside_of_its_validity_period_is_untimely() {
        let metadata = Metadata { names: vec!["a.test".to_owned(), "b.test".to_owned()], not_before: 86_400, not_after: 172_800 };
        assert_eq!(metadata.untimely(90_000), None);
        assert_eq!(metadata.untimely(0).unwrap(), "the certificate for a.test,b.test is not valid before 1970-01-02");
        assert_eq!(metadata.untimely(172_801).unwrap(), "the certificate for a.test,b.test expired on 1970-01-03");
    }
}
