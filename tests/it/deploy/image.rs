//! The real image, built from the Dockerfile, in front of two Spring Boot containers on a network with names.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use tempfile::TempDir;

use super::spring::patiently;
use crate::support::{Client, Load, load::mixed};

const IMAGE: &str = "switchover:0.1.0";
const APPLICATION: &str = "switchover-spring-boot:1.0.0";
const CONFIG: &str = "listeners: [{address: \"0.0.0.0:8080\"}]
services:
  shop:
    active: blue
    promotion: {ready_timeout: 60s, observe: 0s}
    health_check: {interval: 500ms}
    pools:
      blue: {peers: [\"app-blue:8080\"]}
      green: {peers: [\"app-green:8080\"]}
";

/// A network with its containers, all of which end with it.
struct Site {
    name: String,
    folder: TempDir,
}

impl Site {
    fn new(what: &str) -> Self {
        let site = Self { name: format!("switchover-{what}-{}", std::process::id()), folder: tempfile::tempdir().unwrap() };
        // The user of the container does not exist on this machine.
        fs::set_permissions(site.folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        site.write(CONFIG);
        podman(&["network", "create", &site.name]);
        site
    }

    fn file(&self) -> std::path::PathBuf {
        self.folder.path().join("switchover.yaml")
    }

    fn write(&self, text: &str) {
        fs::write(self.file(), text).unwrap();
        fs::set_permissions(self.file(), fs::Permissions::from_mode(0o666)).unwrap();
    }

    fn container(&self, what: &str) -> String {
        format!("{}-{what}", self.name)
    }

    fn application(&self, colour: &str, version: &str) {
        let name = self.container(colour);
        let alias = format!("app-{colour}");
        podman(
            &[
                &["run", "-d", "--name", &name, "--network", &self.name, "--network-alias", &alias][..],
                &["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--memory", "512m"],
                &["-e", &format!("APP_NAME={colour}"), "-e", &format!("APP_VERSION={version}")],
                &["-e", "JAVA_TOOL_OPTIONS=-Xmx128m -XX:TieredStopAtLevel=1", APPLICATION],
            ]
            .concat(),
        );
    }

    /// As little may be done as can be: no root, nothing to write but what is mounted, no capability.
    fn switchover(&self, mount: &str) -> SocketAddr {
        let name = self.container("switchover");
        podman(
            &[
                &["run", "-d", "--name", &name, "--network", &self.name, "--read-only", "--cap-drop", "ALL"][..],
                &["--security-opt", "no-new-privileges", "-v", mount, "-p", "127.0.0.1::8080", IMAGE],
            ]
            .concat(),
        );
        podman(&["port", &name, "8080/tcp"]).trim().parse().unwrap()
    }

    fn exec(&self, args: &[&str]) -> Output {
        engine().args(["exec", &self.container("switchover"), "switchover"]).args(args).output().unwrap()
    }

    fn await_healthy(&self) {
        patiently("healthy", || {
            let output = self.exec(&["health"]);
            if output.status.success() { Ok(()) } else { Err(output) }
        });
        podman(&["healthcheck", "run", &self.container("switchover")]);
    }

    fn await_status(&self, what: &str, fact: impl Fn(&serde_json::Value) -> bool) {
        patiently(what, || {
            let output = self.exec(&["status", "--json"]);
            match serde_json::from_slice::<serde_json::Value>(&output.stdout) {
                Ok(status) if fact(&status["services"][0]) => Ok(()),
                _ => Err(format!("{output:?}")),
            }
        });
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let all = ["blue", "green", "switchover"].map(|what| self.container(what));
        for container in &all {
            if std::thread::panicking() {
                let logs = engine().args(["logs", "--tail", "30", container]).output();
                println!("--- {container}: {logs:?}");
            }
            engine().args(["rm", "-f", "-t", "0", container]).output().map(drop).unwrap_or_default();
        }
        engine().args(["network", "rm", "-f", &self.name]).output().map(drop).unwrap_or_default();
    }
}

/// Set up as tests/deploy/images has it.
fn engine() -> Command {
    let mut podman = Command::new("podman");
    podman.env("CONTAINERS_CONF", Path::new(env!("CARGO_MANIFEST_DIR")).join("target/deploy/containers.conf"));
    podman
}

fn podman(args: &[&str]) -> String {
    let output = engine().args(args).output().unwrap();
    assert!(output.status.success(), "podman {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn get(address: SocketAddr) -> Result<String, String> {
    let response = Client::connect(address).and_then(|mut client| client.get("/")).map_err(|e| e.to_string())?;
    if response.status == 200 { Ok(response.text()) } else { Err(format!("{} {}", response.status, response.text())) }
}

fn answers(address: SocketAddr, text: &str) {
    patiently(text, || match get(address) {
        Ok(answer) if answer == text => Ok(()),
        other => Err(other),
    });
}

#[test]
#[ignore = "needs podman and the images: make test-deploy"]
fn swaps_of_containers_by_folder_by_promote_and_with_a_new_address() {
    let site = Site::new("folder");
    site.application("blue", "v1");
    site.application("green", "v2");
    let address = site.switchover(&format!("{}:/etc/switchover", site.folder.path().display()));
    site.await_healthy();
    answers(address, "blue v1\n");
    let load = Load::start(address, 8, mixed);

    // By editing the file in the mounted folder.
    site.write(&CONFIG.replace("active: blue", "active: green"));
    answers(address, "green v2\n");
    site.await_status("blue is safe to stop", |shop| shop["pools"][0]["safe_to_stop"] == true);

    // A recreated container has a new address, which is found without a word.
    let address_of = |container: &str| {
        podman(&["inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", container]).trim().to_owned()
    };
    let before = address_of(&site.container("blue"));
    podman(&["rm", "-f", "-t", "40", &site.container("blue")]);
    // Takes the old address, so that the new container cannot have it.
    let squatter = site.container("squatter");
    podman(&["run", "-d", "--name", &squatter, "--network", &site.name, "--ip", &before, "--entrypoint", "sleep", IMAGE, "300"]);
    site.application("blue", "v3");
    assert_ne!(address_of(&site.container("blue")), before);
    let output = site.exec(&["promote", "blue", "--wait", "drained"]);
    assert!(output.status.success(), "{output:?}");
    podman(&["rm", "-f", "-t", "0", &squatter]);
    assert_eq!(get(address).unwrap(), "blue v3\n");
    assert!(fs::read_to_string(site.file()).unwrap().contains("active: blue"), "the file says what runs");

    // A recreated container of the pool that serves is found as well; nothing but a restart's own gap is seen.
    load.stop().assert_no_failures();

    // Stopped under load it ends by itself, in time, with 0.
    let load = Load::start(address, 8, mixed);
    podman(&["stop", "-t", "30", &site.container("switchover")]);
    // 137 if it had been killed when the 30 seconds were over.
    assert_eq!(podman(&["inspect", "-f", "{{.State.ExitCode}}", &site.container("switchover")]).trim(), "0");
    // Connections fail after the process has ended. There is no other kind of failure.
    let mut failures = load.stop().failures;
    let not_connected = ["Connection refused", "No route to host", "connection timed out"];
    failures.retain(|(_, reason)| !not_connected.iter().any(|what| reason.contains(what)));
    assert!(failures.is_empty(), "{failures:?}");
}

#[test]
#[ignore = "needs podman and the images: make test-deploy"]
fn a_file_that_is_mounted_by_itself_is_followed_too() {
    let site = Site::new("file");
    site.application("blue", "v1");
    site.application("green", "v2");
    let address = site.switchover(&format!("{}:/etc/switchover/switchover.yaml", site.file().display()));
    site.await_healthy();
    answers(address, "blue v1\n");
    let load = Load::start(address, 4, mixed);
    site.write(&CONFIG.replace("active: blue", "active: green"));
    answers(address, "green v2\n");
    let output = site.exec(&["promote", "blue"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(get(address).unwrap(), "blue v1\n");
    assert_eq!(fs::read_to_string(site.file()).unwrap(), CONFIG);
    load.stop().assert_no_failures();
}

#[test]
#[ignore = "needs podman and the images: make test-deploy"]
fn the_image_is_small_and_idles_on_little() {
    let site = Site::new("start");
    let size = |image: &str| podman(&["image", "inspect", "-f", "{{.Size}}", image]).trim().parse::<f64>().unwrap() / 1e6;
    let added = size(IMAGE) - size("docker.io/library/debian:bookworm-slim");
    assert!(added < 40.0, "{added:.1} MB beside the base");
    assert_eq!(podman(&["image", "inspect", "-f", "{{.Config.User}}", IMAGE]).trim(), "65532:65532");

    let mount = format!("{}:/etc/switchover", site.folder.path().display());
    for _ in 0..5 {
        let address = site.switchover(&mount);
        let name = site.container("switchover");
        let log = || {
            let output = engine().args(["logs", "-t", &name]).output().unwrap();
            String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
        };
        let log = patiently("it listens", || Some(log()).filter(|log| log.contains("listening on")).ok_or_else(log));
        let listening = log.lines().find(|line| line.contains("listening on")).unwrap().split(' ').next().unwrap();
        let started = podman(&["inspect", "-f", "{{.State.StartedAt.UnixNano}}", &name]);
        let listening = humantime::parse_rfc3339_weak(listening).unwrap().duration_since(std::time::UNIX_EPOCH).unwrap();
        let took = listening.saturating_sub(Duration::from_nanos(started.trim().parse().unwrap()));
        let pid = podman(&["inspect", "-f", "{{.State.Pid}}", &name]);
        let status = fs::read_to_string(Path::new("/proc").join(pid.trim()).join("status")).unwrap();
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let rss = rss.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0;
        println!("{address}: listens after {took:?}, {rss:.1} MiB");
        assert!(rss < 20.0, "{rss} MiB");
        podman(&["rm", "-f", "-t", "0", &name]);
    }
}

/// What `upstream.tls` without `ca` verifies peers by. From the build stage, so that the base image needs none.
#[test]
#[ignore = "needs podman and the images: make test-deploy"]
fn the_image_has_root_certificates() {
    let roots = "/etc/ssl/certs/ca-certificates.crt";
    let found = podman(&["run", "--rm", "--entrypoint", "grep", IMAGE, "-c", "BEGIN CERTIFICATE", roots]);
    assert!(found.trim().parse::<usize>().unwrap() > 50, "{found}");
    let dockerfile = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Dockerfile")).unwrap();
    assert!(dockerfile.contains(&format!("COPY --from=build {roots} {roots}")), "{dockerfile}");
}
