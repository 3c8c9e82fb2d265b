//! From listening sockets to the requests on their connections.
//!
//! The composition root binds the sockets and hands them to [`Edge::serve`]. Pingora's server would bind late, try a busy port for
//! thirty seconds while the process looks alive, and sleep through every shutdown; its listening service knows neither caps nor
//! the PROXY protocol on a plain port. What of Pingora is used begins where a request does.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use pingora::{
    apps::HttpServerApp,
    protocols::http::ServerSession,
    proxy::HttpProxy,
    server::{ShutdownWatch, configuration::ServerConf},
};
use prometheus::IntGauge;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{
    Proxy,
    connection::{self, Ends},
    h2, proxy_protocol,
    refusal::Refusal,
    socket::Socket,
    tls::Tls,
    wire::{self, End, Next, Wire},
};
use crate::{
    access_log::{AccessLog, Entry},
    config::{self, Limits},
    metrics::Metrics,
    snapshot::SnapshotCell,
};

/// Unused connections to peers that are kept, over all peers.
const KEPT_CONNECTIONS: usize = 1024;
/// More tries than a request can use up: the bounds are `retries` and the rule for lost connections.
const TRIES: usize = 16;
/// When the system has no descriptor left, trying again at once would only burn the processor.
const NO_DESCRIPTOR: Duration = Duration::from_millis(50);
/// Connections from clients, and the requests on them. Clones are the same edge.
#[derive(Clone)]
pub struct Edge(Arc<Inner>);

struct Inner {
    proxy: Arc<HttpProxy<Proxy>>,
    snapshot: Arc<SnapshotCell>,
    metrics: Arc<Metrics>,
    access_log: Option<AccessLog>,
    connections: Arc<Connections>,
    /// Asks clients to go that have nothing to ask.
    closing: Notify,
    closed: AtomicBool,
}

/// One address that clients connect to.
pub struct Listening {
    label: Arc<str>,
    local_port: u16,
    config: config::Listener,
    pub(super) limits: Arc<Limits>,
    tls: Option<Arc<Tls>>,
    open: AtomicUsize,
    per_client: Mutex<HashMap<IpAddr, usize>>,
}

struct Connections {
    open: AtomicUsize,
    gauge: IntGauge,
    all_closed: Notify,
}

/// One open connection, counted until it is dropped.
struct Open {
    all: Arc<Connections>,
    listening: Arc<Listening>,
    /// Counted by this address as well, where that is limited.
    client: Option<IpAddr>,
}

impl Edge {
    /// `threads` is how many workers will drive it.
    pub fn new(proxy: Proxy, threads: usize, snapshot: Arc<SnapshotCell>, metrics: Arc<Metrics>) -> Self {
        let conf =
            ServerConf { threads, upstream_keepalive_pool_size: KEPT_CONNECTIONS, max_retries: TRIES, ..ServerConf::default() };
        let access_log = proxy.access_log.clone();
        let mut proxy = HttpProxy::new(proxy, Arc::new(conf));
        proxy.handle_init_modules();
        let gauge = metrics.downstream_connections.clone();
        let connections = Connections { open: AtomicUsize::new(0), gauge, all_closed: Notify::new() };
        Self(Arc::new(Inner {
            proxy: Arc::new(proxy),
            snapshot,
            metrics,
            access_log,
            connections: Arc::new(connections),
            closing: Notify::new(),
            closed: AtomicBool::new(false),
        }))
    }

    /// Connections open now.
    pub fn connections(&self) -> usize {
        self.0.connections.open.load(SeqCst)
    }

    /// Returns when no connection is open.
    pub async fn all_closed(&self) {
        loop {
            let closed = self.0.connections.all_closed.notified();
            if self.connections() == 0 {
                return;
            }
            closed.await;
        }
    }

    /// Closes connections that carry no request, now and as soon as they carry none.
    pub fn close_idle(&self) {
        self.0.closed.store(true, SeqCst);
        self.0.closing.notify_waiters();
    }

    /// Accepts connections until `stopping` says so; then the socket is closed, and connections end by themselves.
    pub async fn serve(self, socket: std::net::TcpListener, listening: Arc<Listening>, mut stopping: ShutdownWatch) {
        let socket = match TcpListener::from_std(socket) {
            Ok(socket) => socket,
            Err(e) => return log::error!("cannot listen listener={} error={e}", listening.label),
        };
        loop {
            let accepted = tokio::select! {
                accepted = socket.accept() => accepted,
                _ = stopping.changed() => return,
            };
            match accepted {
                Ok((stream, client)) => {
                    let (edge, listening, stopping) = (self.clone(), Arc::clone(&listening), stopping.clone());
                    tokio::spawn(edge.connection(stream, client, listening, stopping));
                }
                // A client that did not wait until it was accepted.
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(e) => {
                    log::warn!("cannot accept a connection listener={} error={e}", listening.label);
                    tokio::time::sleep(NO_DESCRIPTOR).await;
                }
            }
        }
    }

    /// One connection, from its first byte to its end.
    async fn connection(self, mut stream: TcpStream, client: SocketAddr, listening: Arc<Listening>, stopping: ShutdownWatch) {
        let began = Instant::now();
        let limits = &listening.limits;
        // Answers are written whole; waiting for more would only make them late.
        if let Err(e) = stream.set_nodelay(true) {
            log::debug!("cannot set TCP_NODELAY error={e}");
        }
        let mut open = match Open::new(&self.0.connections, &listening) {
            Ok(open) => open,
            Err(refusal) => return self.refuse(Wire::new(Socket::Plain(stream)), refusal, client.ip(), &listening).await,
        };
        let trusted = listening.config.proxy_protocol && {
            let ip = client.ip().to_canonical();
            self.0.snapshot.load().trusted_proxies.iter().any(|network| network.contains(&ip))
        };
        let mut client = client;
        if trusted {
            match timeout(limits.header_timeout, proxy_protocol::read(&mut stream)).await {
                Ok(Ok(named)) => client = named.unwrap_or(client),
                Ok(Err(None)) => return,
                Ok(Err(Some(refusal))) => return self.reject(refusal, client.ip(), &listening),
                Err(_) => return self.reject(Refusal::ProxyProtocol, client.ip(), &listening),
            }
        }
        if let Err(refusal) = open.count(client.ip().to_canonical()) {
            return self.refuse(Wire::new(Socket::Plain(stream)), refusal, client.ip(), &listening).await;
        }
        let socket = match &listening.tls {
            None => Socket::Plain(stream),
            Some(tls) => {
                let left = limits.header_timeout.saturating_sub(began.elapsed());
                match timeout(left, TlsAcceptor::from(tls.settings()).accept(stream)).await {
                    Ok(Ok(stream)) => Socket::Tls(Box::new(stream)),
                    _ => return self.reject(Refusal::Handshake, client.ip(), &listening),
                }
            }
        };
        let ends = Arc::new(Ends {
            tls: socket.tls_version(),
            listener: Arc::clone(&listening.label),
            redirect_to_https: listening.config.redirect_to_https,
            ..Ends::new(client, listening.local_port, Arc::clone(limits))
        });
        let requests = async {
            connection::await_header(Some(began + limits.header_timeout));
            self.requests(Wire::new(socket), &listening, &ends, &stopping).await;
            if let Some(refusal) = connection::refused() {
                self.count(refusal, &listening);
            }
        };
        connection::watched(Arc::clone(&ends), requests).await;
        drop(open);
    }

    async fn requests(&self, wire: Wire, listening: &Arc<Listening>, ends: &Arc<Ends>, stopping: &ShutdownWatch) {
        let limits = &listening.limits;
        let mut wire = Box::new(wire);
        // Over TLS it is the handshake that decides.
        let mut may_be_h2 = match ends.tls {
            None => wire::H2::Maybe,
            Some(_) if wire.socket().is_some_and(Socket::has_agreed_on_h2) => wire::H2::Agreed,
            Some(_) => wire::H2::No,
        };
        let mut left = limits.requests_per_connection;
        loop {
            match wire.next(limits, may_be_h2, &self.0.closing).await {
                Ok(Next::H2) => return h2::serve(self, wire, listening, ends, stopping).await,
                Ok(Next::Request) => {}
                Err(End::Closed) => return,
                Err(End::Refused(refusal)) => return self.refuse(*wire, refusal, ends.client, listening).await,
            }
            may_be_h2 = wire::H2::No;
            let mut session = ServerSession::new_http1(wire);
            left -= 1;
            if left == 0 {
                connection::end_after_this();
            }
            // The time is not used: the next header is waited for here.
            session.set_keepalive(Some(60));
            let Some(reused) = self.0.proxy.process_new_http(session, stopping).await else { return };
            let (stream, _) = reused.consume();
            let Ok(back) = stream.into_any().downcast::<Wire>() else { return };
            wire = back;
            if !wire.is_between_requests() || self.0.closed.load(SeqCst) {
                return;
            }
        }
    }

    /// What requests are given to.
    pub(super) fn proxy(&self) -> &Arc<HttpProxy<Proxy>> {
        &self.0.proxy
    }

    /// Counts what was refused, and answers it.
    async fn refuse(&self, wire: Wire, refusal: Refusal, client: IpAddr, listening: &Listening) {
        self.reject(refusal, client, listening);
        wire.refuse(refusal).await;
    }

    /// Counts and logs what was refused.
    pub(super) fn reject(&self, refusal: Refusal, client: IpAddr, listening: &Listening) {
        log::debug!("refused listener={} client={client} reason={refusal}", listening.label);
        // The end of a connection that nobody used is no event.
        if let (Some(log), true) = (&self.0.access_log, refusal != Refusal::Idle) {
            log.write(Box::new(Entry {
                at: Some(SystemTime::now()),
                client: client.to_string(),
                listener: listening.label.to_string(),
                status: refusal.status(),
                ended: refusal.reason(),
                ..Entry::default()
            }));
        }
        self.count(refusal, listening);
    }

    /// Counts a refusal that has its line already, as the end of a request.
    pub(super) fn count(&self, refusal: Refusal, listening: &Listening) {
        self.0.metrics.rejected.with_label_values(&[&*listening.label, refusal.reason()]).inc();
    }
}

impl Listening {
    /// `address` is the one really taken, `tls` what the configuration asks for.
    pub fn new(config: config::Listener, address: SocketAddr, tls: Option<Arc<Tls>>, metrics: &Metrics) -> Self {
        let label: Arc<str> = Arc::from(config.address.to_string());
        // From 0 on, so that the first one is an increase.
        for refusal in Refusal::ALL {
            metrics.rejected.with_label_values(&[&*label, refusal.reason()]);
        }
        let (open, per_client) = (AtomicUsize::new(0), Mutex::default());
        let limits = Arc::new(config.limits.clone());
        Self { label, local_port: address.port(), config, limits, tls, open, per_client }
    }
}

impl Open {
    fn new(all: &Arc<Connections>, listening: &Arc<Listening>) -> Result<Self, Refusal> {
        all.open.fetch_add(1, SeqCst);
        all.gauge.inc();
        let open = Self { all: Arc::clone(all), listening: Arc::clone(listening), client: None };
        // Counted first, so that two at once cannot both be the last.
        let others = listening.open.fetch_add(1, SeqCst);
        if others < listening.limits.connections { Ok(open) } else { Err(Refusal::Connections) }
    }

    /// Counts it as one of this client's.
    fn count(&mut self, client: IpAddr) -> Result<(), Refusal> {
        let Some(most) = self.listening.limits.connections_per_client else { return Ok(()) };
        self.client = Some(client);
        let mut per_client = self.listening.per_client.lock();
        let open = per_client.entry(client).or_default();
        *open += 1;
        if *open <= most { Ok(()) } else { Err(Refusal::ConnectionsPerClient) }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(client) = self.client {
            let mut per_client = self.listening.per_client.lock();
            if let Some(open) = per_client.get_mut(&client) {
                *open -= 1;
                if *open == 0 {
                    per_client.remove(&client);
                }
            }
        }
        self.listening.open.fetch_sub(1, SeqCst);
        self.all.gauge.dec();
        if self.all.open.fetch_sub(1, SeqCst) == 1 {
            self.all.all_closed.notify_waiters();
        }
    }
}
