//! `switchover demo`: the main job, live, on two small built-in applications.
//!
//! The real server runs as a process of its own; the demo edits its file, as a user would, under steady load, and stops and
//! restarts the idle application exactly when the status says that it is safe.

pub mod app;
mod load;
mod screen;
mod stage;

use std::{
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

use self::{
    load::{Load, Tally},
    screen::Screen,
    stage::Stage,
};
use crate::status::PoolState;

/// Time to see what a swap has done before the next one begins.
const PAUSE: Duration = Duration::from_millis(1500);

/// What the demo is told.
pub struct Options {
    /// How many swaps.
    pub swaps: usize,
    /// Ends after the tally also on a terminal.
    pub once: bool,
}

/// Runs the demo. Gives how many requests failed.
///
/// # Errors
/// When something but a request went wrong: the reason, in words.
pub async fn run(options: Options) -> Result<u64, String> {
    println!("switchover demo: two applications, one load balancer, steady load, {} swaps by editing one line\n", options.swaps);
    let mut stage = Stage::set().await?;
    println!("blue v1 on {}, green v2 on {}, switchover on {}", stage.blue.address, stage.green.address, stage.address);
    println!("the file: {}\n", stage.config.display());
    let load = Load::start(stage.address);
    let mut screen = Screen::new();
    let outcome = tokio::select! {
        outcome = swaps(&options, &mut stage, &load, &mut screen) => outcome,
        _ = tokio::signal::ctrl_c() => Err("stopped by Ctrl-C".to_owned()),
    };
    let tally = load.stop().await;
    let done = outcome?;
    screen.event(&summary(done, &tally));
    if io::stdout().is_terminal() && !options.once {
        serve_on(&stage).await?;
    }
    Ok(tally.failed)
}

/// Swaps back and forth; gives how many there were.
async fn swaps(options: &Options, stage: &mut Stage, load: &Load, screen: &mut Screen) -> Result<usize, String> {
    show(stage, load, screen, PAUSE).await?;
    for swap in 0..options.swaps {
        let (from, to) = if swap % 2 == 0 { ("blue", "green") } else { ("green", "blue") };
        screen.event(&format!("swap {} of {}: active: {from} -> active: {to}", swap + 1, options.swaps));
        stage.edit(from, to)?;
        let began = Instant::now();
        let what = format!("{from} is safe to stop");
        stage
            .until(&what, |status| {
                screen.tick(&load.tally(), status.services.first());
                status.services.iter().flat_map(|s| &s.pools).any(|pool| pool.name == from && pool.safe_to_stop)
            })
            .await?;
        let politely = swap % 2 == 0;
        let how = if politely { "stopped politely" } else { "killed" };
        screen.event(&format!(
            "  {from} is safe to stop after {} ms: {how}, and started again as v{}",
            began.elapsed().as_millis(),
            swap + 3
        ));
        let idle = if from == "blue" { &mut stage.blue } else { &mut stage.green };
        idle.stop(politely).await?;
        idle.restart(&format!("v{}", swap + 3)).await?;
        show(stage, load, screen, PAUSE).await?;
    }
    Ok(options.swaps)
}

/// Shows for a while how things are.
async fn show(stage: &mut Stage, load: &Load, screen: &mut Screen, how_long: Duration) -> Result<(), String> {
    let end = Instant::now() + how_long;
    let what = "time has passed";
    stage
        .until(what, |status| {
            screen.tick(&load.tally(), status.services.first());
            Instant::now() >= end
        })
        .await
}

fn summary(swaps: usize, tally: &Tally) -> String {
    let by_colour: Vec<String> = tally.by_colour.iter().map(|(colour, n)| format!("{colour} {n}")).collect();
    let mut text = format!(
        "\nswaps {swaps}   requests {} ({})   failed {}   slowest {} ms",
        tally.requests,
        by_colour.join(", "),
        tally.failed,
        tally.slowest.as_millis()
    );
    for reason in &tally.reasons {
        text += &format!("\n  {reason}");
    }
    text
}

/// Leaves everything running for the user to try.
async fn serve_on(stage: &Stage) -> Result<(), String> {
    let status = stage.status().await?;
    let idle = status.services.iter().flat_map(|s| &s.pools).find(|pool| pool.state != PoolState::Active);
    let idle = idle.map_or("green", |pool| pool.name.as_str());
    let (program, config) = (stage::program(), stage.config.display());
    println!(
        "\nStill serving on http://{}/ until Ctrl-C. Edit active: in\n  {config}\nor try, in another terminal:",
        stage.address
    );
    println!("  curl http://{}/", stage.address);
    println!("  {program} promote {idle} --config {config}");
    println!("  {program} status --config {config}");
    tokio::signal::ctrl_c().await.map_err(|e| e.to_string())
}
