//! Requests that an HTTP/2 peer reports as not processed (RFC 9113, section 8.7), and requests that it may have processed.

use std::{
    collections::VecDeque,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use crate::{
    h2::{ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, SETTINGS, STATUS_200, frame},
    support::{ConfigFile, Switchover, eventually},
};

const NO_ERROR: u32 = 0;
const INTERNAL_ERROR: u32 = 2;
const REFUSED_STREAM: u32 = 7;

/// How the peer ends a request. Without an entry in the script: with status 200.
#[derive(Clone, Copy, Debug)]
enum Reply {
    /// `REFUSED_STREAM` as soon as the header is there, without its body.
    RefuseHeader,
    Reset(u32),
    /// A GOAWAY whose last stream is the one before this request; the connection stays open.
    GoAwayBefore,
    /// A GOAWAY that includes this request; then the connection ends without a response.
    GoAwayAfter,
}
use Reply::{GoAwayAfter, GoAwayBefore, RefuseHeader, Reset};

/// A peer that speaks HTTP/2 by a script. Clones share it.
#[derive(Clone)]
struct ScriptedPeer {
    address: SocketAddr,
    script: Arc<Mutex<VecDeque<Reply>>>,
    /// The bodies of the requests, as far as each was sent before its reply.
    bodies: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl ScriptedPeer {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = Self { address: listener.local_addr().unwrap(), script: Arc::default(), bodies: Arc::default() };
        let accepting = peer.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let peer = accepting.clone();
                thread::spawn(move || peer.serve(stream));
            }
        });
        peer
    }

    /// Answers each request when it is complete. Ends with the connection.
    fn serve(&self, mut stream: TcpStream) -> Option<()> {
        stream.read_exact(&mut [0; 24]).ok()?; // The preface.
        stream.write_all(&frame(SETTINGS, 0, 0, &[])).ok()?;
        let (mut body, mut refused) = (Vec::new(), None);
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).ok()?;
            let [a, b, c, kind, flags, id @ ..] = head;
            let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
            stream.read_exact(&mut payload).ok()?;
            let id = u32::from_be_bytes(id);
            match kind {
                SETTINGS if flags & ACK == 0 => stream.write_all(&frame(SETTINGS, ACK, 0, &[])).ok()?,
                // May be on its way when its stream is refused.
                DATA if refused == Some(id) => continue,
                DATA => body.extend(payload),
                _ => {}
            }
            let refuses_header = kind == HEADERS && matches!(self.script.lock().unwrap().front(), Some(RefuseHeader));
            if !refuses_header && (!matches!(kind, DATA | HEADERS) || flags & END_STREAM == 0) {
                continue;
            }
            refused = refuses_header.then_some(id).or(refused);
            self.bodies.lock().unwrap().push(std::mem::take(&mut body));
            let reply = self.script.lock().unwrap().pop_front();
            let go_away = |last: u32| frame(GOAWAY, 0, 0, &[last.to_be_bytes(), NO_ERROR.to_be_bytes()].concat());
            let bytes = match reply {
                None => frame(HEADERS, END_HEADERS | END_STREAM, id, &[STATUS_200]),
                Some(RefuseHeader) => frame(RST_STREAM, 0, id, &REFUSED_STREAM.to_be_bytes()),
                Some(Reset(code)) => frame(RST_STREAM, 0, id, &code.to_be_bytes()),
                Some(GoAwayBefore) => go_away(id.saturating_sub(2)),
                Some(GoAwayAfter) => go_away(id),
            };
            stream.write_all(&bytes).ok()?;
            if matches!(reply, Some(GoAwayAfter)) {
                return None;
            }
        }
    }

    /// Ends the next requests by `script`, sends a POST, and returns its status and how often the peer got it.
    fn post(&self, switchover: &Switchover, script: &[Reply]) -> (u16, usize) {
        self.bodies.lock().unwrap().clear();
        *self.script.lock().unwrap() = script.iter().copied().collect();
        let status = switchover.client().request("POST", "/", b"order").unwrap().status;
        let bodies = self.bodies.lock().unwrap();
        assert!(bodies.iter().all(|body| body == b"order"), "{bodies:?}");
        (status, bodies.len())
    }
}

fn in_front_of(peers: &[&ScriptedPeer], retries: usize) -> (ConfigFile, Switchover) {
    let addresses: Vec<SocketAddr> = peers.iter().map(|peer| peer.address).collect();
    let service = format!(
        "    upstream: {{protocol: h2c}}\n    retries: {retries}\n    balance: round_robin\n    health_check: {{tcp: true, interval: 100ms}}\n"
    );
    let config = ConfigFile::new(&[("blue", &addresses)]).service(&service);
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    (config, switchover)
}

#[test]
fn a_post_that_the_peer_did_not_process_is_sent_again() {
    let peer = ScriptedPeer::start();
    let (_config, switchover) = in_front_of(&[&peer], 2);
    for script in [
        &[Reset(REFUSED_STREAM)][..],
        &[GoAwayBefore],
        &[Reset(REFUSED_STREAM), Reset(REFUSED_STREAM)],
        &[GoAwayBefore, Reset(REFUSED_STREAM)],
    ] {
        // Also over a connection that has served a request.
        assert_eq!(peer.post(&switchover, &[]), (200, 1));
        assert_eq!(peer.post(&switchover, script), (200, script.len() + 1), "{script:?}");
    }
    assert_eq!(peer.post(&switchover, &[Reset(REFUSED_STREAM); 3]), (502, 3), "as often as `retries` permits");
    eventually("both outcomes are counted", || {
        let counted = ["success", "failure"]
            .map(|outcome| switchover.metric(&format!("switchover_retries_total{{outcome=\"{outcome}\",service=\"shop\"}}")));
        if counted == [Some(4.0), Some(1.0)] { Ok(()) } else { Err(counted) }
    });
    drop(switchover);
    let (_config, switchover) = in_front_of(&[&peer], 0);
    assert_eq!(peer.post(&switchover, &[Reset(REFUSED_STREAM)]), (502, 1), "retries: 0");
}

#[test]
fn a_post_that_is_refused_before_its_body_is_sent_again_with_all_of_it() {
    let peer = ScriptedPeer::start();
    let (_config, switchover) = in_front_of(&[&peer], 2);
    for begin in ["", "or"] {
        peer.bodies.lock().unwrap().clear();
        peer.script.lock().unwrap().push_back(RefuseHeader);
        let mut client = switchover.client();
        client.send(format!("POST / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 5\r\n\r\n{begin}")).unwrap();
        eventually("it is refused", || match peer.bodies.lock().unwrap().len() {
            1 => Ok(()),
            other => Err(other),
        });
        client.send(&"order"[begin.len()..]).unwrap();
        assert_eq!(client.read_response().unwrap().status, 200, "{begin:?}");
        assert_eq!(*peer.bodies.lock().unwrap(), [&b""[..], b"order"], "{begin:?}");
    }
}

#[test]
fn a_post_that_one_peer_did_not_process_goes_to_another() {
    let (refuses, serves) = (ScriptedPeer::start(), ScriptedPeer::start());
    let (_config, switchover) = in_front_of(&[&refuses, &serves], 2);
    *refuses.script.lock().unwrap() = [Reset(REFUSED_STREAM); 20].into();
    for _ in 0..10 {
        assert_eq!(serves.post(&switchover, &[]), (200, 1));
    }
    assert!(!refuses.bodies.lock().unwrap().is_empty());
}

#[test]
fn a_post_that_the_peer_may_have_processed_is_not_sent_again() {
    let peer = ScriptedPeer::start();
    let (_config, switchover) = in_front_of(&[&peer], 2);
    for reply in [Reset(INTERNAL_ERROR), Reset(NO_ERROR), GoAwayAfter] {
        assert_eq!(peer.post(&switchover, &[reply]), (502, 1), "{reply:?}");
        assert_eq!(peer.post(&switchover, &[]), (200, 1));
    }
}
