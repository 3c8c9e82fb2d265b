//! `make bench`: measures CPU per request of switchover, of a bare Pingora proxy with the same allocator, and of nginx and
//! HAProxy if installed. Measures plain requests, TLS requests and TLS handshakes, then the time of a swap.
//!
//! Each proxy has one worker thread and runs during the whole bench; 64 connections load the proxies in turn. The result is the
//! CPU time of the process, because requests per second depend on other load on a shared machine. Other load also slows CPU time
//! down for seconds, so the rounds are short and each sample is compared with the first proxy's sample of the same round.
//!
//! `BEFORE=PATH` names the binary of an earlier switchover: it is measured in the same rounds, and all are compared with it.

#![expect(clippy::print_stdout, reason = "its report")]

mod bare;
mod load;
#[allow(clippy::unwrap_used, unreachable_pub, reason = "a module of the integration tests, which allow these")]
#[path = "../../tests/it/support/port.rs"]
mod port;
mod proxies;
mod swap;

use std::{error::Error, net::SocketAddr, path::Path};

use proxies::Proxy;
use tokio_rustls::TlsConnector;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// One kind of measurement.
struct Measure {
    title: &'static str,
    tls: bool,
    requests: usize,
    per_connection: usize,
    rounds: usize,
}

const MEASURES: [Measure; 3] = [
    Measure { title: "requests on reused connections", tls: false, requests: 6_400, per_connection: usize::MAX, rounds: 60 },
    Measure { title: "requests on reused TLS connections", tls: true, requests: 6_400, per_connection: usize::MAX, rounds: 30 },
    Measure { title: "TLS handshakes, each with a request", tls: true, requests: 640, per_connection: 1, rounds: 30 },
];

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [word, listen, origin] = args.as_slice()
        && word == "bare"
    {
        return bare::run(listen, origin);
    }
    let folder = tempfile::tempdir()?;
    let before = std::env::var_os("BEFORE").filter(|path| !path.is_empty());
    compare(folder.path(), before.as_deref().map(Path::new))?;
    swap::run(folder.path())
}

fn compare(folder: &Path, before: Option<&Path>) -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let origin = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let origin = listener.local_addr()?;
        tokio::spawn(load::serve(listener));
        // Waking a sleeping process costs the writer CPU time, and the load would sleep more often with a slower proxy. Therefore
        // the load never sleeps.
        tokio::spawn(async {
            loop {
                tokio::task::yield_now().await;
            }
        });
        Ok::<SocketAddr, std::io::Error>(origin)
    })?;
    let mut proxies = proxies::start(origin, folder, before)?;
    let tls = load::connector(&folder.join(proxies::CERTIFICATE))?;
    for proxy in &mut proxies {
        runtime.block_on(load::until_it_answers(proxy.port.address))?;
        proxy.idle = proxy.memory()?;
    }
    for measure in &MEASURES {
        run(measure, &mut proxies, &runtime, &tls)?;
    }
    Ok(())
}

fn run(measure: &Measure, proxies: &mut [Proxy], runtime: &tokio::runtime::Runtime, tls: &TlsConnector) -> Outcome<()> {
    println!("\n{}", measure.title);
    let ask = |address, requests| {
        runtime.block_on(load::ask(address, measure.tls.then(|| tls.clone()), requests, measure.per_connection))
    };
    let mut asked: Vec<(SocketAddr, &mut Proxy)> = Vec::new();
    for proxy in proxies {
        if let Some(address) = if measure.tls { proxy.tls_port.as_ref() } else { Some(&proxy.port) }.map(|port| port.address) {
            proxy.samples.clear();
            // Warm up: connections, caches and the allocator's pages.
            ask(address, measure.requests)?;
            asked.push((address, proxy));
        }
    }
    for _ in 0..measure.rounds {
        for (address, proxy) in &mut asked {
            let before = proxy.cpu()?;
            ask(*address, measure.requests)?;
            proxy.samples.push((proxy.cpu()? - before) / measure.requests as f64);
        }
    }
    report(&asked.into_iter().map(|(_, proxy)| &*proxy).collect::<Vec<_>>())
}

fn report(proxies: &[&Proxy]) -> Outcome<()> {
    let first = proxies.first().ok_or("nothing to compare")?;
    println!(
        "{:<14} {:>8} {:>14} {:>16} {:>12} {:>12}",
        "proxy",
        "us CPU",
        "a second/core",
        format!("to {}", first.name),
        "MiB idle",
        "MiB loaded"
    );
    for proxy in proxies {
        let mut ratios: Vec<f64> = proxy.samples.iter().zip(&first.samples).map(|(sample, first)| sample / first).collect();
        let cpu = quartile(&mut proxy.samples.clone(), 2);
        let [low, middle, high] = [1, 2, 3].map(|quarters| quartile(&mut ratios, quarters));
        let ratio = format!("{middle:.2} ({low:.2}-{high:.2})");
        println!("{:<14} {cpu:>8.1} {:>14.0} {ratio:>16} {:>12.1} {:>12.1}", proxy.name, 1e6 / cpu, proxy.idle, proxy.memory()?);
    }
    Ok(())
}

/// A quartile; 2 is the median.
fn quartile(values: &mut [f64], quarters: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() * quarters / 4).copied().unwrap_or(f64::NAN)
}
