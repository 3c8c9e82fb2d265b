//! The composition root: the only module that uses all others.
//!
//! Binds all addresses first, so that a busy port ends the process at once. Then starts the controller, the watcher, the admin
//! API and the proxy, each on its own threads. Reports ready after it has connected to its own listeners. Stops them in order.

use std::{
    collections::HashSet,
    fmt, io,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{Arc, atomic::Ordering::Relaxed},
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
    descriptors,
    metrics::Metrics,
    pool::KEEPALIVE,
    preflight,
    proxy::Proxy,
    signals::Caught,
    snapshot::Snapshot,
    systemd,
    tasks::{self, Tasks},
    token::Token,
    watch as file_watch,
};

/// Client connections whose requests go to the proxy.
type Edge = clients::Edge<HttpProxy<Proxy>>;

/// Maximum number of connections that wait to be accepted. Usually the limit of the system (`net.core.somaxconn`) is lower.
const BACKLOG: u32 = 65535;
/// Maximum number of unsent bytes that the kernel buffers for a client (tcp(7), TCP_NOTSENT_LOWAT). Without this limit it buffers
/// megabytes for a client that reads nothing, which count as memory of the container.
const UNSENT: u32 = 128 * 1024;
/// How long a stopping process keeps an idle connection open, because a request may be on its way.
const IDLE_LINGER: Duration = Duration::from_millis(250);
/// How long the end of the process waits for the tasks of the controller, which take microseconds to end. A read of a slow disk may
/// not end at all.
const TASKS_END: Duration = Duration::from_secs(1);
/// Time limit for connecting to an own listener. That takes microseconds, but seconds on a host whose applications all start at once.
const SELF_CHECK: Duration = Duration::from_secs(30);

/// The reason why the process could not start, or did not stop regularly.
#[derive(Debug)]
pub enum RunError {
    /// The configuration is invalid, or its files or addresses cannot be used on this machine.
    Config(config::LoadError),
    /// An address cannot be listened on.
    Bind {
        /// The key of the address in the file.
        what: String,
        /// The address.
        address: SocketAddr,
        /// The error of the system.
        cause: io::Error,
    },
    /// Another error of the system.
    System(String),
    /// A critical task has ended; with its name.
    TaskEnded(String),
    /// A second signal ended the process; with the number of open connections.
    Interrupted(usize),
}

/// Everything that is opened before any task starts.
struct Opened {
    listeners: Vec<BoundListener>,
    admin: TcpListener,
    /// With its real port.
    admin_address: SocketAddr,
    token_file: Option<Arc<Path>>,
    token: Arc<Token>,
    access_log: Option<AccessLog>,
    acme: Vec<Arc<Acme>>,
    challenges: ChallengeStore,
    /// The number of client connections that fit into the limit of descriptors.
    fit: usize,
}

/// A listener of the configuration with its socket.
struct BoundListener {
    config: config::Listener,
    socket: TcpListener,
    /// With its real port.
    address: SocketAddr,
    tls: Option<Arc<Tls>>,
}

/// Runs until a signal stops it and running requests have ended.
///
/// # Errors
/// [`RunError`], when it cannot start, when a second signal ends it, or when a task that it needs has ended.
pub fn run(path: &Path, signals: Caught) -> Result<(), RunError> {
    let (text, config) = usable(path)?;
    let metrics = Arc::new(Metrics::new().map_err(|e| RunError::System(e.to_string()))?);
    let opened = Opened::new(&config, path, &metrics)?;
    let Opened { access_log, admin_address, .. } = &opened;
    let (access_log, addresses) = (access_log.clone(), opened.listeners.iter().map(|l| l.address).collect::<Vec<_>>());
    let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::empty()));
    let readiness = Arc::new(Readiness::default());
    let (tasks, ended) = Tasks::new(Arc::clone(&readiness.stopping));
    let threads = config.threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));

    let main = Builder::new_current_thread().enable_time().build().map_err(|e| no_threads(&e))?;
    let control = runtime("control", 1)?;
    let (controller, Handles { commands, view, written }) = {
        let _on_control = control.enter();
        Controller::new(path.to_path_buf(), text, config, Arc::clone(&snapshot), Arc::clone(&metrics))
    };
    tasks.critical(control.handle(), "controller", controller.run());
    // It reads the file, so it may wait for a slow disk.
    let watcher = runtime("watcher", 1)?;
    tasks.critical(watcher.handle(), "watcher", file_watch::run(path.to_path_buf(), written, commands.clone()));

    let admin_runtime = runtime("admin", 1)?;
    let admin = Admin {
        view: view.clone(),
        commands: commands.clone(),
        metrics: Arc::clone(&metrics),
        readiness: Arc::clone(&readiness),
        listeners: addresses.iter().map(ToString::to_string).collect(),
        address: *admin_address,
        token_file: opened.token_file.clone(),
    };
    let admin_socket = opened.admin.try_clone().map_err(|e| RunError::System(e.to_string()))?;
    tasks.critical(admin_runtime.handle(), "admin", admin::serve(admin_socket, admin));
    info!("admin on {admin_address}");

    let workers = runtime("proxy", threads)?;
    let proxy = Proxy {
        snapshot: Arc::clone(&snapshot),
        metrics: Arc::clone(&metrics),
        stopping: Arc::clone(&readiness.stopping),
        access_log: access_log.clone(),
        challenges: opened.challenges.clone(),
        token: Arc::clone(&opened.token),
    };
    let edge = Edge::new(proxy.app(threads), snapshot, Arc::clone(&metrics), access_log.clone(), opened.fit);
    let (stop, stopping) = watch::channel(false);
    opened.start(&tasks, &edge, &stopping, (&workers, &control), &metrics);
    for address in addresses {
        check_listening(address, &edge).map_err(|cause| RunError::Bind { what: "listeners".to_owned(), address, cause })?;
        info!("listening on {address}");
    }
    readiness.listening.store(true, Relaxed);
    systemd::ready();

    let stops = signals.listen(commands, access_log);
    let stopped = until_stopped(stops, ended, || view.borrow().shutdown_timeout(), &edge, &stop, &readiness);
    // On a runtime of its own, so that no other task can delay the stop.
    let stopped = main.block_on(stopped);
    // The remaining tasks of these runtimes are no longer needed.
    [workers, admin_runtime, watcher].into_iter().for_each(Runtime::shutdown_background);
    // A command that checks a release ends with its task, and has to end before the process.
    control.shutdown_timeout(TASKS_END);
    stopped
}

/// Reads a configuration that can run on this machine.
fn usable(path: &Path) -> Result<(String, Config), RunError> {
    let (text, config) = config::load(path).map_err(RunError::Config)?;
    let found = preflight::look(path, &text, &config);
    if !found.problems.is_empty() {
        return Err(RunError::Config(config::LoadError { problems: found.problems }));
    }
    found.warnings.iter().for_each(|warning| warn!("{warning}"));
    Ok((text, config))
}

/// Waits for a signal or for the end of a critical task, then for running requests.
async fn until_stopped(
    mut stops: mpsc::UnboundedReceiver<()>,
    mut ended: mpsc::UnboundedReceiver<String>,
    bound: impl Fn() -> Duration,
    edge: &Edge,
    stop: &watch::Sender<bool>,
    readiness: &Readiness,
) -> Result<(), RunError> {
    let failed = tokio::select! {
        stop = stops.recv() => stop.is_none().then(|| "signals".to_owned()),
        Some(task) = ended.recv() => Some(task),
    };
    readiness.failed.store(failed.is_some(), Relaxed);
    // From here on, responses ask clients to close the connection, and no connection is accepted.
    readiness.stopping.store(true, Relaxed);
    systemd::stopping();
    stop.send_replace(true);
    let bound = bound();
    info!("stopping connections={} shutdown_timeout={}", edge.connections(), humantime::format_duration(bound));
    let closed = async {
        if timeout(IDLE_LINGER, edge.all_closed()).await.is_err() {
            edge.close_idle();
            edge.all_closed().await;
        }
    };
    tokio::select! {
        closed = timeout(bound, closed) => match closed {
            Ok(()) => info!("stopped, every request has ended"),
            Err(_) => warn!("stopped after shutdown_timeout connections={}", edge.connections()),
        },
        Some(()) = stops.recv() => return Err(RunError::Interrupted(edge.connections())),
    }
    failed.map_or(Ok(()), |task| Err(RunError::TaskEnded(task)))
}

impl Opened {
    /// Reads files before it binds, so that a wrong path ends the process at once.
    fn new(config: &Config, path: &Path, metrics: &Metrics) -> Result<Self, RunError> {
        let challenges = ChallengeStore::default();
        let certificates = certificates(config, path, metrics)?;
        let acme = acme(config, path, &challenges)?;
        let access_log = access_log(config, path, metrics)?;
        let token_file = config.admin.token_file.as_ref().map(|file| config::folder(path).join(file));
        let token = Arc::new(Token::new(token_file.as_deref()));
        let token_file = token_file.map(Arc::from);
        let fit = descriptors::raise(config);
        let bind = |what: String, address: SocketAddr| {
            let bound = bind(address).and_then(|socket| Ok((socket.local_addr()?, socket)));
            bound.map_err(|cause| RunError::Bind { what, address, cause })
        };
        let listeners = config.listeners.iter().zip(certificates).enumerate();
        let listeners = listeners.map(|(i, (listener, tls))| {
            let (address, socket) = bind(format!("listeners[{i}].address"), listener.address)?;
            Ok(BoundListener { config: listener.clone(), socket, address, tls })
        });
        let listeners = listeners.collect::<Result<_, _>>()?;
        let (admin_address, admin) = bind("admin.address".to_owned(), config.admin.address)?;
        Ok(Self { listeners, admin, admin_address, token_file, token, access_log, acme, challenges, fit })
    }

    /// Accepts connections, and keeps certificates current.
    fn start(
        self,
        tasks: &Tasks,
        edge: &Edge,
        stopping: &watch::Receiver<bool>,
        (workers, control): (&Runtime, &Runtime),
        metrics: &Arc<Metrics>,
    ) {
        for BoundListener { config, socket, address, tls } in self.listeners {
            if let Some(tls) = &tls {
                let (tls, metrics) = (Arc::clone(tls), Arc::clone(metrics));
                let watch = async move {
                    tasks::restarted("certificates", &metrics.task_restarts, || Arc::clone(&tls).watch()).await;
                };
                control.spawn(watch);
            }
            let name = format!("listener {address}");
            let listening = Arc::new(ListenerState::new(config, address, tls, metrics));
            tasks.critical(workers.handle(), name, edge.clone().serve(socket, listening, stopping.clone()));
        }
        if let Some(file) = self.token_file {
            let (token, metrics) = (self.token, Arc::clone(metrics));
            let watch = async move {
                tasks::restarted("token", &metrics.task_restarts, || token.watch(Arc::clone(&file))).await;
            };
            control.spawn(watch);
        }
        for acme in self.acme {
            let metrics = Arc::clone(metrics);
            control.spawn(async move { tasks::restarted("acme", &metrics.task_restarts, || acme.keep()).await });
        }
    }
}

fn access_log(config: &Config, path: &Path, metrics: &Metrics) -> Result<Option<AccessLog>, RunError> {
    let Some(config::AccessLog { format, file }) = &config.access_log else { return Ok(None) };
    let file = file.as_ref().map(|file| config::folder(path).join(file));
    let shown = file.as_ref().map_or("standard output".to_owned(), |file| file.display().to_string());
    let log = AccessLog::start(*format, file, metrics.access_log_dropped.clone(), metrics.task_restarts.clone());
    log.map(Some).map_err(|e| RunError::System(format!("access_log.file: {shown} cannot be written: {e}")))
}

/// Reads the certificates of each TLS listener, before anything is bound, so that a wrong path ends the process at once.
fn certificates(config: &Config, path: &Path, metrics: &Metrics) -> Result<Vec<Option<Arc<Tls>>>, RunError> {
    let folder = config::folder(path);
    let read = |(i, listener): (usize, &config::Listener)| {
        let Some(files) = &listener.tls else { return Ok(None) };
        let tls = Tls::new(listener.address.to_string(), files, folder, metrics.certificates.clone());
        tls.map(|tls| Some(Arc::new(tls))).map_err(|why| RunError::System(format!("listeners[{i}].tls: {why}")))
    };
    config.listeners.iter().enumerate().map(read).collect()
}

/// Prepares the certificates from ACME authorities. Sends no request yet.
fn acme(config: &Config, path: &Path, challenges: &ChallengeStore) -> Result<Vec<Arc<Acme>>, RunError> {
    let folder = config::folder(path);
    let asking = config.listeners.iter().enumerate().filter_map(|(i, listener)| Some((i, listener.tls.as_ref()?.acme.as_ref()?)));
    // Listeners with the same certificate share its file: one of them orders it.
    let mut files = HashSet::new();
    let asking = asking.filter(|(_, acme)| files.insert(Store::new(acme, folder).certificate()));
    let make = |(i, acme): (usize, &config::Acme)| {
        let acme = Acme::new(acme.clone(), folder, challenges.clone());
        acme.map(Arc::new).map_err(|why| RunError::System(format!("listeners[{i}].tls.acme.{why}")))
    };
    asking.map(make).collect()
}

/// Binds with SO_REUSEADDR, so that a restart need not wait for old connections in TIME_WAIT. Accepted connections inherit the
/// options of their listener (tcp(7)).
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let runtime = Builder::new_current_thread().enable_io().build()?;
    let _context = runtime.enter();
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    let TcpKeepalive { idle, interval, count, .. } = KEEPALIVE;
    let retries = u32::try_from(count).unwrap_or(u32::MAX);
    let keepalive = socket2::TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(retries);
    SockRef::from(&socket).set_tcp_keepalive(&keepalive)?;
    SockRef::from(&socket).set_tcp_notsent_lowat(UNSENT)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

/// Checks that connections of a listener are accepted, by connecting to it: a bound socket alone would only queue them. Connects
/// to a wildcard address through loopback.
fn check_listening(mut address: SocketAddr, edge: &Edge) -> io::Result<()> {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { [127, 0, 0, 1].into() } else { [0, 0, 0, 0, 0, 0, 0, 1].into() });
    }
    let deadline = Instant::now() + SELF_CHECK;
    let _connection = TcpStream::connect_timeout(&address, SELF_CHECK)?;
    while edge.connections() == 0 {
        if Instant::now() >= deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "connections are not accepted"));
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn runtime(name: &str, threads: usize) -> Result<Runtime, RunError> {
    Builder::new_multi_thread().worker_threads(threads).thread_name(name).enable_all().build().map_err(|e| no_threads(&e))
}

fn no_threads(e: &io::Error) -> RunError {
    RunError::System(format!("cannot start threads: {e}"))
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(e) => e.fmt(f),
            Self::Bind { what, address, cause } if cause.kind() == io::ErrorKind::AddrInUse => {
                write!(f, "cannot start: {what}: {address} is in use; stop what listens there, or choose another address")
            }
            Self::Bind { what, address, cause } => write!(f, "cannot start: {what}: cannot listen on {address}: {cause}"),
            Self::System(message) => write!(f, "cannot start: {message}"),
            Self::TaskEnded(task) => write!(f, "stopped because {task} has ended; the log says why"),
            Self::Interrupted(open) => write!(f, "stopped at once by a second signal, with {open} connections open"),
        }
    }
}
