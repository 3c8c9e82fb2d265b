//! The output of the demo: on a terminal a block that is redrawn in place, elsewhere one line per second and per event.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use super::load::Tally;
use switchover::status::{Phase, ServiceStatus};

/// Number of ticks in the strip: twelve seconds, which fit a narrow terminal with the legend.
const STRIP: usize = 50;
/// Interval between two redraws on a terminal, and between two lines elsewhere.
const TICK: Duration = Duration::from_millis(250);
const PLAIN: Duration = Duration::from_secs(1);

pub(super) struct Screen {
    live: bool,
    colour: bool,
    drawn: usize,
    strip: Vec<char>,
    before: (Instant, Tally),
}

impl Screen {
    pub(super) fn new() -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let live = io::stdout().is_terminal() && set("TERM").is_some_and(|term| term != "dumb");
        let colour = live && set("NO_COLOR").is_none();
        let now = Instant::now();
        Self { live, colour, drawn: 0, strip: Vec::new(), before: (now, Tally::default()) }
    }

    /// Shows the present state, if the interval since the last update is over.
    pub(super) fn tick(&mut self, tally: &Tally, service: Option<&ServiceStatus>) {
        let now = Instant::now();
        if tally.requests == 0 {
            // The first interval begins with the load, not with the program.
            self.before.0 = now;
            return;
        }
        let (then, before) = &self.before;
        if now - *then < if self.live { TICK } else { PLAIN } {
            return;
        }
        let seconds = (now - *then).as_secs_f64().max(0.001);
        let rate = (tally.requests - before.requests) as f64 / seconds;
        let since = |name: &str| tally.by_application.get(name).unwrap_or(&0) - before.by_application.get(name).unwrap_or(&0);
        let (blue, green) = (since("blue"), since("green"));
        let (who, letter) = match (blue > 0, green > 0) {
            (true, true) => ("blue and green", '#'),
            (true, false) => ("blue", 'b'),
            (false, true) => ("green", 'g'),
            (false, false) => ("none", '.'),
        };
        self.strip.push(letter);
        if self.strip.len() > STRIP {
            self.strip.remove(0);
        }
        self.before = (now, tally.clone());
        let (phase, flights) = service.map_or(("".to_owned(), "".to_owned()), |service| (phase(service), flights(service)));
        if self.live {
            let lines = [
                format!("answering    {who}"),
                format!("             {}  b blue, g green, # both", self.paint()),
                format!("requests     {rate:.0}/s, {} so far", tally.requests),
                format!("swap         {phase}"),
                format!("in flight    {flights}"),
                format!("failed       {}", tally.failed),
            ];
            self.draw(&lines);
        } else {
            print(&format!(
                "  answering: {who}, {rate:.0} requests/s, swap: {phase}, in flight {flights}, failed {}\n",
                tally.failed
            ));
        }
    }

    /// Prints an event on a line of its own.
    pub(super) fn event(&mut self, text: &str) {
        if self.drawn > 0 {
            print(&format!("\x1b[{}A\x1b[J", self.drawn));
            self.drawn = 0;
        }
        print(&format!("{text}\n"));
    }

    fn draw(&mut self, lines: &[String]) {
        let mut out = String::new();
        if self.drawn > 0 {
            out += &format!("\x1b[{}A", self.drawn);
        }
        for line in lines {
            out += &format!("\x1b[2K  {line}\n");
        }
        print(&out);
        self.drawn = lines.len();
    }

    fn paint(&self) -> String {
        let paint = |letter: &char| match letter {
            _ if !self.colour => letter.to_string(),
            'b' => "\x1b[44;97mb\x1b[0m".to_owned(),
            'g' => "\x1b[42;97mg\x1b[0m".to_owned(),
            other => other.to_string(),
        };
        self.strip.iter().map(paint).collect()
    }
}

/// Ignores a closed standard output (`make demo | head`): the exit code still counts.
fn print(text: &str) {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).unwrap_or_default();
}

fn phase(service: &ServiceStatus) -> String {
    match &service.swap {
        Some(swap) if swap.phase == Phase::Proving => format!("proving {}, {}/{}", swap.to, swap.proven, swap.to_prove),
        Some(swap) if swap.phase == Phase::Observing => format!("observing {}", swap.to),
        Some(swap) if swap.phase == Phase::Draining => format!("draining {}", swap.from.as_deref().unwrap_or_default()),
        _ => format!("none, {} is active", service.active),
    }
}

fn flights(service: &ServiceStatus) -> String {
    service.pools.iter().map(|pool| format!("{} {}", pool.name, pool.in_flight)).collect::<Vec<_>>().join(", ")
}
