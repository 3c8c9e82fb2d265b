//! A minimal ACME server (RFC 8555): it accepts every account, name and signature, counts the orders, and issues certificates
//! that end in the year that the test sets. `deploy::acme` tests against Pebble, which validates.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex},
    thread,
};

use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde_json::{Value, json};

use super::Authority;

/// Runs until the test program ends.
pub struct AcmeServer {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct State {
    authority: Authority,
    year: i32,
    names: Vec<Value>,
    orders: usize,
    certificate: Option<String>,
}

impl AcmeServer {
    /// Speaks HTTPS as `localhost`, with a certificate of `authority`, which it issues from as well.
    pub fn start(folder: &Path, authority: Authority, year: i32) -> Self {
        authority.sign(folder, "acme-server", &["localhost"], 2040);
        let read = |name: &str| fs::read(folder.join(name)).unwrap();
        let chain = vec![CertificateDer::from_pem_slice(&read("acme-server.crt")).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(&read("acme-server.key")).unwrap();
        let tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let tls = tls.with_safe_default_protocol_versions().unwrap().with_no_client_auth().with_single_cert(chain, key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = State { authority, year, names: Vec::new(), orders: 0, certificate: None };
        let state = Arc::new(Mutex::new(state));
        let (shared, tls) = (Arc::clone(&state), Arc::new(tls));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (shared, tls) = (Arc::clone(&shared), Arc::clone(&tls));
                // Ignores a client that disconnects.
                thread::spawn(move || serve(stream, &tls, &shared, address.port()).ok());
            }
        });
        Self { address, state }
    }

    pub fn directory(&self) -> String {
        format!("https://localhost:{}/directory", self.address.port())
    }

    pub fn orders(&self) -> usize {
        self.state.lock().unwrap().orders
    }
}

fn serve(stream: TcpStream, tls: &Arc<ServerConfig>, state: &Mutex<State>, port: u16) -> std::io::Result<()> {
    let connection = ServerConnection::new(Arc::clone(tls)).map_err(std::io::Error::other)?;
    let mut reader = BufReader::new(StreamOwned::new(connection, stream));
    let (mut request, mut length) = (String::new(), 0);
    reader.read_line(&mut request)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let path = request.split(' ').nth(1).unwrap_or_default();
    let (status, location, body) = answer(path, &body, &mut state.lock().unwrap(), &format!("https://localhost:{port}"));
    let stream = reader.get_mut();
    let length = body.len();
    let body = if request.starts_with("HEAD") { "" } else { &body };
    write!(
        stream,
        "HTTP/1.1 {status} Fine\r\nReplay-Nonce: bm9uY2U\r\nLocation: {location}\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )?;
    stream.conn.send_close_notify();
    stream.flush()
}

fn answer(path: &str, body: &[u8], state: &mut State, here: &str) -> (u16, String, String) {
    let payload = || {
        let signed: Value = serde_json::from_slice(body).unwrap();
        serde_json::from_slice::<Value>(&base64url(signed["payload"].as_str().unwrap())).unwrap_or_default()
    };
    let order = |state: &State| {
        let status = if state.certificate.is_some() { "valid" } else { "ready" };
        json!({
            "status": status,
            "identifiers": state.names,
            "authorizations": [format!("{here}/authorization")],
            "finalize": format!("{here}/finalize"),
            "certificate": state.certificate.as_ref().map(|_| format!("{here}/certificate")),
        })
    };
    let (status, location, value) = match path {
        "/directory" => {
            let urls =
                ["newNonce", "newAccount", "newOrder"].map(|name| (name.to_owned(), Value::from(format!("{here}/{name}"))));
            (200, "", Value::from_iter(urls))
        }
        "/newAccount" => (201, "/account", json!({"status": "valid"})),
        "/newOrder" => {
            state.names = payload()["identifiers"].as_array().unwrap().clone();
            state.certificate = None;
            state.orders += 1;
            (201, "/order", order(state))
        }
        "/authorization" => (
            200,
            "",
            json!({"status": "valid", "identifier": state.names[0], "challenges": [], "expires": "2040-01-01T00:00:00Z"}),
        ),
        "/finalize" => {
            let request = base64url(payload()["csr"].as_str().unwrap());
            state.certificate = Some(state.authority.sign_request(&request, state.year));
            (200, "/order", order(state))
        }
        "/order" => (200, "/order", order(state)),
        "/certificate" => return (200, String::new(), state.certificate.clone().unwrap()),
        _ => (200, "", Value::Null),
    };
    (status, format!("{here}{location}"), value.to_string())
}

fn base64url(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let value = |byte: u8| ALPHABET.iter().position(|known| *known == byte).unwrap() as u32;
    let chunk = |chunk: &[u8]| {
        let bits = chunk.iter().fold(0, |bits, byte| bits << 6 | value(*byte)) << (6 * (4 - chunk.len()));
        bits.to_be_bytes()[1..chunk.len()].to_vec()
    };
    text.as_bytes().chunks(4).flat_map(chunk).collect()
}
