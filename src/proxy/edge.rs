//! From listening sockets to the requests on their connections.
//!
//! The composition root binds the sockets and hands them to [`Edge::serve`]. Pingora's server would bind late, try a busy port for
//! thirty seconds while the process looks alive, and sleep through every shutdown; its listening service knows neither caps nor
//! the PROXY protocol on a plain port. What of Pingora is used begins where a request does.

use std::{
    collections::HashMap,
    future::{Future, poll_fn},
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst},
    },
    time::{Duration, Instant, SystemTime},
};

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::{
    apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream, ServerApp},
    protocols::{
        Stream,
        http::{
            ServerSession,
            v2::server::{H2Options, default_h2_options},
        },
    },
    proxy::HttpProxy,
    server::{ShutdownWatch, configuration::ServerConf},
};
use prometheus::IntGauge;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{
    Proxy,
    connection::{self, Ends},
    frames::Frames,
    proxy_protocol,
    refusal::Refusal,
    socket::Socket,
    stream::H2Stream,
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
/// The library keeps so many times `header_bytes` of a header, so that the usual one that is too long is judged, and counted, by us.
const H2_HEADERS: u32 = 4;
/// More tries than a request can use up: the bounds are `retries` and the rule for lost connections.
const TRIES: usize = 16;
/// When the system has no descriptor left, trying again at once would only burn the processor.
const NO_DESCRIPTOR: Duration = Duration::from_millis(50);
/// What an HTTP/2 client may send on a stream, and on all of a connection, before it is asked for more.
const H2_STREAM_WINDOW: u32 = 256 * 1024;
const H2_CONNECTION_WINDOW: u32 = 1024 * 1024;

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
    limits: Arc<Limits>,
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

/// An HTTP/2 connection, as Pingora asks for it.
struct H2 {
    edge: Edge,
    listening: Arc<Listening>,
    ends: Arc<Ends>,
    options: HttpServerOptions,
    requests: AtomicU32,
    /// Tells the client to begin no more requests here.
    last: watch::Sender<bool>,
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
                Ok(Next::H2) => return self.h2(wire, listening, ends, stopping).await,
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

    async fn h2(&self, mut wire: Box<Wire>, listening: &Arc<Listening>, ends: &Arc<Ends>, stopping: &ShutdownWatch) {
        let mut options = HttpServerOptions::default();
        options.h2_idle_timeout = Some(listening.limits.idle_timeout);
        let (last, mut told) = watch::channel(*stopping.borrow());
        let h2 = Arc::new(H2 {
            edge: self.clone(),
            listening: Arc::clone(listening),
            ends: Arc::clone(ends),
            options,
            requests: AtomicU32::new(0),
            last,
        });
        let (edge, of, client) = (self.clone(), Arc::clone(listening), ends.client);
        wire.watch(Frames::new(move |refusal| edge.reject(refusal, client, &of)));
        let mut stopping = stopping.clone();
        told.mark_unchanged();
        let served = h2.process_new(wire as Stream, &told);
        tokio::pin!(served);
        tokio::select! {
            _ = &mut served => return,
            _ = stopping.changed() => drop(h2.last.send_replace(true)),
        }
        served.await;
    }

    /// Counts what was refused, and answers it.
    async fn refuse(&self, wire: Wire, refusal: Refusal, client: IpAddr, listening: &Listening) {
        self.reject(refusal, client, listening);
        wire.refuse(refusal).await;
    }

    fn reject(&self, refusal: Refusal, client: IpAddr, listening: &Listening) {
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
    fn count(&self, refusal: Refusal, listening: &Listening) {
        self.0.metrics.rejected.with_label_values(&[&*listening.label, refusal.reason()]).inc();
    }
}

#[async_trait]
impl HttpServerApp for H2 {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: ServerSession,
        stopping: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        let limits = &self.listening.limits;
        if self.requests.fetch_add(1, Relaxed) + 1 >= limits.requests_per_connection {
            self.last.send_if_modified(|last| !std::mem::replace(last, true));
        }
        // A client that opens no window reads nothing.
        session.set_write_timeout(limits.min_rate.map(|_| limits.stall_timeout));
        let session = match session {
            ServerSession::H2(stream) => ServerSession::new_custom(Box::new(H2Stream(stream))),
            session => session,
        };
        connection::watched(Arc::clone(&self.ends), async {
            let mut request = pin!(self.edge.0.proxy.process_new_http(session, stopping));
            poll_fn(|cx| {
                // Looked at when it happens, whatever the request waits for: it may be the peer that does not take the body.
                if connection::expired() {
                    connection::give_up_body();
                }
                request.as_mut().poll(cx)
            })
            .await;
            if let Some(refusal) = connection::refused() {
                self.edge.count(refusal, &self.listening);
            }
        })
        .await;
        None
    }

    fn h2_options(&self) -> Option<H2Options> {
        let limits = &self.listening.limits;
        let mut options = default_h2_options();
        options.max_concurrent_streams(limits.streams_per_connection);
        options.max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX).saturating_mul(H2_HEADERS));
        options.initial_window_size(H2_STREAM_WINDOW);
        options.initial_connection_window_size(H2_CONNECTION_WINDOW);
        Some(options)
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.options)
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
