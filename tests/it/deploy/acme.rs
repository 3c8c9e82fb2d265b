//! Certificates from an authority, with Pebble: the ACME server that Let's Encrypt tests clients with.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
};

use serde_json::json;

use crate::support::{Authority, ConfigFile, Origin, Switchover, curl, eventually};

/// It looks for its proofs on one port of this host.
struct Pebble {
    child: Child,
    directory: String,
    roots: String,
}

impl Pebble {
    fn start(folder: &Path, authority: &Authority, proofs: u16) -> Self {
        authority.sign(folder, "pebble", &["localhost"], 2040);
        let [listen, manage] = [free_port(), free_port()];
        let file = |name: &str| folder.join(name).display().to_string();
        let config = json!({"pebble": {
            "listenAddress": format!("127.0.0.1:{listen}"),
            "managementListenAddress": format!("127.0.0.1:{manage}"),
            "certificate": file("pebble.crt"),
            "privateKey": file("pebble.key"),
            "httpPort": proofs,
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
        let pebble = Self { child, directory, roots };
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

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// What curl prints of a URL whose server is verified by `ca`.
fn get(ca: &Path, url: &str) -> Result<String, String> {
    curl(url, &["--cacert", ca.to_str().unwrap()])
}

#[test]
#[ignore = "needs Pebble: make test-deploy"]
fn a_certificate_is_obtained_kept_and_obtained_anew_for_other_names() {
    let (blue, authority, plain) = (Origin::start("blue"), Authority::new(), free_port());
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
    let proof = ureq::get(format!("http://127.0.0.1:{plain}/.well-known/acme-challenge/other")).call().unwrap();
    assert_eq!(proof.into_body().read_to_string().unwrap(), "blue", "what is not ours is the application's");

    // A restart asks for nothing.
    let (first, who) = (read(&certificate), read(&account));
    drop(switchover);
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    assert_eq!(get(&issuer, &url(&switchover)), Ok("blue".to_owned()), "at once");
    assert_eq!((read(&certificate), read(&account)), (first.clone(), who.clone()));

    // Another name asks for another certificate, by the same account; one that leads nowhere is refused, and the old one serves on.
    drop(switchover);
    let config = asking(config, "localhost, nowhere.invalid");
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    eventually("it says why", || {
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
