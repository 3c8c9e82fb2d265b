//! Client connections, from the listening socket to one judged request at a time.
//!
//! The composition root binds the sockets and calls [`Edge::serve`]; each request goes to the application that the edge was made
//! for, any [`HttpServerApp`] of Pingora's. Nothing here knows the proxy, a service or a peer.
//!
//! Pingora's own server is not used: it binds late, retries a busy port for thirty seconds in a process that looks alive, and
//! sleeps through every shutdown; its listening service has no connection limits and no PROXY protocol on a plain port.

mod backpressure;
mod closing;
pub(crate) mod connection;
mod head;
mod http1;
mod http2;
mod listener;
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
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use pingora::{apps::HttpServerApp, protocols::http::ServerSession, server::ShutdownWatch};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

pub use self::listener::ListenerState;
use self::{
    closing::Closing,
    connection::ClientInfo,
    http1::{ClientStream, End, Http2Start, Next},
    listener::{ConnectionGuard, Connections},
    reject::Rejection,
    socket::Socket,
};
use crate::{
    access_log::{AccessLog, Entry},
    metrics::Metrics,
    snapshot::SnapshotCell,
};

/// When the system has no descriptor left, trying again at once would only burn the processor.
const NO_DESCRIPTOR: Duration = Duration::from_millis(50);
/// Rejected connections at a time that are answered and may linger until the answer is read; further ones are closed at once.
const REJECTED: usize = 64;
/// Between two lines of the log that say the same.
const LOG_PAUSE: Duration = Duration::from_secs(10);

/// Connections from clients, and the application that answers their requests. Clones share everything.
pub struct Edge<A>(Arc<Inner<A>>);

struct Inner<A> {
    app: Arc<A>,
    snapshot: Arc<SnapshotCell>,
    metrics: Arc<Metrics>,
    access_log: Option<AccessLog>,
    connections: Arc<Connections>,
    /// One permit for each connection that the limit of descriptors allows.
    descriptors: Arc<Semaphore>,
    rejected: Arc<Semaphore>,
    closing: Closing,
}

impl<A> Clone for Edge<A> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<A: HttpServerApp + Send + Sync + 'static> Edge<A> {
    /// Gives each request to `app`; `snapshot` has the proxies whose PROXY protocol header is trusted; no more than `descriptors`
    /// connections are open at a time, rejected and lingering ones included.
    pub fn new(
        app: Arc<A>,
        snapshot: Arc<SnapshotCell>,
        metrics: Arc<Metrics>,
        access_log: Option<AccessLog>,
        descriptors: usize,
    ) -> Self {
        let connections = Connections::new(metrics.downstream_connections.clone());
        Self(Arc::new(Inner {
            app,
            snapshot,
            metrics,
            access_log,
            connections: Arc::new(connections),
            descriptors: Arc::new(Semaphore::new(descriptors.min(Semaphore::MAX_PERMITS))),
            rejected: Arc::new(Semaphore::new(REJECTED)),
            closing: Closing::default(),
        }))
    }

    /// Connections open now.
    pub fn connections(&self) -> usize {
        self.0.connections.open()
    }

    /// Returns when no connection is open.
    pub async fn all_closed(&self) {
        self.0.connections.all_closed().await;
    }

    /// Closes connections that carry no request, now and as soon as they carry none.
    pub fn close_idle(&self) {
        self.0.closing.close();
    }

    /// Returns once connections that carry no request are asked to close.
    async fn idle_closed(&self) {
        self.0.closing.closed().await;
    }

    /// Accepts connections until `stopping` says so; then the socket is closed, and connections end by themselves.
    pub async fn serve(self, socket: std::net::TcpListener, listening: Arc<ListenerState>, mut stopping: ShutdownWatch) {
        let socket = match TcpListener::from_std(socket) {
            Ok(socket) => socket,
            Err(e) => return log::error!("cannot listen listener={} error={e}", listening.label),
        };
        let mut full = LogPause::default();
        let mut failed = LogPause::default();
        loop {
            let accept = async {
                let descriptor = match Arc::clone(&self.0.descriptors).try_acquire_owned() {
                    Ok(descriptor) => descriptor,
                    Err(_) => {
                        if full.is_over() {
                            log::warn!("no descriptor is left for a client, the next one waits listener={}", listening.label);
                        }
                        Arc::clone(&self.0.descriptors).acquire_owned().await.map_err(io::Error::other)?
                    }
                };
                io::Result::Ok((socket.accept().await?, descriptor))
            };
            let accepted = tokio::select! {
                accepted = accept => accepted,
                _ = stopping.changed() => return,
            };
            match accepted {
                Ok(((stream, client), descriptor)) => match ConnectionGuard::new(&self.0.connections, &listening) {
                    Ok(open) => {
                        let (edge, listening, stopping) = (self.clone(), Arc::clone(&listening), stopping.clone());
                        tokio::spawn(edge.connection(stream, descriptor, open, client, listening, stopping));
                    }
                    Err(rejection) => self.turn_away(stream, descriptor, rejection, client, &listening),
                },
                // A client that did not wait until it was accepted.
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(e) => {
                    if failed.is_over() {
                        log::warn!("cannot accept a connection listener={} error={e}", listening.label);
                    }
                    tokio::time::sleep(NO_DESCRIPTOR).await;
                }
            }
        }
    }

    /// One connection, from its first byte to its end.
    async fn connection(
        self,
        stream: TcpStream,
        descriptor: OwnedSemaphorePermit,
        mut open: ConnectionGuard,
        client: SocketAddr,
        listening: Arc<ListenerState>,
        stopping: ShutdownWatch,
    ) {
        let until = Instant::now() + listening.limits.header_timeout;
        // Answers are written whole; waiting for more would only make them late.
        if let Err(e) = stream.set_nodelay(true) {
            log::debug!("cannot set TCP_NODELAY error={e}");
        }
        let Some((stream, client)) = self.named(stream, client, until, &listening).await else { return };
        if let Err(rejection) = open.count(client.ip().to_canonical()) {
            return self.refuse_socket(stream, descriptor, rejection, client, &listening).await;
        }
        let socket = match &listening.tls {
            None => Socket::plain(stream, descriptor),
            Some(tls) => {
                let left = until.saturating_duration_since(Instant::now());
                match timeout(left, TlsAcceptor::from(tls.settings()).accept(stream)).await {
                    Ok(Ok(stream)) => Socket::tls(stream, descriptor),
                    _ => return self.reject(Rejection::Handshake, client.ip(), &listening),
                }
            }
        };
        let ends = Arc::new(ClientInfo {
            tls: socket.tls_version(),
            listener: Arc::clone(&listening.label),
            redirect_to_https: listening.config.redirect_to_https,
            ..ClientInfo::new(client, listening.local_port, Arc::clone(&listening.limits))
        });
        let requests = async {
            connection::await_header(Some(until));
            self.requests(ClientStream::new(socket), &listening, &ends, &stopping).await;
            if let Some(rejection) = connection::refused() {
                self.count(rejection, &listening);
            }
        };
        connection::watched(Arc::clone(&ends), requests).await;
        drop(open);
    }

    /// The client that a trusted proxy names in a PROXY protocol header; nothing if the connection ends here.
    async fn named(
        &self,
        mut stream: TcpStream,
        client: SocketAddr,
        until: Instant,
        listening: &ListenerState,
    ) -> Option<(TcpStream, SocketAddr)> {
        let is_trusted = listening.config.proxy_protocol && {
            let ip = client.ip().to_canonical();
            self.0.snapshot.load().trusted_proxies.iter().any(|network| network.contains(&ip))
        };
        if !is_trusted {
            return Some((stream, client));
        }
        let rejection = match tokio::time::timeout_at(until.into(), proxy_protocol::read(&mut stream)).await {
            Ok(Ok(named)) => return Some((stream, named.unwrap_or(client))),
            Ok(Err(None)) => return None,
            Ok(Err(Some(rejection))) => rejection,
            Err(_) => Rejection::ProxyProtocol,
        };
        self.reject(rejection, client.ip(), listening);
        None
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
                Ok(Next::Request) if listening.has_too_many_unread() => {
                    return self.refuse(*wire, Rejection::UnreadResponses, ends.client, listening).await;
                }
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
            let request = self.0.app.process_new_http(session, stopping);
            let Some(reused) = backpressure::bounded(request, &listening.stalled, None).await else { return };
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

    /// Refuses a connection to a full listener. Beyond [`REJECTED`] that read their answer it is dropped here, before a task is made
    /// for it: otherwise those that wait for a worker would pile up.
    fn turn_away(
        &self,
        stream: TcpStream,
        descriptor: OwnedSemaphorePermit,
        rejection: Rejection,
        client: SocketAddr,
        listening: &ListenerState,
    ) {
        self.reject(rejection, client.ip(), listening);
        if listening.tls.is_none()
            && let Ok(place) = Arc::clone(&self.0.rejected).try_acquire_owned()
        {
            let wire = ClientStream::new(Socket::plain(stream, descriptor));
            tokio::spawn(async move {
                wire.refuse(rejection).await;
                drop(place);
            });
        }
    }

    /// Refuses a connection of which nothing was read.
    async fn refuse_socket(
        &self,
        stream: TcpStream,
        descriptor: OwnedSemaphorePermit,
        rejection: Rejection,
        client: SocketAddr,
        listening: &ListenerState,
    ) {
        self.refuse(ClientStream::new(Socket::plain(stream, descriptor)), rejection, client.ip(), listening).await;
    }

    /// Counts what was refused, and answers it, unless too many are being answered. A client that expects TLS and has not made its
    /// handshake gets no answer: it would take one without TLS for a broken server, and a handshake costs more than a full listener
    /// can spare.
    async fn refuse(&self, wire: ClientStream, rejection: Rejection, client: IpAddr, listening: &ListenerState) {
        self.reject(rejection, client, listening);
        let is_readable = listening.tls.is_none() || wire.socket().is_some_and(|socket| socket.tls_version().is_some());
        if is_readable && let Ok(_place) = self.0.rejected.try_acquire() {
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

/// Keeps the log readable while one thing goes wrong many times a second.
#[derive(Default)]
struct LogPause(Option<Instant>);

impl LogPause {
    /// Whether to log now; then a pause begins.
    fn is_over(&mut self) -> bool {
        let is_over = self.0.is_none_or(|since| since.elapsed() >= LOG_PAUSE);
        if is_over {
            self.0 = Some(Instant::now());
        }
        is_over
    }
}
