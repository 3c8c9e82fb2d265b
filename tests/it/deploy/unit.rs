//! deploy/systemd: what the units allow, under the real filter of system calls, and what they start after a reboot.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use crate::support::{ConfigFile, Origin, Switchover, install};

/// The user ID that the harness runs the program under.
const USER: u32 = 65534;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// switchover under the unit's filter, as a user who owns nothing but what a test gives it.
struct Unit {
    blue: Origin,
    _green: Origin,
    config: ConfigFile,
    switchover: Switchover,
    _programs: TempDir,
}

impl Unit {
    fn start(prepare: impl Fn(&Path)) -> Self {
        let (blue, green) = (Origin::start("blue"), Origin::start("green"));
        let config = ConfigFile::new(&[("blue", &[blue.address()]), ("green", &[green.address()])]);
        // Where the checkout is, the user may have no access.
        let programs = tempfile::tempdir().unwrap();
        let program = programs.path().join("switchover");
        if fs::hard_link(env!("CARGO_BIN_EXE_switchover"), &program).is_err() {
            install(Path::new(env!("CARGO_BIN_EXE_switchover")), &program);
        }
        for folder in [programs.path(), config.folder()] {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
        }
        prepare(&config.path);
        let mut command = Command::new(root().join("tests/deploy/seccomp"));
        command.arg(root().join("deploy/systemd/switchover.service")).arg(&program).arg("run").arg("--config").arg(&config.path);
        command.env_remove("RUST_LOG");
        let switchover = Switchover::spawn(command, &config);
        switchover.await_ready("green");
        Self { blue, _green: green, config, switchover, _programs: programs }
    }

    fn assert_refused(&mut self, said: &str) {
        let text = fs::read_to_string(&self.config.path).unwrap();
        let output = self.switchover.cli(&["promote", "green"]);
        assert!([1, 3].contains(&output.code) && output.stderr.contains(said), "{said}: {output:?}");
        assert!(self.switchover.child.try_wait().unwrap().is_none(), "{}", self.switchover.log());
        assert_eq!(self.switchover.get("/").text(), "blue");
        assert_eq!(fs::read_to_string(&self.config.path).unwrap(), text);
        assert!(!self.blue.heads().is_empty());
    }
}

/// A small file system over the file's folder, gone with the test.
struct Mount(PathBuf);

impl Mount {
    fn over(path: &Path) -> Self {
        let (text, folder) = (fs::read_to_string(path).unwrap(), path.parent().unwrap());
        mount(&["-t", "tmpfs", "-o", "size=64k,mode=755,uid=65534,gid=65534", "tmpfs", folder.to_str().unwrap()]);
        fs::write(path, text).unwrap();
        chown(path, Some(USER), Some(USER)).unwrap();
        Self(folder.to_path_buf())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().map(drop).unwrap_or_default();
        // While it was a mount, the test's own cleaning could not remove it.
        fs::remove_dir_all(&self.0).unwrap_or_default();
    }
}

fn mount(args: &[&str]) {
    assert!(Command::new("mount").args(args).status().unwrap().success(), "{args:?}");
}

#[test]
#[ignore = "needs root and systemd-analyze: make test-deploy"]
fn a_promotion_into_a_file_of_another_owner_is_written_and_the_process_lives() {
    let unit = Unit::start(|path| {
        chown(path, Some(0), Some(USER)).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o664)).unwrap();
        chown(path.parent().unwrap(), Some(USER), Some(USER)).unwrap();
    });
    let output = unit.switchover.cli(&["promote", "green"]);
    assert_eq!(output.code, 0, "{output:?} {}", unit.switchover.log());
    assert_eq!(unit.switchover.get("/").text(), "green");
    let (text, file) = (fs::read_to_string(&unit.config.path).unwrap(), fs::metadata(&unit.config.path).unwrap());
    assert!(text.contains("active: green"), "{text}");
    assert_eq!((file.uid(), file.gid(), file.mode() & 0o777), (0, USER, 0o664));
}

#[test]
#[ignore = "needs root and systemd-analyze: make test-deploy"]
fn a_promotion_into_a_file_that_the_unit_may_not_write_is_refused() {
    Unit::start(|path| chown(path, Some(0), Some(0)).unwrap()).assert_refused("Permission denied");
}

#[test]
#[ignore = "needs root and systemd-analyze: make test-deploy"]
fn a_promotion_on_a_full_or_read_only_disk_is_refused() {
    let mounted = std::cell::OnceCell::new();
    let mut unit = Unit::start(|path| assert!(mounted.set(Mount::over(path)).is_ok()));
    let folder = unit.config.folder().to_owned();
    // Until nothing fits any more.
    let full = fs::write(folder.join("filler"), vec![b'x'; 1024 * 1024]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    unit.assert_refused("No space left on device");
    fs::remove_file(folder.join("filler")).unwrap();
    mount(&["-o", "remount,ro", folder.to_str().unwrap()]);
    unit.assert_refused("Read-only file system");
    mount(&["-o", "remount,rw", folder.to_str().unwrap()]);
    assert_eq!(unit.switchover.cli(&["promote", "green"]).code, 0, "with room it goes well");
    drop(unit);
}

/// The page's commands around a release; `--root` does what systemctl does to the links from which a boot begins.
#[test]
#[ignore = "needs systemctl: make test-deploy"]
fn the_colour_that_is_enabled_follows_a_release() {
    let there = tempfile::tempdir().unwrap();
    let units = there.path().join("etc/systemd/system");
    fs::create_dir_all(&units).unwrap();
    fs::copy(root().join("deploy/systemd/shop@.service"), units.join("shop@.service")).unwrap();
    let page = fs::read_to_string(root().join("deploy/systemd/README.md")).unwrap();
    let starts = || -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(units.join("multi-user.target.wants"))
            .map(|links| links.map(|link| link.unwrap().file_name().into_string().unwrap()).collect())
            .unwrap_or_default();
        names.sort();
        names
    };
    for (what, after) in [
        ("enable --now shop@blue", &["shop@blue.service"][..]),
        ("enable --now shop@green", &["shop@blue.service", "shop@green.service"]),
        ("disable --now shop@blue", &["shop@green.service"]),
    ] {
        assert!(page.contains(&format!("systemctl {what}")), "{what} is not on the page");
        let args: Vec<&str> = what.split(' ').filter(|arg| *arg != "--now").collect();
        let done = Command::new("systemctl").arg("--root").arg(there.path()).args(&args).output().unwrap();
        assert!(done.status.success(), "{done:?}");
        assert_eq!(starts(), after, "{what}");
    }
}
