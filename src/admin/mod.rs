//! The admin API: health, metrics, status and commands over HTTP, on a listener and a thread of their own.
//!
//! It only translates: reads come from the controller's view, commands go to the controller, and no decision is made here.
//!
//! | | |
//! |---|---|
//! | `GET /livez` | 200 while the process runs; 503 once a task that it needs has ended |
//! | `GET /readyz` | 200 while it serves; 503 with the reason before that and while it stops |
//! | `GET /metrics` | Prometheus text |
//! | `GET /v1/status` | [`Status`](crate::status::Status) |
//! | `GET /v1/config` | the configuration that runs, with every default and without secrets, as YAML |
//! | `POST /v1/reload` | reloads the configuration; `?wait=promoted` or `drained` |
//! | `POST /v1/services/{service}/promote` | `{"pool": "green"}`, also `version` and `timeout`; `?wait=promoted` or `drained` |
//! | `POST /v1/services/{service}/cancel` | cancels the swap that is being proven |
//! | `GET /v1/services/{service}/pools/{pool}/safe-to-stop` | 200 when the pool is safe to stop; `?wait=30s` |

pub mod client;
mod commands;
mod guard;
mod places;
mod serve;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use tokio::sync::watch;

use crate::{
    config,
    controller::{Commands, View},
    metrics::Metrics,
    status::ApiError,
};

/// What the admin API reads and where it sends commands.
#[derive(Clone)]
pub struct Admin {
    /// The state that the controller publishes.
    pub view: watch::Receiver<Arc<View>>,
    /// The channel to the controller.
    pub commands: Commands,
    /// The metrics of `/metrics`.
    pub metrics: Arc<Metrics>,
    /// Whether the process serves.
    pub readiness: Arc<Readiness>,
    /// The addresses of the listeners, for the status.
    pub listeners: Arc<[String]>,
    /// The address of the admin API.
    pub address: SocketAddr,
    /// The file with the token that `/v1` requires; none for loopback only.
    pub token_file: Option<Arc<std::path::Path>>,
}

/// Whether the process serves.
#[derive(Default)]
pub struct Readiness {
    /// Set once every listener has accepted a connection.
    pub listening: AtomicBool,
    /// Set when the process begins to stop, on request or because a task has ended.
    pub stopping: Arc<AtomicBool>,
    /// Set when the process stops because a task has ended.
    pub failed: AtomicBool,
}

/// Answers requests for ever, on a socket that is bound.
pub async fn serve(socket: std::net::TcpListener, admin: Admin) {
    match tokio::net::TcpListener::from_std(socket) {
        Ok(socket) => serve::serve(socket, router(admin)).await,
        Err(e) => log::error!("cannot serve the admin API error={e}"),
    }
}

/// Every route.
fn router(admin: Admin) -> Router {
    let guarded = Router::new()
        .route("/v1/reload", post(commands::reload))
        .route("/v1/services/{service}/promote", post(commands::promote))
        .route("/v1/services/{service}/cancel", post(commands::cancel))
        .route("/v1/status", get(|State(admin): State<Admin>| async move { Json(admin.view.borrow().status(&admin.listeners)) }))
        .route("/v1/config", get(configuration))
        .route("/v1/services/{service}/pools/{pool}/safe-to-stop", get(commands::safe_to_stop))
        .route_layer(middleware::from_fn_with_state(admin.clone(), guard::no_page))
        .route_layer(middleware::from_fn_with_state(admin.token_file.clone(), guard::only_with_token));
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .merge(guarded)
        .fallback(|| async { error(StatusCode::NOT_FOUND, "not-found", "no such endpoint; GET /v1/status is one".to_owned()) })
        .method_not_allowed_fallback(|| async {
            error(
                StatusCode::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                "this endpoint does not support this method; see the Allow header".to_owned(),
            )
        })
        .with_state(admin)
}

async fn livez(State(admin): State<Admin>) -> Response {
    if admin.readiness.failed.load(Relaxed) {
        return (StatusCode::SERVICE_UNAVAILABLE, "a task has ended, the process stops\n").into_response();
    }
    "alive\n".into_response()
}

async fn configuration(State(admin): State<Admin>) -> Response {
    let text = config::effective(admin.view.borrow().config());
    match text {
        Ok(text) => ([(header::CONTENT_TYPE, "application/yaml")], text).into_response(),
        Err(e) => error(StatusCode::INTERNAL_SERVER_ERROR, "config", e.to_string()),
    }
}

async fn readyz(State(admin): State<Admin>) -> Response {
    let not_ready = |why: &str| (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response();
    if admin.readiness.stopping.load(Relaxed) {
        return not_ready("stopping");
    }
    if !admin.readiness.listening.load(Relaxed) {
        return not_ready("not listening yet");
    }
    if let Some(reason) = admin.view.borrow().not_ready() {
        return not_ready(reason);
    }
    "ready\n".into_response()
}

async fn metrics(State(admin): State<Admin>) -> Response {
    // The admin API runs on one thread, so no other scrape comes between setting and reading the gauges.
    admin.view.borrow().set_gauges(&admin.metrics);
    match admin.metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(e) => error(StatusCode::INTERNAL_SERVER_ERROR, "metrics", e.to_string()),
    }
}

fn error(status: StatusCode, code: &str, message: String) -> Response {
    (status, Json(ApiError { code: code.to_owned(), message, problems: Vec::new() })).into_response()
}
