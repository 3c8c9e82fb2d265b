//! The composition root: the only place that knows everybody.
//!
//! Binds first, so that a busy port ends the process at once; starts the controller, the watcher, the admin face and the proxy,
//! each on threads of its own kind; says ready once it has connected to its own listeners; stops in order.

use std::{
    collections::HashSet,
    fmt, io,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use log::{info, warn};
use pingora::{protocols::TcpKeepalive, proxy::HttpProxy};
use socket2::SockRef;
use tokio::{
    net::TcpSocket,
    runtime::{Builder, Runtime},
    sync::{mpsc, watch},
    time::timeout,
};

use crate::{
    access_log::AccessLog,
    acme::{Acme, ChallengeStore, Store},
    admin::{self, Admin, Readiness},
    clients::{self, ListenerState, tls::Tls},
    config::{self, Config},
    controller::{Controller, Handles},
    metrics::Metrics,
    pool::KEEPALIVE,
    preflight,
    proxy::Proxy,
    signals::Caught,
    snapshot::Snapshot,
    supervisor, watch as file_watch,
};

/// Client connections whose requests the proxy answers.
type Edge = clients::Edge<HttpProxy<Proxy>>;

/// Connections that wait to be accepted; the system's own limit (`net.core.somaxconn`) is lower almost everywhere.
const BACKLOG: u32 = 65535;
/// How long a stopping process leaves an unused connection open: a request may be on its way on it.
const IDLE_LINGER: Duration = Duration::from_millis(250);
/// Connecting to a listener of one's own takes microseconds.
const SELF_CHECK: Duration = Duration::from_secs(1);

/// Why the process could not run, or not to its proper end.
#[derive(Debug)]
pub enum RunError {
    /// The configuration is not valid, or names files or addresses that cannot be used here.
    Config(config::LoadError),
    /// An address cannot be listened on.
    Bind {
        /// Which key of the file.
        what: String,
        /// The address.
        address: SocketAddr,
        /// Why.
        cause: io::Error,
    },
    /// Anything else the system refused.
    System(String),
    /// A second signal ended it, with this many connections open.
    Interrupted(usize),
}

/// Runs until a signal asks to stop and running requests have ended.
///
/// # Errors
/// [`RunError`], when it cannot start, or when a second signal ends it.
pub fn run(path: &Path, signals: Caught) -> Result<(), RunError> {
    let (text, config) = config::load(path).map_err(RunError::Config)?;
    let found = preflight::look(path, &text, &config);
    if !found.problems.is_empty() {
        return Err(RunError::Config(config::LoadError { problems: found.problems }));
    }
    found.warnings.iter().for_each(|warning| warn!("{warning}"));
    let metrics = Arc::new(Metrics::new().map_err(|e| RunError::System(e.to_string()))?);
    let certificates = certificates(&config, path, &metrics)?;
    let challenges = ChallengeStore::default();
    let obtained = obtained(&config, path, &challenges)?;
    let access_log = access_log(&config, path, &metrics)?;
    let token_file = config.admin.token_file.as_ref().map(|file| Arc::from(path.parent().unwrap_or(Path::new("")).join(file)));
    let listeners = config.listeners.clone();
    let bound = Bound::new(&config)?;
    let addresses: Arc<[String]> = bound.addresses.iter().map(ToString::to_string).collect();
    let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::empty()));
    let readiness = Arc::new(Readiness::default());
    let workers = config.threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));

    let control = runtime("control", 1)?;
    let (controller, Handles { commands, view, written }) = {
        let _on_control = control.enter();
        Controller::new(path.to_path_buf(), text, config, Arc::clone(&snapshot), Arc::clone(&metrics))
    };
    control.spawn(controller.run());
    control.spawn(file_watch::run(path.to_path_buf(), written, commands.clone()));

    let admin_runtime = runtime("admin", 1)?;
    let admin = Admin {
        view: view.clone(),
        commands: commands.clone(),
        metrics: Arc::clone(&metrics),
        readiness: Arc::clone(&readiness),
        listeners: Arc::clone(&addresses),
        address: bound.admin_address,
        token_file,
    };
    serve_admin(&admin_runtime, bound.admin, admin)?;
    info!("admin on {}", bound.admin_address);

    let proxy =
        Proxy::new(Arc::clone(&snapshot), Arc::clone(&metrics), Arc::clone(&readiness.stopping), access_log.clone(), challenges);
    let edge = Edge::new(proxy.app(workers), snapshot, Arc::clone(&metrics), access_log.clone());
    let (stop, stopping) = watch::channel(false);
    let workers = runtime("proxy", workers)?;
    for (((listener, socket), address), tls) in listeners.into_iter().zip(bound.listeners).zip(&bound.addresses).zip(certificates)
    {
        if let Some(tls) = &tls {
            control.spawn(Arc::clone(tls).watch());
        }
        let listening = Arc::new(ListenerState::new(listener, *address, tls, &metrics));
        workers.spawn(edge.clone().serve(socket, listening, stopping.clone()));
    }
    for address in &bound.addresses {
        check_listening(*address, &edge).map_err(|cause| RunError::Bind {
            what: "listeners".to_owned(),
            address: *address,
            cause,
        })?;
        info!("listening on {address}");
    }
    for acme in obtained {
        control.spawn(acme.keep());
    }
    readiness.listening.store(true, Relaxed);
    supervisor::ready();

    let stops = signals.listen(commands, access_log);
    let ended = control.block_on(until_stopped(stops, || view.borrow().shutdown_timeout(), &edge, &stop, &readiness.stopping));
    // What still runs on these has nobody to serve any more.
    [workers, admin_runtime, control].into_iter().for_each(Runtime::shutdown_background);
    ended
}

/// Waits for a signal, then for running requests, then returns.
async fn until_stopped(
    mut stops: mpsc::UnboundedReceiver<()>,
    bound: impl Fn() -> Duration,
    edge: &Edge,
    stop: &watch::Sender<bool>,
    stopping: &AtomicBool,
) -> Result<(), RunError> {
    if stops.recv().await.is_none() {
        return Ok(());
    }
    // From now on answers ask their clients to leave, and nobody new is let in.
    stopping.store(true, Relaxed);
    supervisor::stopping();
    stop.send_replace(true);
    let bound = bound();
    info!("stopping connections={} shutdown_timeout={}", edge.connections(), humantime::format_duration(bound));
    let ended = async {
        if timeout(IDLE_LINGER, edge.all_closed()).await.is_err() {
            edge.close_idle();
            edge.all_closed().await;
        }
    };
    tokio::select! {
        ended = timeout(bound, ended) => match ended {
            Ok(()) => info!("stopped, every request has ended"),
            Err(_) => warn!("stopped after shutdown_timeout connections={}", edge.connections()),
        },
        _ = stops.recv() => return Err(RunError::Interrupted(edge.connections())),
    }
    Ok(())
}

fn access_log(config: &Config, path: &Path, metrics: &Metrics) -> Result<Option<AccessLog>, RunError> {
    let Some(config::AccessLog { format, file }) = &config.access_log else { return Ok(None) };
    let file = file.as_ref().map(|file| path.parent().unwrap_or(Path::new("")).join(file));
    let shown = file.as_ref().map_or("standard output".to_owned(), |file| file.display().to_string());
    let log = AccessLog::start(*format, file, metrics.access_log_dropped.clone());
    log.map(Some).map_err(|e| RunError::System(format!("access_log.file: {shown} cannot be written: {e}")))
}

/// The certificates of each listener that has some; read before anything is bound, so that a wrong path ends the process at once.
fn certificates(config: &Config, path: &Path, metrics: &Metrics) -> Result<Vec<Option<Arc<Tls>>>, RunError> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let read = |(i, listener): (usize, &config::Listener)| {
        let Some(files) = &listener.tls else { return Ok(None) };
        let tls = Tls::new(listener.address.to_string(), files, folder, metrics.certificates.clone());
        tls.map(|tls| Some(Arc::new(tls))).map_err(|why| RunError::System(format!("listeners[{i}].tls: {why}")))
    };
    config.listeners.iter().enumerate().map(read).collect()
}

/// The certificates that an authority gives; nobody is asked yet.
fn obtained(config: &Config, path: &Path, challenges: &ChallengeStore) -> Result<Vec<Acme>, RunError> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let asking = config.listeners.iter().enumerate().filter_map(|(i, listener)| Some((i, listener.tls.as_ref()?.acme.as_ref()?)));
    // Listeners with the same certificate share its file: one of them orders it.
    let mut files = HashSet::new();
    let asking = asking.filter(|(_, acme)| files.insert(Store::new(acme, folder).certificate()));
    let make = |(i, acme): (usize, &config::Acme)| {
        let acme = Acme::new(acme.clone(), folder, challenges.clone());
        acme.map_err(|why| RunError::System(format!("listeners[{i}].tls.acme.{why}")))
    };
    asking.map(make).collect()
}

/// Every socket of the process, bound before anything else happens.
struct Bound {
    listeners: Vec<TcpListener>,
    /// With the ports really taken.
    addresses: Vec<SocketAddr>,
    admin: TcpListener,
    admin_address: SocketAddr,
}

impl Bound {
    fn new(config: &Config) -> Result<Self, RunError> {
        let listen = |what: String, address: SocketAddr| {
            bind(address).and_then(|listener| Ok((listener.local_addr()?, listener))).map_err(|cause| RunError::Bind {
                what,
                address,
                cause,
            })
        };
        let listeners = config.listeners.iter().enumerate();
        let listeners = listeners
            .map(|(i, listener)| listen(format!("listeners[{i}].address"), listener.address))
            .collect::<Result<Vec<_>, _>>()?;
        let (admin_address, admin) = listen("admin.address".to_owned(), config.admin.address)?;
        let (addresses, listeners) = listeners.into_iter().unzip();
        Ok(Self { listeners, addresses, admin, admin_address })
    }
}

/// Binds with SO_REUSEADDR, so that a restart does not have to wait for the last life's connections to be forgotten. Accepted
/// connections have the keep-alive of their listener (tcp(7)).
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let runtime = Builder::new_current_thread().enable_io().build()?;
    let _context = runtime.enter();
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    let TcpKeepalive { idle, interval, count, .. } = KEEPALIVE;
    let retries = u32::try_from(count).unwrap_or(u32::MAX);
    let keepalive = socket2::TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(retries);
    SockRef::from(&socket).set_tcp_keepalive(&keepalive)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

/// Proves that a listener is served, by connecting to it until the connection is accepted; a bound socket alone would let
/// connections pile up. A wildcard address is reached through loopback.
fn check_listening(mut address: SocketAddr, edge: &Edge) -> io::Result<()> {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { [127, 0, 0, 1].into() } else { [0, 0, 0, 0, 0, 0, 0, 1].into() });
    }
    let deadline = Instant::now() + SELF_CHECK;
    let _connection = TcpStream::connect_timeout(&address, SELF_CHECK)?;
    while edge.connections() == 0 {
        if Instant::now() >= deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "nobody accepts connections"));
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn serve_admin(runtime: &Runtime, listener: TcpListener, admin: Admin) -> Result<(), RunError> {
    let _context = runtime.enter();
    let listener = tokio::net::TcpListener::from_std(listener).map_err(|e| RunError::System(e.to_string()))?;
    runtime.spawn(async move {
        if let Err(e) = axum::serve(listener, admin::router(admin).into_make_service_with_connect_info::<SocketAddr>()).await {
            log::error!("the admin face has ended error={e}");
        }
    });
    Ok(())
}

fn runtime(name: &str, threads: usize) -> Result<Runtime, RunError> {
    Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name(name)
        .enable_all()
        .build()
        .map_err(|e| RunError::System(format!("cannot start threads: {e}")))
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(e) => e.fmt(f),
            Self::Bind { what, address, cause } if cause.kind() == io::ErrorKind::AddrInUse => {
                write!(f, "cannot start: {what}: {address} is in use; stop whoever listens there, or choose another address")
            }
            Self::Bind { what, address, cause } => write!(f, "cannot start: {what}: cannot listen on {address}: {cause}"),
            Self::System(message) => write!(f, "cannot start: {message}"),
            Self::Interrupted(open) => write!(f, "stopped at once by a second signal, with {open} connections open"),
        }
    }
}
