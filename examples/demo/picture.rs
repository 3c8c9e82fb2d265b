//! `make picture`: one swap of the demo as an SVG, the picture in README.md.
//!
//! Every figure in it comes from the run that it shows: the load records each request, the status of switchover says when it promoted
//! and when the old pool was drained.

use std::{
    fmt::{self, Write as _},
    path::Path,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use super::{
    environment::Environment,
    load::{Ended, Load},
};

/// The part of the run that the picture shows: before the edit, and after the end of the old application.
const BEFORE: Duration = Duration::from_millis(1000);
const AFTER: Duration = Duration::from_millis(1600);
/// Time before the picture, in which connections are opened.
const WARM_UP: Duration = Duration::from_millis(1000);
/// The time of one bar, in milliseconds.
const STEP: u32 = 100;

/// Where things are, in pixels.
const WIDTH: f64 = 880.0;
const HEIGHT: f64 = 340.0;
const LEFT: f64 = 44.0;
const RIGHT: f64 = 864.0;
const TOP: f64 = 126.0;
const BOTTOM: f64 = 290.0;
/// Lines of text above the plot.
const FIRST_LABEL: f64 = 54.0;
const LINE: f64 = 18.0;

/// Colours that differ in brightness too, on a background of their own in light and dark mode.
const STYLE: &str = "text{font:13px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#1f2328}.title{font-size:15px;font-weight:600}\
    .panel{fill:#fff}.axis{stroke:#d0d7de}.moment{stroke:#1f2328;stroke-dasharray:3 3}.blue{fill:#1f6feb}.green{fill:#4ac26b}\
    .failed{fill:#cf222e}@media(prefers-color-scheme:dark){text{fill:#e6edf3}.panel{fill:#0d1117}.axis{stroke:#3d444d}\
    .moment{stroke:#e6edf3}.blue{fill:#388bfd}.green{fill:#7ee2a8}.failed{fill:#ff7b72}}";

/// What happened in the run; times in seconds after the edit.
struct Run {
    /// With their ends since the beginning of the picture.
    requests: Vec<(Duration, Option<String>)>,
    promoted: f64,
    safe: f64,
    killed: f64,
}

/// The requests that ended within `STEP`.
#[derive(Default)]
struct Bar {
    blue: u32,
    green: u32,
    failed: u32,
}

/// Makes one swap under load, and draws it. Returns the number of failed requests.
pub(super) async fn draw_one_swap(file: &Path) -> Result<u64, String> {
    let mut environment = Environment::set("0s").await?;
    let load = Load::start(environment.address);
    environment.green.stop(false).await?;
    tokio::time::sleep(WARM_UP + BEFORE).await;
    // The application is not ready for a second, so that the proof takes visible time.
    environment.green.restart("v2").await?;
    let (edited, wall_clock) = (Instant::now(), SystemTime::now());
    environment.edit("blue", "green")?;
    let (mut swap, mut safe) = (None, Duration::ZERO);
    environment
        .until("blue is safe to stop", |status| {
            let Some(service) = status.services.first() else { return false };
            swap = service.last_swap.clone().filter(|swap| swap.to == "green");
            safe = edited.elapsed();
            swap.is_some() && service.pools.iter().any(|pool| pool.name == "blue" && pool.safe_to_stop)
        })
        .await?;
    environment.blue.stop(false).await?;
    let killed = edited.elapsed();
    // One bar more, because the picture ends with a whole one.
    tokio::time::sleep(AFTER + Duration::from_millis(STEP.into())).await;
    let (tally, requests) = load.stop().await;

    let swap = swap.ok_or("the swap is missing in the status")?;
    let (Some(prove), Some(drain)) = (swap.prove_seconds, swap.drain_seconds) else {
        return Err(format!("the swap failed: {swap:?}"));
    };
    let started = humantime::parse_rfc3339(&swap.started_at).map_err(|e| e.to_string())?;
    let promoted = started.duration_since(wall_clock).unwrap_or_default().as_secs_f64() + prove;
    let begin = edited - BEFORE;
    let requests = requests.into_iter().filter_map(|Ended { at, by }| Some((at.checked_duration_since(begin)?, by)));
    let run = Run {
        requests: requests.collect(),
        promoted,
        // The poll that found it may have come before the time in the status.
        safe: safe.as_secs_f64().max(promoted + drain),
        killed: killed.as_secs_f64(),
    };
    std::fs::write(file, Drawing::of(&run).svg(&run).map_err(|e| e.to_string())?)
        .map_err(|e| format!("cannot write {}: {e}", file.display()))?;
    Ok(tally.failed)
}

/// The scales of the two axes.
struct Drawing {
    begin: f64,
    end: f64,
    bars: Vec<Bar>,
    highest: u32,
}

impl Drawing {
    fn of(run: &Run) -> Self {
        let step = f64::from(STEP) / 1000.0;
        let begin = -BEFORE.as_secs_f64();
        let end = begin + ((run.killed + AFTER.as_secs_f64() - begin) / step).ceil() * step;
        let mut bars: Vec<Bar> = Vec::new();
        for (at, by) in run.requests.iter().filter(|(at, _)| at.as_secs_f64() < end - begin) {
            let number = usize::try_from(at.as_millis() / u128::from(STEP)).unwrap_or_default();
            bars.resize_with(bars.len().max(number + 1), Bar::default);
            let Some(bar) = bars.get_mut(number) else { continue };
            match by.as_deref() {
                Some("blue") => bar.blue += 1,
                Some(_) => bar.green += 1,
                None => bar.failed += 1,
            }
        }
        let highest = bars.iter().map(|bar| bar.blue + bar.green + bar.failed).max().unwrap_or_default();
        Self { begin, end, bars, highest: highest.max(1).next_multiple_of(50) }
    }

    fn x(&self, seconds: f64) -> f64 {
        LEFT + (seconds - self.begin) / (self.end - self.begin) * (RIGHT - LEFT)
    }

    fn y(&self, requests: u32) -> f64 {
        BOTTOM - f64::from(requests) / f64::from(self.highest) * (BOTTOM - TOP)
    }

    fn sum(&self, of: impl Fn(&Bar) -> u32) -> u32 {
        self.bars.iter().map(of).sum()
    }

    fn svg(&self, run: &Run) -> Result<String, fmt::Error> {
        let [blue, green, failed] = [self.sum(|bar| bar.blue), self.sum(|bar| bar.green), self.sum(|bar| bar.failed)];
        let title = format!("One swap under load: {} requests, {failed} failed", blue + green + failed);
        let moments = [
            (0.0, "green has just started; the file is edited: active: green"),
            (run.promoted, "green is proven ready and promoted"),
            (run.safe, "blue is drained and safe to stop"),
            (run.killed, "blue is killed"),
        ];
        let mut svg = String::new();
        writeln!(
            svg,
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="t d">"#
        )?;
        writeln!(svg, r#"<title id="t">{title}</title>"#)?;
        write!(svg, r#"<desc id="d">Requests answered in each tenth of a second: {blue} by blue, then {green} by green; "#)?;
        write!(svg, "{failed} failed. Seconds after the edit:")?;
        for (at, what) in moments {
            write!(svg, " {at:.2}: {what}.")?;
        }
        writeln!(svg, "</desc>\n<style>{STYLE}</style>")?;
        writeln!(svg, r#"<rect class="panel" width="{WIDTH}" height="{HEIGHT}" rx="6"/>"#)?;
        writeln!(svg, r#"<text class="title" x="{LEFT}" y="28">{title}</text>"#)?;
        self.axes(&mut svg)?;
        self.draw(&mut svg, "blue", |bar| (0, bar.blue))?;
        self.draw(&mut svg, "green", |bar| (bar.blue, bar.green))?;
        self.draw(&mut svg, "failed", |bar| (bar.blue + bar.green, bar.failed))?;
        for (line, (at, what)) in (0_u8..).zip(moments) {
            // Each label is a line lower than the one before, so that no line crosses a label.
            let (x, y) = (self.x(at), FIRST_LABEL + f64::from(line) * LINE);
            write!(svg, r#"<path class="moment" d="M{x:.1} {:.1}V{BOTTOM}"/>"#, y - 11.0)?;
            writeln!(svg, r#"<text x="{:.1}" y="{y}">{at:.2} s: {what}</text>"#, x + 5.0)?;
        }
        let keys = [("blue", 0.0, "blue", blue), ("green", 150.0, "green", green), ("failed", 300.0, "failed", failed)];
        for (class, offset, what, number) in keys {
            let (x, y) = (LEFT + offset, HEIGHT - 12.0);
            write!(svg, r#"<rect class="{class}" x="{x}" y="{}" width="11" height="11"/>"#, y - 10.0)?;
            writeln!(svg, r#"<text x="{}" y="{y}">{what}: {number}</text>"#, x + 17.0)?;
        }
        let y = HEIGHT - 12.0;
        writeln!(svg, r#"<text x="{RIGHT}" y="{y}" text-anchor="end">requests answered per 100 ms</text>"#)?;
        svg.push_str("</svg>\n");
        Ok(svg)
    }

    fn axes(&self, svg: &mut String) -> fmt::Result {
        for requests in [0, self.highest / 2, self.highest] {
            let y = self.y(requests);
            write!(svg, r#"<path class="axis" d="M{LEFT} {y:.1}H{RIGHT}"/>"#)?;
            writeln!(svg, r#"<text x="{}" y="{:.1}" text-anchor="end">{requests}</text>"#, LEFT - 6.0, y + 4.5)?;
        }
        let mut second = self.begin.ceil();
        while second <= self.end {
            let (x, y) = (self.x(second), BOTTOM + LINE);
            writeln!(svg, r#"<text x="{x:.1}" y="{y}" text-anchor="middle">{second} s</text>"#)?;
            second += 1.0;
        }
        Ok(())
    }

    /// Draws one colour of every bar: `of` returns where it begins and how high it is.
    fn draw(&self, svg: &mut String, class: &str, of: impl Fn(&Bar) -> (u32, u32)) -> fmt::Result {
        write!(svg, r#"<path class="{class}" d=""#)?;
        for (number, bar) in (0_u32..).zip(&self.bars) {
            let (below, requests) = of(bar);
            if requests == 0 {
                continue;
            }
            let edge = |number: u32| self.x(self.begin + f64::from(number * STEP) / 1000.0);
            let (left, right) = (edge(number) + 0.5, edge(number + 1) - 0.5);
            let (low, high) = (self.y(below), self.y(below + requests));
            write!(svg, "M{left:.1} {low:.1}V{high:.1}H{right:.1}V{low:.1}z")?;
        }
        writeln!(svg, r#""/>"#)
    }
}
