//! One Spring Boot process of deploy/spring-boot, and what its clients do for longer than a moment.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::support::{Client, Port, eventually};

/// Which jar: `make test-deploy` builds them.
#[derive(Clone, Copy)]
pub enum Jar {
    /// Spring Boot 4.1.
    Current,
    /// Spring Boot 3.5, which most people have.
    Older,
    /// With Spring Security in front of everything.
    Secured,
}

/// A process, always at the same address.
pub struct Spring {
    pub address: SocketAddr,
    name: &'static str,
    jar: Jar,
    _port: Port,
    child: Option<Child>,
}

impl Spring {
    /// A port for it; it is not started.
    pub fn new(name: &'static str, jar: Jar) -> Self {
        let port = Port::reserve();
        Self { address: port.address, name, jar, _port: port, child: None }
    }

    /// Starts a release of it with these settings; ready when it says so, which switchover finds out.
    pub fn start(&mut self, version: &str, settings: &[(&str, &str)]) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let child = Command::new("java")
            .args(["-Xmx128m", "-XX:TieredStopAtLevel=1", "-jar"])
            .arg(self.jar.path())
            .args(["--server.address=127.0.0.1", "--logging.level.root=warn"])
            .env("SERVER_PORT", self.address.port().to_string())
            .env("APP_NAME", self.name)
            .env("APP_VERSION", version)
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// Waits until its port answers, ready or not.
    pub fn await_port(&self) {
        // A JVM on two cores that do everything else as well.
        for _ in 0..3 {
            if (0..400).any(|_| Client::connect(self.address).is_ok_and(|mut client| client.get("/").is_ok()) || pause()) {
                return;
            }
        }
        panic!("{} does not listen", self.name);
    }

    /// Asks it to end, without waiting for that.
    pub fn terminate(&self) {
        kill(Pid::from_raw(self.child.as_ref().unwrap().id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    }

    /// Stops it, with SIGTERM or with SIGKILL.
    pub fn stop(&mut self, politely: bool) {
        if politely {
            self.terminate();
        } else {
            self.child.as_mut().unwrap().kill().unwrap();
        }
        self.child.take().unwrap().wait().unwrap();
    }
}

fn pause() -> bool {
    thread::sleep(Duration::from_millis(50));
    false
}

impl Drop for Spring {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill().unwrap_or_default();
            child.wait().map(drop).unwrap_or_default();
        }
    }
}

impl Jar {
    pub fn path(self) -> PathBuf {
        let name = match self {
            Self::Current => "shop.jar",
            Self::Older => "shop-3.5.jar",
            Self::Secured => "shop-secured.jar",
        };
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/deploy").join(name);
        assert!(path.is_file(), "{} is not there: make test-deploy builds it", path.display());
        path
    }
}

/// An upload in pieces, over two seconds; gives what the application counted.
pub fn upload(address: SocketAddr) -> JoinHandle<Result<(), String>> {
    const PIECES: usize = 20;
    thread::spawn(move || {
        let piece = vec![b'x'; 50_000];
        let mut client = Client::connect(address).map_err(said)?;
        let length = PIECES * piece.len();
        client.send(format!("PUT /upload HTTP/1.1\r\nHost: shop\r\nContent-Length: {length}\r\n\r\n")).map_err(said)?;
        for _ in 0..PIECES {
            client.send(&piece).map_err(said)?;
            thread::sleep(Duration::from_millis(100)); // An upload that is slower than a swap.
        }
        let answer = client.read_response().map_err(said)?;
        let text = answer.text();
        if text.ends_with(&format!(" received {length} bytes\n")) { Ok(()) } else { Err(format!("{} {text}", answer.status)) }
    })
}

/// An event stream over two seconds, to its own end.
pub fn events(address: SocketAddr) -> JoinHandle<Result<(), String>> {
    thread::spawn(move || {
        let mut client = Client::connect(address).map_err(said)?;
        client.send("GET /events?every_ms=100&count=20 HTTP/1.1\r\nHost: shop\r\n\r\n").map_err(said)?;
        let head = client.read_head().map_err(said)?;
        let mut events = 0;
        loop {
            let chunk = client.read_chunk().map_err(said)?;
            if chunk.is_empty() {
                break;
            }
            events += String::from_utf8_lossy(&chunk).matches("data:").count();
        }
        if (head.status, events) == (200, 20) { Ok(()) } else { Err(format!("{} {events} events", head.status)) }
    })
}

/// A WebSocket that says something and is answered, ten times in two seconds.
pub fn chat(address: SocketAddr) -> JoinHandle<Result<(), String>> {
    thread::spawn(move || {
        let mut client = Client::connect(address).map_err(said)?;
        client
            .send(
                "GET /ws HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            )
            .map_err(said)?;
        let head = client.read_head().map_err(said)?;
        if head.status != 101 {
            return Err(format!("no WebSocket but {}", head.status));
        }
        for word in 0..10 {
            let word = format!("word {word}");
            // A text frame, masked as a client's has to be; with zeros, which leave it as it is.
            let frame = [&[0x81, 0x80 | word.len() as u8, 0, 0, 0, 0], word.as_bytes()].concat();
            client.send(frame).map_err(said)?;
            let answer = client.read_exactly(2 + word.len()).map_err(said)?;
            if answer[2..] != *word.as_bytes() {
                return Err(format!("{word:?} came back as {answer:?}"));
            }
            thread::sleep(Duration::from_millis(200)); // People type.
        }
        Ok(())
    })
}

#[expect(clippy::needless_pass_by_value, reason = "what map_err hands over")]
fn said(error: io::Error) -> String {
    error.to_string()
}

/// Waits until the address of `name` in a command's words has come, as long as a JVM or a container may take.
pub fn patiently<T, E: std::fmt::Debug>(what: &str, mut look: impl FnMut() -> Result<T, E>) -> T {
    for _ in 0..2 {
        let limit = std::time::Instant::now() + Duration::from_secs(20);
        while std::time::Instant::now() < limit {
            if let Ok(fact) = look() {
                return fact;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
    eventually(what, look)
}
