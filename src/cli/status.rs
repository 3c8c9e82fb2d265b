//! `switchover status`: prints services, pools, peers and swaps as text, or as JSON for scripts.

use std::{fmt::Write as _, io::IsTerminal, thread, time::Duration};

use clap::Args;

use super::{AdminArg, Failure, out};
use crate::status::{Outcome, PeerStatus, Phase, PoolState, PoolStatus, ReloadResult, ServiceStatus, StateDir, Status, Swap};

/// How often `--watch` reads the status.
const WATCH: Duration = Duration::from_millis(500);

const EXAMPLES: &str = "Examples:
  switchover status
  switchover status --watch
  switchover status --json";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    admin: AdminArg,
    /// Print the JSON of GET /v1/status, in one line
    #[arg(long)]
    json: bool,
    /// Print the status repeatedly, until Ctrl-C
    #[arg(long)]
    watch: bool,
}

pub(super) fn run(args: &StatusArgs) -> Result<(), Failure> {
    let client = args.admin.reader()?;
    loop {
        let status = client.status()?;
        if args.watch && std::io::stdout().is_terminal() {
            out::raw("\x1b[H\x1b[2J")?;
        }
        if args.json {
            let json = serde_json::to_string(&status).map_err(Failure::failed)?;
            out::raw(&(out::escape_json(&json) + "\n"))?;
        } else {
            out::raw(&table(&status))?;
        }
        if !args.watch {
            return Ok(());
        }
        thread::sleep(WATCH);
    }
}

fn table(status: &Status) -> String {
    let mut out = String::new();
    let reload = &status.config.last_reload;
    let result = match reload.result {
        ReloadResult::Applied => "applied",
        ReloadResult::Unchanged => "unchanged",
        ReloadResult::Invalid => "REJECTED, it is invalid",
        ReloadResult::StaticChanged => "REJECTED, it needs a restart",
    };
    put(&mut out, format_args!("switchover {}  listening on {}", status.version, status.listeners.join(", ")));
    put(&mut out, format_args!("{}  generation {}, last read {}: {result}", status.config.file, status.generation, reload.at));
    for problem in &reload.problems {
        put(&mut out, format_args!("  {problem}"));
    }
    if let Some(StateDir { path, problem }) = &status.config.state_dir {
        let problem = problem.as_deref().map(|problem| format!(", NOT WRITTEN: {problem}")).unwrap_or_default();
        put(&mut out, format_args!("{path}  records the pools that serve, for a restart{problem}"));
    }
    for service in &status.services {
        put_service(&mut out, service);
    }
    out
}

fn put_service(out: &mut String, service: &ServiceStatus) {
    out.push('\n');
    let last = service.served_last.as_ref().filter(|last| **last != service.active);
    let last = last.map(|last| format!(", {last} served last")).unwrap_or_default();
    put(out, format_args!("{}  active {}{last}", service.name, service.active));
    if let Some(drift) = &service.drift {
        put(out, format_args!("  drift  {}", drift));
    }
    if let Some(mirror) = &service.mirror {
        put(out, format_args!("  mirror  {mirror}"));
    }
    if let Some(canary) = &service.canary {
        put(out, format_args!("  canary  {canary}"));
    }
    if let Some(swap) = &service.swap {
        put(out, format_args!("  swap  {}", swap_line(swap)));
    }
    if let Some(last) = service.last_swap.as_ref().filter(|last| service.swap.as_ref() != Some(last)) {
        put(out, format_args!("  last  {}", swap_line(last)));
    }
    let rows: Vec<[String; 7]> = service.pools.iter().flat_map(|pool| pool.peers.iter().map(|peer| row(pool, peer))).collect();
    let head = ["POOL", "VERSION", "STATE", "PEER", "READY", "IN FLIGHT", "LAST PROBE"].map(str::to_owned);
    let widths: [usize; 7] = std::array::from_fn(|i| {
        rows.iter().chain([&head]).map(|row| row.get(i).map_or(0, |cell| cell.chars().count())).max().unwrap_or(0)
    });
    for row in [&head].into_iter().chain(&rows) {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        put(out, format_args!("  {}", cells.join("  ").trim_end()));
    }
    // The state of the other pools already says why.
    for pool in service.pools.iter().filter(|pool| matches!(pool.state, PoolState::Kept | PoolState::Standby | PoolState::Canary))
    {
        if let Some(why) = &pool.not_safe_because {
            put(out, format_args!("  {} is not safe to stop: {why}", pool.name));
        }
    }
}

fn row(pool: &PoolStatus, peer: &PeerStatus) -> [String; 7] {
    let state = match pool.state {
        PoolState::Active => "active",
        PoolState::Draining => "draining",
        PoolState::Kept => "kept",
        PoolState::Proving => "proving",
        PoolState::Canary => "canary",
        PoolState::Standby if pool.safe_to_stop => "standby, safe to stop",
        PoolState::Standby => "standby",
    };
    let address = match peer.resolved.first() {
        Some(resolved) if *resolved != peer.address => format!("{} ({resolved})", peer.address),
        _ => peer.address.clone(),
    };
    let in_flight =
        if peer.upgraded > 0 { format!("{} ({} upgraded)", peer.in_flight, peer.upgraded) } else { peer.in_flight.to_string() };
    let probe = match &peer.last_probe {
        None => "none yet".to_owned(),
        Some(probe) if probe.ok => format!("ok, {} ms", probe.milliseconds),
        Some(probe) => probe.reason.clone().unwrap_or_default(),
    };
    let ready = if peer.ready { "yes" } else { "no" };
    let version = pool.version.clone().unwrap_or_default();
    // Escaped before the column widths are computed, because escaping changes the width.
    [pool.name.clone(), version, state.to_owned(), address, ready.to_owned(), in_flight, probe]
        .map(|cell| out::escape(&cell).into_owned())
}

fn swap_line(swap: &Swap) -> String {
    let route = match &swap.from {
        None => format!("start with {}", swap.to),
        Some(from) if *from == swap.to => format!("peers of {from}"),
        Some(from) => format!("{from} -> {}", swap.to),
    };
    let why = swap.reason.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
    let age = format!("{:.3} s", swap.seconds);
    match (swap.phase, swap.outcome) {
        (Phase::Proving, _) => {
            let (age, timeout) = (out::seconds(swap.seconds), out::seconds(swap.timeout_seconds));
            format!("{route}, proving {}/{}, {age} of {timeout}{why}", swap.proven, swap.to_prove)
        }
        (Phase::WarmingUp, _) => format!("{route}, warming up{why}"),
        (Phase::Checking, _) => format!("{route}, checking{why}"),
        (Phase::Observing, _) => format!("{route}, {}{why}", out::observing(swap)),
        (Phase::TakingBack, _) => format!("{route}, TAKING BACK after {age}{why}; {} in flight on {}", swap.in_flight, swap.to),
        (Phase::Draining, _) => format!("{route}, draining for {age}, {} in flight", swap.in_flight),
        (Phase::Done, Some(Outcome::Drained)) => {
            let seconds = |seconds: Option<f64>| seconds.unwrap_or_default();
            format!(
                "{route}, drained: proven in {:.3} s, drained in {:.3} s{}, at {}",
                seconds(swap.prove_seconds),
                seconds(swap.drain_seconds),
                out::observed(swap),
                swap.started_at
            )
        }
        (Phase::Done, Some(Outcome::DrainTimedOut)) => format!("{route}, drain timed out after {age}{why}"),
        (Phase::Done, Some(Outcome::TakenBack)) => format!("{route}, TAKEN BACK after {age}{why}"),
        (Phase::Done, Some(Outcome::NotReady)) => format!("{route}, FAILED, {} was not ready after {age}{why}", swap.to),
        (Phase::Done, Some(Outcome::Refused)) => format!("{route}, FAILED, {} was refused after {age}{why}", swap.to),
        (Phase::Done, Some(Outcome::Cancelled)) => format!("{route}, cancelled after {age}{why}"),
        (Phase::Done, _) => format!("{route}, superseded after {age}{why}"),
    }
}

/// Adds one line, escaped.
fn put(out: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    writeln!(out, "{}", out::escape(&line.to_string())).unwrap_or_default();
}
