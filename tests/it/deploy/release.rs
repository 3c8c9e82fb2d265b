//! deploy/release.sh: the tutorial's deployment in one command.

use std::{
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use switchover::status::Phase;
use tempfile::TempDir;

use super::spring::{Jar, Spring, patiently};
use crate::support::{ConfigFile, Load, Switchover, load::mixed};

/// One host with switchover, and two ports for the application.
struct Host {
    ports: [Spring; 2],
    switchover: Switchover,
    folder: TempDir,
    command_line: String,
    _config: ConfigFile,
}

impl Host {
    fn new() -> Self {
        let ports = [Spring::new("blue", Jar::Current), Spring::new("green", Jar::Current)];
        let config = ConfigFile::new(&[("blue", &[ports[0].address]), ("green", &[ports[1].address])])
            .service("    promotion: {ready_timeout: 12s}\n    health_check: {interval: 300ms}\n");
        let switchover = Switchover::start(&config);
        // The port of the admin API is not in the file.
        let command_line = format!("env SWITCHOVER_ADMIN={} {}", switchover.admin, env!("CARGO_BIN_EXE_switchover"));
        Self { ports, switchover, folder: tempfile::tempdir().unwrap(), command_line, _config: config }
    }

    fn release(&self, version: &str, settings: &[(&str, &str)]) -> Command {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        // A shell that ignores SIGINT, as one does that runs `make` in the background, passes that on, and no script can undo it.
        let mut command = Command::new("env");
        command
            .arg("--default-signal=INT")
            .arg(root.join("deploy/release.sh"))
            .arg("jar")
            .arg(Jar::Current.path())
            .env("SWITCHOVER", &self.command_line)
            .env("RELEASE_DIR", self.folder.path())
            .env("BLUE_PORT", self.ports[0].address.port().to_string())
            .env("GREEN_PORT", self.ports[1].address.port().to_string())
            .env("JAVA_OPTS", "-Xmx128m -XX:TieredStopAtLevel=1")
            .env("APP_NAME", "shop")
            .env("APP_VERSION", version)
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, version: &str, settings: &[(&str, &str)]) -> Output {
        self.release(version, settings).output().unwrap()
    }

    /// The processes of the application that run now.
    fn running(&self) -> usize {
        let output =
            Command::new("pgrep").args(["-f", "--", &format!("-jar {}", self.folder.path().display())]).output().unwrap();
        output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count()
    }

    fn until_proving(&self) {
        patiently("it is being proven", || {
            let swap = self.switchover.service().swap;
            if swap.as_ref().is_some_and(|swap| swap.phase == Phase::Proving) { Ok(()) } else { Err(swap) }
        });
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        Command::new("pkill").args(["-KILL", "-f", "--", &format!("-jar {}", self.folder.path().display())]).status().unwrap();
    }
}

fn interrupt(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
}

#[test]
#[ignore = "needs a JVM: make test-deploy"]
fn ten_releases_in_a_row_every_other_one_never_ready() {
    let host = Host::new();
    let output = host.run("v0", &[]);
    assert!(output.status.success(), "the very first one: {output:?}");
    let load = Load::start(host.switchover.address, 10, mixed);
    for release in 1..=10 {
        let version = format!("v{release}");
        let good = release % 2 == 1;
        let output = host.run(&version, &[("SHOP_READY", if good { "true" } else { "false" })]);
        let serves = host.switchover.get("/").text();
        if good {
            assert!(output.status.success(), "{output:?}");
            assert_eq!(serves, format!("shop {version}\n"));
        } else {
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(3), "{output:?}");
            assert!(stderr.contains("OUT_OF_SERVICE") && stderr.contains("left as it was"), "{stderr}");
            assert_eq!(serves, format!("shop v{}\n", release - 1));
        }
        assert_eq!(host.running(), 1, "one application is left after {version}");
    }
    load.stop().assert_no_failures();
}

#[test]
#[ignore = "needs a JVM: make test-deploy"]
fn a_release_that_ends_is_interrupted_or_is_not_alone_changes_nothing() {
    let host = Host::new();
    assert!(host.run("v0", &[]).status.success());
    let load = Load::start(host.switchover.address, 6, mixed);

    // The script does not wait until ready_timeout for a process that has ended.
    let output = host.run("v1", &[("SHOP_START_DELAY", "no duration")]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr.contains("has ended unexpectedly") && stderr.contains("left as it was"), "{stderr}");

    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let first = host.release("v2", &[("SHOP_READY", "false")]).spawn().unwrap();
        host.until_proving();
        let second = host.run("v3", &[]);
        assert!(String::from_utf8_lossy(&second.stderr).contains("another release is running"), "{second:?}");
        assert_eq!(second.status.code(), Some(1));
        interrupt(&first, signal);
        let output = first.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(128 + signal as i32), "{output:?}");
        assert_eq!((host.running(), host.switchover.get("/").text()), (1, "shop v0\n".to_owned()), "{signal}");
    }

    // Killed outright, it can do nothing more; the next one cleans up.
    let mut killed = host.release("v4", &[("SHOP_READY", "false")]).spawn().unwrap();
    host.until_proving();
    killed.kill().unwrap();
    killed.wait().unwrap();
    let output = host.run("v5", &[]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!((host.running(), host.switchover.get("/").text()), (1, "shop v5\n".to_owned()));
    load.stop().assert_no_failures();
}
