//! Certificates and private keys in PEM files: read, matched with each other, and what a certificate says of itself.
//!
//! Called by the listeners' TLS, by ACME, by the upstream's CA and by the checks before a start, so that all of them accept the
//! same files and report the same problems. Reads files and nothing else; never decides what happens to a bad one.

use std::{
    fs, io,
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

/// A certificate chain with its private key, ready to use.
pub struct Pair {
    /// For rustls.
    pub key: Arc<CertifiedKey>,
    /// What the first certificate of the chain says.
    pub facts: Facts,
}

/// What the first certificate of a file says.
pub struct Facts {
    /// Its DNS names, lower case.
    pub names: Vec<String>,
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970.
    pub not_after: i64,
}

impl Facts {
    /// Why a client rejects the certificate at `now` (seconds since 1970); none if its validity period is not the reason.
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

/// The bytes of a file.
///
/// # Errors
/// A sentence that names the file and says why it cannot be read.
pub fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => format!("there is no file {}", path.display()),
        io::ErrorKind::PermissionDenied => format!("{} may not be read by this user", path.display()),
        _ => format!("{} cannot be read: {e}", path.display()),
    })
}

/// The facts of the first certificate in a file.
///
/// # Errors
/// When the file cannot be read or holds no certificate.
pub fn facts(path: &Path) -> Result<Facts, String> {
    facts_of(&certificates(&read(path)?, path)?, path)
}

/// A pair from the bytes of its two files, which may be one file; the paths are for messages.
///
/// # Errors
/// When either holds no PEM of its kind, or the key is not the certificate's.
pub fn pair(certificate: (&[u8], &Path), key: (&[u8], &Path), provider: &CryptoProvider) -> Result<Pair, String> {
    let chain = certificates(certificate.0, certificate.1)?;
    let (key_file, certificate_file) = (key.1.display(), certificate.1.display());
    let key = PrivateKeyDer::from_pem_slice(key.0)
        .map_err(|_| format!("{key_file} holds no private key in PEM; expected -----BEGIN PRIVATE KEY-----"))?;
    let facts = facts_of(&chain, certificate.1)?;
    let key = CertifiedKey::from_der(chain, key, provider)
        .map_err(|e| format!("{key_file} is not the key of {certificate_file}, or one of the two cannot be used: {e}"))?;
    Ok(Pair { key: Arc::new(key), facts })
}

/// Accepts the clients whose certificates are signed by those in the file.
///
/// # Errors
/// When it holds no certificate, or one that cannot sign others.
pub fn client_verifier(bytes: &[u8], path: &Path, provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let unusable = |e: &dyn std::fmt::Display| format!("{} cannot be used: {e}", path.display());
    let mut roots = RootCertStore::empty();
    for certificate in certificates(bytes, path)? {
        roots.add(certificate).map_err(|e| unusable(&e))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build().map_err(|e| unusable(&e))
}

/// Every certificate of a CA file, each of which can be parsed.
///
/// # Errors
/// When there is none, or one that is no X.509 certificate.
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

fn facts_of(chain: &[CertificateDer<'_>], path: &Path) -> Result<Facts, String> {
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
    Ok(Facts { names, not_before: validity.not_before.timestamp(), not_after: validity.not_after.timestamp() })
}

/// Files that are in use and may be replaced at any moment: what was made of them last, and what is wrong with them now.
pub struct Source<T> {
    /// The path as the configuration has it.
    pub label: String,
    /// The files; read together.
    pub files: Vec<PathBuf>,
    /// Whether the files may be absent or bad at a start.
    pub optional: bool,
    /// What the good bytes were.
    bytes: Vec<Vec<u8>>,
    /// Made of the last files that were good; none before the first.
    pub used: Option<T>,
    /// Why the files as they are now are not used, or will not satisfy a client.
    pub problem: Option<String>,
}

impl<T> Source<T> {
    /// Nothing is read yet.
    pub fn new(label: &Path, files: Vec<PathBuf>) -> Self {
        Self { label: label.display().to_string(), files, optional: false, bytes: Vec::new(), used: None, problem: None }
    }

    /// The files may be absent until an authority has issued the certificate.
    pub fn optional(self) -> Self {
        Self { optional: true, ..self }
    }

    /// Reads the files again, whether or not there is a sign of a change: content that is put right may keep its date and length.
    /// Returns whether `used` has changed. `untimely` says why a client would reject what was parsed.
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
                // Better than nothing, and better than another one that clients reject as well.
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
    fn a_certificate_says_when_it_is_of_no_use() {
        let facts = Facts { names: vec!["a.test".to_owned(), "b.test".to_owned()], not_before: 86_400, not_after: 172_800 };
        assert_eq!(facts.untimely(90_000), None);
        assert_eq!(facts.untimely(0).unwrap(), "the certificate for a.test,b.test is not valid before 1970-01-02");
        assert_eq!(facts.untimely(172_801).unwrap(), "the certificate for a.test,b.test expired on 1970-01-03");
    }
}
