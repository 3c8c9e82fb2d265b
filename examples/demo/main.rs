//! `make demo`: swaps between two small applications under load.
//!
//! The real server runs as a separate process. The demo edits its configuration file as a user would, under a steady load, and
//! stops and restarts the idle application as soon as the status says that it is safe to stop.
//!
//! An example, and no command of switchover: the production binary has no use for it, and `cargo install` does not install it.

mod app;
mod environment;
mod load;
mod picture;
mod screen;

use std::{
    io::{self, IsTerminal, Write},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{Args, Parser, Subcommand};
use switchover::status::{Outcome, PoolState};
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::{
    environment::Environment,
    load::{Load, Tally},
    screen::Screen,
};

/// Pause after a swap, to let people see its effect.
const PAUSE: Duration = Duration::from_millis(1500);

/// Swaps between two small applications behind switchover, under steady load
#[derive(Parser)]
#[command(bin_name = "make demo", args_conflicts_with_subcommands = true)]
struct Demo {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Args)]
struct Options {
    /// How many swaps to show
    #[arg(long, default_value_t = 6)]
    swaps: usize,
    /// End after the tally, also on a terminal
    #[arg(long)]
    once: bool,
    /// Draw one swap into this SVG file instead, and end
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// One of the two applications; the demo starts it
    #[command(hide = true)]
    App(AppArgs),
}

#[derive(Args)]
struct AppArgs {
    /// Name of its pool, part of every response
    #[arg(long)]
    name: String,
    /// Its release, part of every response
    #[arg(long)]
    version: String,
    /// Where to listen
    #[arg(long)]
    listen: SocketAddr,
    /// How long it is not ready after its start
    #[arg(long, value_parser = humantime::parse_duration)]
    ready_after: Duration,
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Demo::parse() {
        Demo { command: Some(Command::App(AppArgs { name, version, listen, ready_after })), .. } => {
            let app = app::App { name, version, listen, ready_after, exit_on_stdin_close: true };
            app::serve(app).await.map_err(|e| format!("cannot listen on {listen}: {e}"))
        }
        Demo { options, command: None } => run(options).await.and_then(|failed| match failed {
            0 => Ok(()),
            failed => Err(format!("{failed} requests failed")),
        }),
    };
    let Err(message) = outcome else { return ExitCode::SUCCESS };
    // Where standard error is closed, the exit code is all there is.
    writeln!(io::stderr(), "demo: {message}").unwrap_or_default();
    ExitCode::FAILURE
}

/// Returns the number of failed requests.
async fn run(options: Options) -> Result<u64, String> {
    if let Some(file) = options.picture {
        return picture::draw_one_swap(&file).await;
    }
    let mut stop = Stop::caught()?;
    let mut screen = Screen::new();
    screen.event(&format!(
        "switchover demo: two applications, one load balancer, steady load, {} swaps by editing one line\n",
        options.swaps
    ));
    let mut environment = tokio::select! {
        environment = Environment::set("2s") => environment?,
        () = stop.requested() => return Err("stopped before the first swap".to_owned()),
    };
    screen.event(&format!(
        "blue v1 on {}, green v2 on {}, switchover on {}",
        environment.blue.address, environment.green.address, environment.address
    ));
    screen.event(&format!("the file: {}\n", environment.config.display()));
    let load = Load::start(environment.address);
    let stay = io::stdout().is_terminal() && !options.once;
    let mut done = 0;
    let outcome = tokio::select! {
        outcome = swaps(options.swaps, stay, &mut done, &mut environment, &load, &mut screen) => outcome,
        () = stop.requested() => Err(format!("stopped before the end of swap {} of {}", done + 1, options.swaps)),
    };
    let (tally, _) = load.stop().await;
    screen.event(&summary(done, &tally));
    outcome?;
    if stay {
        screen.event(&invitation(&environment).await?);
        stop.requested().await;
    }
    Ok(tally.failed)
}

/// SIGINT, SIGTERM and SIGHUP. They are caught so that the demo can stop its child processes first.
struct Stop([Signal; 3]);

impl Stop {
    fn caught() -> Result<Self, String> {
        let caught = |kind| signal(kind).map_err(|e| format!("cannot catch signals: {e}"));
        Ok(Self([caught(SignalKind::interrupt())?, caught(SignalKind::terminate())?, caught(SignalKind::hangup())?]))
    }

    async fn requested(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {}, _ = hangup.recv() => {} }
    }
}

/// Swaps back and forth; counts the swaps in `done`.
async fn swaps(
    swaps: usize,
    stay: bool,
    done: &mut usize,
    environment: &mut Environment,
    load: &Load,
    screen: &mut Screen,
) -> Result<(), String> {
    show(environment, load, screen, PAUSE).await?;
    for swap in 0..swaps {
        let (from, to) = if swap % 2 == 0 { ("blue", "green") } else { ("green", "blue") };
        let edit = format!("active: {from} -> active: {to}");
        if swap == 0 {
            screen.event(&format!("swap 1 of {swaps}: {edit}"));
        } else {
            // The application is not ready for another second, so the proof takes visible time.
            environment.application(to).restart(&format!("v{}", swap + 2)).await?;
            screen.event(&format!("swap {} of {swaps}: {to} started again as v{}, {edit}", swap + 1, swap + 2));
        }
        one_swap(from, to, environment, load, screen).await?;
        // Alternate between SIGTERM and SIGKILL: an application that is safe to stop may be killed.
        let politely = swap % 2 == 0;
        environment.application(from).stop(politely).await?;
        screen.event(&format!("  {from} {}", if politely { "stopped with SIGTERM" } else { "killed with SIGKILL" }));
        *done = swap + 1;
        show(environment, load, screen, PAUSE).await?;
    }
    if stay && swaps > 0 {
        let idle = if swaps.is_multiple_of(2) { "green" } else { "blue" };
        environment.application(idle).restart(&format!("v{}", swaps + 2)).await?;
    }
    Ok(())
}

/// Runs one swap, from the edit until the old application is safe to stop.
async fn one_swap(from: &str, to: &str, environment: &mut Environment, load: &Load, screen: &mut Screen) -> Result<(), String> {
    environment.edit(from, to)?;
    let began = Instant::now();
    environment
        .until(&format!("{to} is active"), |status| {
            screen.tick(&load.tally(), status.services.first());
            status.services.iter().any(|service| service.active == to)
        })
        .await?;
    screen.event(&format!("  {to} proved ready and promoted {} ms after the edit", began.elapsed().as_millis()));
    let mut ended = None;
    environment
        .until(&format!("{from} is safe to stop"), |status| {
            screen.tick(&load.tally(), status.services.first());
            ended = status.services.first().and_then(|service| service.last_swap.clone()).filter(|swap| swap.to == to);
            ended.is_some() && status.services.iter().flat_map(|s| &s.pools).any(|pool| pool.name == from && pool.safe_to_stop)
        })
        .await?;
    match ended {
        Some(swap) if swap.outcome == Some(Outcome::Drained) => {
            let drained = (swap.drain_seconds.unwrap_or_default() * 1000.0).round();
            let observed = swap.observation.unwrap_or_default().seconds;
            screen.event(&format!("  {from} drained in {drained} ms; {to} observed for {observed:.1} s, {from} is safe to stop"));
            Ok(())
        }
        other => Err(format!("the swap to {to} failed: {other:?}")),
    }
}

/// Updates the screen for a while.
async fn show(environment: &mut Environment, load: &Load, screen: &mut Screen, how_long: Duration) -> Result<(), String> {
    let end = Instant::now() + how_long;
    let what = "the pause is over";
    environment
        .until(what, |status| {
            screen.tick(&load.tally(), status.services.first());
            Instant::now() >= end
        })
        .await
}

fn summary(swaps: usize, tally: &Tally) -> String {
    let by_application: Vec<String> = tally.by_application.iter().map(|(application, n)| format!("{application} {n}")).collect();
    let mut text = format!(
        "\nswaps {swaps}   requests {} ({})   failed {}   slowest {} ms",
        tally.requests,
        by_application.join(", "),
        tally.failed,
        tally.slowest.as_millis()
    );
    for reason in &tally.reasons {
        text += &format!("\n  {reason}");
    }
    text
}

/// Prints the commands to try while the demo keeps running.
async fn invitation(environment: &Environment) -> Result<String, String> {
    let status = environment.status().await?;
    let idle = status.services.iter().flat_map(|s| &s.pools).find(|pool| pool.state != PoolState::Active);
    let idle = idle.map_or("green", |pool| pool.name.as_str());
    let (address, program, config) = (environment.address, environment::program()?, environment.config.display());
    Ok(format!(
        "\nStill serving on http://{address}/ until Ctrl-C. Edit active: in\n  {config}\nor try, in another terminal:\n  curl \
         http://{address}/\n  {program} promote {idle} --config {config}\n  {program} status --config {config}"
    ))
}
