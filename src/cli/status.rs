//! `switchover status`: everything at a glance, for people; `--json` for scripts.

use std::{fmt::Write as _, io::IsTerminal, thread, time::Duration};

use clap::Args;

use super::{AdminArg, Failure};
use crate::status::{Outcome, PeerStatus, Phase, PoolState, PoolStatus, ReloadResult, ServiceStatus, Status, Swap};

/// How often `--watch` looks.
const WATCH: Duration = Duration::from_millis(500);

#[derive(Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    admin: AdminArg,
    /// As the admin face gives it
    #[arg(long)]
    json: bool,
    /// Again and again, until Ctrl-C
    #[arg(long)]
    watch: bool,
}

pub(super) fn run(args: &StatusArgs) -> Result<(), Failure> {
    let client = args.admin.client()?;
    loop {
        let status = client.status()?;
        if args.watch && std::io::stdout().is_terminal() {
            print!("\x1b[H\x1b[2J");
        }
        if args.json {
            println!("{}", serde_json::to_string(&status).map_err(Failure::failed)?);
        } else {
            print!("{}", table(&status));
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
        ReloadResult::Invalid => "REFUSED, it is invalid",
        ReloadResult::StaticChanged => "REFUSED, it needs a restart",
    };
    put(&mut out, format_args!("switchover {}  listening on {}", status.version, status.listeners.join(", ")));
    put(&mut out, format_args!("{}  generation {}, last read {}: {result}", status.config.file, status.generation, reload.at));
    for problem in &reload.problems {
        put(&mut out, format_args!("  {problem}"));
    }
    for service in &status.services {
        put_service(&mut out, service);
    }
    out
}

fn put_service(out: &mut String, service: &ServiceStatus) {
    put(out, format_args!("\n{}  active {}", service.name, service.active));
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
}

fn row(pool: &PoolStatus, peer: &PeerStatus) -> [String; 7] {
    let state = match pool.state {
        PoolState::Active => "active",
        PoolState::Draining => "draining",
        PoolState::Proving => "proving",
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
    [pool.name.clone(), pool.version.clone().unwrap_or_default(), state.to_owned(), address, ready.to_owned(), in_flight, probe]
}

fn swap_line(swap: &Swap) -> String {
    let from = swap.from.as_deref().unwrap_or("start");
    let route = if from == swap.to { format!("peers of {from}") } else { format!("{from} -> {}", swap.to) };
    let why = swap.reason.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
    let age = format!("{:.3} s", swap.seconds);
    match (swap.phase, swap.outcome) {
        (Phase::Proving, _) => format!("{route}, proving {}/{} for {age}{why}", swap.proven, swap.to_prove),
        (Phase::Draining, _) => format!("{route}, draining for {age}, {} in flight", swap.in_flight),
        (Phase::Done, Some(Outcome::Drained)) => {
            let seconds = |seconds: Option<f64>| seconds.unwrap_or_default();
            format!(
                "{route}, drained: proven in {:.3} s, drained in {:.3} s, at {}",
                seconds(swap.prove_seconds),
                seconds(swap.drain_seconds),
                swap.started_at
            )
        }
        (Phase::Done, Some(Outcome::DrainTimedOut)) => format!("{route}, drain timed out after {age}{why}"),
        (Phase::Done, Some(Outcome::NotReady)) => format!("{route}, FAILED, {} was not ready after {age}{why}", swap.to),
        (Phase::Done, _) => format!("{route}, superseded after {age}{why}"),
    }
}

fn put(out: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    writeln!(out, "{line}").unwrap_or_default();
}
