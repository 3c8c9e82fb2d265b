//! The handlers that change something or wait for a change.
//!
//! Called by the router in [`super`]. Each handler sends a command to the controller, then waits for a step of a swap or for a
//! state in the controller's view. Handlers never change state themselves.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::Bytes,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::json;
use tokio::{sync::oneshot, time::timeout};

use super::{Admin, error};
use crate::{
    config,
    controller::{Accepted, Command, CommandError, Promotion, Reply, Target, Trigger, View},
    status::{ApiError, Applied, Outcome, Phase, Promote, ServiceSwap, Swap, Wait},
};

/// The longest allowed `timeout` of a promotion.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Deserialize)]
pub(super) struct WaitQuery {
    wait: Option<String>,
}

/// A response other than 200.
struct Failed {
    status: StatusCode,
    code: &'static str,
    message: String,
}

pub(super) async fn reload(State(admin): State<Admin>, Query(query): Query<WaitQuery>, body: Bytes) -> Response {
    if let Err(response) = no_body(&body) {
        return *response;
    }
    let wait = match parse_wait(query.wait.as_deref()) {
        Ok(wait) => wait,
        Err(response) => return *response,
    };
    match send(&admin, |reply| Command::Reload { trigger: Trigger::AdminApi, reply: Some(reply) }).await {
        Ok(accepted) => follow(admin, None, accepted, wait).await,
        Err(response) => *response,
    }
}

pub(super) async fn promote(
    State(admin): State<Admin>,
    Path(service): Path<String>,
    Query(query): Query<WaitQuery>,
    body: Bytes,
) -> Response {
    let promotion = match promotion(service.clone(), &body) {
        Ok(promotion) => promotion,
        Err(message) => return error(StatusCode::BAD_REQUEST, "bad-request", message),
    };
    let wait = match parse_wait(query.wait.as_deref()) {
        Ok(wait) => wait,
        Err(response) => return *response,
    };
    match send(&admin, |reply| Command::Promote { promotion, reply }).await {
        Ok(accepted) => follow(admin, Some(&service), accepted, wait).await,
        Err(response) => *response,
    }
}

pub(super) async fn cancel(State(admin): State<Admin>, Path(service): Path<String>, body: Bytes) -> Response {
    if let Err(response) = no_body(&body) {
        return *response;
    }
    match send(&admin, |reply| Command::Cancel { service, reply }).await {
        Ok(cancelled) => Json(cancelled).into_response(),
        Err(response) => *response,
    }
}

fn promotion(service: String, body: &[u8]) -> Result<Promotion, String> {
    let Promote { pool, version, timeout } =
        serde_json::from_slice(body).map_err(|e| format!("the body is not {{\"pool\": \"NAME\"}}: {e}"))?;
    if let Some(version) = &version {
        config::edit::check_version(version).map_err(|e| format!("version: {e}"))?;
    }
    let timeout = timeout.map(|text| {
        let duration =
            humantime::parse_duration(&text).map_err(|_| format!("timeout: \"{text}\" is not a duration; write 20s"))?;
        let allowed = !duration.is_zero() && duration <= LONGEST;
        allowed.then_some(duration).ok_or_else(|| format!("timeout: \"{text}\" is not allowed; use 1ms to 1day"))
    });
    Ok(Promotion { service, pool, version, timeout: timeout.transpose()? })
}

/// Sends a command to the controller and waits for its reply.
async fn send<T>(admin: &Admin, make: impl FnOnce(Reply<T>) -> Command) -> Result<T, Box<Response>> {
    let (reply, answer) = oneshot::channel();
    let sent = admin.commands.send(make(reply)).await;
    let Ok(outcome) = answer.await else {
        debug_assert!(sent.is_err(), "a command was accepted and never answered");
        return Err(Box::new(error(StatusCode::SERVICE_UNAVAILABLE, "stopping", "switchover is stopping".to_owned())));
    };
    outcome.map_err(|error| Box::new(rejected(&error)))
}

/// Waits as requested by `wait`, and builds the response. `service` is the service that the command names, if any.
async fn follow(mut admin: Admin, service: Option<&str>, mut accepted: Accepted, wait: Wait) -> Response {
    let mut failed = None;
    let promotion = service.is_some();
    for target in &mut accepted.targets {
        if let Err(failure) = reached(&mut admin, target, promotion, wait).await {
            // A command for all services has to name the one that failed.
            let message = if promotion { failure.message } else { format!("{}: {}", target.service, failure.message) };
            failed.get_or_insert(Failed { message, ..failure });
        }
    }
    let drift = admin.view.borrow().drift(service);
    // A reload that waits succeeds only if the file serves, whichever edit has failed.
    if !promotion && wait != Wait::None && !drift.is_empty() {
        let message = drift.iter().map(|drift| format!("{}: {}", drift.service, drift.drift)).collect::<Vec<_>>().join("; ");
        failed.get_or_insert(Failed { status: StatusCode::CONFLICT, code: "drift", message });
    }
    if let Some(Failed { status, code, message }) = failed {
        return error(status, code, message);
    }
    let swap =
        |target: &Target| Some(ServiceSwap { service: target.service.clone(), swap: target.swap.as_ref()?.borrow().clone() });
    Json(Applied {
        result: accepted.result,
        generation: accepted.generation,
        swaps: accepted.targets.iter().filter_map(swap).collect(),
        drift,
    })
    .into_response()
}

/// Waits until the swap of a service has reached the requested step.
async fn reached(admin: &mut Admin, target: &mut Target, promotion: bool, wait: Wait) -> Result<(), Failed> {
    let mut timed_out = false;
    if let Some(swap) = &mut target.swap {
        let far_enough = |swap: &Swap| match wait {
            Wait::None => true,
            Wait::Promoted => !swap.phase.is_before_promotion(),
            Wait::Drained => swap.phase == Phase::Done,
        };
        // An error says that the swap has left the history; its last step stays readable.
        let _forgotten = swap.wait_for(far_enough).await.is_err();
        let swap = swap.borrow();
        swap_failed(&swap, promotion)?;
        timed_out = swap.outcome == Some(Outcome::DrainTimedOut);
    }
    if wait == Wait::Drained { drained(admin, target, timed_out).await } else { Ok(()) }
}

fn swap_failed(swap: &Swap, promotion: bool) -> Result<(), Failed> {
    let to = &swap.to;
    let what =
        if !promotion && swap.from.as_ref() == Some(to) { format!("the change of {to}") } else { format!("promotion of {to}") };
    let reason = swap.reason.as_deref().unwrap_or("unknown reason");
    if swap.taken_back() {
        let serves = swap.from.as_deref().unwrap_or_default();
        let message = format!("{to} was taken back, {serves} serves again: {reason}");
        return Err(Failed { status: StatusCode::CONFLICT, code: "taken-back", message });
    }
    let (status, code, message) = match swap.outcome {
        Some(Outcome::NotReady) => (StatusCode::GATEWAY_TIMEOUT, "not-ready", format!("{what} failed: {reason}")),
        Some(Outcome::Refused) => (StatusCode::CONFLICT, "refused", format!("{what} was refused: {reason}")),
        Some(Outcome::Superseded) => (StatusCode::CONFLICT, "superseded", format!("{what} was superseded: {reason}")),
        Some(Outcome::Cancelled) => (StatusCode::CONFLICT, "cancelled", format!("{what} was {reason}")),
        _ => return Ok(()),
    };
    Err(Failed { status, code, message })
}

/// Waits until every pool of the service but the active one is safe to stop, for `drain.timeout` at most; not at all if a drain
/// has just used up that time, or if only pools are left that get requests by `mirror` or `canary`, which do not end by themselves.
async fn drained(admin: &mut Admin, target: &Target, timed_out: bool) -> Result<(), Failed> {
    let Target { service, pool, .. } = target;
    let bound = if timed_out { Duration::ZERO } else { admin.view.borrow().drain_timeout(service).unwrap_or_default() };
    let serves = |view: &Arc<View>| view.active(service) == pool.as_deref();
    let is_safe = |view: &Arc<View>| view.not_safe_others(target).is_empty();
    let done = |view: &Arc<View>| !serves(view) || is_safe(view) || view.is_left_to_the_file(target);
    let waited = timeout(bound, admin.view.wait_for(done)).await.is_ok();
    let view = admin.view.borrow();
    if !serves(&view) {
        let now = view.active(service).map_or("the service has left the file".to_owned(), |active| format!("{active} serves"));
        let what = pool.as_ref().map_or("its removal".to_owned(), |pool| format!("promotion of {pool}"));
        let message = format!("{what} was superseded: {now}");
        return Err(Failed { status: StatusCode::CONFLICT, code: "superseded", message });
    }
    let left: Vec<String> =
        view.not_safe_others(target).into_iter().map(|(pool, reason)| format!("{pool} is not safe to stop: {reason}")).collect();
    if left.is_empty() || waited && !view.is_left_to_the_file(target) {
        return Ok(());
    }
    let state = pool.as_ref().map_or("it was removed from the file".to_owned(), |pool| format!("{pool} serves"));
    let message = format!("{state}, but {}", left.join("; "));
    Err(Failed { status: StatusCode::GATEWAY_TIMEOUT, code: "drain-timed-out", message })
}

pub(super) async fn safe_to_stop(
    State(mut admin): State<Admin>,
    Path((service, pool)): Path<(String, String)>,
    Query(query): Query<WaitQuery>,
) -> Response {
    let wait = match query.wait.as_deref().map(humantime::parse_duration).transpose() {
        Ok(wait) => wait.unwrap_or(Duration::ZERO),
        Err(e) => return error(StatusCode::BAD_REQUEST, "bad-request", format!("wait: {e}; write 30s")),
    };
    let asked = {
        let view = admin.view.borrow();
        let Some(pools) = view.pools(&service) else {
            return rejected(&CommandError::UnknownService(service, view.services().map(str::to_owned).collect()));
        };
        let Some(asked) = view.pool(&service, &pool) else {
            return rejected(&CommandError::UnknownPool(pool, pools.into_iter().map(str::to_owned).collect()));
        };
        asked.clone()
    };
    let is_safe = |view: &Arc<View>| view.not_safe_because(&service, &asked).is_none();
    if timeout(wait, admin.view.wait_for(is_safe)).await.is_ok_and(|view| view.is_ok()) {
        return Json(json!({"service": service, "pool": pool, "safe_to_stop": true})).into_response();
    }
    let reason = admin.view.borrow().not_safe_because(&service, &asked).unwrap_or_default();
    error(StatusCode::GATEWAY_TIMEOUT, "not-safe-to-stop", format!("{pool} is not safe to stop: {reason}"))
}

fn no_body(body: &[u8]) -> Result<(), Box<Response>> {
    if body.is_empty() || serde_json::from_slice::<serde_json::Value>(body).is_ok_and(|body| body == json!({})) {
        return Ok(());
    }
    Err(Box::new(error(StatusCode::BAD_REQUEST, "bad-request", "this endpoint takes no body, or {}".to_owned())))
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

fn rejected(rejection: &CommandError) -> Response {
    let status = match rejection {
        CommandError::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
        CommandError::StaticChanged(_) | CommandError::NotWritable(_) | CommandError::NothingToCancel(_) => StatusCode::CONFLICT,
        CommandError::UnknownService(..) | CommandError::UnknownPool(..) => StatusCode::NOT_FOUND,
    };
    let error =
        ApiError { code: rejection.code().to_owned(), message: rejection.to_string(), problems: rejection.problems().to_vec() };
    (status, Json(error)).into_response()
}
