//! Client connections, from the listening socket to one judged request at a time.
//!
//! The composition root binds the sockets and calls [`Edge::serve`]; each request goes to the application that the edge was made
//! for, any [`HttpServerApp`] of Pingora's. Nothing here knows the proxy, a service or a peer.
//!
//! Pingora's own server is not used: it binds late, retries a busy port for thirty seconds in a process that looks alive, and
//! sleeps through every shutdown; its listening service has no connection limits and no PROXY protocol on a plain port.

mod closing;
pub(crate) mod connection;
mod head;
mod http1;
mod http2;
#[cfg(test)]
#[path = "../../fuzz/mutated.rs"]
mod mutated;
mod pace;
#[cfg(any(test, fuzzing))]
#[path = "../../fuzz/properties.rs"]
#[allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "they are tests")]
pub mod properties;
mod proxy_protocol;
pub(crate) mod reject;
mod socket;
pub mod tls;

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use pingora::{apps::HttpServerApp, protocols::http::ServerSession, server::ShutdownWatch};
use prometheus::IntGauge;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use self::{
    closing::Closing,
    connection::ClientInfo,
    http1::{ClientStream, End, Http2Start, Next},
    reject::Rejection,
    socket::Socket,
    tls::Tls,
};
use crate::{
    access_log::{AccessLog, Entry},
    config::{self, Limits},
    metrics::Metrics,
    snapshot::SnapshotCell,
};

/// When the system has no descriptor left, trying again at once would only burn the processor.
const NO_DESCRIPTOR: Duration = Duration::from_millis(50);

/// Connections from clients, and the application that answers their requests. Clones share everything.
pub struct Edge<A>(Arc<Inner<A>>);

struct Inner<A> {
    app: Arc<A>,
    snapshot: Arc<SnapshotCell>,
    metrics: Arc<Metrics>,
    access_log: Option<AccessLog>,
    connections: Arc<Connections>,
    closing: Closing,
}

/// One address that clients connect to.
pub struct ListenerState {
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
struct ConnectionGuard {
    all: Arc<Connections>,
    listening: Arc<ListenerState>,
    /// Counted by this address as well, where that is limited.
    client: Option<IpAddr>,
}

impl<A> Clone for Edge<A> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<A: HttpServerApp + Send + Sync + 'static> Edge<A> {
    /// Gives each request to `app`; `snapshot` has the proxies whose PROXY protocol header is trusted.
    pub fn new(app: Arc<A>, snapshot: Arc<SnapshotCell>, metrics: Arc<Metrics>, access_log: Option<AccessLog>) -> Self {
        let gauge = metrics.downstream_connections.clone();
        let connections = Connections { open: AtomicUsize::new(0), gauge, all_closed: Notify::new() };
        Self(Arc::new(Inner {
            app,
            snapshot,
            metrics,
            access_log,
            connections: Arc::new(connections),
            closing: Closing::default(),
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
        self.0.closing.close();
    }

    /// Accepts connections until `stopping` says so; then the socket is closed, and connections end by themselves.
    pub async fn serve(self, socket: std::net::TcpListener, listening: Arc<ListenerState>, mut stopping: ShutdownWatch) {
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
    async fn connection(self, mut stream: TcpStream, client: SocketAddr, listening: Arc<ListenerState>, stopping: ShutdownWatch) {
        let began = Instant::now();
        let limits = &listening.limits;
        // Answers are written whole; waiting for more would only make them late.
        if let Err(e) = stream.set_nodelay(true) {
            log::debug!("cannot set TCP_NODELAY error={e}");
        }
        let mut open = match ConnectionGuard::new(&self.0.connections, &listening) {
            Ok(open) => open,
            Err(rejection) => {
                return self.refuse(ClientStream::new(Socket::Plain(stream)), rejection, client.ip(), &listening).await;
            }
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
                Ok(Err(Some(rejection))) => return self.reject(rejection, client.ip(), &listening),
                Err(_) => return self.reject(Rejection::ProxyProtocol, client.ip(), &listening),
            }
        }
        if let Err(rejection) = open.count(client.ip().to_canonical()) {
            return self.refuse(ClientStream::new(Socket::Plain(stream)), rejection, client.ip(), &listening).await;
        }
        let socket = match &listening.tls {
            None => Socket::Plain(stream),
            Some(tls) => {
                let left = limits.header_timeout.saturating_sub(began.elapsed());
                match timeout(left, TlsAcceptor::from(tls.settings()).accept(stream)).await {
                    Ok(Ok(stream)) => Socket::Tls(Box::new(stream)),
                    _ => return self.reject(Rejection::Handshake, client.ip(), &listening),
                }
            }
        };
        let ends = Arc::new(ClientInfo {
            tls: socket.tls_version(),
            listener: Arc::clone(&listening.label),
            redirect_to_https: listening.config.redirect_to_https,
            ..ClientInfo::new(client, listening.local_port, Arc::clone(limits))
        });
        let requests = async {
            connection::await_header(Some(began + limits.header_timeout));
            self.requests(ClientStream::new(socket), &listening, &ends, &stopping).await;
            if let Some(rejection) = connection::refused() {
                self.count(rejection, &listening);
            }
        };
        connection::watched(Arc::clone(&ends), requests).await;
        drop(open);
    }

    async fn requests(
        &self,
        wire: ClientStream,
        listening: &Arc<ListenerState>,
        ends: &Arc<ClientInfo>,
        stopping: &ShutdownWatch,
    ) {
        let limits = &listening.limits;
        let mut wire = Box::new(wire);
        // Over TLS it is the handshake that decides.
        let mut may_be_h2 = match ends.tls {
            None => Http2Start::Maybe,
            Some(_) if wire.socket().is_some_and(Socket::has_agreed_on_h2) => Http2Start::Agreed,
            Some(_) => Http2Start::No,
        };
        let mut left = limits.requests_per_connection;
        loop {
            match wire.next(limits, may_be_h2, &self.0.closing).await {
                Ok(Next::H2) => return http2::serve(self, wire, listening, ends, stopping).await,
                Ok(Next::Request) => {}
                Err(End::Closed) => return,
                Err(End::Refused(rejection)) => return self.refuse(*wire, rejection, ends.client, listening).await,
            }
            may_be_h2 = Http2Start::No;
            let mut session = ServerSession::new_http1(wire);
            left -= 1;
            if left == 0 {
                connection::end_after_this();
            }
            // The time is not used: the next header is waited for here.
            session.set_keepalive(Some(60));
            let Some(reused) = self.0.app.process_new_http(session, stopping).await else { return };
            let (stream, _) = reused.consume();
            let Ok(back) = stream.into_any().downcast::<ClientStream>() else { return };
            wire = back;
            if !wire.is_between_requests() || left == 0 {
                return;
            }
        }
    }

    /// The application that answers requests.
    fn app(&self) -> &Arc<A> {
        &self.0.app
    }

    /// Counts what was refused, and answers it. A client that expects TLS and has not made its handshake gets no answer: it would
    /// take one without TLS for a broken server, and a handshake costs more than a full listener can spare.
    async fn refuse(&self, wire: ClientStream, rejection: Rejection, client: IpAddr, listening: &ListenerState) {
        self.reject(rejection, client, listening);
        if listening.tls.is_none() || wire.socket().is_some_and(|socket| socket.tls_version().is_some()) {
            wire.refuse(rejection).await;
        }
    }

    /// Counts and logs what was refused.
    fn reject(&self, rejection: Rejection, client: IpAddr, listening: &ListenerState) {
        self.reject_request(rejection, client, listening, Entry::default());
    }

    /// Counts and logs a request that was refused; `request` has what is known of it.
    fn reject_request(&self, rejection: Rejection, client: IpAddr, listening: &ListenerState, request: Entry) {
        log::debug!("refused listener={} client={client} reason={rejection}", listening.label);
        // The end of a connection that nobody used is no event.
        if let (Some(log), true) = (&self.0.access_log, rejection != Rejection::Idle) {
            log.write(Box::new(Entry {
                at: Some(SystemTime::now()),
                client: client.to_string(),
                listener: listening.label.to_string(),
                status: rejection.status(),
                ended: rejection.reason(),
                ..request
            }));
        }
        self.count(rejection, listening);
    }

    /// Counts a rejection that has its line already, as the end of a request.
    fn count(&self, rejection: Rejection, listening: &ListenerState) {
        self.0.metrics.rejected.with_label_values(&[&*listening.label, rejection.reason()]).inc();
    }
}

impl ListenerState {
    /// `address` is the one really taken, `tls` what the configuration asks for.
    pub fn new(config: config::Listener, address: SocketAddr, tls: Option<Arc<Tls>>, metrics: &Metrics) -> Self {
        let label: Arc<str> = Arc::from(config.address.to_string());
        // From 0 on, so that the first one is an increase.
        for rejection in Rejection::ALL {
            metrics.rejected.with_label_values(&[&*label, rejection.reason()]);
        }
        let (open, per_client) = (AtomicUsize::new(0), Mutex::default());
        let limits = Arc::new(config.limits.clone());
        Self { label, local_port: address.port(), config, limits, tls, open, per_client }
    }
}

impl ConnectionGuard {
    fn new(all: &Arc<Connections>, listening: &Arc<ListenerState>) -> Result<Self, Rejection> {
        all.open.fetch_add(1, SeqCst);
        all.gauge.inc();
        let open = Self { all: Arc::clone(all), listening: Arc::clone(listening), client: None };
        // Counted first, so that two at once cannot both be the last.
        let others = listening.open.fetch_add(1, SeqCst);
        if others < listening.limits.connections { Ok(open) } else { Err(Rejection::Connections) }
    }

    /// Counts it as one of this client's.
    fn count(&mut self, client: IpAddr) -> Result<(), Rejection> {
        let Some(most) = self.listening.limits.connections_per_client else { return Ok(()) };
        self.client = Some(client);
        let mut per_client = self.listening.per_client.lock();
        let open = per_client.entry(client).or_default();
        *open += 1;
        if *open <= most { Ok(()) } else { Err(Rejection::ConnectionsPerClient) }
    }
}

impl Drop for ConnectionGuard {
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
