//! Measures a start and swaps, with both pools ready and one client that sends requests without a pause: from the start of the
//! process until it accepts connections, from an edit of the file to the first response of the new pool, and the duration of
//! `switchover promote`. The bench fails if a swap takes longer than expected on an idle machine.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use super::{Outcome, port::Port, proxies::Proxy, quartile};

const SWAPS: usize = 20;
/// Milliseconds; about four times the measured value on two idle cores.
const EDIT_LIMIT: f64 = 150.0;
const PROMOTE_LIMIT: f64 = 50.0;
const POOLS: [&str; 2] = ["blue ", "green"];
/// Timeout of each step.
const TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn run(folder: &Path) -> Outcome<()> {
    let (port, admin_port, file) = (Port::reserve(), Port::reserve(), folder.join("swap.yaml"));
    let (address, admin) = (port.address, admin_port.address);
    let [blue, green] = [origin(POOLS[0])?, origin(POOLS[1])?];
    let text = |active: &str| {
        format!(
            "listeners: [{{address: \"{address}\"}}]\nadmin: {{address: \"{admin}\"}}\nservices:\n  bench:\n    active: {active}\n    \
             promotion: {{observe: 0s}}\n    pools: {{blue: {{peers: [\"{blue}\"]}}, green: {{peers: [\"{green}\"]}}}}\n"
        )
    };
    let rename = |active: &str| {
        let beside = folder.join("swap.new");
        fs::write(&beside, text(active))?;
        fs::rename(beside, &file)
    };
    rename("blue")?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_switchover"));
    command.args(["run", "--config"]).arg(&file);
    let started = Instant::now();
    let _switchover = Proxy::start("switchover", port, None, command)?;
    until(|| Ok(TcpStream::connect(address).is_ok()))?;
    let start = started.elapsed().as_secs_f64() * 1e3;
    until(|| Ok(status(admin)?.matches("\"ready\":true").count() == 2))?;

    let mut client = TcpStream::connect(address)?;
    let (mut edits, mut promotions) = (Vec::new(), Vec::new());
    for pool in POOLS.iter().rev().cycle().take(SWAPS) {
        let began = Instant::now();
        rename(pool.trim())?;
        until(|| Ok(ask(&mut client)? == *pool))?;
        edits.push(began.elapsed().as_secs_f64() * 1e3);
        until(|| Ok(!status(admin)?.contains("\"draining\":true")))?;
    }
    for pool in POOLS.iter().rev().cycle().take(SWAPS) {
        let began = Instant::now();
        let promote =
            Command::new(env!("CARGO_BIN_EXE_switchover")).args(["promote", pool.trim(), "--config"]).arg(&file).output()?;
        promotions.push(began.elapsed().as_secs_f64() * 1e3);
        if !promote.status.success() || ask(&mut client)? != *pool {
            return Err(format!("promote {pool}: {}", String::from_utf8_lossy(&promote.stderr)).into());
        }
    }
    let (edit, promote) = (quartile(&mut edits, 2), quartile(&mut promotions, 2));
    println!("from the start of the process until it accepts connections: {start:.0} ms");
    println!("from the edit to the first answer of the new pool: {edit:.0} ms (median of {SWAPS})");
    println!("switchover promote, until drained: {promote:.0} ms (median of {SWAPS})");
    if edit > EDIT_LIMIT || promote > PROMOTE_LIMIT {
        return Err(
            format!("a swap is slow: at most {EDIT_LIMIT} ms and {PROMOTE_LIMIT} ms are expected on an idle machine").into()
        );
    }
    Ok(())
}

/// An application that responds to every request, probes included, with the name of its pool.
fn origin(colour: &'static str) -> Outcome<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{colour}", colour.len());
                let mut buffer = [0; 4096];
                while stream.read(&mut buffer)? > 0 {
                    stream.write_all(answer.as_bytes())?;
                }
                std::io::Result::Ok(())
            });
        }
    });
    Ok(address)
}

/// Sends one request; returns the body, which is the name of a pool.
fn ask(client: &mut TcpStream) -> Outcome<String> {
    client.write_all(b"GET / HTTP/1.1\r\nHost: bench.test\r\n\r\n")?;
    let (mut answer, mut buffer) = (Vec::new(), [0; 1024]);
    loop {
        let read = client.read(&mut buffer)?;
        answer.extend(buffer.iter().take(read));
        let text = String::from_utf8_lossy(&answer);
        match POOLS.iter().find(|pool| text.ends_with(*pool)) {
            Some(pool) => return Ok((*pool).to_owned()),
            None if read == 0 => return Err(format!("closed after {text:?}").into()),
            None => {}
        }
    }
}

fn status(admin: SocketAddr) -> Outcome<String> {
    Ok(ureq::get(format!("http://{admin}/v1/status")).call().and_then(|mut answer| answer.body_mut().read_to_string())?)
}

/// Repeats `is_so` until it is true. Errors count as false, such as a connection to a process that is still starting.
fn until(mut is_so: impl FnMut() -> Outcome<bool>) -> Outcome<()> {
    let began = Instant::now();
    loop {
        match is_so() {
            Ok(true) => return Ok(()),
            Ok(false) if began.elapsed() < TIMEOUT => {}
            Err(_) if began.elapsed() < TIMEOUT => thread::sleep(Duration::from_millis(10)),
            Ok(false) => return Err("timed out".into()),
            Err(e) => return Err(e),
        }
    }
}
