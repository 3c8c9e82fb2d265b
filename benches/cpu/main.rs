//! `make bench`: CPU per proxied request, switchover beside a bare Pingora proxy with the same allocator, and beside nginx and
//! HAProxy where they are installed; then how long a swap takes.
//!
//! Each proxy has one worker thread and runs through the whole bench; 64 keep-alive connections ask each in turn. What counts is
//! the CPU time of the proxy's process, because on a shared machine requests per second say more about the neighbours. They
//! slow CPU time down as well, for seconds on end: so the rounds are short, and a proxy is compared with bare Pingora's sample
//! of the same round.

mod bare;
mod load;
mod proxies;
mod swap;

use std::{error::Error, net::SocketAddr};

use proxies::Proxy;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const REQUESTS: usize = 6_400;
const ROUNDS: usize = 60;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [word, listen, origin] = args.as_slice()
        && word == "bare"
    {
        return bare::run(listen, origin);
    }
    let folder = tempfile::tempdir()?;
    compare(folder.path())?;
    swap::run(folder.path())
}

fn compare(folder: &std::path::Path) -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let origin = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let origin = listener.local_addr()?;
        tokio::spawn(load::serve(listener));
        // Whoever writes to a process that sleeps pays for waking it, and the slower a proxy is, the more often the load would
        // sleep while it works: so the load never does.
        tokio::spawn(async {
            loop {
                tokio::task::yield_now().await;
            }
        });
        Ok::<SocketAddr, std::io::Error>(origin)
    })?;
    let mut proxies = proxies::start(origin, folder)?;
    for proxy in &mut proxies {
        runtime.block_on(load::until_it_answers(proxy.address))?;
        proxy.idle = proxy.memory()?;
        // Connections, caches and the allocator's pages are paid for once.
        runtime.block_on(load::ask(proxy.address, REQUESTS))?;
    }
    for round in 1..=ROUNDS {
        for proxy in &mut proxies {
            let before = proxy.cpu()?;
            runtime.block_on(load::ask(proxy.address, REQUESTS))?;
            proxy.samples.push((proxy.cpu()? - before) / REQUESTS as f64);
        }
        if round % 10 == 0 {
            println!("round {round} of {ROUNDS}");
        }
    }
    report(&proxies)
}

fn report(proxies: &[Proxy]) -> Outcome<()> {
    let bare = &proxies.iter().find(|proxy| proxy.name == "bare Pingora").ok_or("nothing to compare with")?.samples;
    println!("\n{:<14} {:>14} {:>10} {:>12} {:>12}", "proxy", "us CPU/request", "to bare", "MiB idle", "MiB loaded");
    let mut switchover = Vec::new();
    for proxy in proxies {
        let mut ratios: Vec<f64> = proxy.samples.iter().zip(bare).map(|(sample, bare)| sample / bare).collect();
        let (cpu, ratio) = (quartile(&mut proxy.samples.clone(), 2), quartile(&mut ratios, 2));
        println!("{:<14} {cpu:>14.1} {ratio:>10.2} {:>12.1} {:>12.1}", proxy.name, proxy.idle, proxy.memory()?);
        if proxy.name == "switchover" {
            switchover = ratios;
        }
    }
    let [low, middle, high] = [1, 2, 3].map(|quarters| quartile(&mut switchover, quarters));
    println!("\nswitchover / bare Pingora: {middle:.2} (half of the rounds between {low:.2} and {high:.2})");
    Ok(())
}

/// The value below which so many quarters of the values lie: 2 for the median.
fn quartile(values: &mut [f64], quarters: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() * quarters / 4).copied().unwrap_or(f64::NAN)
}
