//! The admin face: health, metrics, status and commands over HTTP, on a listener and a thread of their own.
//!
//! It translates and forwards: reads come from the controller's view, commands go to the controller, no decision is made here.
//!
//! | | |
//! |---|---|
//! | `GET /livez` | 200 while the process lives, 503 once a task has ended that it cannot do without |
//! | `GET /readyz` | 200 once it serves, 503 before that and while it stops |
//! | `GET /metrics` | Prometheus text |
//! | `GET /v1/status` | [`Status`](crate::status::Status) |
//! | `POST /v1/reload` | reads the file; `?wait=promoted` or `drained` |
//! | `POST /v1/services/{service}/promote` | `{"pool": "green"}`; `?wait=promoted` or `drained` |
//! | `GET /v1/services/{service}/pools/{pool}/safe-to-stop` | 200 when it is; `?wait=30s` |

pub mod client;
mod guard;
mod serve;

pub use guard::token;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, Query, State},
    http::{StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};

use crate::{
    controller::{Accepted, Command, Commands, Refusal, Trigger, View},
    metrics::Metrics,
    status::{ApiError, Applied, Outcome, Phase, Promote, ServiceSwap, Wait},
};

/// What the admin face reads and where it sends commands.
#[derive(Clone)]
pub struct Admin {
    /// The controller's view.
    pub view: watch::Receiver<Arc<View>>,
    /// The controller.
    pub commands: Commands,
    /// What a scrape reads.
    pub metrics: Arc<Metrics>,
    /// Whether the process serves.
    pub readiness: Arc<Readiness>,
    /// Where clients connect.
    pub listeners: Arc<[String]>,
    /// Where this face listens.
    pub address: SocketAddr,
    /// Holds the token that `/v1` asks for.
    pub token_file: Option<Arc<std::path::Path>>,
}

/// Whether the process serves.
#[derive(Default)]
pub struct Readiness {
    /// Set once every listener was connected to.
    pub listening: AtomicBool,
    /// Set when the process has been asked to stop, or stops because a task has ended.
    pub stopping: Arc<AtomicBool>,
    /// Set when the process stops because a task has ended.
    pub failed: AtomicBool,
}

#[derive(Deserialize)]
struct WaitQuery {
    wait: Option<String>,
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
    let for_friends = Router::new()
        .route("/v1/reload", post(reload))
        .route("/v1/services/{service}/promote", post(promote))
        .route("/v1/status", get(|State(admin): State<Admin>| async move { Json(admin.view.borrow().status(&admin.listeners)) }))
        .route("/v1/services/{service}/pools/{pool}/safe-to-stop", get(safe_to_stop))
        .route_layer(middleware::from_fn_with_state(admin.clone(), guard::no_page))
        .route_layer(middleware::from_fn_with_state(admin.token_file.clone(), guard::only_with_token));
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .merge(for_friends)
        .fallback(|| async { error(StatusCode::NOT_FOUND, "not-found", "no such endpoint; GET /v1/status is one".to_owned()) })
        .method_not_allowed_fallback(|| async {
            error(
                StatusCode::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                "this endpoint wants another method; see the Allow header".to_owned(),
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

async fn readyz(State(admin): State<Admin>) -> Response {
    let not_ready = |why: &'static str| (StatusCode::SERVICE_UNAVAILABLE, why).into_response();
    if admin.readiness.stopping.load(Relaxed) {
        return not_ready("stopping\n");
    }
    if !admin.readiness.listening.load(Relaxed) {
        return not_ready("not listening yet\n");
    }
    if !admin.view.borrow().is_settled() {
        return not_ready("the first probes are on their way\n");
    }
    "ready\n".into_response()
}

async fn metrics(State(admin): State<Admin>) -> Response {
    // Gauges are set and read without a break in between, on the one thread that does either.
    admin.view.borrow().set_gauges(&admin.metrics);
    match admin.metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(e) => error(StatusCode::INTERNAL_SERVER_ERROR, "metrics", e.to_string()),
    }
}

async fn reload(State(admin): State<Admin>, Query(query): Query<WaitQuery>, body: Bytes) -> Response {
    if !body.is_empty() && !serde_json::from_slice::<serde_json::Value>(&body).is_ok_and(|body| body == json!({})) {
        return error(StatusCode::BAD_REQUEST, "bad-request", "the body of a reload is empty or {}".to_owned());
    }
    let wait = match parse_wait(query.wait.as_deref()) {
        Ok(wait) => wait,
        Err(response) => return *response,
    };
    command(&admin, wait, |reply| Command::Reload { trigger: Trigger::Asked, reply: Some(reply) }).await
}

async fn promote(
    State(admin): State<Admin>,
    Path(service): Path<String>,
    Query(query): Query<WaitQuery>,
    body: Bytes,
) -> Response {
    let Promote { pool } = match serde_json::from_slice(&body) {
        Ok(body) => body,
        Err(e) => return error(StatusCode::BAD_REQUEST, "bad-request", format!("the body is not {{\"pool\": \"NAME\"}}: {e}")),
    };
    let wait = match parse_wait(query.wait.as_deref()) {
        Ok(wait) => wait,
        Err(response) => return *response,
    };
    command(&admin, wait, |reply| Command::Promote { service, pool, reply }).await
}

/// Sends a command and waits for as much of it as was asked for.
async fn command(admin: &Admin, wait: Wait, make: impl FnOnce(crate::controller::Reply) -> Command) -> Response {
    let (reply, answer) = oneshot::channel();
    let sent = admin.commands.send(make(reply)).await;
    let Ok(outcome) = answer.await else {
        debug_assert!(sent.is_err(), "a command was taken and never answered");
        return error(StatusCode::SERVICE_UNAVAILABLE, "stopping", "switchover is stopping".to_owned());
    };
    match outcome {
        Ok(accepted) => follow(accepted, wait).await,
        Err(refusal) => refused(&refusal),
    }
}

async fn follow(mut accepted: Accepted, wait: Wait) -> Response {
    let mut swaps = Vec::new();
    for (service, swap) in &mut accepted.swaps {
        let far_enough = |swap: &crate::status::Swap| match wait {
            Wait::None => true,
            Wait::Promoted => swap.phase != Phase::Proving,
            Wait::Drained => swap.phase == Phase::Done,
        };
        // An error says that the swap is forgotten; its last word stays readable.
        let _forgotten = swap.wait_for(far_enough).await.is_err();
        let swap = swap.borrow().clone();
        swaps.push(ServiceSwap { service: service.clone(), swap });
    }
    let failed = swaps.iter().find_map(|s| match s.swap.outcome {
        Some(Outcome::NotReady) => Some((StatusCode::GATEWAY_TIMEOUT, "not-ready", s)),
        Some(Outcome::DrainTimedOut) if wait == Wait::Drained => Some((StatusCode::GATEWAY_TIMEOUT, "drain-timed-out", s)),
        Some(Outcome::Superseded) => Some((StatusCode::CONFLICT, "superseded", s)),
        _ => None,
    });
    match failed {
        Some((status, code, swap)) => {
            let why = swap.swap.reason.as_deref().unwrap_or("no reason is known");
            error(status, code, format!("{}: {} did not become what was asked: {why}", swap.service, swap.swap.to))
        }
        None => Json(Applied { result: accepted.result, generation: accepted.generation, swaps }).into_response(),
    }
}

async fn safe_to_stop(
    State(mut admin): State<Admin>,
    Path((service, pool)): Path<(String, String)>,
    Query(query): Query<WaitQuery>,
) -> Response {
    let wait = match query.wait.as_deref().map(humantime::parse_duration).transpose() {
        Ok(wait) => wait.unwrap_or(Duration::ZERO),
        Err(e) => return error(StatusCode::BAD_REQUEST, "bad-request", format!("wait: {e}; write 30s")),
    };
    {
        let view = admin.view.borrow();
        let Some(pools) = view.pools(&service) else {
            return refused(&Refusal::UnknownService(service, view.services().map(str::to_owned).collect()));
        };
        if !pools.contains(&pool.as_str()) {
            return refused(&Refusal::UnknownPool(pool, pools.into_iter().map(str::to_owned).collect()));
        }
    }
    // A pool that leaves the file while somebody waits is gone once it has drained.
    let is_safe = |view: &Arc<View>| view.safe_to_stop(&service, &pool).unwrap_or(true);
    if timeout(wait, admin.view.wait_for(is_safe)).await.is_ok_and(|view| view.is_ok()) {
        return Json(json!({"service": service, "pool": pool, "safe_to_stop": true})).into_response();
    }
    error(
        StatusCode::GATEWAY_TIMEOUT,
        "not-safe-to-stop",
        format!("{pool} is not safe to stop: it serves, or still has requests running"),
    )
}

fn parse_wait(wait: Option<&str>) -> Result<Wait, Box<Response>> {
    match wait {
        None | Some("none") => Ok(Wait::None),
        Some("promoted") => Ok(Wait::Promoted),
        Some("drained") => Ok(Wait::Drained),
        Some(other) => {
            let message = format!("wait: \"{other}\" is not one of none, promoted, drained");
            Err(Box::new(error(StatusCode::BAD_REQUEST, "bad-request", message)))
        }
    }
}

fn refused(refusal: &Refusal) -> Response {
    let status = match refusal {
        Refusal::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
        Refusal::StaticChanged(_) | Refusal::NotWritable(_) => StatusCode::CONFLICT,
        Refusal::UnknownService(..) | Refusal::UnknownPool(..) => StatusCode::NOT_FOUND,
    };
    let error = ApiError { code: refusal.code().to_owned(), message: refusal.to_string(), problems: refusal.problems().to_vec() };
    (status, Json(error)).into_response()
}

fn error(status: StatusCode, code: &str, message: String) -> Response {
    (status, Json(ApiError { code: code.to_owned(), message, problems: Vec::new() })).into_response()
}
