//! What belongs to a client's connection, or to one stream of an HTTP/2 connection: who is at its two ends, and every wait on it
//! that has a bound, by one timer.
//!
//! **Waiting for a peer's response header** (`timeouts.response`). Pingora's read timeout is per read and holds for the body as
//! well, so it would cut a quiet event stream or WebSocket, and a slow upload whose answer comes at its end. Here the wait
//! begins when a request has a connection to its peer, begins anew with each piece of the request body, and ends with the
//! response header. When the time is up the peer's socket is shut, which Pingora sees as closed; one of HTTP/2, which other requests
//! use, is left alone, and the request itself is given up. Nobody else can have closed or
//! reused that descriptor in between: requests of a connection come one after the other, and only the very future that
//! [`watched`] polls could have.
//!
//! **Waiting for the client**: for its next header ([`await_header`]), and for bytes of a body in either direction
//! ([`waits`], [`moved`]), where a client that drips a byte now and then would pass any bound on a single read. It has
//! `stall_timeout` to spend; being slower than `min_rate` spends it, being quicker gives it back. When a wait is over, the
//! connection's future is polled once more, and finds it out with [`expired`].
//!
//! The timer outlives the requests that it is for. It is made when first needed and only looked at when it fires, so that a
//! request costs a few stores.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    net::{IpAddr, SocketAddr},
    os::fd::RawFd,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::HeaderValue;
use nix::sys::socket::{Shutdown, shutdown};
use pingora::protocols::SocketDigest;
use tokio::{
    task::unconstrained,
    time::{Sleep, sleep_until},
};

use super::{backpressure::Stall, reject::Rejection};
use crate::config::Limits;

tokio::task_local! {
    /// Boxed, because it is moved into and out of the thread at every poll.
    static CONNECTION: Box<Connection>;
}

struct Connection {
    ends: Arc<ClientInfo>,
    response: Cell<Option<Instant>>,
    client: Cell<Option<Instant>>,
    /// Whose response is waited for, and how long; no socket, if it is not this request's alone.
    peer: Cell<(Option<RawFd>, Duration)>,
    /// Whether the response did not come in time.
    late: Cell<bool>,
    /// Whether the client did not do something in time.
    expired: Cell<bool>,
    refused: Cell<Option<Rejection>>,
    upgraded: Cell<bool>,
    held: Cell<Option<Box<dyn Any + Send>>>,
    /// Whether its last request is running.
    last: Cell<bool>,
    reading: Pace,
    writing: Pace,
    /// The wait for the client to take the response.
    stall: RefCell<Option<Arc<Stall>>>,
}

/// How slow a client may be in one direction.
struct Pace {
    since: Cell<Option<Instant>>,
    /// Of `stall_timeout`.
    left: Cell<Duration>,
}

/// A direction, as the client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Up,
    Down,
}

/// The two ends of a client's connection, as headers have them, and what its listener says of it.
#[derive(Debug)]
pub(crate) struct ClientInfo {
    /// An IPv4 client of a listener on `[::]` is still an IPv4 client.
    pub client: IpAddr,
    pub client_text: HeaderValue,
    pub local_port: HeaderValue,
    /// `TLSv1.3`; none without TLS.
    pub tls: Option<&'static str>,
    /// As configured.
    pub listener: Arc<str>,
    pub redirect_to_https: bool,
    pub limits: Arc<Limits>,
}

/// Runs the future of one connection, whose waits the functions below begin and end from within.
pub(crate) async fn watched<F: Future>(ends: Arc<ClientInfo>, connection: F) -> F::Output {
    let patience = ends.limits.stall_timeout;
    let state = Connection {
        ends,
        response: Cell::default(),
        client: Cell::default(),
        peer: Cell::default(),
        late: Cell::default(),
        expired: Cell::default(),
        refused: Cell::default(),
        upgraded: Cell::default(),
        held: Cell::default(),
        last: Cell::default(),
        reading: Pace::new(patience),
        writing: Pace::new(patience),
        stall: RefCell::default(),
    };
    CONNECTION
        .scope(Box::new(state), async move {
            let mut connection = pin!(connection);
            let mut timer = None;
            poll_fn(|cx| {
                loop {
                    if let Poll::Ready(output) = connection.as_mut().poll(cx) {
                        return Poll::Ready(output);
                    }
                    if CONNECTION.with(|connection| connection.poll(&mut timer, cx)).is_pending() {
                        return Poll::Pending;
                    }
                }
            })
            .await
        })
        .await
}

/// The request has a connection to its peer: from `now` on it waits for a response header, at most for `bound`.
pub(crate) fn await_response(socket: Option<RawFd>, now: Instant, bound: Duration) {
    with(|connection| {
        connection.late.set(false);
        connection.peer.set((socket, bound));
        connection.response.set(Some(now + bound));
    });
}

/// The request made progress: its wait begins anew.
pub(crate) fn extend() {
    with(|connection| {
        if connection.response.get().is_some() {
            connection.response.set(Some(Instant::now() + connection.peer.get().1));
        }
    });
}

/// What was waited for is here, or will not come.
pub(crate) fn arrived() {
    with(|connection| connection.response.set(None));
}

/// Whether the connection to the peer is gone because the time was up.
pub(crate) fn late() -> bool {
    CONNECTION.try_with(|connection| connection.late.get()).unwrap_or(false)
}

/// Whether the request has to be given up: a peer whose connection others use is late, or the client with its body to such a peer.
pub(crate) fn given_up() -> bool {
    CONNECTION.try_with(|connection| connection.late.get() && connection.peer.get().0.is_none()).unwrap_or(false)
}

/// The client of a stream has used up its time for the body, unless it is the peer that does not take it. The request ends: by its
/// peer's socket, as with a late peer, so that the client can still be told.
pub(crate) fn give_up_body() {
    with(|connection| {
        let (socket, _) = connection.peer.get();
        if socket.is_some_and(is_full) {
            connection.reading.restart(connection.ends.limits.stall_timeout);
            return waits(Direction::Up);
        }
        refuse(Rejection::SlowBody);
        connection.give_up();
    });
}

/// Whether bytes wait for the other end to take them.
fn is_full(socket: RawFd) -> bool {
    SocketDigest::from_raw_fd(socket).tcp_info().is_some_and(|info| info.tcpi_notsent_bytes > 0)
}

/// A header is waited for until then, and not any more once it is here.
pub(crate) fn await_header(until: Option<Instant>) {
    with(|connection| connection.client.set(until));
}

/// How long a connection may be without a request.
pub(crate) fn idle_timeout() -> Duration {
    CONNECTION.try_with(|connection| connection.ends.limits.idle_timeout).unwrap_or_default()
}

/// Whether the client has used up its time; asked once.
pub(crate) fn expired() -> bool {
    CONNECTION.try_with(|connection| connection.expired.take()).unwrap_or(false)
}

/// Nothing goes on in this direction until the client does something.
pub(crate) fn waits(direction: Direction) {
    with(|connection| {
        let pace = connection.pace(direction);
        if connection.ends.pace().is_some() && pace.since.get().is_none() {
            let now = Instant::now();
            pace.since.set(Some(now));
            let until = now + pace.left.get();
            // The earlier of the two directions: the other is looked at again when its bytes have moved.
            connection.client.set(Some(connection.client.get().map_or(until, |other| other.min(until))));
        }
    });
}

/// The client took or sent so many bytes.
pub(crate) fn moved(direction: Direction, bytes: usize) {
    with(|connection| {
        let pace = connection.pace(direction);
        let Some(((rate, most), since)) = connection.ends.pace().zip(pace.since.take()) else { return };
        let earned = Duration::from_micros(bytes as u64 * 1_000_000 / u64::from(rate));
        pace.left.set((pace.left.get().saturating_sub(since.elapsed()) + earned).min(most));
        let other = connection.pace(direction.other());
        connection.client.set(other.since.get().map(|since| since + other.left.get()));
    });
}

/// Notes why the connection ends; the first reason is the reason.
pub(crate) fn refuse(rejection: Rejection) {
    with(|connection| connection.refused.set(connection.refused.get().or(Some(rejection))));
}

/// Why the connection ends, if it was refused.
pub(crate) fn refused() -> Option<Rejection> {
    CONNECTION.try_with(|connection| connection.refused.get()).ok().flatten()
}

/// Drops `held` once this poll of the connection's future has done what it can.
pub(crate) fn until_idle(held: Box<dyn Any + Send>) {
    with(|connection| connection.held.set(Some(held)));
}

/// From now on bytes go both ways, whatever they mean.
pub(crate) fn upgrade() {
    with(|connection| connection.upgraded.set(true));
}

/// Whether bytes go both ways, whatever they mean.
pub(crate) fn is_upgraded() -> bool {
    CONNECTION.try_with(|connection| connection.upgraded.get()).unwrap_or(false)
}

/// No request comes after the one that runs.
pub(crate) fn end_after_this() {
    with(|connection| connection.last.set(true));
}

/// Whether the client has to be asked to leave.
pub(crate) fn ends_after_this() -> bool {
    CONNECTION.try_with(|connection| connection.last.get()).unwrap_or(false)
}

/// The two ends of this connection; none outside of [`watched`].
pub(crate) fn ends() -> Option<Arc<ClientInfo>> {
    CONNECTION.try_with(|connection| Arc::clone(&connection.ends)).ok()
}

impl ClientInfo {
    pub(crate) fn new(client: SocketAddr, local_port: u16, limits: Arc<Limits>) -> Self {
        let client = client.ip().to_canonical();
        let text = HeaderValue::from_maybe_shared(Bytes::from(client.to_string()));
        // An address is a header value.
        let client_text = text.unwrap_or(HeaderValue::from_static("unknown"));
        let local_port = HeaderValue::from(local_port);
        Self { client, client_text, local_port, tls: None, listener: Arc::from(""), redirect_to_https: false, limits }
    }

    /// Bytes per second, and how long a client may be slower.
    fn pace(&self) -> Option<(u32, Duration)> {
        self.limits.min_rate.map(|rate| (rate, self.limits.stall_timeout))
    }
}

impl Direction {
    fn other(self) -> Self {
        match self {
            Self::Up => Self::Down,
            Self::Down => Self::Up,
        }
    }
}

impl Pace {
    fn new(left: Duration) -> Self {
        Self { since: Cell::default(), left: Cell::new(left) }
    }

    fn restart(&self, left: Duration) {
        self.since.set(None);
        self.left.set(left);
    }
}

/// Whatever is left of the poll's budget, which [`super::backpressure`] spends: a timer without budget is not set.
fn poll_timer(timer: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<()> {
    pin!(unconstrained(timer)).poll(cx)
}

/// Notes that the response waits for the client, or does not any more.
pub(super) fn set_stall(stall: Option<Arc<Stall>>) {
    with(|connection| {
        let mut current = connection.stall.borrow_mut();
        if current.is_some() || stall.is_some() {
            *current = stall;
        }
    });
}

/// Whether the response waits for the client.
pub(super) fn is_waiting_for_client() -> bool {
    CONNECTION.try_with(|connection| connection.stall.borrow().is_some()).unwrap_or(false)
}

/// Whether there is nothing to do before the client takes more: it has taken nothing, and its time is not up.
pub(super) fn is_stalled() -> bool {
    let is_stalled = |connection: &Connection| {
        let waits = connection.stall.borrow().as_ref().is_some_and(|stall| !stall.is_over());
        waits && !connection.expired.get() && !connection.late.get() && connection.refused.get().is_none()
    };
    CONNECTION.try_with(|connection| is_stalled(connection)).unwrap_or(false)
}

/// Outside [`watched`] there is nothing to bound.
fn with(set: impl FnOnce(&Connection)) {
    CONNECTION.try_with(|connection| set(connection)).unwrap_or_default();
}

impl Connection {
    fn pace(&self, direction: Direction) -> &Pace {
        match direction {
            Direction::Up => &self.reading,
            Direction::Down => &self.writing,
        }
    }

    /// Ready when a wait is over that the connection's future has to be told of.
    fn poll(&self, timer: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> Poll<()> {
        drop(self.held.take());
        loop {
            let (response, client) = (self.response.get(), self.client.get());
            let Some(until) = [response, client].into_iter().flatten().min() else {
                return Poll::Pending;
            };
            let deadline = until.into();
            let mut unset = timer.is_none();
            let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            // The timer may have been set for an earlier request with a longer bound.
            if deadline < timer.deadline() {
                timer.as_mut().reset(deadline);
                unset = true;
            }
            // A timer that was polled wakes this connection's task, which is the same all its life: until it has fired there
            // is no need to poll it again.
            if !unset && !timer.is_elapsed() || poll_timer(timer.as_mut(), cx).is_pending() {
                return Poll::Pending;
            }
            if timer.deadline() < deadline {
                timer.as_mut().reset(deadline);
                if poll_timer(timer.as_mut(), cx).is_pending() {
                    return Poll::Pending;
                }
            }
            if client == Some(until) {
                self.client.set(None);
                self.expired.set(true);
                return Poll::Ready(());
            }
            self.response.set(None);
            self.give_up();
            if self.peer.get().0.is_none() {
                return Poll::Ready(());
            }
        }
    }

    /// Ends the request by its peer's socket, if that is its own.
    fn give_up(&self) {
        self.late.set(true);
        if let Some(socket) = self.peer.get().0
            && let Err(e) = shutdown(socket, Shutdown::Both)
        {
            log::debug!("the socket of a peer that is given up was gone already error={e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use tokio::{
        io::AsyncReadExt,
        net::{TcpListener, TcpStream},
    };

    use super::*;

    fn nobody() -> Arc<ClientInfo> {
        Arc::new(ClientInfo::new(SocketAddr::from(([192, 0, 2, 1], 1)), 80, Arc::default()))
    }

    async fn silent_peer() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    /// Waits until the client has used up its time.
    async fn told() {
        poll_fn(|_| if expired() { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    #[tokio::test]
    async fn a_peer_that_says_nothing_is_cut_when_the_time_is_up() {
        let (mut near, _far) = silent_peer().await;
        let began = Instant::now();
        let read = watched(nobody(), async {
            await_response(Some(near.as_raw_fd()), Instant::now(), Duration::from_millis(50));
            let read = near.read_u8().await;
            assert!(late());
            read
        })
        .await;
        assert!(read.is_err() && began.elapsed() >= Duration::from_millis(50));
    }

    #[tokio::test]
    async fn progress_begins_the_wait_anew_and_a_header_ends_it() {
        let (near, _far) = silent_peer().await;
        watched(nobody(), async {
            await_response(Some(near.as_raw_fd()), Instant::now(), Duration::from_millis(80));
            for _ in 0..4 {
                tokio::time::sleep(Duration::from_millis(40)).await;
                extend();
            }
            arrived();
            tokio::time::sleep(Duration::from_millis(120)).await;
            assert!(!late());
        })
        .await;
        assert!(near.peer_addr().is_ok());
    }

    #[tokio::test]
    async fn a_client_without_a_request_is_told_of_and_one_with_a_request_is_not() {
        let began = Instant::now();
        watched(nobody(), async {
            await_header(Some(Instant::now() + Duration::from_millis(30)));
            await_header(None);
            tokio::time::sleep(Duration::from_millis(60)).await;
            assert!(!expired());
            await_header(Some(Instant::now() + Duration::from_millis(40)));
            told().await;
        })
        .await;
        assert!(began.elapsed() >= Duration::from_millis(100));
    }

    #[tokio::test]
    async fn a_client_that_drips_uses_up_its_time_and_one_that_is_quick_enough_does_not() {
        let ends = |rate| {
            let limits = Limits { min_rate: Some(rate), stall_timeout: Duration::from_millis(100), ..Limits::default() };
            Arc::new(ClientInfo::new(([192, 0, 2, 1], 1).into(), 80, Arc::new(limits)))
        };
        let began = Instant::now();
        let drip = |rate| {
            watched(ends(rate), async move {
                for _ in 0..20 {
                    waits(Direction::Up);
                    tokio::select! {
                        () = told() => return true,
                        () = tokio::time::sleep(Duration::from_millis(20)) => moved(Direction::Up, 10),
                    }
                }
                false
            })
        };
        assert!(drip(100_000).await, "a byte every two milliseconds is slower than that");
        assert!(began.elapsed() < Duration::from_millis(300));
        assert!(!drip(10).await);
    }
}
