//! ACME against Pebble, the server that Let's Encrypt provides for tests of clients.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use serde_json::json;

use crate::support::{Authority, ConfigFile, Origin, Port, Switchover, curl, eventually};

/// A running Pebble. It validates challenges on one port of this host.
struct Pebble {
    child: Child,
    directory: String,
    roots: String,
    _ports: [Port; 2],
}

impl Pebble {
    fn start(folder: &Path, authority: &Authority, challenges: u16) -> Self {
        authority.sign(folder, "pebble", &["localhost"], 2040);
        let ports = [Port::reserve(), Port::reserve()];
        let [listen, manage] = [&ports[0], &ports[1]].map(|port| port.address.port());
        let file = |name: &str| folder.join(name).display().to_string();
        let config = json!({"pebble": {
            "listenAddress": format!("127.0.0.1:{listen}"),
            "managementListenAddress": format!("127.0.0.1:{manage}"),
            "certificate": file("pebble.crt"),
            "privateKey": file("pebble.key"),
            "httpPort": challenges,
            "tlsPort": 1,
        }});
        fs::write(folder.join("pebble.json"), config.to_string()).unwrap();
        let child = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("target/deploy/venv/bin/pebble"))
            .args(["-config", &file("pebble.json")])
            .env("PEBBLE_VA_NOSLEEP", "1")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let [directory, roots] =
            [(listen, "dir"), (manage, "roots/0")].map(|(port, path)| format!("https://localhost:{port}/{path}"));
        let pebble = Self { child, directory, roots, _ports: ports };
        eventually("Pebble answers", || get(&folder.join("ca.crt"), &pebble.directory));
        pebble
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        self.child.kill().unwrap_or_default();
        self.child.wait().map(drop).unwrap_or_default();
    }
}

/// What curl prints of a URL whose server is verified by `ca`.
fn get(ca: &Path, url: &str) -> Result<String, String> {
    curl(url, &["--cacert", ca.to_str().unwrap()])
}

#[test]
#[ignore = "needs Pebble: make test-deploy"]
fn a_certificate_is_obtained_kept_and_replaced_for_other_names() {
    let (blue, authority, port) = (Origin::start("blue"), Authority::new(), Port::reserve());
    let plain = port.address.port();
    let config = ConfigFile::new(&[("blue", &[blue.address()])]);
    let ca = authority.write(config.folder());
    let pebble = Pebble::start(config.folder(), &authority, plain);
    let asking = |config: ConfigFile, names: &str| {
        config.listener(&format!(
            "    tls: {{acme: {{names: [{names}], store: store, directory: \"{}\", ca: ca.crt, contact: ops@example.com}}}}\n\
             \x20 - address: 127.0.0.1:{plain}\n    redirect_to_https: true\n",
            pebble.directory
        ))
    };
    let config = asking(config, "localhost");
    let store = config.folder().join("store").join(pebble.directory.split('/').nth(2).unwrap().replace(':', "_"));
    let [certificate, account] = ["localhost.pem", "account.json"].map(|name| store.join(name));
    let read = |path: &Path| fs::read(path).unwrap();

    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    let issuer = config.folder().join("issuer.crt");
    fs::write(&issuer, get(&ca, &pebble.roots).unwrap()).unwrap();
    let url = |switchover: &Switchover| format!("https://localhost:{}/", switchover.address.port());
    eventually("it serves with a certificate of the authority", || match get(&issuer, &url(&switchover)) {
        Ok(body) if body == "blue" => Ok(()),
        other => Err((other, switchover.log())),
    });
    for secret in [&certificate, &account] {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(secret).unwrap().permissions().mode() & 0o777, 0o600, "{}", secret.display());
    }
    let challenge = ureq::get(format!("http://127.0.0.1:{plain}/.well-known/acme-challenge/other")).call().unwrap();
    assert_eq!(
        challenge.into_body().read_to_string().unwrap(),
        "blue",
        "a token of another client is forwarded to the application"
    );

    // A restart orders no certificate.
    let (first, who) = (read(&certificate), read(&account));
    drop(switchover);
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    assert_eq!(get(&issuer, &url(&switchover)), Ok("blue".to_owned()), "at once");
    assert_eq!((read(&certificate), read(&account)), (first.clone(), who.clone()));

    // A further name needs another certificate, ordered by the same account. The authority rejects a name that does not resolve,
    // and the old certificate stays in use.
    drop(switchover);
    let config = asking(config, "localhost, nowhere.invalid");
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    eventually("the reason is logged", || {
        let log = switchover.log();
        if log.contains("no certificate names=localhost,nowhere.invalid") && log.contains("http://nowhere.invalid:") {
            Ok(())
        } else {
            Err(log)
        }
    });
    assert_eq!(get(&issuer, &url(&switchover)), Ok("blue".to_owned()));
    assert_eq!((read(&certificate), read(&account)), (first, who));
}
