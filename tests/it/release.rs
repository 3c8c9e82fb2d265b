//! deploy/release.sh on one host, with the demo's application in the place of a JVM: a jar is a file that holds its version.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    deploy::spring::{Jar, Spring},
    support::{ConfigFile, Edit, Load, Origin, Switchover, app, eventually, install, load::mixed},
};

const BINARY: &str = env!("CARGO_BIN_EXE_switchover");
const SERVICE: &str = "    promotion: {ready_timeout: 60s}\n    health_check: {interval: 100ms}\n    timeouts: {idle: 1s}\n";

struct Host {
    ports: [Spring; 2],
    config: ConfigFile,
    switchover: Switchover,
}

impl Host {
    fn new() -> Self {
        Self::with(SERVICE)
    }

    fn with(service: &str) -> Self {
        let ports = [Spring::new("blue", Jar::Current), Spring::new("green", Jar::Current)];
        let config = ConfigFile::new(&[("blue", &[ports[0].address]), ("green", &[ports[1].address])]).service(service);
        let switchover = Switchover::start(&config);
        let host = Self { ports, config, switchover };
        let app = app::shell_command("shop $(cat \"$jar\") 127.0.0.1:$SERVER_PORT ${READY_AFTER:-0s}");
        host.java(&format!("exec {app}"));
        host
    }

    /// What `java -jar JAR` does.
    fn java(&self, does: &str) {
        let script = format!("#!/bin/sh\nwhile [ \"$1\" != -jar ]; do shift; done\njar=$2\n{does}\n");
        write_program(&self.config.folder().join("java"), &script);
    }

    fn jar(&self, version: &str) -> PathBuf {
        let jar = self.config.folder().join(format!("shop-{version}.jar"));
        fs::write(&jar, version).unwrap();
        jar
    }

    fn script(&self, args: &[&str]) -> Command {
        let mut command = Command::new("bash");
        command.arg(script()).args(args);
        self.settings(&mut command);
        command
    }

    fn settings(&self, command: &mut Command) {
        command
            .env("SWITCHOVER", BINARY)
            .env("SWITCHOVER_ADMIN", self.switchover.admin.to_string())
            .env("RELEASE_DIR", self.releases())
            .env("JAVA", self.config.folder().join("java"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
    }

    fn releases(&self) -> PathBuf {
        self.config.folder().join("release")
    }

    fn release(&self, version: &str, settings: &[(&str, &str)]) -> Output {
        let jar = self.jar(version);
        self.script(&["jar", jar.to_str().unwrap()]).envs(settings.iter().copied()).output().unwrap()
    }

    fn assert_serves(&self, version: &str) {
        assert_eq!(self.switchover.get("/").text(), format!("shop {version}\n"));
    }

    /// The process that the script has recorded for a colour, if it runs.
    fn pid(&self, colour: &str) -> Option<Pid> {
        let text = fs::read_to_string(self.releases().join(format!("{colour}.pid"))).ok()?;
        let pid = Pid::from_raw(text.split(' ').next()?.parse().ok()?);
        kill(pid, None).is_ok().then_some(pid)
    }

    /// An application that was started by hand, on the port of a colour.
    fn by_hand(&self, port: usize, version: &str) -> Child {
        let address = self.ports[port].address;
        // It ends with the test, however that ends: its standard input is then closed.
        let child = app::command("shop", version, address, "0s").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        eventually("it listens", || std::net::TcpStream::connect(address));
        child
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for pid in ["blue", "green"].into_iter().filter_map(|colour| self.pid(colour)) {
            kill(pid, Signal::SIGKILL).unwrap_or_default();
        }
    }
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/release.sh")
}

fn write_program(path: &Path, text: &str) {
    let written = path.with_extension("new");
    fs::write(&written, text).unwrap();
    fs::set_permissions(&written, fs::Permissions::from_mode(0o755)).unwrap();
    install(&written, path);
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_first_application_started_by_hand_three_releases_and_a_reboot() {
    let host = Host::new();
    let mut by_hand = host.by_hand(0, "1.0.0");
    host.switchover.await_ready("blue");
    host.assert_serves("1.0.0");

    let refused = host.release("2.0.0", &[]);
    let said =
        format!("port {} (blue) is held by pid {}, which this script did not start", host.ports[0].address.port(), by_hand.id());
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(stderr(&refused).contains(&said) && stderr(&refused).contains("ADOPT=1"), "{refused:?}");
    host.assert_serves("1.0.0");

    let load = Load::start(host.switchover.address, 4, mixed);
    for (version, colour, settings) in
        [("2.0.0", "green", &[("ADOPT", "1")][..]), ("3.0.0", "blue", &[]), ("4.0.0-rc.1", "green", &[])]
    {
        let output = host.release(version, settings);
        assert!(output.status.success() && stderr(&output).is_empty(), "{output:?}");
        host.assert_serves(version);
        assert_eq!(host.switchover.service().active, colour);
        assert_eq!(host.switchover.pool_status(colour).version.as_deref(), Some(version));
        let other = if colour == "green" { "blue" } else { "green" };
        assert_eq!(host.pid(other), None, "{other} is stopped");
    }
    assert!(by_hand.try_wait().unwrap().is_some(), "the adopted process was stopped when its colour was replaced");
    load.stop().assert_no_failures();

    // After a reboot only what the script starts again runs.
    kill(host.pid("green").unwrap(), Signal::SIGKILL).unwrap();
    eventually("it is gone", || host.pid("green").map_or(Ok(()), Err));
    let started = host.script(&["start"]).output().unwrap();
    assert!(started.status.success() && stderr(&started).is_empty(), "{started:?}");
    eventually("it serves", || match host.switchover.get("/").text() {
        text if text == "shop 4.0.0-rc.1\n" => Ok(()),
        text => Err(text),
    });
    let again = host.script(&["start"]).output().unwrap();
    assert!(String::from_utf8_lossy(&again.stdout).contains("green already runs"), "{again:?}");
}

#[test]
fn a_start_after_a_reboot_starts_the_pool_that_served_last() {
    let mut host = Host::new();
    let state = host.config.folder().join("state");
    fs::create_dir(&state).unwrap();
    let text = fs::read_to_string(&host.config.path).unwrap();
    host.config.replace_by_rename(&text.replace("services:", "state_dir: state\nservices:"));
    host.switchover = Switchover::start(&host.config);
    assert!(host.release("1.0.0", &[]).status.success());
    assert_eq!(host.switchover.service().active, "green");
    eventually("green is recorded", || match fs::read_to_string(state.join("served-last")) {
        Ok(text) if text == "shop green\n" => Ok(()),
        other => Err(other.ok()),
    });
    // An edit names blue, which never was ready; then the machine is started again.
    host.config.set_active("blue", Edit::Rename);
    kill(host.pid("green").unwrap(), Signal::SIGKILL).unwrap();
    eventually("it is gone", || host.pid("green").map_or(Ok(()), Err));
    host.switchover = Switchover::start(&host.config);
    let started = host.script(&["start"]).output().unwrap();
    assert!(String::from_utf8_lossy(&started.stdout).contains("starting green"), "{started:?}");
    assert!(started.status.success() && stderr(&started).is_empty(), "{started:?}");
    host.switchover.await_active("green");
    host.assert_serves("1.0.0");
}

#[test]
fn a_port_that_another_process_holds_is_refused_and_the_process_named() {
    let host = Host::new();
    assert!(host.release("1.0.0", &[]).status.success());
    let before = host.switchover.service().active;
    let idle = usize::from(before == "blue");
    let mut foreign = host.by_hand(idle, "0.9.0");
    let output = host.release("2.0.0", &[]);
    foreign.kill().unwrap();
    foreign.wait().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said =
        format!("is held by pid {}, which this script did not start ({}", foreign.id(), env::current_exe().unwrap().display());
    assert!(stderr(&output).contains(&said), "{said}: {output:?}");
    assert_eq!(host.switchover.service().active, before);
    host.assert_serves("1.0.0");
}

/// Another process responds to the probes, not the one that the script started.
#[test]
fn a_release_that_does_not_hold_its_port_is_taken_back() {
    let host = Host::new();
    assert!(host.release("1.0.0", &[]).status.success());
    let before = host.switchover.service().active;
    let stray = host.config.folder().join("stray");
    host.java(&format!(
        "(setsid {} & echo $! >{})\nexec sleep 600",
        app::shell_command("shop 0.9.0 127.0.0.1:$SERVER_PORT 0s"),
        stray.display()
    ));
    let output = host.release("2.0.0", &[]);
    let stray: i32 = fs::read_to_string(stray).unwrap().trim().parse().unwrap();
    kill(Pid::from_raw(stray), Signal::SIGKILL).unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("the started process does not listen on its port"), "{output:?}");
    assert_eq!(host.switchover.service().active, before);
    host.assert_serves("1.0.0");
}

#[test]
fn a_release_that_is_taken_back_is_stopped_and_the_old_one_is_not() {
    let host = Host::with(&SERVICE.replace("promotion: {", "promotion: {observe: 1h, "));
    assert!(host.release("1.0.0", &[]).status.success(), "no pool served before, so it is not observed");
    let jar = host.jar("2.0.0");
    let release = host.script(&["jar", jar.to_str().unwrap()]).env("STOP_AFTER", "1").spawn().unwrap();
    host.switchover.await_active("blue");
    host.assert_serves("2.0.0");
    // Its probes time out. SIGTERM does not end it either.
    kill(host.pid("blue").unwrap(), Signal::SIGSTOP).unwrap();
    let output = release.wait_with_output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(said.contains("blue was taken back, green serves again: no peer is ready"), "{said}");
    assert!(said.contains("stopping blue") && said.contains("left as it was: green is active"), "{said}");
    assert!(host.pid("blue").is_none() && host.pid("green").is_some());
    host.assert_serves("1.0.0");
    assert_eq!(host.switchover.drift(), None);
}

#[test]
fn it_can_be_interrupted_where_the_shell_ignores_sigint() {
    let host = Host::new();
    assert!(host.release("1.0.0", &[]).status.success());
    let jar = host.jar("2.0.0");
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut shell = Command::new("sh");
        shell.args(["-c", "trap '' INT; exec \"$@\"", "sh", "bash", script().to_str().unwrap(), "jar", jar.to_str().unwrap()]);
        host.settings(&mut shell);
        let release = shell.env("READY_AFTER", "1h").spawn().unwrap();
        host.switchover.await_proving();
        kill(Pid::from_raw(release.id().try_into().unwrap()), signal).unwrap();
        let output = release.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(128 + signal as i32), "{output:?}");
        assert!(stderr(&output).contains("left as it was: green is active"), "{output:?}");
        assert_eq!((host.pid("blue"), host.switchover.service().active.as_str()), (None, "green"));
        host.assert_serves("1.0.0");
    }
}

/// `docker compose` is stood in for by a script; the containers of both colours always answer.
#[test]
fn the_mode_of_the_compose_environment_file_stays() {
    let (blue, green) = (Origin::start("blue"), Origin::start("green"));
    let config = ConfigFile::new(&[("blue", &[blue.address()]), ("green", &[green.address()])])
        .service("    promotion: {ready_timeout: 1s}\n    health_check: {interval: 100ms}\n");
    let switchover = Switchover::start(&config);
    let there = config.folder();
    write_program(
        &there.join("compose"),
        &format!(
            "#!/bin/sh\nfor last; do :; done\ncase \"$1\" in\nexec)\n  shift 2\n  [ \"$1\" != switchover ] || {{ shift 2; exec {BINARY} \"$@\"; }}\n  \
             [ -e \"running-$1\" ] ;;\nup) touch \"running-$last\" ;;\nstop) rm -f \"running-$last\" ;;\nesac\n"
        ),
    );
    let env = there.join(".env");
    fs::write(&env, "SECRET=x\nGREEN_VERSION=0.1.0\n").unwrap();
    fs::set_permissions(&env, fs::Permissions::from_mode(0o600)).unwrap();
    let release = |version: &str| {
        let mut command = Command::new("bash");
        command.arg(script()).args(["compose", version]).current_dir(there);
        command.env("COMPOSE", there.join("compose")).env("SWITCHOVER_ADMIN", switchover.admin.to_string());
        command.output().unwrap()
    };
    let now = || (fs::read_to_string(&env).unwrap(), fs::metadata(&env).unwrap().permissions().mode() & 0o7777);
    let output = release("2.0.0");
    assert!(output.status.success() && stderr(&output).is_empty(), "{output:?}");
    assert_eq!(now(), ("SECRET=x\nGREEN_VERSION=2.0.0\n".to_owned(), 0o600));
    assert_eq!(switchover.pool_status("green").version.as_deref(), Some("2.0.0"));
    blue.readiness(503, "down");
    let output = release("3.0.0");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert_eq!(now(), ("SECRET=x\nGREEN_VERSION=2.0.0\n".to_owned(), 0o600), "as it was");
}

#[test]
fn its_help_is_no_error_and_a_wrong_call_is() {
    let run = |args: &[&str]| Command::new("bash").arg(script()).args(args).output().unwrap();
    let help = run(&["--help"]);
    assert!(help.status.success() && help.stderr.is_empty(), "{help:?}");
    assert!(String::from_utf8_lossy(&help.stdout).contains("ADOPT=1"), "{help:?}");
    for args in [&[][..], &["jar"], &["walk", "x"]] {
        assert_eq!(run(args).status.code(), Some(2), "{args:?}");
    }
}
