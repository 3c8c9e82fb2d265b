//! Shows the progress of a swap while a command waits for it: one line per phase, and a live line on a terminal.
//!
//! The result of the command comes from the server's response to it. The status is polled for display only.

use std::{
    fs,
    io::{self, IsTerminal},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use signal_hook::{consts::SIGINT, flag};

use super::{Failure, out};
use crate::{
    admin::client::{CallError, Client},
    status::{Applied, Outcome, Phase, ReloadResult, ServiceSwap, Status, Swap},
};

/// Interval between two reads of the status.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Without a terminal: interval between two equal lines, and minimum interval between two lines of one phase.
const REPEAT: Duration = Duration::from_secs(10);
const AT_LEAST: Duration = Duration::from_secs(1);
/// The exit code that shells report for a program that SIGINT has ended.
const INTERRUPTED: u8 = 130;

/// Runs `call`, and meanwhile shows the swap of `service`, or of any service if none is named.
pub(super) fn follow(
    client: &Client,
    service: Option<&str>,
    call: impl FnOnce() -> Result<Applied, CallError> + Send + 'static,
) -> Result<(), Failure> {
    let interrupted = catch_interrupt()?;
    let (sender, answer) = mpsc::channel();
    thread::spawn(move || sender.send(call()));
    let mut line = ProgressLine::new();
    let applied = loop {
        match answer.recv_timeout(POLL_INTERVAL) {
            Ok(outcome) => break outcome,
            Err(RecvTimeoutError::Disconnected) => return Err(Failure::failed("the command was lost")),
            Err(RecvTimeoutError::Timeout) => {}
        }
        let running = client.status().ok().and_then(|status| running_swap(&status, service));
        if interrupted.load(Relaxed) {
            line.clear()?;
            return Err(Failure { code: INTERRUPTED, message: goes_on(running.as_ref()) });
        }
        if let Some(swap) = &running {
            line.show(swap)?;
        }
    };
    line.clear()?;
    let applied = applied?;
    if applied.swaps.is_empty() {
        match (applied.result, service) {
            (ReloadResult::Unchanged, Some(name)) => out::line(format_args!("{name}: nothing to do, this pool already serves"))?,
            (ReloadResult::Unchanged, None) => out::line("unchanged")?,
            _ => out::line("applied")?,
        }
    }
    applied.swaps.iter().try_for_each(|ended| report(ended, service.is_some()))?;
    let drift = applied.drift.iter();
    drift.map(|drift| format!("{}: {}", drift.service, drift.drift)).try_for_each(out::line)
}

/// Set by Ctrl-C. A shell starts a background job with SIGINT ignored; it stays ignored.
fn catch_interrupt() -> Result<Arc<AtomicBool>, Failure> {
    let interrupted = Arc::new(AtomicBool::new(false));
    if !is_ignored(SIGINT) {
        flag::register(SIGINT, Arc::clone(&interrupted)).map_err(|e| Failure::failed(format!("cannot catch signals: {e}")))?;
    }
    Ok(interrupted)
}

fn is_ignored(signal: i32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

fn running_swap(status: &Status, service: Option<&str>) -> Option<ServiceSwap> {
    let services = status.services.iter().filter(|s| service.is_none_or(|name| name == s.name));
    let swaps = services.filter_map(|s| Some(ServiceSwap { service: s.name.clone(), swap: s.swap.clone()? }));
    swaps.into_iter().find(|running| running.swap.phase != Phase::Done)
}

/// The message after Ctrl-C: the state of the swap, and the next command.
fn goes_on(running: Option<&ServiceSwap>) -> String {
    let Some(ServiceSwap { service, swap }) = running else {
        return "interrupted; run switchover status to see the swap".to_owned();
    };
    if swap.phase.is_before_promotion() {
        let left = out::seconds(swap.deadline_seconds);
        return format!("{service}: still proving {} for up to {left}; to cancel, run: switchover cancel {service}", swap.to);
    }
    let (from, left) = (swap.from.as_deref().unwrap_or_default(), swap.in_flight);
    if matches!(swap.phase, Phase::Observing | Phase::TakingBack) {
        return format!(
            "{}; switchover status shows when {from} is safe to stop",
            progress(&ServiceSwap { service: service.clone(), swap: swap.clone() })
        );
    }
    format!(
        "{service}: {} serves, {from} still drains, {left} in flight; switchover status shows when it is safe to stop",
        swap.to
    )
}

fn progress(running: &ServiceSwap) -> String {
    let ServiceSwap { service, swap } = running;
    let why = swap.reason.as_deref().map(|why| format!(" ({why})")).unwrap_or_default();
    let progress = swap.reason.as_deref().unwrap_or_default();
    let from = swap.from.as_deref().unwrap_or_default();
    let state = match swap.phase {
        Phase::Proving => {
            let (age, timeout) = (out::seconds(swap.seconds), out::seconds(swap.timeout_seconds));
            format!("proving {} {}/{}, {age} of {timeout}{why}", swap.to, swap.proven, swap.to_prove)
        }
        Phase::WarmingUp => format!("warming up {}: {progress}", swap.to),
        Phase::Checking => format!("checking {}: {progress}", swap.to),
        Phase::Observing => format!("{}{why}", out::observing(swap)),
        Phase::TakingBack => format!("taking {} back, {from} serves again{why}, {} in flight", swap.to, swap.in_flight),
        Phase::Draining | Phase::Done => format!("draining {from}, {} in flight", swap.in_flight),
    };
    format!("{service}: {state}")
}

/// Prints the lines about the end of a swap. `promoted` says that the command was a promotion.
fn report(ended: &ServiceSwap, promoted: bool) -> Result<(), Failure> {
    let ServiceSwap { service, swap } = ended;
    let milliseconds = |seconds: Option<f64>| (seconds.unwrap_or_default() * 1000.0).round();
    if !swap.promoted() {
        return out::line(format_args!("{service}: proving {} {}/{}", swap.to, swap.proven, swap.to_prove));
    }
    if swap.from.as_ref() != Some(&swap.to) {
        out::line(format_args!("{service}: promoted {} in {} ms", swap.to, milliseconds(swap.prove_seconds)))?;
    }
    match (&swap.from, swap.outcome) {
        // The pool already was the active one, but no peer of it was ready, or its version was written.
        (Some(from), Some(Outcome::Drained)) if promoted && *from == swap.to => {
            out::line(format_args!("{service}: {from} is ready and serves"))
        }
        (Some(from), Some(Outcome::Drained)) if *from == swap.to => {
            out::line(format_args!("{service}: peers removed from {from} are drained"))
        }
        (Some(from), Some(Outcome::Drained)) => {
            let (took, observed) = (milliseconds(swap.drain_seconds), out::observed(swap));
            out::line(format_args!("{service}: drained in {took} ms{observed}, safe to stop {from}"))
        }
        (Some(_), None) if swap.phase == Phase::Observing => out::line(format_args!("{service}: {}", out::observing(swap))),
        (Some(from), None) => out::line(format_args!("{service}: draining {from}, {} in flight", swap.in_flight)),
        _ => Ok(()),
    }
}

/// Prints the progress of a swap: one line that is overwritten on a terminal, a few separate lines elsewhere.
struct ProgressLine {
    terminal: bool,
    /// The phase and the reason of the last line, and when it was printed.
    last: Option<(Swap, Instant)>,
}

impl ProgressLine {
    fn new() -> Self {
        Self { terminal: io::stdout().is_terminal(), last: None }
    }

    fn show(&mut self, running: &ServiceSwap) -> Result<(), Failure> {
        let text = progress(running);
        if self.terminal {
            // Turns off line wrapping, so that a long reason does not continue on a line that is not overwritten.
            out::raw(&format!("\r\x1b[2K\x1b[?7l{}\x1b[?7h", out::escape(&text)))?;
        } else if self.is_due(&running.swap) {
            out::line(text)?;
        } else {
            return Ok(());
        }
        self.last = Some((running.swap.clone(), Instant::now()));
        Ok(())
    }

    /// Whether to print another line: the phase or the reason has changed, or the last line is old.
    fn is_due(&self, swap: &Swap) -> bool {
        let Some((last, at)) = &self.last else { return true };
        let age = at.elapsed();
        last.phase != swap.phase
            || age >= REPEAT
            || (swap.phase.is_before_promotion() && age >= AT_LEAST && (&last.reason, last.proven) != (&swap.reason, swap.proven))
    }

    fn clear(&self) -> Result<(), Failure> {
        if self.terminal && self.last.is_some() { out::raw("\r\x1b[2K") } else { Ok(()) }
    }
}
