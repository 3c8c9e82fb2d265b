//! Follows a swap while a command waits for it: a line per phase, and on a terminal a live one in between.
//!
//! The command itself waits at the server and ends this the moment the server answers; the status is only looked at to show it.

use std::{
    io::{self, IsTerminal, Write},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use super::Failure;
use crate::{
    admin::client::{CallError, Client},
    status::{Applied, Outcome, Phase, ReloadResult, ServiceSwap, Swap},
};

/// How often the live line is brought up to date.
const LOOK: Duration = Duration::from_millis(100);

/// Runs `call`, showing meanwhile how the swap of `service` (of any, if none is named) goes on.
pub(super) fn follow(
    client: &Client,
    service: Option<&str>,
    call: impl FnOnce() -> Result<Applied, CallError> + Send + 'static,
) -> Result<(), Failure> {
    let (sender, answer) = mpsc::channel();
    thread::spawn(move || sender.send(call()));
    let mut line = LiveLine { shown: String::new(), terminal: io::stdout().is_terminal() };
    let applied = loop {
        match answer.recv_timeout(LOOK) {
            Ok(outcome) => break outcome,
            Err(RecvTimeoutError::Disconnected) => return Err(Failure::failed("the command was lost")),
            Err(RecvTimeoutError::Timeout) => {
                if let Ok(status) = client.status() {
                    let swaps = status.services.iter().filter(|s| service.is_none_or(|name| name == s.name));
                    let running =
                        swaps.filter_map(|s| Some((&s.name, s.swap.as_ref()?))).find(|(_, swap)| swap.phase != Phase::Done);
                    if let Some((name, swap)) = running {
                        line.show(&progress(name, swap));
                    }
                }
            }
        }
    };
    line.clear();
    let applied = applied?;
    if applied.swaps.is_empty() {
        match (applied.result, service) {
            (ReloadResult::Unchanged, Some(name)) => println!("{name}: nothing to do, that is what serves"),
            (ReloadResult::Unchanged, None) => println!("unchanged"),
            _ => println!("applied"),
        }
    }
    applied.swaps.iter().for_each(report);
    Ok(())
}

fn progress(service: &str, swap: &Swap) -> String {
    match swap.phase {
        Phase::Proving => {
            let why = swap.reason.as_deref().map(|why| format!(" ({why})")).unwrap_or_default();
            format!("{service}: proving {} {}/{}{why}", swap.to, swap.proven, swap.to_prove)
        }
        _ => format!("{service}: draining {}, {} in flight", swap.from.as_deref().unwrap_or_default(), swap.in_flight),
    }
}

/// What is left to say at the end.
fn report(ended: &ServiceSwap) {
    let ServiceSwap { service, swap } = ended;
    let milliseconds = |seconds: Option<f64>| (seconds.unwrap_or_default() * 1000.0).round();
    if !swap.promoted() {
        println!("{service}: proving {} {}/{}", swap.to, swap.proven, swap.to_prove);
        return;
    }
    if swap.from.as_ref() != Some(&swap.to) {
        println!("{service}: promoted {} in {} ms", swap.to, milliseconds(swap.prove_seconds));
    }
    match (&swap.from, swap.outcome) {
        (Some(from), Some(Outcome::Drained)) if *from == swap.to => println!("{service}: peers that left {from} are drained"),
        (Some(from), Some(Outcome::Drained)) => {
            println!("{service}: drained in {} ms, safe to stop {from}", milliseconds(swap.drain_seconds));
        }
        (Some(from), None) => println!("{service}: draining {from}, {} in flight", swap.in_flight),
        _ => {}
    }
}

/// One line that is written over on a terminal, and said once per change of its beginning elsewhere.
struct LiveLine {
    shown: String,
    terminal: bool,
}

impl LiveLine {
    fn show(&mut self, text: &str) {
        if self.terminal {
            print!("\r\x1b[2K{text}");
            io::stdout().flush().unwrap_or_default();
        } else if self.shown != text {
            println!("{text}");
        }
        text.clone_into(&mut self.shown);
    }

    fn clear(&self) {
        if self.terminal && !self.shown.is_empty() {
            print!("\r\x1b[2K");
        }
    }
}
