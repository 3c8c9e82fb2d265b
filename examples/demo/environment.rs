//! The environment of the demo: two applications, the real server, and the configuration file.
//!
//! Dropping it kills the child processes and removes the temporary folder. The children have their own process groups, so that
//! only the demo gets Ctrl-C. If the demo is killed, the applications end because their standard input is closed.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use switchover::{admin::client::Client, status::Status};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpSocket,
    process::{Child, Command},
};

/// Time limit of each step of the demo.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How often the status is read.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

pub(super) struct Environment {
    pub blue: Application,
    pub green: Application,
    pub address: SocketAddr,
    pub config: PathBuf,
    client: Client,
    server: Child,
    // Dropped last: it holds the log of the server.
    folder: tempfile::TempDir,
}

/// One application, running or stopped, always at the same address.
pub(super) struct Application {
    pub name: &'static str,
    pub address: SocketAddr,
    _port: Port,
    child: Option<Child>,
}

/// A port that stays reserved for one program, even while the program does not run.
struct Port {
    address: SocketAddr,
    /// A socket that is bound and never listens. Connections are refused, a program with SO_REUSEADDR can listen, and the kernel
    /// assigns the port to no outgoing connection. Only on Linux: on other systems it would prevent the program from listening.
    _held: Option<TcpSocket>,
}

impl Environment {
    /// Starts everything; `observe` is how long a new pool is observed.
    pub(super) async fn set(observe: &str) -> Result<Self, String> {
        let folder =
            tempfile::Builder::new().prefix("switchover-demo-").tempdir().map_err(|e| format!("no temporary folder: {e}"))?;
        let blue = Application::start("blue", "v1").await?;
        let green = Application::start("green", "v2").await?;
        let (listener, admin) = (Port::reserve()?, Port::reserve()?);
        let (address, admin) = (listener.address, admin.address);
        let config = folder.path().join("switchover.yaml");
        let text = configuration(address, admin, observe, blue.address, green.address).map_err(|e| e.to_string())?;
        std::fs::write(&config, text).map_err(|e| format!("cannot write {}: {e}", config.display()))?;
        let log = std::fs::File::create(folder.path().join("switchover.log")).map_err(|e| e.to_string())?;
        let server = Command::new(server()?)
            .args(["run", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| format!("cannot start switchover: {e}"))?;
        let mut environment =
            Self { blue, green, address, config, client: Client::new(&admin.to_string(), None), server, folder };
        environment
            .until("switchover serves blue", |status| {
                let blue = status.services.iter().flat_map(|s| &s.pools).find(|pool| pool.name == "blue");
                blue.is_some_and(|blue| blue.peers.iter().all(|peer| peer.ready))
            })
            .await?;
        Ok(environment)
    }

    pub(super) async fn status(&self) -> Result<Status, String> {
        let client = self.client.clone();
        let status = tokio::task::spawn_blocking(move || client.status()).await.map_err(|e| e.to_string())?;
        status.map_err(|e| e.to_string())
    }

    /// Polls the status until `fact` holds; `what` names it in the error.
    pub(super) async fn until(&mut self, what: &str, mut fact: impl FnMut(&Status) -> bool) -> Result<(), String> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let status = self.status().await;
            if status.as_ref().is_ok_and(&mut fact) {
                return Ok(());
            }
            if let Ok(Some(exit)) = self.server.try_wait() {
                return Err(format!("switchover ended with {exit}\n{}", self.log()));
            }
            if Instant::now() > deadline {
                return Err(format!("timed out waiting until {what}\n{}", self.log()));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    pub(super) fn application(&mut self, name: &str) -> &mut Application {
        if name == self.blue.name { &mut self.blue } else { &mut self.green }
    }

    /// Edits the `active` line of the file, as a user does with any editor.
    pub(super) fn edit(&self, from: &str, to: &str) -> Result<(), String> {
        let edit = || -> std::io::Result<()> {
            let text = std::fs::read_to_string(&self.config)?.replace(&format!("active: {from}"), &format!("active: {to}"));
            let new = self.config.with_extension("new");
            std::fs::write(&new, text)?;
            std::fs::rename(new, &self.config)
        };
        edit().map_err(|e| format!("cannot edit {}: {e}", self.config.display()))
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("switchover.log")).unwrap_or_default()
    }
}

impl Application {
    async fn start(name: &'static str, version: &str) -> Result<Self, String> {
        let port = Port::reserve()?;
        let mut application = Self { name, address: port.address, _port: port, child: None };
        application.restart(version).await?;
        Ok(application)
    }

    /// Starts the application at its address.
    pub(super) async fn restart(&mut self, version: &str) -> Result<(), String> {
        let failed = |e: &dyn std::fmt::Display| format!("cannot start the demo's application {}: {e}", self.name);
        let mut child = Command::new(itself()?)
            .args(["app", "--name", self.name, "--version", version])
            .args(["--listen", &self.address.to_string(), "--ready-after", "1s"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| failed(&e))?;
        let stdout = child.stdout.take().ok_or_else(|| failed(&"its standard output cannot be read"))?;
        let line = BufReader::new(stdout).lines().next_line().await.map_err(|e| failed(&e))?.unwrap_or_default();
        if line != format!("listening on {}", self.address) {
            return Err(failed(&format!("its first line was {line:?}")));
        }
        self.child = Some(child);
        Ok(())
    }

    /// Stops the application: with SIGTERM if `politely`, else with SIGKILL.
    pub(super) async fn stop(&mut self, politely: bool) -> Result<(), String> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        // Take standard input out: `wait` would close it, and the application would end without finishing its requests.
        let _open = child.stdin.take();
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        match pid {
            Some(pid) if politely => kill(Pid::from_raw(pid), Signal::SIGTERM).map_err(|e| e.to_string())?,
            _ => child.start_kill().map_err(|e| e.to_string())?,
        }
        let exit = tokio::time::timeout(TIMEOUT, child.wait()).await;
        let exit = exit.map_err(|_| format!("{} still runs {TIMEOUT:?} after it was stopped", self.name))?;
        exit.map(drop).map_err(|e| e.to_string())
    }
}

fn itself() -> Result<PathBuf, String> {
    std::env::current_exe().map_err(|e| format!("cannot find this program: {e}"))
}

/// The server that the same build made: `target/debug/switchover`, beside `target/debug/examples`.
fn server() -> Result<PathBuf, String> {
    let demo = itself()?;
    let server = demo.parent().and_then(Path::parent).unwrap_or(Path::new("")).join("switchover");
    if server.is_file() { Ok(server) } else { Err(format!("{} is missing; run: make demo", server.display())) }
}

impl Port {
    fn reserve() -> Result<Self, String> {
        let reserve = || -> std::io::Result<Self> {
            let socket = TcpSocket::new_v4()?;
            socket.set_reuseaddr(true)?;
            socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
            Ok(Self { address: socket.local_addr()?, _held: cfg!(target_os = "linux").then_some(socket) })
        };
        reserve().map_err(|e| format!("no free port: {e}"))
    }
}

fn configuration(
    address: SocketAddr,
    admin: SocketAddr,
    observe: &str,
    blue: SocketAddr,
    green: SocketAddr,
) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    writeln!(text, "listeners:\n  - address: {address}\nadmin:\n  address: {admin}\nservices:\n  shop:")?;
    writeln!(text, "    active: blue            # edit this line, or: switchover promote green")?;
    writeln!(text, "    promotion: {{observe: {observe}}}")?;
    writeln!(text, "    pools:\n      blue:\n        peers: [\"{blue}\"]\n      green:\n        peers: [\"{green}\"]")?;
    Ok(text)
}

/// The command that starts switchover in the folder in which the demo was started.
pub(super) fn program() -> Result<String, String> {
    let server = server()?;
    let here = std::env::current_dir().unwrap_or_default();
    Ok(server.strip_prefix(here).unwrap_or(&server).display().to_string())
}
