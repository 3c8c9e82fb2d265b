//! Certificates of a listener: which one a client is shown, and how they are replaced while they are in use.
//!
//! The composition root makes one [`Tls`] per listener that has certificates, and calls [`Tls::watch`]; [`crate::clients`] takes the
//! settings of the moment for each handshake. A pair that does not fit, or has expired, never takes the place of one that does.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use prometheus::IntGaugeVec;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use x509_parser::{extensions::GeneralName, prelude::parse_x509_certificate};

use crate::config;

/// Files are looked at this often; reading them again costs nothing that a client would notice.
const LOOK: Duration = Duration::from_secs(1);

/// The certificates of one listener, as they are now.
pub struct Tls {
    listener: String,
    files: config::Tls,
    /// Kept over reloads, so that clients may resume what they began.
    provider: Arc<CryptoProvider>,
    settings: ArcSwap<ServerConfig>,
    not_after: IntGaugeVec,
    /// The names of the certificates that are in the metric.
    told: Mutex<Vec<String>>,
}

/// One certificate with what is known of it.
struct Pair {
    key: Arc<CertifiedKey>,
    /// The DNS names it is for, lower case.
    names: Vec<String>,
    not_after: i64,
}

/// By the name that a client asks for.
#[derive(Debug)]
struct ByName {
    names: HashMap<String, Arc<CertifiedKey>>,
    default: Option<Arc<CertifiedKey>>,
}

/// What the files were when they were last read: enough to see that they are others now.
type Seen = Vec<Option<(SystemTime, u64)>>;

impl Tls {
    /// Reads the certificates of `listener`; relative paths are in `folder`.
    ///
    /// # Errors
    /// A file that cannot be read, is no PEM, or holds a key that is not the certificate's, named with the reason.
    pub fn new(listener: String, files: &config::Tls, folder: &Path, not_after: IntGaugeVec) -> Result<Self, String> {
        let absolute = |path: &PathBuf| folder.join(path);
        let certificates = files.certificates.iter();
        let files = config::Tls {
            certificates: certificates
                .map(|pair| config::Certificate { certificate: absolute(&pair.certificate), key: absolute(&pair.key) })
                .collect(),
            acme: files.acme.as_ref().map(|acme| acme.within(folder)),
            client_ca: files.client_ca.as_ref().map(absolute),
        };
        let provider = Arc::new(ring::default_provider());
        let pairs = read(&files, &provider)?;
        if pairs.is_empty() {
            log::warn!("there is no certificate yet; nobody is served until the authority has given one listener={listener}");
        }
        for pair in pairs.iter().filter(|pair| pair.not_after < now()) {
            log::warn!("a certificate has expired listener={listener} names={}", pair.names.join(","));
        }
        let settings = ArcSwap::from_pointee(settings(&files, &pairs, &provider)?);
        let tls = Self { listener, files, provider, settings, not_after, told: Mutex::default() };
        tls.tell(&pairs);
        Ok(tls)
    }

    /// For the next handshake.
    pub(super) fn settings(&self) -> Arc<ServerConfig> {
        self.settings.load_full()
    }

    /// Takes renewed files as soon as they are complete, for ever.
    pub async fn watch(self: Arc<Self>) {
        let mut seen = self.look();
        loop {
            tokio::time::sleep(LOOK).await;
            let now = self.look();
            if now == seen {
                continue;
            }
            seen = now;
            match self.renew() {
                Ok(names) => log::info!("certificates renewed listener={} names={names}", self.listener),
                Err(why) => {
                    log::error!("certificates not renewed, the old ones serve on listener={} reason={why}", self.listener);
                }
            }
        }
    }

    fn renew(&self) -> Result<String, String> {
        let pairs = read(&self.files, &self.provider)?;
        if let Some(pair) = pairs.iter().find(|pair| pair.not_after < now()) {
            return Err(format!("the one for {} has expired", pair.names.join(",")));
        }
        self.settings.store(Arc::new(settings(&self.files, &pairs, &self.provider)?));
        self.tell(&pairs);
        Ok(pairs.iter().flat_map(|pair| &pair.names).cloned().collect::<Vec<_>>().join(","))
    }

    fn look(&self) -> Seen {
        let pairs = self.files.certificates.iter().flat_map(|pair| [pair.certificate.clone(), pair.key.clone()]);
        let look = |path: PathBuf| fs::metadata(path).and_then(|of_file| Ok((of_file.modified()?, of_file.len()))).ok();
        pairs.chain(self.files.acme.as_ref().map(config::Acme::file)).chain(self.files.client_ca.clone()).map(look).collect()
    }

    /// Puts these certificates into the metric, in the place of those that were there.
    fn tell(&self, pairs: &[Pair]) {
        let mut told = self.told.lock();
        for names in told.drain(..) {
            drop(self.not_after.remove_label_values(&[&self.listener, &names]));
        }
        for pair in pairs {
            let names = pair.names.join(",");
            self.not_after.with_label_values(&[&self.listener, &names]).set(pair.not_after);
            told.push(names);
        }
    }
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

fn read(files: &config::Tls, provider: &CryptoProvider) -> Result<Vec<Pair>, String> {
    let given = files.certificates.iter().map(|pair| read_pair(pair, provider));
    // An authority may not have given it yet.
    let obtained = files.acme.as_ref().map(config::Acme::file).filter(|file| file.exists());
    let obtained = obtained.map(|file| read_pair(&config::Certificate { certificate: file.clone(), key: file }, provider));
    given.chain(obtained).collect()
}

/// What a file's first certificate says.
pub(crate) struct Facts {
    /// The DNS names it is for, lower case.
    pub names: Vec<String>,
    /// Seconds since 1970.
    pub not_before: i64,
    pub not_after: i64,
}

/// Reads them.
///
/// # Errors
/// A file that cannot be read, or has no certificate in it.
pub(crate) fn facts(path: &Path) -> Result<Facts, String> {
    facts_of(&certificates(path)?, path)
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

fn read_pair(files: &config::Certificate, provider: &CryptoProvider) -> Result<Pair, String> {
    let chain = certificates(&files.certificate)?;
    let key_file = files.key.display();
    let key = PrivateKeyDer::from_pem_slice(&bytes(&files.key)?)
        .map_err(|_| format!("{key_file} holds no private key in PEM; expected -----BEGIN PRIVATE KEY-----"))?;
    let Facts { names, not_after, .. } = facts_of(&chain, &files.certificate)?;
    let certificate = files.certificate.display();
    let key = CertifiedKey::from_der(chain, key, provider)
        .map_err(|e| format!("{key_file} is not the key of {certificate}, or neither can be used: {e}"))?;
    Ok(Pair { key: Arc::new(key), names, not_after })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes(path)?).collect();
    let chain = chain.map_err(|e| format!("{} is no PEM: {e}", path.display()))?;
    if chain.is_empty() {
        return Err(format!("{} holds no certificate in PEM; expected -----BEGIN CERTIFICATE-----", path.display()));
    }
    Ok(chain)
}

fn bytes(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => format!("there is no file {}", path.display()),
        io::ErrorKind::PermissionDenied => format!("{} may not be read by this user", path.display()),
        _ => format!("{} cannot be read: {e}", path.display()),
    })
}

fn settings(files: &config::Tls, pairs: &[Pair], provider: &Arc<CryptoProvider>) -> Result<ServerConfig, String> {
    let names = pairs.iter().rev().flat_map(|pair| pair.names.iter().map(|name| (name.clone(), Arc::clone(&pair.key))));
    let by_name = ByName { names: names.collect(), default: pairs.first().map(|pair| Arc::clone(&pair.key)) };
    let builder = ServerConfig::builder_with_provider(Arc::clone(provider));
    let builder = builder.with_safe_default_protocol_versions().map_err(|e| e.to_string())?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|e| format!("{} cannot be used: {e}", path.display()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
            builder.with_client_cert_verifier(verifier.build().map_err(|e| format!("{} cannot be used: {e}", path.display()))?)
        }
    };
    let mut settings = builder.with_cert_resolver(Arc::new(by_name));
    settings.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    settings.ticketer = ring::Ticketer::new().map_err(|e| e.to_string())?;
    Ok(settings)
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // Lower case already: rustls makes it so.
        let found = hello.server_name().and_then(|name| {
            let wildcard = || self.names.get(&format!("*.{}", name.split_once('.')?.1));
            self.names.get(name).or_else(wildcard)
        });
        found.or(self.default.as_ref()).map(Arc::clone)
    }
}
