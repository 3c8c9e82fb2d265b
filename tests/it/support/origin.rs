//! A peer that records exactly what it receives, and misbehaves on request.

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

/// The reaction to requests of one path.
#[derive(Clone)]
pub enum Act {
    /// Responds with these bytes.
    Say(Vec<u8>),
    /// Responds with these bytes and closes the connection.
    SayAndClose(Vec<u8>),
    /// Responds with each of these in turn, then starts over.
    SayInTurn(Vec<Vec<u8>>),
    /// Responds with these bytes after a delay.
    SayAfter(Duration, Vec<u8>),
    /// Sends the first of these at once, and the second when the gate is opened.
    SayHeld(Gate, Vec<u8>, Vec<u8>),
    /// Reads the request and never responds.
    Hang,
    /// Reads the request and closes the connection.
    Close,
    /// Responds to the first request of a connection, and closes the connection at the second one without a response.
    CloseAtSecond,
    /// Sends these pieces, with a pause before each.
    Drip(Duration, Vec<Vec<u8>>),
    /// Switches protocols, and echoes every byte.
    Echo,
}

/// Delays responses until the test opens it.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self::default()
    }

    pub fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        drop(self.0.1.wait_while(self.0.0.lock().unwrap(), |open| !*open).unwrap());
    }
}

/// A running peer.
#[derive(Clone)]
pub struct Origin(Arc<Inner>);

struct Inner {
    name: String,
    address: SocketAddr,
    acts: Mutex<HashMap<String, Act>>,
    heads: Mutex<Vec<String>>,
    bodies: Mutex<Vec<Vec<u8>>>,
    own: Mutex<Vec<(String, Vec<u8>)>>,
    open: Mutex<Vec<TcpStream>>,
    connections: AtomicUsize,
    alive: AtomicBool,
}

/// A 200 response with this body.
pub fn ok(body: &str) -> Vec<u8> {
    status(200, body)
}

pub fn status(code: u16, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {code} Something\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

impl Origin {
    /// Starts a peer that is ready and responds to every request with its name.
    pub fn start(name: &str) -> Self {
        Self::on_listener(name, TcpListener::bind("127.0.0.1:0").unwrap())
    }

    /// The same, on a given socket.
    pub fn on_listener(name: &str, listener: TcpListener) -> Self {
        let inner = Inner {
            name: name.to_owned(),
            address: listener.local_addr().unwrap(),
            acts: Mutex::default(),
            heads: Mutex::default(),
            bodies: Mutex::default(),
            own: Mutex::default(),
            open: Mutex::default(),
            connections: AtomicUsize::new(0),
            alive: AtomicBool::new(true),
        };
        let origin = Self(Arc::new(inner));
        origin.accept(listener);
        origin
    }

    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// Sets the reaction to requests of a path.
    pub fn on(&self, path: &str, act: Act) -> &Self {
        self.0.acts.lock().unwrap().insert(path.to_owned(), act);
        self
    }

    /// Sets the response to probes.
    pub fn readiness(&self, code: u16, body: &str) -> &Self {
        self.on("/actuator/health/readiness", Act::Say(status(code, body)))
    }

    /// The heads and bodies of the requests of switchover itself, except probes.
    pub fn own_requests(&self) -> (Vec<String>, Vec<Vec<u8>>) {
        self.0.own.lock().unwrap().iter().cloned().unzip()
    }

    /// The heads of all requests of clients.
    pub fn heads(&self) -> Vec<String> {
        self.0.heads.lock().unwrap().clone()
    }

    pub fn bodies(&self) -> Vec<Vec<u8>> {
        self.0.bodies.lock().unwrap().clone()
    }

    /// The number of connections so far, except those with probes only.
    pub fn connections(&self) -> usize {
        self.0.connections.load(SeqCst)
    }

    /// Closes all connections and the listener at once, like a killed process.
    pub fn kill(&self) {
        self.0.alive.store(false, SeqCst);
        // Wakes the thread of the listener, which then ends.
        drop(TcpStream::connect(self.address()));
        for stream in self.0.open.lock().unwrap().drain(..) {
            stream.shutdown(Shutdown::Both).ok();
        }
        super::eventually("nothing listens any more", || match TcpStream::connect(self.address()) {
            Ok(_) => Err("it still listens"),
            Err(_) => Ok(()),
        });
    }

    fn accept(&self, listener: TcpListener) {
        let origin = self.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                if !origin.0.alive.load(SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { return };
                origin.0.open.lock().unwrap().push(stream.try_clone().unwrap());
                let origin = origin.clone();
                thread::spawn(move || origin.serve(stream));
            }
        });
    }

    /// Serves the requests of one connection.
    fn serve(&self, mut stream: TcpStream) -> Option<()> {
        stream.set_nodelay(true).ok()?;
        let mut buffer = Vec::new();
        let mut counted = false;
        for served in 0.. {
            let (head, body) = read_request(&mut stream, &mut buffer)?;
            let path = head.split(' ').nth(1)?.split('?').next()?.to_owned();
            if !head.contains("User-Agent: switchover/") {
                if !std::mem::replace(&mut counted, true) {
                    self.0.connections.fetch_add(1, SeqCst);
                }
                self.0.heads.lock().unwrap().push(head);
                self.0.bodies.lock().unwrap().push(body);
            } else if path != "/actuator/health/readiness" {
                self.0.own.lock().unwrap().push((head, body));
            }
            let act = match self.0.acts.lock().unwrap().get_mut(&path) {
                Some(Act::SayInTurn(answers)) => {
                    answers.rotate_left(1);
                    answers.last().cloned().map(Act::Say)
                }
                act => act.cloned(),
            };
            match act.unwrap_or_else(|| Act::Say(self.named())) {
                Act::SayInTurn(_) => unreachable!("one of its answers is said"),
                Act::Say(bytes) => stream.write_all(&bytes).ok()?,
                Act::SayAndClose(bytes) => {
                    stream.write_all(&bytes).ok()?;
                    return stream.shutdown(Shutdown::Both).ok();
                }
                Act::SayAfter(pause, bytes) => {
                    thread::sleep(pause);
                    stream.write_all(&bytes).ok()?;
                }
                Act::SayHeld(gate, first, then) => {
                    stream.write_all(&first).ok()?;
                    gate.pass();
                    stream.write_all(&then).ok()?;
                }
                Act::Hang => loop {
                    fill(&mut stream, &mut buffer)?;
                },
                Act::Close => return stream.shutdown(Shutdown::Both).ok(),
                Act::CloseAtSecond if served > 0 => return stream.shutdown(Shutdown::Both).ok(),
                Act::CloseAtSecond => stream.write_all(&self.named()).ok()?,
                Act::Drip(pause, pieces) => {
                    for piece in pieces {
                        stream.write_all(&piece).ok()?;
                        thread::sleep(pause);
                    }
                }
                Act::Echo => {
                    stream
                        .write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
                        .ok()?;
                    stream.write_all(&buffer).ok()?;
                    let mut bytes = [0; 4096];
                    loop {
                        let n = stream.read(&mut bytes).ok().filter(|n| *n > 0)?;
                        stream.write_all(&bytes[..n]).ok()?;
                    }
                }
            }
        }
        Some(())
    }

    fn named(&self) -> Vec<u8> {
        let name = &self.0.name;
        format!("HTTP/1.1 200 OK\r\nX-App: {name}\r\nContent-Length: {}\r\n\r\n{name}", name.len()).into_bytes()
    }
}

fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<(String, Vec<u8>)> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        fill(stream, buffer)?;
    };
    let head = String::from_utf8_lossy(&buffer.drain(..end).collect::<Vec<_>>()).into_owned();
    let lower = head.to_lowercase();
    if lower.contains("expect: 100-continue") {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
    }
    let length = lower.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next()?.parse::<usize>().ok());
    let body_end = match length {
        Some(length) => {
            while buffer.len() < length {
                fill(stream, buffer)?;
            }
            length
        }
        // Recorded unchanged, with its chunk sizes.
        None if lower.contains("transfer-encoding: chunked") => loop {
            if let Some(at) = buffer.windows(5).position(|window| window == b"0\r\n\r\n") {
                break at + 5;
            }
            fill(stream, buffer)?;
        },
        None => 0,
    };
    Some((head, buffer.drain(..body_end).collect()))
}

fn fill(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<()> {
    let mut bytes = [0; 64 * 1024];
    let n = stream.read(&mut bytes).ok().filter(|n| *n > 0)?;
    buffer.extend_from_slice(&bytes[..n]);
    Some(())
}
