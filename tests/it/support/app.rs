//! The demo's application in a process of its own, which can be stopped and killed.
//!
//! The process runs this test program again: with `cargo test --test it` Cargo builds no other program than this one and switchover.

use std::{
    env,
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::Port;

#[path = "../../../examples/demo/app.rs"]
mod application;

/// Arguments with which this test program runs [`serves`] alone, without output of its own after "running 1 test".
const ARGS: [&str; 5] = ["support::app::serves", "--exact", "--ignored", "--nocapture", "--quiet"];
/// The environment variable with the options of [`serves`].
const OPTIONS: &str = "SWITCHOVER_TEST_APP";

#[test]
#[ignore = "the process of an application, which other tests start"]
fn serves() {
    let Ok(options) = env::var(OPTIONS) else { return };
    let [name, version, listen, ready_after, stdin] = *options.split(' ').collect::<Vec<_>>() else { panic!("{options:?}") };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let served = runtime.block_on(application::serve(application::App {
        name: name.to_owned(),
        version: version.to_owned(),
        listen: listen.parse().unwrap(),
        ready_after: humantime::parse_duration(ready_after).unwrap(),
        exit_on_stdin_close: stdin == "exit-on-stdin-close",
    }));
    served.unwrap();
    // Running requests are over; what waits for standard input is not.
    runtime.shutdown_timeout(Duration::ZERO);
}

/// The command of an application that ends when its standard input is closed.
pub fn command(name: &str, version: &str, listen: SocketAddr, ready_after: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(ARGS).env(OPTIONS, format!("{name} {version} {listen} {ready_after} exit-on-stdin-close"));
    command
}

/// The same for a shell, which replaces its own variables in the options; standard input does not matter.
pub fn shell_command(options: &str) -> String {
    format!("env {OPTIONS}=\"{options} -\" {} {}", env::current_exe().unwrap().display(), ARGS.join(" "))
}

/// One application, always at the same address.
pub struct App {
    pub name: String,
    pub address: SocketAddr,
    _port: Port,
    child: Option<Child>,
    /// Open until the application has ended: it prints its last lines there.
    output: Option<BufReader<ChildStdout>>,
}

impl App {
    /// Starts it on a free port, ready after `ready_after`.
    pub fn start(name: &str, version: &str, ready_after: &str) -> Self {
        let port = Port::reserve();
        let mut app = Self { name: name.to_owned(), address: port.address, _port: port, child: None, output: None };
        app.restart(version, ready_after);
        app
    }

    /// Starts it where it was before.
    pub fn restart(&mut self, version: &str, ready_after: &str) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let mut command = command(&self.name, version, self.address, ready_after);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let listening = format!("listening on {}", self.address);
        let heard = output.by_ref().lines().map_while(Result::ok).take(4).any(|line| line == listening);
        assert!(heard, "{} does not listen on {}", self.name, self.address);
        (self.child, self.output) = (Some(child), Some(output));
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
