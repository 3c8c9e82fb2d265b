//! The command line: its output, its default files, its exit codes.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::Path,
    process::{Child, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use switchover::status::{Outcome, Phase, ServiceStatus, Status};

use crate::support::{
    ConfigFile, Origin, Port, Switchover,
    switchover::{Output, command, run},
};

fn started() -> (Origin, Origin, ConfigFile, Switchover) {
    let (blue, green) = (Origin::start("blue"), Origin::start("green"));
    let config = ConfigFile::new(&[("blue", &[blue.address()]), ("green", &[green.address()])]);
    let switchover = Switchover::start(&config);
    switchover.await_ready("green");
    (blue, green, config, switchover)
}

/// Starts a command for `switchover`, without waiting for its end.
fn spawn(switchover: &Switchover, args: &[&str]) -> Child {
    // SIGINT ends it as in a terminal, even if the shell that runs the tests ignores it and passes that on.
    let mut command = Command::new("env");
    command.args(["--default-signal=INT", "-u", "RUST_LOG", env!("CARGO_BIN_EXE_switchover")]).args(args);
    command.env("SWITCHOVER_ADMIN", switchover.admin.to_string()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn ended(child: Child) -> Output {
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Output { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
}

#[test]
fn a_command_whose_reader_goes_away_ends_quietly() {
    let (_blue, _green, config, switchover) = started();
    let path = config.path.to_str().unwrap();
    for args in [&["check", "--config", path][..], &["status"], &["status", "--json"], &["completions", "bash"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = command(args);
        let output = command.env("SWITCHOVER_ADMIN", switchover.admin.to_string()).stdout(writer).output().unwrap();
        assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(141), ""), "{args:?}");
    }
    let mut watch = spawn(&switchover, &["status", "--watch"]);
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().starts_with("switchover "));
    drop(lines);
    let output = ended(watch);
    assert_eq!((output.code, output.stderr.as_str()), (141, ""));
    // An error that cannot be printed keeps its exit code.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(command(&["check", "--config", "/nowhere"]).stderr(writer).status().unwrap().code(), Some(78));
}

#[test]
fn what_a_peer_answers_never_reaches_the_terminal_as_a_control_sequence() {
    let (_blue, green, _config, switchover) = started();
    green.readiness(503, "\u{1b}]0;owned\u{7}\u{9b}2J\u{202e}evil");
    let proving = spawn(&switchover, &["promote", "green", "--timeout", "1s"]);
    let reason = |shop: &ServiceStatus| shop.swap.as_ref().and_then(|swap| swap.reason.clone()).unwrap_or_default();
    switchover.await_service("the reason is known", |shop| reason(shop).contains("evil"));
    let status = switchover.cli(&["status"]);
    let json = switchover.cli(&["status", "--json"]);
    signal(&proving, Signal::SIGINT);
    let promoted = ended(proving);
    for text in [&status.stdout, &json.stdout, &promoted.stdout, &promoted.stderr, &switchover.log()] {
        let controls: Vec<char> = text.chars().filter(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}').collect();
        assert!(controls.is_empty(), "{controls:?} in {text}");
    }
    assert!(status.stdout.contains("503 \\u{1b}]0;owned\\u{7}\\u{9b}2J\\u{202e}evil"), "{status:?}");
    let json: Status = serde_json::from_str(&json.stdout).unwrap();
    assert!(reason(&json.services[0]).contains("\u{1b}]0;owned\u{7}\u{9b}2J\u{202e}evil"), "{json:?}");
}

#[test]
fn ctrl_c_ends_promote_and_not_the_swap_and_cancel_gives_it_up() {
    let (_blue, green, config, switchover) = started();
    green.readiness(503, "starting");
    let mut promote = spawn(&switchover, &["promote", "green", "--timeout", "90s"]);
    let mut lines = BufReader::new(promote.stdout.take().unwrap()).lines();
    let line = lines.next().unwrap().unwrap();
    assert!(line.starts_with("shop: proving green 0/1, ") && line.contains(" s of 1 m 30 s ("), "{line}");
    // In a pipe, one line for each change of the reason, not one for each poll.
    green.readiness(503, "still starting");
    let line = lines.next().unwrap().unwrap();
    assert!(line.contains("503 still starting"), "{line}");
    signal(&promote, Signal::SIGINT);
    let output = ended(promote);
    assert_eq!(output.code, 130, "{output:?}");
    let said = output.stderr.trim();
    assert!(
        said.starts_with("shop: still proving green for up to 1 m ")
            && said.ends_with("; to cancel, run: switchover cancel shop")
    );
    assert_eq!(switchover.service().swap.unwrap().phase, Phase::Proving);

    let mut waiting = spawn(&switchover, &["promote", "green", "--timeout", "90s"]);
    // It shows the swap after switchover has accepted its command.
    let mut lines = BufReader::new(waiting.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("proving green"));
    let cancelled = switchover.cli(&["cancel"]);
    assert_eq!((cancelled.code, cancelled.stdout.trim()), (0, "shop: cancelled the swap to green, blue serves"), "{cancelled:?}");
    assert_eq!(ended(waiting).code, 1);
    assert_eq!(switchover.await_outcome(Outcome::Cancelled).active, "blue");
    assert!(switchover.cli(&["status"]).stdout.contains("blue -> green, cancelled after "));
    let again = switchover.cli(&["cancel", "shop"]);
    assert!(again.code == 1 && !again.stderr.is_empty(), "{again:?}");
    assert_eq!(switchover.cli(&["cancel"]).code, 1);
    assert_eq!(fs::read_to_string(&config.path).unwrap(), config.text());
}

/// A shell starts a background job with SIGINT ignored; the script decides when to stop it.
#[test]
fn promote_in_the_background_of_a_script_ignores_ctrl_c() {
    let (_blue, green, _config, switchover) = started();
    green.readiness(503, "starting");
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' INT; exec \"$0\" promote green", env!("CARGO_BIN_EXE_switchover")]);
    shell.env("SWITCHOVER_ADMIN", switchover.admin.to_string()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let promote = shell.spawn().unwrap();
    switchover.await_proving();
    signal(&promote, Signal::SIGINT);
    green.readiness(200, "up");
    let output = ended(promote);
    assert!(output.code == 0 && output.stdout.contains("safe to stop blue"), "{output:?}");
}

#[test]
fn promote_writes_the_version_and_status_shows_it() {
    let (_blue, _green, config, switchover) = started();
    let output = switchover.cli(&["promote", "shop", "green", "--version", "2.0.0"]);
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(switchover.pool_status("green").version.as_deref(), Some("2.0.0"));
    assert!(fs::read_to_string(&config.path).unwrap().contains("2.0.0"));
    let status = switchover.cli(&["status"]).stdout;
    assert!(status.lines().any(|line| line.contains("green") && line.contains("2.0.0") && line.contains("active")), "{status}");
}

#[test]
fn without_a_file_the_error_names_the_files_that_were_tried() {
    let folder = tempfile::tempdir().unwrap();
    if Path::new("/etc/switchover/switchover.yaml").exists() {
        eprintln!("NOT TESTED: this machine has a configuration of its own");
        return;
    }
    let run_there =
        |args: &[&str]| ended(command(args).current_dir(&folder).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    for args in [&["check"][..], &["run"], &["promote", "green"], &["reload"], &["cancel"]] {
        let output = run_there(args);
        assert_eq!(output.code, 78, "{args:?} {output:?}");
        assert_eq!(
            output.stderr.trim(),
            "no configuration file: tried conf/switchover.yaml and /etc/switchover/switchover.yaml; name one with --config"
        );
    }
    // Commands that only read use the default address, and print that. Another process may listen there on this machine.
    for args in [&["status"][..], &["health"], &["status", "--config", "gone.yaml"]] {
        let output = run_there(args);
        assert!(output.stderr.contains("; asking the default admin address 127.0.0.1:9901"), "{args:?} {output:?}");
    }
    fs::create_dir(folder.path().join("conf")).unwrap();
    fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/minimal.yaml"), folder.path().join("conf/switchover.yaml"))
        .unwrap();
    let output = run_there(&["check"]);
    assert!(output.code == 0 && output.stdout.starts_with("conf/switchover.yaml is valid"), "{output:?}");
}

#[test]
fn an_admin_address_may_be_pasted_as_a_url() {
    let (_blue, _green, _config, switchover) = started();
    let port = switchover.admin.port();
    for address in [format!("127.0.0.1:{port}"), format!("localhost:{port}"), format!("http://127.0.0.1:{port}/")] {
        let output = run(&["health", "--admin", &address]);
        assert_eq!(output.code, 0, "{address} {output:?}");
    }
    for address in ["https://127.0.0.1:9901", "127.0.0.1", "127.0.0.1:0", ":9901", "http://127.0.0.1:9901/v1", "::1:9901", ""] {
        let output = run(&["health", "--admin", address]);
        assert!(output.code == 2 && output.stderr.contains("write HOST:PORT, such as 127.0.0.1:9901"), "{address} {output:?}");
    }
}

#[test]
fn the_log_as_json_has_one_object_per_line() {
    let (_blue, _green, config, switchover) = started();
    drop(switchover);
    let mut child = command(&["run", "--log-format", "json", "--config", config.path.to_str().unwrap()]);
    let mut child = child.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(|line| {
        let line = line.unwrap();
        serde_json::from_str::<BTreeMap<String, String>>(&line).unwrap_or_else(|e| panic!("{e}: {line}"))
    });
    let line = lines.find(|line| line["message"].starts_with("listening on ")).unwrap();
    assert_eq!(line.keys().collect::<Vec<_>>(), ["level", "message", "target", "time"]);
    assert_eq!((line["level"].as_str(), line["target"].as_str()), ("INFO", "switchover::server"));
    humantime::parse_rfc3339(&line["time"]).unwrap();
    signal(&child, Signal::SIGTERM);
    assert!(lines.any(|line| line["message"].starts_with("stopping connections=")));
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_port_that_an_ordinary_user_may_not_have_names_the_capability() {
    let config = ConfigFile::new(&[("blue", &[([127, 0, 0, 1], 1).into()])]);
    config.write_in_place(&config.text().replacen("127.0.0.1:0", "127.0.0.1:80", 1));
    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    if first.trim().parse::<u16>().unwrap() <= 80 {
        eprintln!("NOT TESTED: every user may listen on port 80 here");
        return;
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_switchover"));
    if fs::metadata("/proc/self").unwrap().uid() == 0 {
        command = Command::new("setpriv");
        command.args(["--bounding-set=-net_bind_service", "--inh-caps=-net_bind_service", env!("CARGO_BIN_EXE_switchover")]);
    }
    let output = command.args(["run", "--config", config.path.to_str().unwrap()]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{stderr}");
    assert!(
        stderr.contains("listeners[0].address: 127.0.0.1:80: this user") && stderr.contains("CAP_NET_BIND_SERVICE"),
        "{stderr}"
    );
}

#[test]
fn the_version_names_the_commit_in_a_release_build() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = run(&["--version"]);
    assert_eq!(output.stdout.split_whitespace().take(2).collect::<Vec<_>>(), ["switchover", env!("CARGO_PKG_VERSION")]);
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("build");
    let rustc = std::env::var_os("RUSTC").unwrap_or("rustc".into());
    let compiled =
        Command::new(rustc).args(["--edition", "2024", "-o"]).arg(&program).arg(root.join("build.rs")).status().unwrap();
    assert!(compiled.success());
    let version = |there: &Path, profile: &str, commit: &str| {
        let mut build = Command::new(&program);
        build.current_dir(there).env("CARGO_PKG_VERSION", "0.1.0").env("PROFILE", profile).env("SWITCHOVER_COMMIT", commit);
        let stdout = String::from_utf8(build.output().unwrap().stdout).unwrap();
        let version = stdout.lines().find_map(|line| line.strip_prefix("cargo:rustc-env=SWITCHOVER_VERSION="));
        version.unwrap_or_else(|| panic!("{stdout}")).to_owned()
    };
    assert_eq!(version(folder.path(), "debug", "0123abc"), "0.1.0 (debug build)");
    assert_eq!(version(folder.path(), "release", "0123abc"), "0.1.0 (0123abc)");
    assert_eq!(version(folder.path(), "release", ""), "0.1.0", "without a repository");
    let head = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).current_dir(root).output();
    if let Ok(head) = head.map(|output| String::from_utf8(output.stdout).unwrap())
        && !head.is_empty()
    {
        assert_eq!(version(root, "release", ""), format!("0.1.0 ({})", head.trim()));
    }
}

#[test]
fn completions_and_man_pages_cover_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]);
        assert_eq!(script.code, 0, "{script:?}");
        for word in ["promote", "cancel", "log-format"] {
            assert!(script.stdout.contains(word), "{shell}: {word}");
        }
    }
    let mut bash = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut bash.stdin.take().unwrap(), run(&["completions", "bash"]).stdout.as_bytes()).unwrap();
    assert!(bash.wait().unwrap().success());
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(run(&["man", folder.path().to_str().unwrap()]).code, 0);
    for page in ["switchover.1", "switchover-promote.1", "switchover-cancel.1"] {
        let text = fs::read_to_string(folder.path().join(page)).unwrap();
        assert!(text.contains(".TH") && text.contains("xample") == (page != "switchover.1"), "{page}: {text}");
    }
    assert_eq!(run(&["man", "/nowhere"]).code, 1);
}

/// Runs the lines under "Examples:" in the help of every command, in a folder with the files that they name.
#[test]
fn every_example_of_the_help_works() {
    let (_blue, green, config, switchover) = started();
    let there = config.folder();
    fs::write(there.join("shop.yaml"), config.text()).unwrap();
    fs::create_dir(there.join("conf")).unwrap();
    std::os::unix::fs::symlink("../switchover.yaml", there.join("conf/switchover.yaml")).unwrap();
    let help = run(&["--help"]).stdout;
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let commands: Vec<&str> = commands.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").collect();
    assert!(commands.len() >= 9, "{help}");
    for name in commands {
        let help = run(&[name, "--help"]).stdout;
        let examples: Vec<&str> = help.lines().filter_map(|line| line.strip_prefix("  switchover ")).collect();
        assert!(!examples.is_empty(), "{name} has no examples");
        for example in examples {
            let args: Vec<&str> = example.split(' ').collect();
            let mut command = command(&args);
            command.current_dir(there).env("SWITCHOVER_ADMIN", switchover.admin.to_string());
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
            if name == "cancel" {
                green.readiness(503, "starting");
                assert_eq!(switchover.cli(&["promote", "green", "--wait", "none"]).code, 0);
            }
            let child = command.spawn().unwrap();
            let output = match args.as_slice() {
                // These commands run until they are stopped.
                ["run", ..] => stopped_after(child, "listening on "),
                ["status", "--watch"] => stopped_after(child, "shop  active "),
                _ => ended(child),
            };
            assert_eq!(output.code, 0, "switchover {example}: {output:?}");
            // Restores the state for the next example.
            green.readiness(200, "up");
            assert_eq!(switchover.cli(&["promote", "blue"]).code, 0);
        }
    }
}

/// Stops a command after it has printed a text. Its end by SIGTERM counts as success.
fn stopped_after(mut child: Child, text: &str) -> Output {
    let output: Vec<Box<dyn Read + Send>> = vec![Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
    let (sender, seen) = std::sync::mpsc::channel();
    for stream in output {
        let sender = sender.clone();
        std::thread::spawn(move || BufReader::new(stream).lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    }
    drop(sender);
    let all: Vec<String> = seen
        .iter()
        .inspect(|line| {
            if line.contains(text) {
                signal(&child, Signal::SIGTERM);
            }
        })
        .collect();
    let status = child.wait().unwrap();
    assert!(all.iter().any(|line| line.contains(text)), "{text}: {all:?}");
    let code = if std::os::unix::process::ExitStatusExt::signal(&status) == Some(15) { 0 } else { status.code().unwrap_or(-1) };
    Output { code, stdout: all.join("\n"), stderr: String::new() }
}

#[test]
fn an_unknown_name_is_answered_with_the_nearest_one() {
    let (_blue, _green, _config, switchover) = started();
    for (args, said) in [
        (&["promote", "gren"][..], "no pool \"gren\"; pools are blue, green (did you mean \"green\"?)"),
        (&["promote", "shop", "gren"], "no pool \"gren\"; pools are blue, green (did you mean \"green\"?)"),
        (&["promote", "shp", "green"], "no service \"shp\"; services are shop (did you mean \"shop\"?)"),
    ] {
        let output = switchover.cli(args);
        assert_eq!((output.code, output.stderr.trim()), (2, said), "{args:?}");
    }
    assert_eq!(switchover.service().active, "blue");
}

/// The admin address of another file may belong to a process that runs this one.
#[test]
fn a_command_with_a_file_that_the_process_does_not_run_is_rejected() {
    let (blue, green, port) = (Origin::start("blue"), Origin::start("green"), Port::reserve());
    let config = ConfigFile::new(&[("blue", &[blue.address()]), ("green", &[green.address()])]);
    let folder = config.folder();
    let with_port = config.text().replace("admin:\n  address: 127.0.0.1:0", &format!("admin:\n  address: {}", port.address));
    config.write_in_place(&with_port);
    // Started with a path that is relative to its folder, as by default.
    let mut run = command(&["run", "--config", "switchover.yaml"]);
    run.current_dir(folder);
    let switchover = Switchover::spawn(run, &config);
    switchover.await_ready("green");
    let other = folder.join("other.yaml");
    fs::write(&other, with_port.replace("active: blue", "active: green")).unwrap();
    let run = |args: &[&str], file: &Path, admin: &[&str]| {
        let file = ["--config", file.to_str().unwrap()];
        crate::support::switchover::run(&[args, &file, admin].concat())
    };

    for args in [&["reload"][..], &["promote", "green"], &["promote", "shop", "green"], &["cancel", "shop"]] {
        let output = run(args, &other, &[]);
        assert_eq!(output.code, 2, "{args:?}: {output:?}");
        let named = format!("{} runs {}, not {}; ", port.address, config.path.display(), other.display());
        assert!(output.stderr.contains(&named) && output.stderr.contains("--config"), "{args:?}: {output:?}");
        assert!(output.stdout.is_empty(), "{args:?}: {output:?}");
    }
    assert_eq!((switchover.service().active.as_str(), fs::read_to_string(&config.path).unwrap()), ("blue", with_port.clone()));
    assert_eq!(run(&["status"], &other, &[]).code, 0, "it only reads");
    // A named address is used whatever the file.
    assert_eq!(run(&["reload"], &other, &["--admin", &port.address.to_string()]).code, 0);

    // Other paths of the same file.
    fs::hard_link(&config.path, folder.join("hard.yaml")).unwrap();
    std::os::unix::fs::symlink("switchover.yaml", folder.join("symbolic.yaml")).unwrap();
    for name in ["switchover.yaml", "hard.yaml", "symbolic.yaml", "./../switchover.yaml"] {
        let path = if name.starts_with('.') { folder.join("conf").join(name) } else { folder.join(name) };
        fs::create_dir_all(folder.join("conf")).unwrap();
        let output = run(&["reload"], &path, &[]);
        assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{name}");
    }

    // The path of a process in a container may not exist here.
    fs::rename(&config.path, folder.join("moved.yaml")).unwrap();
    let output = run(&["reload"], &other, &[]);
    let warned = format!("cannot check that {} runs {}", port.address, other.display());
    assert!(output.stderr.contains(&warned) && output.stderr.contains(config.path.to_str().unwrap()), "{output:?}");
}
