//! Checks whether a valid configuration can run on this machine: its certificates, files, folders and addresses.
//!
//! `check` and `run` call the same function before anything is bound or started, so that neither accepts what the other rejects.
//! The check leaves no trace, and works while a switchover runs with the same file.

use std::{
    fs::{self, OpenOptions},
    io,
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use pingora::tls::load_platform_certs_incl_env_into_store;
use rustls::{
    RootCertStore,
    crypto::{CryptoProvider, ring},
};
use socket2::{Domain, Socket, Type};

use crate::{
    acme::Store,
    certificate,
    config::{self, Config, Problem, ServedPool},
    hooks::read_secret,
    token,
};

/// The results, in the order of the file.
#[derive(Default)]
pub struct Findings {
    /// Problems that prevent a start.
    pub problems: Vec<Problem>,
    /// Problems that do not prevent a start.
    pub warnings: Vec<Problem>,
    /// Addresses on which another process listens; it may be a switchover with this file.
    pub in_use: Vec<Problem>,
}

/// Checks everything that `config` needs; `path` and `text` are the file it was parsed from.
pub fn look(path: &Path, text: &str, config: &Config) -> Findings {
    let folder = config::folder(path);
    let mut found = Findings::default();
    found.require("", root_certificates());
    for (i, listener) in config.listeners.iter().enumerate() {
        let at = format!("listeners[{i}]");
        address(&mut found, &format!("{at}.address"), listener.address);
        if let Some(files) = &listener.tls {
            tls(&mut found, &format!("{at}.tls"), files, folder);
        }
        if listener.pool == ServedPool::Standby {
            standby(&mut found, &format!("{at}.pool"), config);
        }
    }
    address(&mut found, "admin.address", config.admin.address);
    if let Some(file) = &config.admin.token_file {
        found.require("admin.token_file", token::read(&folder.join(file)).map(drop));
    }
    if let Some(file) = config.access_log.as_ref().and_then(|log| log.file.as_ref()) {
        let file = folder.join(file);
        found.require("access_log.file", differs(&file, path).and_then(|()| appendable(&file)));
    }
    if let Some(file) = config.notify.as_ref().and_then(|notify| notify.secret_file.as_ref()) {
        found.require("notify.secret_file", read_secret(&folder.join(file)).map(drop));
    }
    if let Some(state_dir) = &config.state_dir {
        records(&mut found, &folder.join(state_dir));
    }
    for (name, service) in &config.services {
        if let Some(ca) = service.upstream.tls.as_ref().and_then(|tls| tls.ca.as_ref()) {
            let at = format!("services.{name}.upstream.tls.ca");
            found.require(&at, certificate::authorities(&folder.join(ca)).map(drop));
        }
        let check = service.promotion.check.as_ref().and_then(|check| check.command.first());
        if let Some(why) = check.and_then(|program| not_executable(&folder.join(program)).filter(|_| program.contains('/'))) {
            // Only a warning: a start must not depend on what only the next promotion needs.
            found.warnings.push(Problem::new(&format!("services.{name}.promotion.check.command[0]"), why));
        }
    }
    for list in [&mut found.problems, &mut found.warnings, &mut found.in_use] {
        config::place(path, text, list);
    }
    found
}

impl Findings {
    fn require(&mut self, at: &str, outcome: Result<(), String>) {
        if let Err(message) = outcome {
            self.problems.push(Problem::new(at, message));
        }
    }
}

/// Only a warning: pools come and go while the listener stays, and other services may have a standby pool.
fn standby(found: &mut Findings, at: &str, config: &Config) {
    for (name, pools) in
        config.services.iter().map(|(name, service)| (name, service.pools.len())).filter(|(_, pools)| *pools != 2)
    {
        let why = format!("responds with 503 to requests of services.{name}, because it has {pools} pools and not two");
        found.warnings.push(Problem::new(at, why));
    }
}

/// Pingora's connectors read them at the start, even if no service needs them, and panic if they cannot.
fn root_certificates() -> Result<(), String> {
    load_platform_certs_incl_env_into_store(&mut RootCertStore::empty()).map_err(|e| {
        format!(
            "the root certificates of this host cannot be used: {}; see SSL_CERT_FILE, SSL_CERT_DIR and the package ca-certificates",
            e.root_cause()
        )
    })
}

fn tls(found: &mut Findings, at: &str, files: &config::Tls, folder: &Path) {
    let provider = Arc::new(ring::default_provider());
    let mut names: Vec<String> = Vec::new();
    for (i, files) in files.certificates.iter().enumerate() {
        let at = format!("{at}.certificates[{i}]");
        let metadata = match pair(files, folder, &provider) {
            Ok(pair) => pair.metadata,
            Err((key, why)) => {
                found.problems.push(Problem::new(&format!("{at}.{key}"), why));
                continue;
            }
        };
        let warning = |why| Problem::new(&format!("{at}.certificate"), why);
        found.warnings.extend(metadata.untimely(certificate::now()).map(warning));
        // Only a warning: a renewal may change the names at any time, and must not prevent a start.
        if i > 0 && metadata.names.iter().all(|name| names.contains(name)) {
            let why =
                format!("is never shown, because certificates before it have all of its names: {}", metadata.names.join(", "));
            found.warnings.push(warning(why));
        }
        names.extend(metadata.names);
    }
    if let Some(file) = &files.client_ca {
        let path = folder.join(file);
        let usable = certificate::read(&path).and_then(|bytes| certificate::client_verifier(&bytes, &path, &provider).map(drop));
        found.require(&format!("{at}.client_ca"), usable);
    }
    if let Some(acme) = &files.acme {
        found.require(&format!("{at}.acme.store"), folder_for(Store::new(acme, folder).folder()));
        let ca = acme.ca.as_ref().map_or(Ok(()), |ca| certificate::authorities(&folder.join(ca)).map(drop));
        found.require(&format!("{at}.acme.ca"), ca);
    }
}

/// Reads a certificate and its private key. The error names the configuration key at fault, and the reason.
fn pair(
    files: &config::Certificate,
    folder: &Path,
    provider: &CryptoProvider,
) -> Result<certificate::Pair, (&'static str, String)> {
    let [certificate, key] = [&files.certificate, &files.key].map(|file| folder.join(file));
    let chain = certificate::read(&certificate).map_err(|why| ("certificate", why))?;
    certificate::metadata(&certificate).map_err(|why| ("certificate", why))?;
    let bytes = certificate::read(&key).map_err(|why| ("key", why))?;
    certificate::pair((&chain, &certificate), (&bytes, &key), provider).map_err(|why| ("key", why))
}

/// Binds the address as the listener will, and releases it at once. Never listens, so that no client can connect meanwhile.
fn address(found: &mut Findings, at: &str, address: SocketAddr) {
    let bind = || -> io::Result<()> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())
    };
    let Err(e) = bind() else { return };
    let problem = |why: &str| Problem::new(at, format!("{address}: {why}"));
    match e.kind() {
        io::ErrorKind::AddrInUse => found.in_use.push(problem("is in use; stop what listens there, or choose another address")),
        io::ErrorKind::PermissionDenied => found.problems.push(problem(
            "this user may not listen on ports below 1024; give the process CAP_NET_BIND_SERVICE, or choose a higher port",
        )),
        io::ErrorKind::AddrNotAvailable => {
            found.problems.push(problem("is not an address of this machine; 0.0.0.0 and [::] are all of its addresses"));
        }
        _ => found.problems.push(problem(&format!("cannot be listened on: {e}"))),
    }
}

/// Checks that the access log is not written into the configuration file, by whatever path or link.
fn differs(log: &Path, config: &Path) -> Result<(), String> {
    let id = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    if id(log).is_some() && id(log) == id(config) {
        return Err(format!("{} is the configuration file; choose another file", log.display()));
    }
    Ok(())
}

/// A folder that is missing or not writable is only a warning: a start must not depend on a record that is only a fallback.
fn records(found: &mut Findings, state_dir: &Path) {
    if fs::metadata(state_dir).is_ok_and(|meta| !meta.is_dir()) {
        found.require("state_dir", Err(format!("{} is not a folder; choose a folder", state_dir.display())));
    } else if let Err(e) = tempfile::tempfile_in(state_dir) {
        let why = format!("{} cannot be written, so the active pools are not recorded: {e}", state_dir.display());
        found.warnings.push(Problem::new("state_dir", why));
    }
}

/// Why a file is not a program that this user may run; a name without a slash is looked up in PATH when it runs.
fn not_executable(path: &Path) -> Option<String> {
    let usable = match fs::metadata(path) {
        Ok(meta) if meta.is_file() => rustix::fs::access(path, rustix::fs::Access::EXEC_OK).map_err(io::Error::from),
        Ok(_) => Err(io::Error::other("is not a regular file")),
        Err(e) => Err(e),
    };
    usable.err().map(|e| format!("{} cannot be run, so that promotions will be refused: {e}", path.display()))
}

/// Checks that a file can be appended to, or created if it does not exist.
fn appendable(path: &Path) -> Result<(), String> {
    let failed = |e: io::Error| format!("{} cannot be written: {e}", path.display());
    match fs::metadata(path) {
        // Not opened: opening a pipe blocks until it has a reader.
        Ok(meta) if !meta.is_file() && !meta.is_dir() => Ok(()),
        Ok(_) => OpenOptions::new().append(true).open(path).map(drop).map_err(failed),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            tempfile::tempfile_in(parent).map(drop).map_err(failed)
        }
        Err(e) => Err(failed(e)),
    }
}

/// Checks that files can be written into a folder. For a folder that does not exist yet, checks its nearest existing parent.
fn folder_for(path: &Path) -> Result<(), String> {
    let existing: PathBuf = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("")).to_path_buf();
    let existing = if existing.as_os_str().is_empty() { PathBuf::from(".") } else { existing };
    tempfile::tempfile_in(&existing).map(drop).map_err(|e| format!("{} cannot be written: {e}", path.display()))
}
