//! An application with the behavior of a small Spring Boot application, for the demo and for the tests (`tests/it/support/app.rs`).
//!
//! Both run it as a separate process, so that it can be stopped and killed. It is not ready for a while after the start, and stops
//! gracefully on SIGTERM.

use std::{
    convert::Infallible,
    io::{self, Write},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Query, Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use http_body_util::BodyExt;
use serde::Deserialize;
use tokio::{
    net::TcpSocket,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};
use tokio_stream::{StreamExt, iter};

/// Time limit of running requests after SIGTERM; the default of Spring Boot.
const GRACE: Duration = Duration::from_secs(30);

/// Options of the application.
#[derive(Clone)]
pub(super) struct App {
    /// Name of its pool, part of every response.
    pub name: String,
    /// Its release, part of every response.
    pub version: String,
    /// Address to listen on; port 0 chooses a free port.
    pub listen: SocketAddr,
    /// How long it is not ready after its start.
    pub ready_after: Duration,
    /// Ends when standard input is closed, so that the application never outlives the demo.
    pub exit_on_stdin_close: bool,
}

struct Running {
    app: App,
    began: Instant,
}

#[derive(Deserialize)]
struct Slow {
    #[serde(default = "slow")]
    ms: u64,
}

#[derive(Deserialize)]
struct Size {
    n: usize,
}

#[derive(Deserialize)]
struct Events {
    #[serde(default = "every")]
    every_ms: u64,
    count: Option<usize>,
}

const fn slow() -> u64 {
    300
}

const fn every() -> u64 {
    100
}

/// Serves until SIGTERM, then until its running requests have ended, for 30 seconds at most.
///
/// # Errors
/// When the address cannot be bound.
pub(super) async fn serve(app: App) -> io::Result<()> {
    let socket = if app.listen.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Allows a restart on the same port at once.
    socket.set_reuseaddr(true)?;
    socket.bind(app.listen)?;
    let listener = socket.listen(1024)?;
    writeln!(io::stdout(), "listening on {}", listener.local_addr()?)?;
    let mut stop = signal(SignalKind::terminate())?;
    let orphaned = stdin_closed(app.exit_on_stdin_close);
    let (stopping, stopped) = oneshot::channel::<()>();
    let routes = Router::new()
        .route("/", get(hello).post(received).put(received))
        .route("/slow", get(sleepy).post(sleepy))
        .route("/bytes", get(bytes))
        .route("/events", get(events))
        .route("/actuator/health/readiness", get(readiness))
        .fallback(hello)
        .with_state(Arc::new(Running { app, began: Instant::now() }));
    let server = axum::serve(listener, routes).with_graceful_shutdown(async move {
        stop.recv().await;
        drop(stopping);
    });
    tokio::select! {
        result = server => result,
        () = async { stopped.await.unwrap_or_default(); tokio::time::sleep(GRACE).await } => Ok(()),
        () = orphaned => Ok(()),
    }
}

/// Runs on a thread of its own: a read of standard input cannot be cancelled, and would block the end of the runtime.
async fn stdin_closed(wanted: bool) {
    let (open, closed) = oneshot::channel::<()>();
    if !wanted {
        return std::future::pending().await;
    }
    std::thread::spawn(move || {
        io::copy(&mut io::stdin().lock(), &mut io::sink()).ok();
        drop(open);
    });
    closed.await.unwrap_or_default();
}

impl Running {
    fn answer(&self, rest: impl std::fmt::Display) -> Response {
        let App { name, version, .. } = &self.app;
        ([("x-app", format!("{name} {version}"))], format!("{name} {version}{rest}\n")).into_response()
    }
}

async fn hello(State(running): State<Arc<Running>>) -> Response {
    running.answer("")
}

async fn sleepy(State(running): State<Arc<Running>>, Query(Slow { ms }): Query<Slow>) -> Response {
    tokio::time::sleep(Duration::from_millis(ms)).await;
    running.answer(format_args!(" after {ms} ms"))
}

/// Counts the bytes of a body without storing them.
async fn received(State(running): State<Arc<Running>>, request: Request) -> Response {
    let mut body = request.into_body();
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => bytes += frame.data_ref().map_or(0, Bytes::len),
            Err(_) => return StatusCode::BAD_REQUEST.into_response(),
        }
    }
    running.answer(format_args!(" received {bytes} bytes"))
}

async fn bytes(Query(Size { n }): Query<Size>) -> Response {
    const PIECE: usize = 16 * 1024;
    let piece = Bytes::from(vec![b'x'; PIECE]);
    let pieces = (0..n).step_by(PIECE).map(move |at| Ok::<_, Infallible>(piece.slice(..PIECE.min(n - at))));
    ([(header::CONTENT_LENGTH, n)], Body::from_stream(iter(pieces))).into_response()
}

/// Sends `count` server-sent events, or until the client closes the connection.
async fn events(State(running): State<Arc<Running>>, Query(Events { every_ms, count }): Query<Events>) -> Response {
    let name = running.app.name.clone();
    let events = iter(0..count.unwrap_or(usize::MAX))
        .then(move |i| async move {
            tokio::time::sleep(Duration::from_millis(every_ms)).await;
            i
        })
        .map(move |i| Ok::<_, Infallible>(format!("data: {name} {i}\n\n")));
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(events)).into_response()
}

async fn readiness(State(running): State<Arc<Running>>) -> Response {
    let json = [(header::CONTENT_TYPE, "application/json")];
    if running.began.elapsed() < running.app.ready_after {
        return (StatusCode::SERVICE_UNAVAILABLE, json, r#"{"status":"OUT_OF_SERVICE"}"#).into_response();
    }
    (json, r#"{"status":"UP"}"#).into_response()
}
