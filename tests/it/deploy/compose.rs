//! deploy/compose and its page: up, swap by editing, by promote, by release.sh, recreate.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tempfile::TempDir;

use super::spring::patiently;
use crate::support::{Client, Load, Port, load::mixed};

/// The project of the page, without what cannot be had from Debian's packages: Prometheus' and Grafana's images.
struct Project {
    folder: TempDir,
    address: SocketAddr,
    _ports: [Port; 2],
}

impl Project {
    fn up() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let from = root().join("deploy/compose");
        fs::create_dir(folder.path().join("conf")).unwrap();
        for file in ["compose.yaml", "conf/switchover.yaml"] {
            fs::copy(from.join(file), folder.path().join(file)).unwrap();
        }
        let ports = [Port::reserve(), Port::reserve()];
        let [http, admin] = [&ports[0], &ports[1]].map(|port| port.address.port());
        let owner = fs::metadata(folder.path()).unwrap();
        let (user, group) = (owner.uid(), owner.gid());
        let env = format!("SWITCHOVER_UID={user}\nSWITCHOVER_GID={group}\nHTTP_PORT={http}\nADMIN_PORT={admin}\n");
        fs::write(folder.path().join(".env"), env).unwrap();
        let project = Self { folder, address: ports[0].address, _ports: ports };
        project.compose(&["up", "-d", "--no-build", "switchover", "app-blue", "app-green"]);
        project
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let tools = root().join("target/deploy/venv/bin");
        command
            .current_dir(self.folder.path())
            .env("PATH", format!("{}:{}", tools.display(), std::env::var("PATH").unwrap()))
            .env("CONTAINERS_CONF", root().join("target/deploy/containers.conf"))
            .env("COMPOSE", "podman-compose");
        command
    }

    fn compose(&self, args: &[&str]) -> String {
        let output = self.command("podman-compose").args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn switchover(&self, args: &[&str]) -> Output {
        self.command("podman-compose").args(["exec", "-T", "switchover", "switchover"]).args(args).output().unwrap()
    }

    fn release(&self, version: &str, settings: &[(&str, &str)]) -> Output {
        let script = root().join("deploy/release.sh");
        self.command(script.to_str().unwrap()).args(["compose", version]).envs(settings.iter().copied()).output().unwrap()
    }

    fn answers(&self, text: &str) {
        patiently(text, || match Client::connect(self.address).and_then(|mut client| client.get("/")) {
            Ok(answer) if answer.status == 200 && answer.text() == text => Ok(()),
            other => Err(other.map(|answer| answer.text()).map_err(|e| e.to_string())),
        });
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

impl Drop for Project {
    fn drop(&mut self) {
        self.command("podman-compose").args(["down", "-t", "0"]).output().map(drop).unwrap_or_default();
    }
}

#[test]
#[ignore = "needs podman and the images: make test-deploy"]
fn the_commands_of_the_compose_page_do_what_it_says() {
    let project = Project::up();
    project.answers("blue 1.0.0\n");
    let load = Load::start(project.address, 6, mixed);

    let file = project.folder.path().join("conf/switchover.yaml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("active: blue", "active: green")).unwrap();
    project.answers("green 1.1.0\n");

    let output = project.switchover(&["promote", "blue", "--wait", "drained"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(fs::read_to_string(&file).unwrap(), text, "promote has changed the file back");

    // Recreated, and promoted as soon as it can be.
    project.compose(&["up", "-d", "--no-build", "--force-recreate", "--no-deps", "app-green"]);
    let output = project.switchover(&["promote", "green", "--wait", "drained"]);
    assert!(output.status.success(), "{output:?}");
    project.answers("green 1.1.0\n");

    let output = project.release("2.0.0", &[]);
    assert!(output.status.success(), "{output:?}");
    project.answers("blue 2.0.0\n");

    fs::write(&file, fs::read_to_string(&file).unwrap().replace("    drain:", "    promotion: {ready_timeout: 15s}\n    drain:"))
        .unwrap();
    let output = project.release("2.1.0", &[("SHOP_READY", "false")]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains("left as it was: blue is active"), "{output:?}");
    project.answers("blue 2.0.0\n");
    load.stop().assert_no_failures();
}
