//! Starts the proxies to compare: each is a process with one worker thread, in front of the same origin.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
};

use super::{Outcome, port::Port};

/// The certificate for TLS, in the folder of the bench.
pub(super) const CERTIFICATE: &str = "bench.crt";
const KEY: &str = "bench.key";

/// A running proxy; dropping it kills the process.
pub(super) struct Proxy {
    pub name: &'static str,
    pub port: Port,
    pub tls_port: Option<Port>,
    /// Microseconds of CPU per request, one for each round of the current measurement.
    pub samples: Vec<f64>,
    /// MiB before the first request.
    pub idle: f64,
    child: Child,
}

/// Starts every proxy that is installed; first `before`, an earlier switchover, so that the others are compared with it.
pub(super) fn start(origin: SocketAddr, folder: &Path, before: Option<&Path>) -> Outcome<Vec<Proxy>> {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
    fs::write(folder.join(CERTIFICATE), made.cert.pem())?;
    fs::write(folder.join(KEY), made.signing_key.serialize_pem())?;
    fs::write(folder.join("haproxy.pem"), made.cert.pem() + &made.signing_key.serialize_pem())?;
    let mut proxies = Vec::new();
    if let Some(before) = before {
        proxies.push(switchover("before", before, origin, folder)?);
    }
    proxies.push(bare(origin)?);
    proxies.push(switchover("switchover", Path::new(env!("CARGO_BIN_EXE_switchover")), origin, folder)?);
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
    let port = Port::reserve();
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["bare", &port.address.to_string(), &origin.to_string()]);
    Proxy::start("bare Pingora", port, None, command)
}

fn switchover(name: &'static str, binary: &Path, origin: SocketAddr, folder: &Path) -> Outcome<Proxy> {
    let (port, tls_port) = (Port::reserve(), Port::reserve());
    let (address, tls) = (port.address, tls_port.address);
    let file = folder.join(name).with_extension("yaml");
    let text = format!(
        "listeners:\n  - address: {address}\n  - address: {tls}\n    tls: {{certificates: [{{certificate: {CERTIFICATE}, key: {KEY}}}]}}\n\
         admin: {{address: \"127.0.0.1:0\"}}\nthreads: 1\nservices:\n  bench:\n    active: blue\n    \
         pools: {{blue: {{peers: [\"{origin}\"]}}}}\n"
    );
    fs::write(&file, text)?;
    let mut command = Command::new(binary);
    command.args(["run", "--config"]).arg(file);
    Proxy::start(name, port, Some(tls_port), command)
}

fn nginx(origin: SocketAddr, folder: &Path) -> Outcome<Proxy> {
    let (port, tls_port) = (Port::reserve(), Port::reserve());
    let (address, tls) = (port.address, tls_port.address);
    let file = folder.join("nginx.conf");
    let at = folder.display();
    let text = format!(
        "daemon off; master_process off; worker_processes 1; pid {at}/nginx.pid; error_log {at}/nginx.log;\nevents {{ worker_connections 1024; }}\n\
         http {{ access_log off; keepalive_requests 1000000; client_body_temp_path {at}/b; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f;\n\
         uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n\
         upstream o {{ server {origin}; keepalive 128; keepalive_requests 1000000; }}\n\
         server {{ listen {address}; listen {tls} ssl; ssl_certificate {at}/{CERTIFICATE}; ssl_certificate_key {at}/{KEY}; location / {{ proxy_pass http://o; proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
         proxy_set_header Host $host; proxy_set_header X-Real-IP $remote_addr; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }} }} }}\n"
    );
    fs::write(&file, text)?;
    let mut command = Command::new("nginx");
    command.arg("-c").arg(file);
    Proxy::start("nginx", port, Some(tls_port), command)
}

fn haproxy(origin: SocketAddr, folder: &Path) -> Outcome<Proxy> {
    let (port, tls_port) = (Port::reserve(), Port::reserve());
    let (address, tls) = (port.address, tls_port.address);
    let file = folder.join("haproxy.cfg");
    let text = format!(
        "global\n  nbthread 1\ndefaults\n  mode http\n  timeout connect 2s\n  timeout client 60s\n  timeout server 60s\n  http-reuse always\n  option forwardfor\n\
         listen bench\n  bind {address}\n  bind {tls} ssl crt {}\n  server origin {origin}\n",
        folder.join("haproxy.pem").display()
    );
    fs::write(&file, text)?;
    let mut command = Command::new("haproxy");
    command.arg("-f").arg(file);
    Proxy::start("HAProxy", port, Some(tls_port), command)
}

impl Proxy {
    pub(super) fn start(name: &'static str, port: Port, tls_port: Option<Port>, mut command: Command) -> Outcome<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        Ok(Self { name, port, tls_port, samples: Vec::new(), idle: f64::NAN, child })
    }

    /// CPU time of the process so far, in microseconds. Adds up `schedstat` of its threads, which has nanoseconds;
    /// `/proc/PID/stat` has clock ticks of 10 ms, and the rounds would have to be a hundred times as long. The proxies start all
    /// their threads first.
    pub(super) fn cpu(&self) -> Outcome<f64> {
        let mut nanoseconds = 0.0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let stat = fs::read_to_string(thread?.path().join("schedstat"))?;
            nanoseconds += stat.split(' ').next().unwrap_or_default().parse::<f64>()?;
        }
        Ok(nanoseconds / 1e3)
    }

    /// Resident memory in MiB.
    pub(super) fn memory(&self) -> Outcome<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
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
