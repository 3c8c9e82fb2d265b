//! The state of a client's HTTP/1 connection, or of one stream of an HTTP/2 connection.
//!
//! [`Connection`] is one value, held in an `Arc` by everything that works on the connection: the [`super::client_stream::ClientStream`]
//! between the socket and Pingora, the HTTP/2 session of the stream, [`super::backpressure`], and the proxy's request context. The
//! proxy gets it from the digest of Pingora's session ([`Connection::of`]), which is the only way from one to the other: Pingora
//! creates the request context without knowing the connection.
//!
//! [`super::edge`] makes one for each connection and [`super::http2`] one for each stream; both run the future of the connection or
//! stream in [`Connection::watch`], which has one timer for all its waits: for the client's next header, for bytes of a request body,
//! for room to write a response, and for the peer's response header. When a wait for the client times out, the future is polled once
//! more and finds that with [`Connection::has_expired`].
//!
//! The timer outlives the requests that it is for. It is made when first needed and only looked at when it fires, so that a request
//! costs a few stores. Everything here runs in the one task of the connection or stream; see [`super::cells`].

use std::{
    any::Any,
    future::{Future, poll_fn},
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    sync::{
        Arc, OnceLock,
        atomic::{
            AtomicBool, AtomicU8,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::HeaderValue;
use pingora::{
    http::ResponseHeader,
    protocols::{SocketDigest, http::ServerSession, raw_connect::ProxyDigest},
};
use tokio::{
    task::unconstrained,
    time::{Sleep, sleep_until},
};

use super::{
    cells::{InstantCell, Slot},
    pace::Pace,
    reject::Rejection,
    rejections::Rejections,
    response_wait::ResponseWait,
};
use crate::config::{Limits, ServedPool};

/// The state of one HTTP/1 connection or one HTTP/2 stream.
pub(crate) struct Connection {
    /// The client and its listener.
    pub(crate) client: Arc<ClientInfo>,
    /// The wait for the peer's response header.
    pub(crate) response: ResponseWait,
    rejections: Arc<Rejections>,
    rejection: OnceLock<Rejection>,
    upgraded: AtomicBool,
    is_last_request: AtomicBool,
    body_may_pause: AtomicBool,
    until_idle: Slot<Box<dyn Any + Send>>,
    /// When the wait for the client's next header ends.
    header: InstantCell,
    reading: Pace,
    writing: Pace,
    /// The wait for the client that has timed out, as [`Wait`]; 0 for none.
    expired: AtomicU8,
    /// Whether the response waits for the client.
    waits_for_client: AtomicBool,
    /// Whether the client has taken something since that wait began.
    client_took: AtomicBool,
}

/// A wait for the client, each with a timeout of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Wait {
    /// A request's header.
    Header = 1,
    /// Bytes of a request's body.
    Body,
    /// Room for bytes of a response.
    Reader,
}

/// The client and the listener of a connection, as headers and the access log show them.
#[derive(Debug)]
pub(crate) struct ClientInfo {
    /// An IPv4 client of a listener on `[::]` is still an IPv4 client.
    pub address: IpAddr,
    pub address_text: HeaderValue,
    pub local_port: HeaderValue,
    /// `TLSv1.3`; none without TLS.
    pub tls: Option<&'static str>,
    /// As configured.
    pub listener: Arc<str>,
    pub redirect_to_https: bool,
    /// The pool that the listener's requests go to.
    pub pool: ServedPool,
    pub limits: Arc<Limits>,
}

impl Connection {
    pub(super) fn new(client: Arc<ClientInfo>, rejections: Arc<Rejections>) -> Arc<Self> {
        let stall_timeout = client.limits.stall_timeout;
        Arc::new(Self {
            client,
            response: ResponseWait::default(),
            rejections,
            rejection: OnceLock::new(),
            upgraded: AtomicBool::new(false),
            is_last_request: AtomicBool::new(false),
            body_may_pause: AtomicBool::new(false),
            until_idle: Slot::default(),
            header: InstantCell::default(),
            reading: Pace::new(stall_timeout),
            writing: Pace::new(stall_timeout),
            expired: AtomicU8::new(0),
            waits_for_client: AtomicBool::new(false),
            client_took: AtomicBool::new(false),
        })
    }

    /// The connection or stream of a session.
    pub(crate) fn of(session: &ServerSession) -> Option<&Arc<Self>> {
        session.digest()?.proxy_digest.as_ref()?.user_data.as_ref()?.downcast_ref()
    }

    /// The part of a session's digest that carries this value. Pingora has it for the response of a CONNECT proxy, with room for data
    /// of the application, and keeps it with every session.
    pub(super) fn digest(self: &Arc<Self>) -> Option<Arc<ProxyDigest>> {
        let no_response = ResponseHeader::build_no_case(200, Some(0)).ok()?;
        Some(Arc::new(ProxyDigest::new(Box::new(no_response), Some(Box::new(Arc::clone(self))))))
    }

    /// Runs the future of this connection or stream, and its timer.
    pub(crate) async fn watch<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        let mut timer = None;
        poll_fn(|cx| {
            loop {
                if let Poll::Ready(output) = future.as_mut().poll(cx) {
                    return Poll::Ready(output);
                }
                drop(self.until_idle.take());
                if self.poll_waits(&mut timer, cx).is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await
    }

    /// A request begins on a connection of HTTP/1.
    pub(super) fn begin_request(&self) {
        self.reading.reset();
    }

    /// A request has ended, and the client has `idle_timeout` for the next one. Called before the request's future ends, which reads
    /// the rest of its body first: that has no other time limit.
    pub(crate) fn end_request(&self, at: Instant) {
        self.await_header(Some(at + self.client.limits.idle_timeout));
    }

    /// Counts and keeps the reason why the connection or stream ends; the first reason stays.
    pub(crate) fn reject(&self, rejection: Rejection) {
        self.rejection.get_or_init(|| {
            self.rejections.count(rejection, &self.client.listener);
            rejection
        });
    }

    /// Why the connection or stream ends, if it was rejected.
    pub(crate) fn rejection(&self) -> Option<Rejection> {
        self.rejection.get().copied()
    }

    /// Drops `held` once this poll of the connection's future has done what it can.
    pub(crate) fn hold_until_idle(&self, held: Box<dyn Any + Send>) {
        self.until_idle.set(held);
    }

    /// From now on bytes pass both ways, without an interpretation.
    pub(crate) fn upgrade(&self) {
        self.upgraded.store(true, Relaxed);
    }

    /// Whether bytes pass both ways, without an interpretation.
    pub(super) fn is_upgraded(&self) -> bool {
        self.upgraded.load(Relaxed)
    }

    /// The request that runs is the last one of this connection.
    pub(super) fn set_last_request(&self) {
        self.is_last_request.store(true, Relaxed);
    }

    /// Whether the response has to ask the client to close the connection.
    pub(crate) fn is_last_request(&self) -> bool {
        self.is_last_request.load(Relaxed)
    }

    /// Waits for a header until then; none once it has arrived.
    pub(crate) fn await_header(&self, until: Option<Instant>) {
        self.header.set(until);
    }

    /// Whether this wait for the client has timed out. Returns true once.
    pub(super) fn has_expired(&self, wait: Wait) -> bool {
        let has_expired = self.expired.load(Relaxed) == wait as u8;
        if has_expired {
            self.expired.store(0, Relaxed);
        }
        has_expired
    }

    /// The body of this request may pause for any time.
    pub(crate) fn let_body_pause(&self) {
        self.body_may_pause.store(true, Relaxed);
    }

    /// Begins to wait for bytes of the request body.
    pub(super) fn await_body(&self) {
        if self.client.pace().is_some() && !self.body_may_pause.load(Relaxed) && !self.reading.is_waiting() {
            self.reading.begin_wait();
        }
    }

    /// Ends the wait for bytes of the request body: so many have arrived.
    pub(super) fn body_arrived(&self, bytes: usize) {
        if let Some((rate, _)) = self.client.pace() {
            self.reading.end_wait(bytes as u64, rate);
        }
        self.has_expired(Wait::Body);
    }

    /// Begins to wait until the client reads more of the response. `unseen` is how many bytes it may read without a visible sign.
    pub(super) fn await_reader(&self, socket: &SocketDigest, unseen: u64) {
        if let Some((rate, stall_timeout)) = self.client.pace()
            && !self.writing.is_waiting()
        {
            self.writing.begin_wait_to_write(socket, unseen, rate, stall_timeout);
        }
    }

    /// Ends the wait for the reader, if there was one. `granted`: bytes of HTTP/2 flow-control window that it has opened.
    pub(super) fn reader_read(&self, socket: &SocketDigest, granted: u64) {
        if let Some((rate, _)) = self.client.pace() {
            self.writing.end_wait_to_write(socket, granted, rate);
        }
        self.has_expired(Wait::Reader);
    }

    /// After the wait for the reader timed out: whether it has read too little. If not, the wait continues.
    pub(super) fn reads_too_slowly(&self, socket: &SocketDigest) -> bool {
        self.client.pace().is_some_and(|(rate, _)| self.writing.is_too_slow(socket, rate))
    }

    /// The response waits for the client from now on.
    pub(super) fn begin_stall(&self) {
        self.client_took.store(false, Relaxed);
        self.waits_for_client.store(true, Relaxed);
    }

    /// The response does not wait for the client.
    pub(super) fn end_stall(&self) {
        self.waits_for_client.store(false, Relaxed);
    }

    /// The client has taken something. Called by any thread, before it wakes the task.
    pub(super) fn note_client_took(&self) {
        self.client_took.store(true, Release);
    }

    /// Whether the response waits for the client.
    pub(super) fn waits_for_client(&self) -> bool {
        self.waits_for_client.load(Relaxed)
    }

    /// Whether there is nothing to do before the client takes more: it has taken nothing, and no wait has timed out.
    pub(super) fn is_stalled(&self) -> bool {
        self.waits_for_client()
            && !self.client_took.load(Acquire)
            && self.expired.load(Relaxed) == 0
            && !self.response.has_timed_out()
            && self.rejection().is_none()
    }

    /// When the first wait for the client times out, and which one that is.
    fn first_wait(&self) -> Option<(Instant, Wait)> {
        let waits = [(self.header.get(), Wait::Header), (self.reading.until(), Wait::Body), (self.writing.until(), Wait::Reader)];
        waits.into_iter().filter_map(|(until, wait)| Some((until?, wait))).min_by_key(|(until, _)| *until)
    }

    /// Ready when a wait has timed out that the connection's future has to notice.
    fn poll_waits(&self, timer: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let (response, client) = (self.response.until(), self.first_wait());
            let Some(until) = response.into_iter().chain(client.map(|(until, _)| until)).min() else {
                return Poll::Pending;
            };
            if poll_until(until, timer, cx).is_pending() {
                return Poll::Pending;
            }
            match client {
                Some((at, wait)) if at == until => {
                    match wait {
                        Wait::Header => self.header.set(None),
                        Wait::Body => self.reading.expire(),
                        Wait::Reader => self.writing.expire(),
                    }
                    self.expired.store(wait as u8, Relaxed);
                    return Poll::Ready(());
                }
                _ if self.response.expire() => return Poll::Ready(()),
                _ => {}
            }
        }
    }
}

/// Waits until then by the connection's timer, which is made when first needed.
fn poll_until(until: Instant, timer: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> Poll<()> {
    let deadline = until.into();
    let mut is_unset = timer.is_none();
    let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
    // The timer may have been set for an earlier request with a longer bound.
    if deadline < timer.deadline() {
        timer.as_mut().reset(deadline);
        is_unset = true;
    }
    // A timer that was polled wakes this connection's task, which is the same all its life: until it has fired there is no need to
    // poll it again.
    if !is_unset && !timer.is_elapsed() || poll_timer(timer.as_mut(), cx).is_pending() {
        return Poll::Pending;
    }
    if timer.deadline() < deadline {
        timer.as_mut().reset(deadline);
        return poll_timer(timer.as_mut(), cx);
    }
    Poll::Ready(())
}

/// Whatever is left of the poll's budget, which [`super::backpressure`] spends: a timer without budget is not set.
fn poll_timer(timer: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<()> {
    pin!(unconstrained(timer)).poll(cx)
}

impl ClientInfo {
    pub(crate) fn new(client: SocketAddr, local_port: u16, limits: Arc<Limits>) -> Self {
        let address = client.ip().to_canonical();
        let text = HeaderValue::from_maybe_shared(Bytes::from(address.to_string()));
        // An address is a header value.
        let address_text = text.unwrap_or(HeaderValue::from_static("unknown"));
        let local_port = HeaderValue::from(local_port);
        Self {
            address,
            address_text,
            local_port,
            tls: None,
            listener: Arc::from(""),
            redirect_to_https: false,
            pool: ServedPool::Active,
            limits,
        }
    }

    /// Bytes per second, and how long a client may be slower.
    fn pace(&self) -> Option<(u32, Duration)> {
        self.limits.min_rate.map(|rate| (rate, self.limits.stall_timeout))
    }
}

#[cfg(test)]
mod tests;
