//! The demo's processes and its file: two applications, the real server, and the configuration that is edited.
//!
//! Everything ends with this value: children are killed when it is dropped, and the folder goes. They are in process groups
//! of their own, so that Ctrl-C reaches the demo alone; if the demo itself is killed, the applications notice and follow.

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
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpSocket,
    process::{Child, Command},
};

use crate::{admin::client::Client, status::Status};

/// Nothing in the demo takes longer, unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often the status is looked at.
const LOOK: Duration = Duration::from_millis(20);

pub(super) struct Stage {
    pub blue: Colour,
    pub green: Colour,
    pub address: SocketAddr,
    pub config: PathBuf,
    client: Client,
    server: Child,
    // Dropped last: the server's log is in it.
    folder: tempfile::TempDir,
}

/// One application, running or not, always at the same address.
pub(super) struct Colour {
    pub name: &'static str,
    pub address: SocketAddr,
    _port: Port,
    child: Option<Child>,
}

/// A port that stays free for the program it is meant for, also while that is not running.
struct Port {
    address: SocketAddr,
    /// Bound, never listening: connections are refused, a program with SO_REUSEADDR may listen, but the system gives the
    /// number to no outgoing connection. Elsewhere than on Linux it would be in the program's way.
    _held: Option<TcpSocket>,
}

impl Stage {
    pub(super) async fn set() -> Result<Self, String> {
        let folder =
            tempfile::Builder::new().prefix("switchover-demo-").tempdir().map_err(|e| format!("no temporary folder: {e}"))?;
        let blue = Colour::start("blue", "v1").await?;
        let green = Colour::start("green", "v2").await?;
        let (listener, admin) = (Port::reserve()?, Port::reserve()?);
        let (address, admin) = (listener.address, admin.address);
        let config = folder.path().join("switchover.yaml");
        let text = configuration(address, admin, blue.address, green.address).map_err(|e| e.to_string())?;
        std::fs::write(&config, text).map_err(|e| format!("cannot write {}: {e}", config.display()))?;
        let log = std::fs::File::create(folder.path().join("switchover.log")).map_err(|e| e.to_string())?;
        let server = itself()?
            .args(["run", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| format!("cannot start switchover: {e}"))?;
        let mut stage = Self { blue, green, address, config, client: Client::new(&admin.to_string(), None), server, folder };
        stage
            .until("switchover serves blue", |status| {
                let blue = status.services.iter().flat_map(|s| &s.pools).find(|pool| pool.name == "blue");
                blue.is_some_and(|blue| blue.peers.iter().all(|peer| peer.ready))
            })
            .await?;
        Ok(stage)
    }

    pub(super) async fn status(&self) -> Result<Status, String> {
        let client = self.client.clone();
        let status = tokio::task::spawn_blocking(move || client.status()).await.map_err(|e| e.to_string())?;
        status.map_err(|e| e.to_string())
    }

    /// Waits for a fact.
    pub(super) async fn until(&mut self, what: &str, mut fact: impl FnMut(&Status) -> bool) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status().await;
            if status.as_ref().is_ok_and(&mut fact) {
                return Ok(());
            }
            if let Ok(Some(exit)) = self.server.try_wait() {
                return Err(format!("switchover has ended, {exit}\n{}", self.log()));
            }
            if Instant::now() > deadline {
                return Err(format!("waited in vain until {what}\n{}", self.log()));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    pub(super) fn colour(&mut self, name: &str) -> &mut Colour {
        if name == self.blue.name { &mut self.blue } else { &mut self.green }
    }

    /// What the user does: one line of the file, with any editor.
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

impl Colour {
    async fn start(name: &'static str, version: &str) -> Result<Self, String> {
        let port = Port::reserve()?;
        let mut colour = Self { name, address: port.address, _port: port, child: None };
        colour.restart(version).await?;
        Ok(colour)
    }

    /// Starts it, where it was before.
    pub(super) async fn restart(&mut self, version: &str) -> Result<(), String> {
        let failed = |e: &dyn std::fmt::Display| format!("cannot start the demo's application {}: {e}", self.name);
        let mut child = itself()?
            .args([
                "demo-app",
                "--name",
                self.name,
                "--version",
                version,
                "--listen",
                &self.address.to_string(),
                "--ready-after",
                "1s",
                "--exit-on-stdin-close",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| failed(&e))?;
        let said = child.stdout.take().ok_or_else(|| failed(&"it cannot be heard"))?;
        let line = BufReader::new(said).lines().next_line().await.map_err(|e| failed(&e))?.unwrap_or_default();
        if line != format!("listening on {}", self.address) {
            return Err(failed(&format!("it said {line:?}")));
        }
        self.child = Some(child);
        Ok(())
    }

    /// Stops it politely, or not.
    pub(super) async fn stop(&mut self, politely: bool) -> Result<(), String> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        // `wait` would close it, and then the application would not end its requests.
        let _open = child.stdin.take();
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        match pid {
            Some(pid) if politely => kill(Pid::from_raw(pid), Signal::SIGTERM).map_err(|e| e.to_string())?,
            _ => child.start_kill().map_err(|e| e.to_string())?,
        }
        let exit = tokio::time::timeout(PATIENCE, child.wait()).await;
        let exit = exit.map_err(|_| format!("{} still runs {PATIENCE:?} after it was stopped", self.name))?;
        exit.map(drop).map_err(|e| e.to_string())
    }
}

fn itself() -> Result<Command, String> {
    std::env::current_exe().map(Command::new).map_err(|e| format!("cannot find this program: {e}"))
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

fn configuration(address: SocketAddr, admin: SocketAddr, blue: SocketAddr, green: SocketAddr) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    writeln!(text, "listeners:\n  - address: {address}\nadmin:\n  address: {admin}\nservices:\n  shop:")?;
    writeln!(text, "    active: blue            # edit this line, or: switchover promote green")?;
    writeln!(text, "    pools:\n      blue:\n        peers: [\"{blue}\"]\n      green:\n        peers: [\"{green}\"]")?;
    Ok(text)
}

/// The path as the user would write it.
pub(super) fn program() -> String {
    let typed = std::env::args().next().unwrap_or_else(|| "switchover".to_owned());
    if Path::new(&typed).exists() { typed } else { "switchover".to_owned() }
}
