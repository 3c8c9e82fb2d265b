//! The proxies that are compared: each a process with one worker, in front of the same origin.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
};

use super::Outcome;

/// A running proxy; killed with this value.
pub(super) struct Proxy {
    pub name: &'static str,
    pub address: SocketAddr,
    pub samples: Vec<f64>,
    /// MiB before and after each round.
    pub memory: Vec<(f64, f64)>,
    child: Child,
}

/// Starts what there is.
pub(super) fn start(origin: SocketAddr, folder: &Path) -> Outcome<Vec<Proxy>> {
    let mut proxies = vec![bare(origin)?, switchover(origin, folder)?];
    for (name, start) in [("nginx", nginx as fn(SocketAddr, &Path) -> Outcome<Proxy>), ("haproxy", haproxy)] {
        if is_installed(name) {
            proxies.push(start(origin, folder)?);
        } else {
            println!("{name} is not installed, and not compared");
        }
    }
    Ok(proxies)
}

fn bare(origin: SocketAddr) -> Outcome<Proxy> {
    let address = free_address()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["bare", &address.to_string(), &origin.to_string()]);
    Proxy::start("bare Pingora", address, command)
}

fn switchover(origin: SocketAddr, folder: &Path) -> Outcome<Proxy> {
    let (address, admin) = (free_address()?, free_address()?);
    let file = folder.join("switchover.yaml");
    let text = format!(
        "listeners: [{{address: \"{address}\"}}]\nadmin: {{address: \"{admin}\"}}\nthreads: 1\nservices:\n  bench:\n    active: blue\n    \
         pools: {{blue: {{peers: [\"{origin}\"]}}}}\n"
    );
    fs::write(&file, text)?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_switchover"));
    command.args(["run", "--config"]).arg(file);
    Proxy::start("switchover", address, command)
}

fn nginx(origin: SocketAddr, folder: &Path) -> Outcome<Proxy> {
    let address = free_address()?;
    let file = folder.join("nginx.conf");
    let at = folder.display();
    let text = format!(
        "daemon off; master_process off; worker_processes 1; pid {at}/nginx.pid; error_log {at}/nginx.log;\nevents {{ worker_connections 1024; }}\n\
         http {{ access_log off; keepalive_requests 1000000; client_body_temp_path {at}/b; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f;\n\
         uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n\
         upstream o {{ server {origin}; keepalive 128; keepalive_requests 1000000; }}\n\
         server {{ listen {address}; location / {{ proxy_pass http://o; proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
         proxy_set_header Host $host; proxy_set_header X-Real-IP $remote_addr; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }} }} }}\n"
    );
    fs::write(&file, text)?;
    let mut command = Command::new("nginx");
    command.arg("-c").arg(file);
    Proxy::start("nginx", address, command)
}

fn haproxy(origin: SocketAddr, folder: &Path) -> Outcome<Proxy> {
    let address = free_address()?;
    let file = folder.join("haproxy.cfg");
    let text = format!(
        "global\n  nbthread 1\ndefaults\n  mode http\n  timeout connect 2s\n  timeout client 60s\n  timeout server 60s\n  http-reuse always\n  option forwardfor\n\
         listen bench\n  bind {address}\n  server origin {origin}\n"
    );
    fs::write(&file, text)?;
    let mut command = Command::new("haproxy");
    command.arg("-f").arg(file);
    Proxy::start("HAProxy", address, command)
}

impl Proxy {
    fn start(name: &'static str, address: SocketAddr, mut command: Command) -> Outcome<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        Ok(Self { name, address, samples: Vec::new(), memory: Vec::new(), child })
    }

    /// User and system time so far.
    pub(super) fn cpu_seconds(&self) -> Outcome<f64> {
        /// `USER_HZ`, which is 100 on every Linux there is.
        const TICKS: f64 = 100.0;
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The name may hold spaces; what follows its bracket does not.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).ok_or("no such field");
        Ok((ticks(11)? + ticks(12)?) / TICKS)
    }

    /// Resident memory in MiB.
    pub(super) fn memory(&self) -> Outcome<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
    }

    pub(super) fn median(&self) -> f64 {
        let mut samples = self.samples.clone();
        samples.sort_by(f64::total_cmp);
        samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.child.kill().unwrap_or_default();
        self.child.wait().map(drop).unwrap_or_default();
    }
}

fn is_installed(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/usr/sbin".into()]).any(|folder| folder.join(name).is_file())
}

fn free_address() -> std::io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}
