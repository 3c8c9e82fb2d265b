//! An application in a process of its own, which can be stopped and killed: the demo's.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::Port;

/// One application, always at the same address.
pub struct App {
    pub name: String,
    pub address: SocketAddr,
    _port: Port,
    child: Option<Child>,
}

impl App {
    /// Starts it on a free port, ready after `ready_after`.
    pub fn start(name: &str, version: &str, ready_after: &str) -> Self {
        let port = Port::reserve();
        let mut app = Self { name: name.to_owned(), address: port.address, _port: port, child: None };
        app.restart(version, ready_after);
        app
    }

    /// Starts it where it was before.
    pub fn restart(&mut self, version: &str, ready_after: &str) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let mut child = Command::new(env!("CARGO_BIN_EXE_switchover"))
            .args(["demo-app", "--name", &self.name, "--version", version, "--ready-after", ready_after])
            .args(["--listen", &self.address.to_string(), "--exit-on-stdin-close"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, format!("listening on {}\n", self.address));
        self.child = Some(child);
    }

    /// Stops it, with SIGTERM or with SIGKILL.
    pub fn stop(&mut self, politely: bool) {
        let mut child = self.child.take().unwrap();
        // `wait` would close it, and then the application would not end its requests.
        let _open = child.stdin.take();
        if politely {
            kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        } else {
            child.kill().unwrap();
        }
        child.wait().unwrap();
    }
}

impl Drop for App {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}
