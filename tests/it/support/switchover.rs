//! Runs the real binary, and talks to its admin API and command line.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use switchover::status::{Drift, Outcome, Phase, PoolState, PoolStatus, ServiceStatus, Status};

use super::{Client, ConfigFile, TIMEOUT, eventually};

/// A running switchover process; dropping it kills the process.
pub struct Switchover {
    pub child: Child,
    pub address: SocketAddr,
    pub admin: SocketAddr,
    config: String,
    log: Arc<Mutex<Vec<String>>>,
}

/// The outcome of a command.
#[derive(Debug)]
pub struct Output {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// switchover with these arguments, not started yet.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_switchover"));
    command.args(args).env_remove("RUST_LOG");
    command
}

/// Runs a command to its end.
pub fn run(args: &[&str]) -> Output {
    let output = command(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Output { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

impl Switchover {
    /// Starts it, and waits as [`Self::spawn_and`] does.
    pub fn start(config: &ConfigFile) -> Self {
        Self::spawn(command(&["run", "--config", config.path.to_str().unwrap()]), config)
    }

    /// Starts it with another command.
    pub fn spawn(command: Command, config: &ConfigFile) -> Self {
        Self::spawn_and(command, config, |_| {})
    }

    /// Starts it with another command, and calls `then` with its process ID at once. Waits until `/readyz` is 200, or says which
    /// service has no pool to serve.
    pub fn spawn_and(mut command: Command, config: &ConfigFile, then: impl FnOnce(Pid)) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        then(pid_of(&child));
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let kept = Arc::clone(&log);
        thread::spawn(move || lines.map_while(Result::ok).for_each(|line| kept.lock().unwrap().push(line)));
        let logged_address = |what: &str| {
            eventually(&format!("a log line with {what:?}"), || {
                let log = log.lock().unwrap();
                let address = log.iter().find_map(|line| line.split_once(what)).map(|(_, address)| address.parse().unwrap());
                address.ok_or_else(|| log.clone())
            })
        };
        let (admin, address) = (logged_address("] admin on "), logged_address("] listening on "));
        let config = config.path.to_str().unwrap().to_owned();
        let switchover = Self { child, address, admin, config, log };
        eventually("/readyz is 200 or has a reason", || match switchover.admin_get("/readyz") {
            (200, _) => Ok(()),
            (503, why) if why.contains("has no pool to serve") && !why.contains("not probed yet") => Ok(()),
            other => Err(other),
        });
        switchover
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// Waits for a text in the log. A thread of the test reads the log, so a line can be missing when a response arrives.
    pub fn await_log(&self, text: &str) {
        eventually(&format!("the log has {text:?}"), || match self.log() {
            log if log.contains(text) => Ok(()),
            log => Err(log),
        });
    }

    pub fn client(&self) -> Client {
        Client::connect(self.address).unwrap()
    }

    /// Sends one request on a new connection.
    pub fn get(&self, path: &str) -> super::Response {
        self.client().get(path).unwrap()
    }

    pub fn admin_get(&self, path: &str) -> (u16, String) {
        self.admin_request(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    }

    pub fn admin_post(&self, path: &str, body: &str) -> (u16, Value) {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let (status, body) = self.admin_request(&(head + body));
        (status, serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e}: {body}")))
    }

    pub fn admin_request(&self, bytes: &str) -> (u16, String) {
        let mut client = Client::connect(self.admin).unwrap();
        client.send(bytes).unwrap();
        let response = client.read_response().unwrap();
        (response.status, response.text())
    }

    /// The whole status.
    pub fn read_status(&self) -> Status {
        let (status, body) = self.admin_get("/v1/status");
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// The service `shop`.
    pub fn service(&self) -> ServiceStatus {
        self.service_named("shop")
    }

    pub fn service_named(&self, name: &str) -> ServiceStatus {
        let status = self.read_status();
        let service = status.services.iter().find(|service| service.name == name);
        service.unwrap_or_else(|| panic!("no service {name}: {status:?}")).clone()
    }

    /// The drift of the service `shop`.
    pub fn drift(&self) -> Option<Drift> {
        self.service().drift
    }

    /// A pool of the service `shop`.
    pub fn pool_status(&self, name: &str) -> PoolStatus {
        let service = self.service();
        let pool = service.pools.iter().find(|pool| pool.name == name);
        pool.unwrap_or_else(|| panic!("no pool {name}: {service:?}")).clone()
    }

    /// Waits for a fact about the service `shop`.
    pub fn await_service(&self, what: &str, fact: impl Fn(&ServiceStatus) -> bool) -> ServiceStatus {
        eventually(what, || {
            let service = self.service();
            if fact(&service) { Ok(service) } else { Err(service) }
        })
    }

    /// Waits for a fact about a pool of the service `shop`.
    pub fn await_pool(&self, name: &str, what: &str, fact: impl Fn(&PoolStatus) -> bool) -> PoolStatus {
        eventually(&format!("{name}: {what}"), || {
            let pool = self.pool_status(name);
            if fact(&pool) { Ok(pool) } else { Err(pool) }
        })
    }

    pub fn await_in_flight(&self, pool: &str, requests: usize) {
        self.await_pool(pool, &format!("{requests} in flight"), |pool| pool.in_flight == requests);
    }

    pub fn await_draining(&self, pool: &str) {
        self.await_pool(pool, "draining", |pool| pool.state == PoolState::Draining);
    }

    /// Waits until a swap is being proven.
    pub fn await_proving(&self) {
        self.await_service("proving", |service| service.swap.as_ref().is_some_and(|swap| swap.phase == Phase::Proving));
    }

    /// Waits until the last swap of the service `shop` has ended with `outcome`.
    pub fn await_outcome(&self, outcome: Outcome) -> ServiceStatus {
        self.await_service(&format!("{outcome:?}"), |service| {
            service.swap.as_ref().is_some_and(|swap| swap.outcome == Some(outcome))
        })
    }

    /// Requests that were rejected for this reason so far.
    pub fn rejected(&self, reason: &str) -> f64 {
        let series = format!("switchover_rejected_requests_total{{listener=\"127.0.0.1:0\",reason=\"{reason}\"}}");
        self.metric(&series).unwrap_or_else(|| panic!("no {series}"))
    }

    /// Waits until exactly `times` requests were rejected for this reason.
    pub fn await_rejected(&self, reason: &str, times: usize) {
        eventually(&format!("{times} rejected for {reason}"), || match self.rejected(reason) {
            seen if seen == times as f64 => Ok(()),
            seen => Err(seen),
        });
    }

    pub fn await_active(&self, pool: &str) {
        self.await_service(&format!("{pool} is active"), |service| service.active == pool);
    }

    pub fn await_safe_to_stop(&self, pool: &str) {
        self.await_pool(pool, "safe to stop", |pool| pool.safe_to_stop);
    }

    pub fn await_ready(&self, pool: &str) {
        self.await_pool(pool, "every peer is ready", |pool| pool.peers.iter().all(|peer| peer.ready));
    }

    /// Runs a command that connects to its admin API.
    pub fn cli(&self, args: &[&str]) -> Output {
        let admin = self.admin.to_string();
        run(&[args, &["--config", &self.config, "--admin", &admin]].concat())
    }

    pub fn metrics(&self) -> String {
        let (status, text) = self.admin_get("/metrics");
        assert_eq!(status, 200);
        text
    }

    /// The value of a series. `series` has the labels in the order of the Prometheus text.
    pub fn metric(&self, series: &str) -> Option<f64> {
        self.metrics().lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
    }

    pub fn pid(&self) -> Pid {
        pid_of(&self.child)
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    pub fn await_exit(&mut self) -> (ExitStatus, Duration) {
        let began = Instant::now();
        eventually("it ends", || match self.child.try_wait().unwrap() {
            Some(status) => Ok((status, began.elapsed())),
            None if began.elapsed() > TIMEOUT => Err(self.log()),
            None => Err(String::new()),
        })
    }

    /// Resident memory in MiB, without the pages of the program's file: how many of these stay in memory is up to the kernel.
    pub fn memory(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
    }

    /// Processor time of the process in clock ticks, of which Linux counts 100 a second (proc_pid_stat(5), utime and stime).
    pub fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // The name in parentheses may have spaces; utime is the 12th field after it.
        let (_, fields) = stat.rsplit_once(')').unwrap();
        fields.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
    }
}

/// The process ID of a child.
pub fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().try_into().unwrap())
}

impl Drop for Switchover {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if thread::panicking() {
            eprintln!("--- log of switchover\n{}\n---", self.log());
        }
    }
}
