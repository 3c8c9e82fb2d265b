//! TLS for clients: the choice and renewal of certificates, and client certificates.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::support::{Authority, ConfigFile, Origin, Protocol, Switchover, curl, eventually, hyper_client::Silent};

const TLS: &str = "    tls: {certificates: [{certificate: shop.crt, key: shop.key}, {certificate: more.crt, key: more.key}]}\n";

/// The output of curl for `https://NAME/`.
fn ask(address: SocketAddr, ca: &Path, name: &str, more: &[&str]) -> Result<String, String> {
    let port = address.port();
    let resolve = format!("{name}:{port}:127.0.0.1");
    curl(&format!("https://{name}:{port}/"), &[&["--cacert", ca.to_str().unwrap(), "--resolve", &resolve], more].concat())
}

#[test]
fn a_client_gets_the_certificate_of_the_name_it_asks_for() {
    let (blue, authority) = (Origin::start("blue"), Authority::new());
    let config = ConfigFile::new(&[("blue", &[blue.address()])]);
    let ca = authority.write(config.folder());
    authority.sign(config.folder(), "shop", &["shop.test"], 2040);
    authority.sign(config.folder(), "more", &["more.test", "*.wild.test"], 2040);
    let config = config.listener(TLS);
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    let ask = |name: &str, more: &[&str]| ask(switchover.address, &ca, name, more);
    for name in ["shop.test", "more.test", "a.wild.test"] {
        assert_eq!(ask(name, &[]), Ok("blue".to_owned()), "{name}");
    }
    for name in ["wild.test", "a.b.wild.test", "other.test"] {
        assert!(ask(name, &[]).is_err_and(|e| e.contains("subject name")), "{name}");
    }
    let version = |more: &[&str]| ask("shop.test", &[&["-o", "/dev/null", "-w", "%{http_version}"], more].concat());
    assert_eq!(version(&[]), Ok("2".to_owned()));
    assert_eq!(version(&["--http1.1"]), Ok("1.1".to_owned()));
    assert_eq!(version(&["--tls-max", "1.2"]), Ok("2".to_owned()));
    assert_eq!(version(&["--tlsv1.3"]), Ok("2".to_owned()));
    assert!(version(&["--tls-max", "1.1"]).is_err());
    // HTTP/2 has lower-case field names only.
    let head = blue.heads().pop().unwrap().to_lowercase();
    assert!(head.contains("x-forwarded-proto: https"), "{head}");
    let port = format!("x-forwarded-port: {}", switchover.address.port());
    assert!(head.contains(&port), "{head}");
}

#[test]
fn renewed_certificates_are_used_once_they_are_whole_and_valid() {
    let (blue, authority) = (Origin::start("blue"), Authority::new());
    let config = ConfigFile::new(&[("blue", &[blue.address()])]);
    let folder = config.folder().to_path_buf();
    let ca = authority.write(&folder);
    authority.sign(&folder, "shop", &["shop.test"], 2040);
    let config = config.listener("    tls: {certificates: [{certificate: shop.crt, key: shop.key}]}\n");
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    let ends = |names: &str| {
        switchover.metric(&format!("switchover_tls_certificate_not_after_seconds{{listener=\"127.0.0.1:0\",names=\"{names}\"}}"))
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    assert!(ends("shop.test").is_some_and(|end| end > now));
    let serves = |name: &str| assert_eq!(ask(switchover.address, &ca, name, &[]), Ok("blue".to_owned()), "{name}");

    // A pair whose files do not match, an expired pair, and a file without a certificate: the old pair stays in use.
    let elsewhere = tempfile::tempdir().unwrap();
    authority.sign(elsewhere.path(), "shop", &["new.test"], 2041);
    fs::copy(elsewhere.path().join("shop.crt"), folder.join("shop.crt")).unwrap();
    switchover.await_log("is not the key of");
    serves("shop.test");
    authority.sign(&folder, "shop", &["old.test"], 2021);
    switchover.await_log("the certificate for old.test expired on 2021-01-01");
    serves("shop.test");
    fs::write(folder.join("shop.crt"), "nonsense").unwrap();
    switchover.await_log("holds no certificate in PEM");
    serves("shop.test");

    for file in ["shop.crt", "shop.key"] {
        fs::copy(elsewhere.path().join(file), folder.join(file)).unwrap();
    }
    switchover.await_log("certificate renewed");
    serves("new.test");
    assert_eq!((ends("new.test").is_some(), ends("shop.test")), (true, None));
}

/// An expired pair, an unreadable pair and an unreadable client CA are reported, and do not affect other files.
#[test]
fn one_bad_pair_leaves_the_others_renewing() {
    let (blue, authority) = (Origin::start("blue"), Authority::new());
    let config = ConfigFile::new(&[("blue", &[blue.address()])]);
    let folder = config.folder().to_path_buf();
    let ca = authority.write(&folder);
    authority.sign(&folder, "shop", &["shop.test"], 2040);
    authority.sign(&folder, "more", &["more.test"], 2021);
    let config = config.listener(TLS);
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    let serves = |name: &str| {
        eventually(&format!("it serves {name}"), || match ask(switchover.address, &ca, name, &[]) {
            Ok(body) if body == "blue" => Ok(()),
            other => Err((other, switchover.log())),
        });
    };
    let problem = |file: &str, value: f64| {
        let series = format!("switchover_tls_certificate_problem{{file=\"{file}\",listener=\"127.0.0.1:0\"}}");
        eventually(&format!("{file} is {value}"), || match switchover.metric(&series) {
            Some(seen) if seen == value => Ok(()),
            other => Err((other, switchover.log())),
        });
    };
    switchover.await_log("file=more.crt");
    switchover.await_log("the certificate for more.test expired on 2021-01-01");
    problem("more.crt", 1.0);
    problem("shop.crt", 0.0);

    // One pair has expired; the other one is renewed.
    authority.sign(&folder, "shop", &["shop.test", "second.test"], 2040);
    serves("second.test");
    // One pair cannot be read; the other one is renewed.
    fs::remove_file(folder.join("more.key")).unwrap();
    switchover.await_log("there is no file");
    authority.sign(&folder, "shop", &["shop.test", "third.test"], 2040);
    serves("third.test");
    // The corrected pair is used, and the metric shows no problem.
    authority.sign(&folder, "more", &["more.test"], 2040);
    serves("more.test");
    problem("more.crt", 0.0);
    serves("third.test");
}

/// Files that are corrected without a change of date or length, as by `cp -p` and on some mounts.
#[test]
fn a_pair_is_read_again_without_a_sign_of_a_change() {
    let (blue, authority) = (Origin::start("blue"), Authority::new());
    let config = ConfigFile::new(&[("blue", &[blue.address()])]);
    let folder = config.folder().to_path_buf();
    let ca = authority.write(&folder);
    authority.sign(&folder, "shop", &["shop.test"], 2040);
    let key = folder.join("shop.key");
    let written = fs::metadata(&key).unwrap().modified().unwrap();
    let config = config.listener("    tls: {certificates: [{certificate: shop.crt, key: shop.key}]}\n");
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    let with_old_date = |path: &Path, bytes: &[u8]| {
        let new = folder.join("new");
        fs::write(&new, bytes).unwrap();
        fs::File::options().write(true).open(&new).unwrap().set_modified(written).unwrap();
        fs::rename(&new, path).unwrap();
    };
    let good = fs::read(&key).unwrap();
    with_old_date(&key, &vec![b'x'; good.len()]);
    switchover.await_log("holds no private key in PEM");
    with_old_date(&key, &good);
    switchover.await_log("certificate in order again");
    assert_eq!(ask(switchover.address, &ca, "shop.test", &[]), Ok("blue".to_owned()));
}

#[test]
fn run_and_check_reject_a_listener_that_cannot_be_served_and_say_why() {
    let (blue, authority) = (Origin::start("blue"), Authority::new());
    let config = ConfigFile::new(&[("blue", &[blue.address()])]);
    authority.sign(config.folder(), "shop", &["shop.test"], 2040);
    authority.sign(config.folder(), "more", &["more.test"], 2040);
    let folder = config.folder().to_path_buf();
    fs::write(folder.join("empty"), "").unwrap();
    let mut config = config;
    for (certificate, key, said) in [
        ("gone.crt", "shop.key", "there is no file"),
        ("shop.crt", "gone.key", "there is no file"),
        ("empty", "shop.key", "holds no certificate in PEM"),
        ("shop.crt", "empty", "holds no private key in PEM"),
        ("shop.crt", "more.key", "is not the key of"),
    ] {
        config = config.listener(&format!("    tls: {{certificates: [{{certificate: {certificate}, key: {key}}}]}}\n"));
        for command in ["run", "check"] {
            let output = crate::support::switchover::run(&[command, "--config", config.path.to_str().unwrap()]);
            assert!(output.code == 78 && output.stderr.contains(said), "{command} {certificate} {key}: {output:?}");
            assert!(output.stderr.contains("switchover.yaml:3:") && output.stderr.contains("listeners[0].tls"), "{output:?}");
        }
    }
}

#[test]
fn a_listener_with_client_ca_lets_in_clients_with_its_certificates_only() {
    let (blue, authority, stranger) = (Origin::start("blue"), Authority::new(), Authority::new());
    let config = ConfigFile::new(&[("blue", &[blue.address()])]);
    let folder = config.folder().to_path_buf();
    let ca = authority.write(&folder);
    authority.sign(&folder, "shop", &["shop.test"], 2040);
    authority.sign(&folder, "client", &["client.test"], 2040);
    stranger.sign(&folder, "stranger", &["client.test"], 2040);
    let config = config.listener("    tls: {certificates: [{certificate: shop.crt, key: shop.key}], client_ca: ca.crt}\n");
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let with = |name: &str| {
        let (certificate, key) = (path(&format!("{name}.crt")), path(&format!("{name}.key")));
        ask(switchover.address, &ca, "shop.test", &["--cert", &certificate, "--key", &key])
    };
    assert_eq!(with("client"), Ok("blue".to_owned()));
    assert!(with("stranger").is_err());
    assert!(ask(switchover.address, &ca, "shop.test", &[]).is_err());
    eventually("they are counted", || match switchover.rejected("tls_handshake") {
        seen if seen >= 2.0 => Ok(()),
        seen => Err(seen),
    });
}

#[test]
fn redirect_to_https_redirects_everything_but_acme_challenges() {
    let blue = Origin::start("blue");
    let config = ConfigFile::new(&[("blue", &[blue.address()])]).listener("    redirect_to_https: true\n");
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    let mut client = switchover.client();
    for (method, host, target, status, location) in [
        ("GET", "shop.test", "/a?b=c", 301, "https://shop.test/a?b=c"),
        ("HEAD", "shop.test:8080", "/", 301, "https://shop.test/"),
        ("POST", "[::1]:8080", "/x", 308, "https://[::1]/x"),
        ("GET", "[::1]", "/x", 301, "https://[::1]/x"),
    ] {
        client.send(format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")).unwrap();
        let answer = client.read_response().unwrap();
        assert_eq!((answer.status, answer.header("location")), (status, Some(location)));
    }
    let args = ["--http2-prior-knowledge", "-o", "/dev/null", "-w", "%{http_code} %{redirect_url}"];
    assert_eq!(curl(&format!("http://{}/x", switchover.address), &args), Ok("301 https://127.0.0.1/x".to_owned()));
    assert_eq!(client.get("/.well-known/acme-challenge/token").unwrap().text(), "blue");
    assert_eq!(blue.heads().len(), 1);
}

#[test]
fn a_silent_client_is_disconnected_before_and_after_the_handshake() {
    let (blue, authority) = (Origin::start("blue"), Authority::new());
    let config = ConfigFile::new(&[("blue", &[blue.address()])]);
    let ca = authority.write(config.folder());
    authority.sign(config.folder(), "shop", &["shop.test"], 2040);
    let config = config.listener(
        "    tls: {certificates: [{certificate: shop.crt, key: shop.key}]}\n    limits: {header_timeout: 500ms, idle_timeout: 1s}\n",
    );
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    let silent: Vec<_> = (0..200).map(|_| switchover.client()).collect();
    let mut half: Vec<_> = (0..200).map(|_| switchover.client()).collect();
    half.iter_mut().for_each(|client| client.send(b"\x16\x03\x01\x02").unwrap());
    // These have completed the handshake, and chosen HTTP/2 or HTTP/1.1; they send no request.
    let idle: Vec<_> = [Protocol::H2, Protocol::Https1]
        .map(|protocol| Silent::start(switchover.address, &ca, protocol, 1))
        .into_iter()
        .collect();
    eventually("all are closed", || match switchover.metric("switchover_downstream_connections") {
        Some(0.0) => Ok(()),
        other => Err(other),
    });
    drop((silent, half, idle));
}
