//! TLS of a listener: selects the certificate for a client, and replaces certificates while they are in use.
//!
//! The composition root makes one [`Tls`] per listener that has certificates, and calls [`Tls::watch`]; [`crate::clients`] takes the
//! current settings for each handshake. Pairs are independent: one that cannot be read, does not match or has expired never replaces
//! a valid one, and never prevents the renewal of another.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use log::{error, info, warn};
use parking_lot::Mutex;
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, ring},
    server::{ClientHello, ResolvesServerCert, danger::ClientCertVerifier},
    sign::CertifiedKey,
};

use crate::{
    acme::Store,
    certificate::{self, Pair, Source},
    config,
    metrics::CertificateMetrics,
};

/// How often the files are read again; each has a few kilobytes.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How long until a persistent problem is logged again.
const REMINDER: Duration = Duration::from_secs(60 * 60);

/// The current certificates of one listener.
pub struct Tls {
    listener: String,
    /// Kept over renewals, so that clients can resume their sessions.
    provider: Arc<CryptoProvider>,
    settings: ArcSwap<ServerConfig>,
    metrics: CertificateMetrics,
    files: Mutex<Files>,
}

/// The files of one listener. Only [`Tls::new`] and [`Tls::watch`] use it.
struct Files {
    /// In the order of the configuration; the one from an ACME authority is last.
    pairs: Vec<Source<Pair>>,
    client_ca: Option<Source<Arc<dyn ClientCertVerifier>>>,
    /// The problem that was logged last, by file.
    logged: HashMap<String, (String, Instant)>,
    /// The certificates in the metric, by their names.
    names: Vec<String>,
}

/// Selects a certificate by the name that a client sends.
#[derive(Debug)]
struct ByName {
    names: HashMap<String, Arc<CertifiedKey>>,
    default: Option<Arc<CertifiedKey>>,
}

impl Tls {
    /// Reads the certificates of `listener`; relative paths are in `folder`.
    ///
    /// # Errors
    /// A pair or a client CA that cannot be used. A process that starts with one would reject some of its clients, and problems
    /// are seen best at a start; the certificate from an ACME authority is only logged, because a new one is ordered anyway.
    pub fn new(listener: String, files: &config::Tls, folder: &Path, metrics: CertificateMetrics) -> Result<Self, String> {
        let provider = Arc::new(ring::default_provider());
        let mut files = Files::new(files, folder);
        files.refresh(&provider);
        files.require()?;
        if files.pairs.iter().all(|pair| pair.used.is_none()) {
            warn!("no certificate yet: TLS handshakes fail until the ACME authority has issued one listener={listener}");
        }
        let settings = ArcSwap::from_pointee(files.settings(&provider)?);
        files.report(&listener, &metrics);
        Ok(Self { listener, provider, settings, metrics, files: Mutex::new(files) })
    }

    /// The settings for the next handshake.
    pub(super) fn settings(&self) -> Arc<ServerConfig> {
        self.settings.load_full()
    }

    /// Reads renewed files as soon as they are complete. Never returns.
    pub async fn watch(self: Arc<Self>) {
        loop {
            tokio::time::sleep(POLL_INTERVAL).await;
            let tls = Arc::clone(&self);
            // A slow disk must not hold up the probes, which share this task's thread.
            if let Err(e) = tokio::task::spawn_blocking(move || tls.renew()).await {
                error!("certificates could not be read again listener={} error={e}", self.listener);
            }
        }
    }

    fn renew(&self) {
        let mut files = self.files.lock();
        let renewed = files.refresh(&self.provider);
        if !renewed.is_empty() {
            let renewed = renewed.join(",");
            match files.settings(&self.provider) {
                Ok(settings) => {
                    self.settings.store(Arc::new(settings));
                    info!("certificate renewed listener={} file={renewed}", self.listener);
                }
                Err(e) => error!("certificate not renewed listener={} file={renewed} reason={e}", self.listener),
            }
        }
        files.report(&self.listener, &self.metrics);
    }
}

impl Files {
    fn new(files: &config::Tls, folder: &Path) -> Self {
        let pair = |pair: &config::Certificate| {
            let paths = [&pair.certificate, &pair.key].map(|path| folder.join(path)).to_vec();
            Source::new(&pair.certificate, paths)
        };
        let obtained = files.acme.as_ref().map(|acme| {
            let file = Store::new(acme, folder).certificate();
            Source::new(&Store::new(acme, Path::new("")).certificate(), vec![file.clone(), file]).optional()
        });
        let client_ca = files.client_ca.as_ref().map(|path| Source::new(path, vec![folder.join(path)]));
        let pairs = files.certificates.iter().map(pair).chain(obtained).collect();
        Self { pairs, client_ca, logged: HashMap::new(), names: Vec::new() }
    }

    /// Reads every file again; returns those that replace what was in use.
    fn refresh(&mut self, provider: &Arc<CryptoProvider>) -> Vec<String> {
        let now = certificate::now();
        let parse = |bytes: &[Vec<u8>], files: &[PathBuf]| match (bytes, files) {
            ([certificate, key], [certificate_file, key_file]) => {
                certificate::pair((certificate, certificate_file), (key, key_file), provider)
            }
            _ => Err("a pair is two files".to_owned()),
        };
        let mut renewed = Vec::new();
        for pair in &mut self.pairs {
            if pair.refresh(parse, |pair| pair.metadata.untimely(now)) {
                renewed.push(pair.label.clone());
            }
        }
        if let Some(ca) = &mut self.client_ca {
            let parse = |bytes: &[Vec<u8>], files: &[PathBuf]| match (bytes, files) {
                ([bytes], [file]) => certificate::client_verifier(bytes, file, provider),
                _ => Err("a CA is one file".to_owned()),
            };
            if ca.refresh(parse, |_| None) {
                renewed.push(ca.label.clone());
            }
        }
        renewed
    }

    /// What has to be there before a start is.
    fn require(&self) -> Result<(), String> {
        let pairs = self.pairs.iter().filter(|pair| !pair.optional && pair.used.is_none()).map(|pair| &pair.problem);
        let client_ca = self.client_ca.iter().filter(|ca| ca.used.is_none()).map(|ca| &ca.problem);
        pairs.chain(client_ca).next().map_or(Ok(()), |problem| Err(problem.clone().unwrap_or_default()))
    }

    fn settings(&self, provider: &Arc<CryptoProvider>) -> Result<ServerConfig, String> {
        let pairs = || self.pairs.iter().filter_map(|pair| pair.used.as_ref());
        let names: Vec<_> = pairs().flat_map(|pair| pair.metadata.names.iter().map(|name| (name.clone(), &pair.key))).collect();
        // The first pair that has a name is the one for it.
        let names = names.into_iter().rev().map(|(name, key)| (name, Arc::clone(key))).collect();
        let by_name = ByName { names, default: pairs().next().map(|pair| Arc::clone(&pair.key)) };
        let builder = ServerConfig::builder_with_provider(Arc::clone(provider));
        let builder = builder.with_safe_default_protocol_versions().map_err(|e| e.to_string())?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(ca) => builder.with_client_cert_verifier(Arc::clone(ca.used.as_ref().ok_or("the client CA was never read")?)),
        };
        let mut settings = builder.with_cert_resolver(Arc::new(by_name));
        settings.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        settings.ticketer = ring::Ticketer::new().map_err(|e| e.to_string())?;
        Ok(settings)
    }

    /// Logs each problem when it begins, again after a while, and when it has ended; sets the metrics.
    fn report(&mut self, listener: &str, metrics: &CertificateMetrics) {
        let pairs = self.pairs.iter().map(|pair| (&pair.label, &pair.problem));
        let client_ca = self.client_ca.iter().map(|ca| (&ca.label, &ca.problem));
        for (file, problem) in pairs.chain(client_ca) {
            metrics.problem.with_label_values(&[listener, file]).set(i64::from(problem.is_some()));
            match (problem, self.logged.get(file)) {
                (Some(problem), Some((known, at))) if problem == known && at.elapsed() < REMINDER => {}
                (Some(problem), _) => {
                    error!(
                        "certificate problem, what was good before stays in use listener={listener} file={file} reason={problem}"
                    );
                    self.logged.insert(file.clone(), (problem.clone(), Instant::now()));
                }
                (None, Some(_)) => {
                    info!("certificate in order again listener={listener} file={file}");
                    self.logged.remove(file);
                }
                (None, None) => {}
            }
        }
        let names = |pair: &Pair| (pair.metadata.names.join(","), pair.metadata.not_after);
        let used: Vec<_> = self.pairs.iter().filter_map(|pair| pair.used.as_ref()).map(names).collect();
        for gone in self.names.drain(..).filter(|name| !used.iter().any(|(used, _)| used == name)) {
            // An error says that it was not there.
            drop(metrics.not_after.remove_label_values(&[listener, &gone]));
        }
        for (names, not_after) in used {
            metrics.not_after.with_label_values(&[listener, &names]).set(not_after);
            self.names.push(names);
        }
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // rustls has made it lower case.
        let found = hello.server_name().and_then(|name| {
            let wildcard = || self.names.get(&format!("*.{}", name.split_once('.')?.1));
            self.names.get(name).or_else(wildcard)
        });
        found.or(self.default.as_ref()).map(Arc::clone)
    }
}
