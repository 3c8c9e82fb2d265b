//! `check` and `run` accept the same files, and a problem names its file, line and column wherever it is shown.

use std::{fs, net::TcpListener};

use nix::{
    sys::{signal::Signal, stat::Mode},
    unistd::mkfifo,
};

use crate::support::{
    Authority, ConfigFile, Edit, Origin, Switchover,
    switchover::{self, Output, run},
};

fn command(command: &str, config: &ConfigFile) -> Output {
    run(&[command, "--config", config.path.to_str().unwrap()])
}

#[test]
fn check_and_run_reject_what_cannot_be_used_here_in_the_same_words() {
    let authority = Authority::new();
    let quick = "    health_check: {interval: 100ms}\n";
    for (listener, top, service, place) in [
        ("    tls: {certificates: [{certificate: shop.crt, key: shop.key}], client_ca: none.crt}\n", "", quick, ":3:"),
        ("- address: 192.0.2.1:8080\n", "", quick, ":3:14: listeners[1].address: 192.0.2.1:8080: is not an address"),
        ("", "access_log: {format: text, file: none/access.log}\n", quick, ":5:34: access_log.file: "),
        ("", "access_log: {format: text, file: ./switchover.yaml}\n", quick, ":5:34: access_log.file: "),
        ("", "state_dir: /dev/null\n", quick, ":5:12: state_dir: /dev/null is not a folder"),
        ("", "", "    upstream: {tls: {ca: none.crt}}\n", ":8:26: services.shop.upstream.tls.ca: there is no file"),
        (
            "    tls: {certificates: [{certificate: /dev/zero, key: shop.key}]}\n",
            "",
            quick,
            ":3:40: listeners[0].tls.certificates[0].certificate: /dev/zero cannot be read: is not a regular file",
        ),
        (
            "",
            "",
            "    upstream: {tls: {ca: /dev/zero}}\n",
            ":8:26: services.shop.upstream.tls.ca: /dev/zero cannot be read: is not a regular file",
        ),
        ("", "", "    upstream: {tls: {ca: shop.key}}\n", ":8:26: services.shop.upstream.tls.ca: "),
        ("", "", "    error_pages: {503: none.html}\n", ":8:24: services.shop.error_pages.503: "),
        (
            "    tls: {acme: {names: [a.test], store: shop.crt}}\n  - address: 127.0.0.1:0\n",
            "",
            quick,
            ":3:42: listeners[0].tls.acme.store: ",
        ),
    ] {
        let config = ConfigFile::new(&[("blue", &["127.0.0.1:9".parse().unwrap()])]);
        authority.sign(config.folder(), "shop", &["shop.test"], 2040);
        let config = config.listener(listener).top(top).service(service);
        let [checked, ran] = ["check", "run"].map(|name| command(name, &config));
        let expected = format!("{}{place}", config.path.display());
        assert_eq!((checked.code, ran.code), (78, 78), "{place}: {checked:?} {ran:?}");
        assert!(checked.stderr.starts_with(&expected), "{expected}: {checked:?}");
        assert_eq!(checked.stderr, ran.stderr);
    }
}

#[test]
fn a_token_that_could_be_guessed_is_rejected_with_its_place() {
    let config = ConfigFile::new(&[("blue", &["127.0.0.1:9".parse().unwrap()])]);
    fs::write(config.folder().join("token"), "short").unwrap();
    let text = config.text().replace("  address: 127.0.0.1:0\nservices", "  address: 127.0.0.1:0\n  token_file: token\nservices");
    config.write(&text, Edit::InPlace);
    for name in ["check", "run"] {
        let output = command(name, &config);
        assert!(output.code == 78 && output.stderr.contains("switchover.yaml:5:15: admin.token_file: "), "{output:?}");
    }
}

#[test]
fn a_state_dir_that_cannot_be_written_is_a_warning() {
    let config = ConfigFile::new(&[("blue", &["127.0.0.1:9".parse().unwrap()])]).top("state_dir: nowhere\n");
    let output = command("check", &config);
    assert!(output.code == 0 && output.stderr.contains(":5:12: state_dir: "), "{output:?}");
}

#[test]
fn every_problem_is_reported_and_not_only_the_first() {
    let config = ConfigFile::new(&[("blue", &["127.0.0.1:9".parse().unwrap()])])
        .top("access_log: {format: text, file: none/access.log}\n")
        .service("    upstream: {tls: {ca: none.crt}}\n");
    let output = command("check", &config);
    assert_eq!(output.stderr.lines().count(), 2, "{output:?}");
}

/// An address in use prevents `run` from starting, but is not a problem of the file: a running switchover uses its own addresses.
#[test]
fn check_passes_beside_a_running_switchover_and_warns_of_strangers() {
    let (blue, stranger) = (Origin::start("blue"), TcpListener::bind("127.0.0.1:0").unwrap());
    let config = ConfigFile::new(&[("blue", &[blue.address()])]);
    let text = config.text();
    let with = |listener: &str, admin: &str| {
        text.replacen("127.0.0.1:0", listener, 1)
            .replace("admin:\n  address: 127.0.0.1:0", &format!("admin:\n  address: {admin}"))
    };
    config.write(&with(&stranger.local_addr().unwrap().to_string(), "127.0.0.1:0"), Edit::InPlace);
    let checked = command("check", &config);
    assert!(checked.code == 0 && checked.stderr.contains(":2:14: listeners[0].address: "), "{checked:?}");
    let ran = command("run", &config);
    assert!(ran.code == 1 && ran.stderr.contains("is in use"), "{ran:?}");

    config.write(&text, Edit::InPlace);
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    config.write(&with(&switchover.address.to_string(), &switchover.admin.to_string()), Edit::InPlace);
    let checked = command("check", &config);
    assert_eq!((checked.code, checked.stderr.as_str()), (0, ""));
}

#[test]
fn a_certificate_that_has_expired_or_is_never_shown_is_a_warning() {
    let (blue, authority) = (Origin::start("blue"), Authority::new());
    let config = ConfigFile::new(&[("blue", &[blue.address()])]);
    authority.sign(config.folder(), "shop", &["shop.test"], 2021);
    authority.sign(config.folder(), "more", &["shop.test"], 2040);
    let config = config
        .listener("    tls: {certificates: [{certificate: shop.crt, key: shop.key}, {certificate: more.crt, key: more.key}]}\n");
    let checked = command("check", &config);
    assert_eq!((checked.code, checked.stderr.lines().count()), (0, 2), "{checked:?}");
    assert!(checked.stderr.contains("the certificate for shop.test expired on 2021-01-01"), "{checked:?}");
    assert!(checked.stderr.contains("is never shown, because certificates before it have all of its names"), "{checked:?}");
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
}

#[test]
fn a_byte_order_mark_is_accepted_and_kept_by_a_promotion() {
    let (blue, green) = (Origin::start("blue"), Origin::start("green"));
    let config = ConfigFile::new(&[("blue", &[blue.address()]), ("green", &[green.address()])]);
    let text = format!("\u{feff}{}", config.text());
    config.write(&text, Edit::InPlace);
    assert_eq!(command("check", &config).code, 0);
    let switchover = Switchover::start(&config);
    switchover.await_ready("green");
    assert_eq!(switchover.cli(&["promote", "green"]).code, 0);
    assert_eq!(fs::read_to_string(&config.path).unwrap(), text.replace("active: blue", "active: green"));
}

/// In the log, in the status as JSON and as text, and in the output of `reload` and `promote`.
#[test]
fn a_problem_has_its_file_line_and_column_everywhere() {
    let blue = Origin::start("blue");
    let config = ConfigFile::new(&[("blue", &[blue.address()])]);
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    let (good, file) = (config.text(), config.path.display());
    for (bad, expected) in [
        (good.replace("active: blue", "active: gren"), format!("{file}:7:13: services.shop.active: no pool \"gren\"")),
        (good.replace("active: blue", "active: ["), format!("{file}:8:")),
        (good.replace("services:", "threads: 3\nservices:"), format!("{file}:5:10: threads: is static")),
        (
            good.replace("    pools:", "    error_pages: {503: none.html}\n    pools:"),
            format!("{file}:10:24: services.shop.error_pages.503: "),
        ),
    ] {
        config.write(&bad, Edit::Rename);
        for arguments in [["reload"].as_slice(), &["promote", "shop", "blue"]] {
            let output = switchover.cli(arguments);
            assert!(output.code == 78 && output.stderr.contains(&expected), "{expected}: {output:?}");
        }
        let problem = &switchover.read_status().config.last_reload.problems[0];
        assert!(problem.file == file.to_string() && problem.line.is_some() && problem.column.is_some(), "{problem:?}");
        let table = switchover.cli(&["status"]);
        assert!(table.stdout.contains(&expected), "{expected}: {table:?}");
        switchover.await_log(&expected);
    }
}

/// Opening a pipe waits for its writer.
#[test]
fn a_configuration_that_is_no_regular_file_is_rejected_by_check_run_and_reload() {
    let blue = Origin::start("blue");
    let config = ConfigFile::new(&[("blue", &[blue.address()])]).top("shutdown_timeout: 500ms\n");
    let mut switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    let pipe = config.folder().join("pipe");
    mkfifo(&pipe, Mode::from_bits_truncate(0o600)).unwrap();
    fs::rename(&pipe, &config.path).unwrap();
    let path = config.path.to_str().unwrap();
    let expected = format!("{path}: is not a regular file");
    for arguments in [["check", "--config", path], ["run", "--config", path], ["check", "--config", "/dev/zero"]] {
        let output = run(&arguments);
        assert!(output.code == 78 && output.stderr.contains("is not a regular file"), "{output:?}");
    }
    let output = run(&["reload", "--admin", &switchover.admin.to_string()]);
    assert!(output.code == 78 && output.stderr.contains(&expected), "{output:?}");
    switchover.await_log(&expected);
    blue.readiness(503, "down");
    switchover.await_pool("blue", "still probed", |pool| !pool.peers[0].ready);
    switchover.signal(Signal::SIGHUP);
    switchover.signal(Signal::SIGTERM);
    assert!(switchover.await_exit().0.success());
}

/// Each of these would never end, or not before the memory does.
#[test]
fn an_error_page_that_is_long_or_no_regular_file_is_rejected() {
    let config = ConfigFile::new(&[("blue", &["127.0.0.1:9".parse().unwrap()])]);
    fs::write(config.folder().join("long.html"), "x".repeat(256 * 1024 + 1)).unwrap();
    fs::write(config.folder().join("page.html"), "x".repeat(256 * 1024)).unwrap();
    mkfifo(&config.folder().join("pipe"), Mode::from_bits_truncate(0o600)).unwrap();
    let config = config.service("    error_pages: {500: page.html, 502: /dev/zero, 503: long.html, 504: pipe, 505: /}\n");
    let output = run(&["check", "--config", config.path.to_str().unwrap()]);
    assert_eq!((output.code, output.stderr.lines().count()), (78, 4), "{output:?}");
    for (status, why) in [
        (502, "/dev/zero: is not a regular file"),
        (503, "long.html: is longer than 262144 bytes"),
        (504, "pipe: is not a regular file"),
        (505, "/: is a folder, not a regular file"),
    ] {
        let line = output.stderr.lines().find(|line| line.contains(&format!("error_pages.{status}: ")));
        assert!(line.is_some_and(|line| line.ends_with(why)), "{status}: {output:?}");
    }
}

/// Pingora panics over root certificates that it cannot use.
#[test]
fn check_and_run_reject_unusable_root_certificates() {
    let config = ConfigFile::new(&[("blue", &["127.0.0.1:9".parse().unwrap()])]);
    let roots = config.folder().join("roots.pem");
    fs::write(&roots, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    for name in ["check", "run"] {
        let mut command = switchover::command(&[name, "--config", config.path.to_str().unwrap()]);
        let output = command.env("SSL_CERT_FILE", &roots).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{stderr}");
        assert!(stderr.contains("the root certificates of this host cannot be used: "), "{stderr}");
    }
}
