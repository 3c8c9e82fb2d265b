//! The demo's processes and its file: two applications, the real server, and the configuration that is edited.
//!
//! Everything ends with this value: children are killed when it is dropped, and the folder goes.

use std::{
    fmt::Write as _,
    net::{SocketAddr, TcpListener},
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
    child: Option<Child>,
}

impl Stage {
    pub(super) async fn set() -> Result<Self, String> {
        let folder =
            tempfile::Builder::new().prefix("switchover-demo-").tempdir().map_err(|e| format!("no temporary folder: {e}"))?;
        let blue = Colour::start("blue", "v1").await?;
        let green = Colour::start("green", "v2").await?;
        let (address, admin) = (free_address()?, free_address()?);
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
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| format!("cannot start switchover: {e}"))?;
        let mut stage = Self { blue, green, address, config, client: Client::new(&admin.to_string()), server, folder };
        stage
            .until("switchover serves blue", |status| {
                status.services.iter().any(|s| s.pools.iter().any(|p| p.peers.iter().any(|p| p.ready)))
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
        let mut colour = Self { name, address: SocketAddr::from(([127, 0, 0, 1], 0)), child: None };
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
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| failed(&e))?;
        let said = child.stdout.take().ok_or_else(|| failed(&"it cannot be heard"))?;
        let line = BufReader::new(said).lines().next_line().await.map_err(|e| failed(&e))?.unwrap_or_default();
        let address = line.strip_prefix("listening on ").and_then(|address| address.parse().ok());
        self.address = address.ok_or_else(|| failed(&format!("it said {line:?}")))?;
        self.child = Some(child);
        Ok(())
    }

    /// Stops it politely, or not.
    pub(super) async fn stop(&mut self, politely: bool) -> Result<(), String> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        match pid {
            Some(pid) if politely => kill(Pid::from_raw(pid), Signal::SIGTERM).map_err(|e| e.to_string())?,
            _ => child.start_kill().map_err(|e| e.to_string())?,
        }
        child.wait().await.map(drop).map_err(|e| e.to_string())
    }
}

fn itself() -> Result<Command, String> {
    std::env::current_exe().map(Command::new).map_err(|e| format!("cannot find this program: {e}"))
}

/// Free at the moment of asking; the demo says so if somebody is quicker.
fn free_address() -> Result<SocketAddr, String> {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).map_err(|e| format!("no free port: {e}"))
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
