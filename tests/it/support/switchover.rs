//! The real binary, with its files and its sockets.

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

use super::{Client, ConfigFile, PATIENCE, eventually};

/// A running switchover; ended with the test.
pub struct Switchover {
    pub child: Child,
    pub address: SocketAddr,
    pub admin: SocketAddr,
    config: String,
    log: Arc<Mutex<Vec<String>>>,
}

/// What a command said.
#[derive(Debug)]
pub struct Output {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// The program with these arguments.
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
    /// Starts it, and waits until it says ready.
    pub fn start(config: &ConfigFile) -> Self {
        Self::spawn(command(&["run", "--config", config.path.to_str().unwrap()]), config)
    }

    /// Starts it by a command of one's own.
    pub fn spawn(mut command: Command, config: &ConfigFile) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let kept = Arc::clone(&log);
        thread::spawn(move || lines.map_while(Result::ok).for_each(|line| kept.lock().unwrap().push(line)));
        let said = |what: &str| {
            eventually(&format!("it says {what:?}"), || {
                let log = log.lock().unwrap();
                let address = log.iter().find_map(|line| line.split_once(what)).map(|(_, address)| address.parse().unwrap());
                address.ok_or_else(|| log.clone())
            })
        };
        let (admin, address) = (said("] admin on "), said("] listening on "));
        let config = config.path.to_str().unwrap().to_owned();
        let switchover = Self { child, address, admin, config, log };
        eventually("it serves, or says why it does not", || match switchover.admin_get("/readyz") {
            (200, _) => Ok(()),
            (503, why) if why.contains("has no pool to serve") && !why.contains("not probed yet") => Ok(()),
            other => Err(other),
        });
        switchover
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    pub fn client(&self) -> Client {
        Client::connect(self.address).unwrap()
    }

    /// One request on a connection of its own.
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
        client.stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        client.send(bytes).unwrap();
        let response = client.read_response().unwrap();
        (response.status, response.text())
    }

    pub fn status(&self) -> Value {
        let (status, body) = self.admin_get("/v1/status");
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// The service `shop`.
    pub fn shop(&self) -> Value {
        self.status()["services"][0].clone()
    }

    /// A pool of the service `shop`.
    pub fn pool(&self, name: &str) -> Value {
        let shop = self.shop();
        let pool = shop["pools"].as_array().unwrap().iter().find(|pool| pool["name"] == name);
        pool.unwrap_or_else(|| panic!("no pool {name}: {shop}")).clone()
    }

    pub fn await_shop(&self, what: &str, fact: impl Fn(&Value) -> bool) -> Value {
        eventually(what, || {
            let shop = self.shop();
            if fact(&shop) { Ok(shop) } else { Err(shop) }
        })
    }

    pub fn await_active(&self, pool: &str) {
        self.await_shop(&format!("{pool} is active"), |shop| shop["active"] == pool);
    }

    pub fn await_safe_to_stop(&self, pool: &str) {
        eventually(&format!("{pool} is safe to stop"), || {
            let pool = self.pool(pool);
            if pool["safe_to_stop"] == true { Ok(()) } else { Err(pool) }
        });
    }

    pub fn await_ready(&self, pool: &str) {
        eventually(&format!("every peer of {pool} is ready"), || {
            let pool = self.pool(pool);
            if pool["peers"].as_array().unwrap().iter().all(|peer| peer["ready"] == true) { Ok(()) } else { Err(pool) }
        });
    }

    /// Runs one of the commands that talk to it.
    pub fn cli(&self, args: &[&str]) -> Output {
        let admin = self.admin.to_string();
        run(&[args, &["--config", &self.config, "--admin", &admin]].concat())
    }

    pub fn metrics(&self) -> String {
        let (status, text) = self.admin_get("/metrics");
        assert_eq!(status, 200);
        text
    }

    /// The value of a series, named with its labels as the text has them.
    pub fn metric(&self, series: &str) -> Option<f64> {
        self.metrics().lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    pub fn await_exit(&mut self) -> (ExitStatus, Duration) {
        let began = Instant::now();
        eventually("it ends", || match self.child.try_wait().unwrap() {
            Some(status) => Ok((status, began.elapsed())),
            None if began.elapsed() > PATIENCE => Err(self.log()),
            None => Err(String::new()),
        })
    }

    /// Resident memory, in MiB.
    pub fn memory(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
    }
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
