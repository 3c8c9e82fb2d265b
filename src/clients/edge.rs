//! Accepts connections: their limits, the PROXY protocol, the TLS handshake, and then one request after the other.
//!
//! Pingora's own server is not used: it binds late, retries a busy port for thirty seconds in a process that looks alive, and
//! sleeps through every shutdown; its listening service has no connection limits and no PROXY protocol on a plain port.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use pingora::{apps::HttpServerApp, protocols::http::ServerSession, server::ShutdownWatch};
use tokio::{
    io::BufWriter,
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{
    backpressure,
    client_stream::{ClientStream, End, Http2Start, Next},
    closing::Closing,
    connection::{ClientInfo, Connection},
    http2, linger,
    listener::{ConnectionGuard, Connections, ListenerState},
    proxy_protocol,
    reject::Rejection,
    rejections::Rejections,
    shared::Shared,
    socket::Socket,
};
use crate::{access_log::AccessLog, metrics::Metrics, snapshot::SnapshotCell};

/// How long accepting pauses after an error, such as a system without free descriptors.
const NO_DESCRIPTOR: Duration = Duration::from_millis(50);
/// Rejected connections that are answered at a time, until the answer is read; further ones are closed at once.
const ANSWERED: usize = 64;
/// Between two equal lines of the log.
const LOG_PAUSE: Duration = Duration::from_secs(10);

/// Connections from clients, and the application that answers their requests. Clones share everything.
pub struct Edge<A>(Arc<Inner<A>>);

struct Inner<A> {
    shared: Arc<Shared<A>>,
    snapshot: Arc<SnapshotCell>,
    connections: Arc<Connections>,
    /// One permit for each connection that the limit of descriptors allows.
    descriptors: Arc<Semaphore>,
    /// One permit for each rejected connection that may be answered.
    answered: Arc<Semaphore>,
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
            shared: Arc::new(Shared {
                app,
                rejections: Arc::new(Rejections::new(metrics, access_log)),
                closing: Closing::default(),
            }),
            snapshot,
            connections: Arc::new(connections),
            descriptors: Arc::new(Semaphore::new(descriptors.min(Semaphore::MAX_PERMITS))),
            answered: Arc::new(Semaphore::new(ANSWERED)),
        }))
    }

    /// Connections open now.
    pub fn connections(&self) -> usize {
        self.0.connections.open()
    }

    /// Returns when no connection is open and none will be, because every [`Self::serve`] has ended.
    pub async fn all_closed(&self) {
        self.0.connections.all_closed().await;
    }

    /// Closes connections that carry no request, now and as soon as they carry none.
    pub fn close_idle(&self) {
        self.0.shared.closing.close();
    }

    /// Accepts connections until `stopping` changes, and then those that the kernel has already established: their clients may have
    /// sent requests, and closing the socket would reset them. Connections end by themselves.
    pub async fn serve(self, socket: std::net::TcpListener, listening: Arc<ListenerState>, mut stopping: ShutdownWatch) {
        let _accepting = self.0.connections.accepting();
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
                _ = stopping.changed() => break,
            };
            match accepted {
                Ok(((stream, client), descriptor)) => self.begin(stream, descriptor, client, &listening, &stopping),
                // The client closed the connection before it was accepted.
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(e) => {
                    if failed.is_over() {
                        log::warn!("cannot accept a connection listener={} error={e}", listening.label);
                    }
                    tokio::time::sleep(NO_DESCRIPTOR).await;
                }
            }
        }
        self.accept_established(socket, &listening, &stopping);
    }

    /// Accepts the connections that are established, at most as many as the listener may have: new ones can arrive meanwhile.
    fn accept_established(&self, socket: TcpListener, listening: &Arc<ListenerState>, stopping: &ShutdownWatch) {
        // Tokio accepts only after an event, and an event of an established connection may still be pending.
        let Ok(socket) = socket.into_std() else { return };
        for _ in 0..listening.limits.connections {
            let Ok(descriptor) = Arc::clone(&self.0.descriptors).try_acquire_owned() else { return };
            let accepted = socket.accept().and_then(|(stream, client)| {
                stream.set_nonblocking(true)?;
                Ok((TcpStream::from_std(stream)?, client))
            });
            match accepted {
                Ok((stream, client)) => self.begin(stream, descriptor, client, listening, stopping),
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(_) => return,
            }
        }
    }

    /// Serves an accepted connection, or rejects it at the limit of connections.
    fn begin(
        &self,
        stream: TcpStream,
        descriptor: OwnedSemaphorePermit,
        client: SocketAddr,
        listening: &Arc<ListenerState>,
        stopping: &ShutdownWatch,
    ) {
        match ConnectionGuard::new(&self.0.connections, listening) {
            Ok(open) => {
                let (edge, listening, stopping) = (self.clone(), Arc::clone(listening), stopping.clone());
                tokio::spawn(edge.connection(stream, descriptor, open, client, listening, stopping));
            }
            Err(rejection) => self.turn_away(stream, descriptor, rejection, client, listening),
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
        // Responses are written completely, so that collecting more bytes would only delay them.
        if let Err(e) = stream.set_nodelay(true) {
            log::debug!("cannot set TCP_NODELAY error={e}");
        }
        let Some((stream, client)) = self.client_address(stream, client, until, &listening).await else { return };
        if let Err(rejection) = open.count(client.ip().to_canonical()) {
            self.0.shared.rejections.connection(rejection, client.ip(), &listening.label);
            if let Some(_place) = self.may_answer(&listening, false) {
                linger::reject(BufWriter::new(Socket::plain(stream, descriptor)), rejection).await;
            }
            return;
        }
        let socket = match &listening.tls {
            None => Socket::plain(stream, descriptor),
            Some(tls) => {
                let left = until.saturating_duration_since(Instant::now());
                match timeout(left, TlsAcceptor::from(tls.settings()).accept(stream)).await {
                    Ok(Ok(stream)) => Socket::tls(stream, descriptor),
                    _ => return self.0.shared.rejections.connection(Rejection::Handshake, client.ip(), &listening.label),
                }
            }
        };
        let client = ClientInfo {
            tls: socket.tls_version(),
            listener: Arc::clone(&listening.label),
            redirect_to_https: listening.config.redirect_to_https,
            pool: listening.config.pool,
            ..ClientInfo::new(client, listening.local_port, Arc::clone(&listening.limits))
        };
        let connection = Connection::new(Arc::new(client), Arc::clone(&self.0.shared.rejections));
        connection.await_header(Some(until));
        connection.watch(self.requests(socket, &listening, &connection, &stopping)).await;
        drop(open);
    }

    /// The client's address, from the PROXY protocol header if a trusted proxy sends one; none if the connection ends here.
    async fn client_address(
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
        self.0.shared.rejections.connection(rejection, client.ip(), &listening.label);
        None
    }

    /// The requests of a connection, until it ends.
    async fn requests(
        &self,
        socket: Socket,
        listening: &Arc<ListenerState>,
        connection: &Arc<Connection>,
        stopping: &ShutdownWatch,
    ) {
        let (shared, limits) = (&self.0.shared, &listening.limits);
        // Over TLS the handshake decides.
        let mut may_be_h2 = match connection.client.tls {
            None => Http2Start::Maybe,
            Some(_) if socket.has_agreed_on_h2() => Http2Start::Agreed,
            Some(_) => Http2Start::No,
        };
        let mut stream = Box::new(ClientStream::new(socket, Arc::clone(connection)));
        let mut left = limits.requests_per_connection;
        loop {
            let rejection = match stream.next(limits, may_be_h2, &shared.closing).await {
                Ok(Next::H2) => return http2::serve(shared, stream, listening, connection, stopping).await,
                Ok(Next::Request) if listening.has_too_many_unread() => Some(Rejection::UnreadResponses),
                Ok(Next::Request) => None,
                Err(End::Closed) => return,
                Err(End::Rejected(rejection)) => Some(rejection),
            };
            if let Some(rejection) = rejection {
                shared.rejections.connection(rejection, connection.client.address, &listening.label);
                if let Some(_place) = self.may_answer(listening, connection.client.tls.is_some()) {
                    stream.reject(rejection).await;
                }
                return;
            }
            may_be_h2 = Http2Start::No;
            let mut session = ServerSession::new_http1(stream);
            left -= 1;
            if left == 0 {
                connection.set_last_request();
            }
            // The time is not used: `ClientStream::next` waits for the next header.
            session.set_keepalive(Some(60));
            let request = unless_stuck(connection, shared.app.process_new_http(session, stopping));
            let Some(reused) = backpressure::bounded(connection, request, &listening.stalled, None).await else { return };
            let (back, _) = reused.consume();
            let Ok(back) = back.into_any().downcast::<ClientStream>() else { return };
            stream = back;
            if !stream.is_between_requests() || left == 0 {
                return;
            }
        }
    }

    /// Rejects a connection to a full listener. Beyond [`ANSWERED`] it is closed here, without a task: tasks that wait for a
    /// worker would accumulate.
    fn turn_away(
        &self,
        stream: TcpStream,
        descriptor: OwnedSemaphorePermit,
        rejection: Rejection,
        client: SocketAddr,
        listening: &ListenerState,
    ) {
        self.0.shared.rejections.connection(rejection, client.ip(), &listening.label);
        if let Some(place) = self.may_answer(listening, false) {
            tokio::spawn(async move {
                linger::reject(BufWriter::new(Socket::plain(stream, descriptor)), rejection).await;
                drop(place);
            });
        }
    }

    /// A place for answering a rejection; none if too many are being answered, and before a TLS handshake: its client would take an
    /// answer without TLS for a broken server, and a handshake costs more than a full listener can spare.
    fn may_answer(&self, listening: &ListenerState, has_tls: bool) -> Option<OwnedSemaphorePermit> {
        (listening.tls.is_none() || has_tls).then(|| Arc::clone(&self.0.answered).try_acquire_owned().ok()).flatten()
    }
}

/// Limits how often the log repeats one line.
#[derive(Default)]
struct LogPause(Option<Instant>);

impl LogPause {
    /// Whether to log now. If so, a pause begins.
    fn is_over(&mut self) -> bool {
        let is_over = self.0.is_none_or(|since| since.elapsed() >= LOG_PAUSE);
        if is_over {
            self.0 = Some(Instant::now());
        }
        is_over
    }
}

/// Runs a request, but drops it if it does not notice that it is aborted: once an HTTP/2 peer does not open its window for the body,
/// Pingora polls the client's session no more (see `proxy::workarounds`). The client gets no response then, only the end of its
/// connection; without this the request would never end, and neither would the drain of its peer.
async fn unless_stuck<T>(connection: &Connection, request: impl Future<Output = Option<T>>) -> Option<T> {
    let mut request = pin!(request);
    poll_fn(|cx| match request.as_mut().poll(cx) {
        Poll::Pending if connection.response.is_aborted() => {
            log::warn!("closing a client connection: its peer neither reads the request body nor responds");
            Poll::Ready(None)
        }
        polled => polled,
    })
    .await
}
