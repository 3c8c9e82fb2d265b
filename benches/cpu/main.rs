//! `make bench`: CPU per proxied request, switchover beside a bare Pingora proxy with the same allocator, and beside nginx and
//! HAProxy where they are installed.
//!
//! Each proxy has one worker thread and runs through the whole bench; 64 keep-alive connections ask each in turn, several
//! rounds, and what counts is the CPU time of the proxy's process divided by requests, because on a shared machine requests
//! per second say more about the neighbours.

mod bare;
mod load;
mod proxies;

use std::{error::Error, net::SocketAddr};

use proxies::Proxy;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Enough for the kernel's clock ticks not to matter.
const REQUESTS: usize = 40_000;
const ROUNDS: usize = 5;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [word, listen, origin] = args.as_slice()
        && word == "bare"
    {
        return bare::run(listen, origin);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let origin = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let origin = listener.local_addr()?;
        tokio::spawn(load::serve(listener));
        Ok::<SocketAddr, std::io::Error>(origin)
    })?;
    let folder = tempfile::tempdir()?;
    let mut proxies = proxies::start(origin, folder.path())?;
    for proxy in &proxies {
        runtime.block_on(load::until_it_answers(proxy.address))?;
    }
    for round in 1..=ROUNDS {
        for proxy in &mut proxies {
            let idle = proxy.memory()?;
            let before = proxy.cpu_seconds()?;
            runtime.block_on(load::ask(proxy.address, REQUESTS))?;
            let spent = proxy.cpu_seconds()? - before;
            let microseconds = spent * 1e6 / REQUESTS as f64;
            println!("round {round} of {ROUNDS}: {:<14} {microseconds:6.1} us", proxy.name);
            proxy.samples.push(microseconds);
            proxy.memory.push((idle, proxy.memory()?));
        }
    }
    report(&proxies);
    Ok(())
}

fn report(proxies: &[Proxy]) {
    let bare = proxies.iter().find(|proxy| proxy.name == "bare Pingora").map_or(f64::NAN, Proxy::median);
    println!("\n{:<14} {:>14} {:>10} {:>12} {:>12}", "proxy", "us CPU/request", "to bare", "MiB idle", "MiB loaded");
    for proxy in proxies {
        let (idle, loaded) = (proxy.memory.first().map_or(0.0, |m| m.0), proxy.memory.iter().map(|m| m.1).fold(0.0, f64::max));
        println!("{:<14} {:>14.1} {:>10.2} {idle:>12.1} {loaded:>12.1}", proxy.name, proxy.median(), proxy.median() / bare);
    }
    let switchover = proxies.iter().find(|proxy| proxy.name == "switchover").map_or(f64::NAN, Proxy::median);
    println!("\nswitchover / bare Pingora: {:.2}", switchover / bare);
}
