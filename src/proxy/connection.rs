//! What belongs to a client's connection: the one timer that bounds its waits, and what peers are told of its two ends.
//!
//! **Waiting for a peer's response header** (`timeouts.response`). Pingora's read timeout is per read and holds for the body as
//! well, so it would cut a quiet event stream or WebSocket, and a slow upload whose answer comes at its end. Here the wait
//! begins when a request has a connection to its peer, begins anew with each piece of the request body, and ends with the
//! response header. When the time is up the peer's socket is shut, which Pingora sees as closed. Nobody else can have closed or
//! reused that descriptor in between: requests of a connection come one after the other, and only the very future that
//! [`watched`] polls could have.
//!
//! **Waiting for the client's next request.** Pingora forgets its keep-alive timeout with the first request; here the wait begins
//! when a request has ended, and ends when the whole header of the next one has come.
//!
//! The timer outlives the requests that it is for. It is made when first needed and only looked at when it fires, so that a
//! request costs a few stores.

use std::{
    cell::{Cell, OnceCell},
    future::{Future, poll_fn},
    net::{IpAddr, SocketAddr},
    os::fd::RawFd,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::HeaderValue;
use nix::sys::socket::{Shutdown, shutdown};
use pingora::proxy::Session;
use tokio::time::{Sleep, sleep_until};

/// How long a client's connection may be without a request.
const KEEPALIVE: Duration = Duration::from_secs(60);

tokio::task_local! {
    /// Boxed, because it is moved into and out of the thread at every poll.
    static CONNECTION: Box<Connection>;
}

#[derive(Default)]
struct Connection {
    wait: Cell<Option<Wait>>,
    /// Whether the response did not come in time.
    late: Cell<bool>,
    ends: OnceCell<Ends>,
}

#[derive(Clone, Copy)]
struct Wait {
    until: Instant,
    on: On,
}

#[derive(Clone, Copy)]
enum On {
    Response { socket: RawFd, bound: Duration },
    Request,
}

/// The two ends of a client's connection, as headers have them.
pub(super) struct Ends {
    /// An IPv4 client of a listener on `[::]` is still an IPv4 client.
    pub client: IpAddr,
    pub client_text: HeaderValue,
    pub local_port: HeaderValue,
}

/// Runs the future of one connection, whose waits the functions below begin and end from within. None if the client has waited
/// too long with its next request.
pub(super) async fn watched<F: Future>(connection: F) -> Option<F::Output> {
    CONNECTION
        .scope(Box::default(), async move {
            let mut connection = pin!(connection);
            let mut timer = None;
            poll_fn(|cx| match connection.as_mut().poll(cx) {
                Poll::Ready(output) => Poll::Ready(Some(output)),
                Poll::Pending => CONNECTION.with(|connection| connection.poll(&mut timer, cx)).map(|()| None),
            })
            .await
        })
        .await
}

/// The request has a connection to its peer: from `now` on it waits for a response header, at most for `bound`.
pub(super) fn await_response(socket: RawFd, now: Instant, bound: Duration) {
    with(|connection| {
        connection.late.set(false);
        connection.wait.set(Some(Wait { until: now + bound, on: On::Response { socket, bound } }));
    });
}

/// The request made progress: its wait begins anew.
pub(super) fn extend() {
    with(|connection| {
        if let Some(Wait { on: on @ On::Response { bound, .. }, .. }) = connection.wait.get() {
            connection.wait.set(Some(Wait { until: Instant::now() + bound, on }));
        }
    });
}

/// What was waited for is here, or will not come.
pub(super) fn arrived() {
    with(|connection| connection.wait.set(None));
}

/// The request has ended at `now`: the next one is waited for.
pub(super) fn await_request(now: Instant) {
    with(|connection| connection.wait.set(Some(Wait { until: now + KEEPALIVE, on: On::Request })));
}

/// Whether the connection to the peer is gone because the time was up.
pub(super) fn late() -> bool {
    CONNECTION.try_with(|connection| connection.late.get()).unwrap_or(false)
}

/// Gives the two ends of a session's connection, written out once per connection, to `tell`.
pub(super) fn with_ends<R>(session: &Session, mut tell: impl FnMut(&Ends) -> R) -> R {
    let make = || {
        let address = |address: Option<&pingora::protocols::l4::socket::SocketAddr>| address.and_then(|a| a.as_inet().copied());
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        Ends::new(address(session.client_addr()).unwrap_or(unknown), address(session.server_addr()).unwrap_or(unknown).port())
    };
    CONNECTION.try_with(|connection| tell(connection.ends.get_or_init(make))).unwrap_or_else(|_| tell(&make()))
}

impl Ends {
    pub(super) fn new(client: SocketAddr, local_port: u16) -> Self {
        let client = client.ip().to_canonical();
        let text = HeaderValue::from_maybe_shared(Bytes::from(client.to_string()));
        // An address is a header value.
        let client_text = text.unwrap_or(HeaderValue::from_static("unknown"));
        Self { client, client_text, local_port: HeaderValue::from(local_port) }
    }
}

/// Outside [`watched`] there is nothing to bound.
fn with(set: impl FnOnce(&Connection)) {
    CONNECTION.try_with(|connection| set(connection)).unwrap_or_default();
}

impl Connection {
    /// Ready when the connection is to be ended.
    fn poll(&self, timer: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(wait) = self.wait.get() else {
            return Poll::Pending;
        };
        let until = wait.until.into();
        let mut unset = timer.is_none();
        let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
        // The timer may have been set for an earlier request with a longer bound.
        if until < timer.deadline() {
            timer.as_mut().reset(until);
            unset = true;
        }
        // A timer that was polled wakes this connection's task, which is the same all its life: until it has fired there is no
        // need to poll it again.
        while (unset || timer.is_elapsed()) && timer.as_mut().poll(cx).is_ready() {
            if timer.deadline() < until {
                timer.as_mut().reset(until);
                unset = true;
                continue;
            }
            let On::Response { socket, .. } = wait.on else {
                return Poll::Ready(());
            };
            self.wait.set(None);
            self.late.set(true);
            if let Err(e) = shutdown(socket, Shutdown::Both) {
                log::debug!("the socket of a late peer was gone already error={e}");
            }
            break;
        }
        Poll::Pending
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

    async fn silent_peer() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn a_peer_that_says_nothing_is_cut_when_the_time_is_up() {
        let (mut near, _far) = silent_peer().await;
        let began = Instant::now();
        let read = watched(async {
            await_response(near.as_raw_fd(), Instant::now(), Duration::from_millis(50));
            let read = near.read_u8().await;
            assert!(late());
            read
        })
        .await
        .unwrap();
        assert!(read.is_err() && began.elapsed() >= Duration::from_millis(50));
    }

    #[tokio::test]
    async fn progress_begins_the_wait_anew_and_a_header_ends_it() {
        let (near, _far) = silent_peer().await;
        watched(async {
            await_response(near.as_raw_fd(), Instant::now(), Duration::from_millis(80));
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

    #[tokio::test(start_paused = true)]
    async fn a_client_without_a_request_is_let_go_and_one_with_a_request_is_not() {
        let began = tokio::time::Instant::now();
        let ended = watched(async {
            await_request(Instant::now());
            arrived();
            tokio::time::sleep(KEEPALIVE * 3).await;
            await_request(tokio::time::Instant::now().into_std());
            std::future::pending::<()>().await;
        })
        .await;
        assert!(ended.is_none() && began.elapsed() >= KEEPALIVE * 4);
    }
}
