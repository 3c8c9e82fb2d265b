//! Properties of every parser of client bytes and of the configuration. Each function checks one input and panics if a property does
//! not hold. [`super::mutated`] calls them in `cargo test`, and `make fuzz` with inputs that reach new code. Never part of a release.

use std::{
    pin::pin,
    sync::{Arc, mpsc},
    task::{Context, Poll, Waker},
};

use super::{
    client_stream::chunks::Chunks,
    frame_watcher::FrameWatcher,
    head::{self, Body, Scan},
};
use crate::config::{self, Limits};

/// An accepted HTTP/1 head is unambiguous, and is accepted again in the form that is forwarded. Returns whether it was accepted.
pub fn head(bytes: &[u8]) -> bool {
    let limits = Limits::default();
    let Ok(Some(length)) = Scan::default().end(bytes, &limits) else { return false };
    let original = &bytes[..length];
    let Ok(first) = head::judge(original, &limits) else { return false };
    let sent = first.rewritten.as_deref().unwrap_or(original);
    let text = String::from_utf8_lossy(sent).to_lowercase();
    assert!(text.ends_with("\r\n\r\n") && !text.replace("\r\n", "").contains(['\r', '\n', '\0']), "{text:?}");
    let count = |name: &str| text.lines().skip(1).filter(|line| line.split(':').next() == Some(name)).count();
    let (lengths, encodings) = (count("content-length"), count("transfer-encoding"));
    assert!(lengths + encodings <= 1 && count("host") <= 1, "{text:?}");
    assert_eq!(encodings == 1, first.body == Body::Chunked, "{text:?}");
    assert!(lengths == 1 || matches!(first.body, Body::Length(0) | Body::Chunked), "{text:?}");
    assert!(text.split(' ').nth(1).is_some_and(|target| target.starts_with('/') || target == "*"), "{text:?}");
    let again = head::judge(sent, &limits).unwrap_or_else(|e| panic!("{text:?}: {e}"));
    assert!(again.body == first.body && again.rewritten.is_none(), "{text:?}");
    true
}

/// A chunked body ends at the same byte, or is rejected for the same reason, however it is cut. Returns whether it was complete.
pub fn chunks(bytes: &[u8], cut: usize) -> bool {
    const MOST: Option<u64> = Some(1000);
    let mut whole = Chunks::new(MOST);
    let at_once = whole.pass(bytes);
    let (mut pieces, mut passed, mut refused) = (Chunks::new(MOST), 0, None);
    let mut rest = bytes;
    while let [next, ..] = rest
        && !pieces.done()
        && refused.is_none()
    {
        let (piece, behind) = rest.split_at((1 + (cut + usize::from(*next)) % 9).min(rest.len()));
        match pieces.pass(piece) {
            Ok(n) => passed += n,
            Err(e) => refused = Some(e),
        }
        rest = behind;
    }
    match (at_once, refused) {
        (Ok(n), None) => assert_eq!((n, whole.done()), (passed, pieces.done()), "{bytes:?}"),
        (Err(a), Some(b)) => assert_eq!(a, b, "{bytes:?}"),
        other => panic!("{other:?}: {bytes:?}"),
    }
    whole.done()
}

/// The rejections in HTTP/2 frames are the same however the frames are cut. Returns whether there was one.
pub fn frames(bytes: &[u8], cut: usize) -> bool {
    let rejections = |piece: usize| {
        let (sender, receiver) = mpsc::channel();
        let mut frames = FrameWatcher::new(move |rejection| sender.send(rejection).unwrap(), Arc::default());
        bytes.chunks(piece).for_each(|piece| frames.written(piece));
        drop(frames);
        receiver.iter().collect::<Vec<_>>()
    };
    let at_once = rejections(bytes.len().max(1));
    assert_eq!(rejections(1 + cut % 20), at_once, "{bytes:?}");
    !at_once.is_empty()
}

/// A PROXY protocol header is read or rejected, and no byte after it is read. Returns whether it was read.
pub fn proxy_protocol(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    let read = match pin!(super::proxy_protocol::read(&mut rest)).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(read) => read.is_ok(),
        Poll::Pending => panic!("waits although all bytes are there"),
    };
    if read {
        let header = match bytes[0] {
            b'P' => bytes.windows(2).position(|pair| pair == b"\r\n").unwrap() + 2,
            _ => 16 + usize::from(u16::from_be_bytes([bytes[14], bytes[15]])),
        };
        assert_eq!(rest, &bytes[header..], "{bytes:?}");
    }
    read
}

/// A configuration is accepted, or rejected with its problems. In an accepted one, `promote` changes one word or returns an error.
/// Returns whether it was accepted.
pub fn configuration(text: &str) -> bool {
    match config::parse(text) {
        Ok(config) => {
            for (name, service) in &config.services {
                for pool in service.pools.keys() {
                    if let Ok(changed) = config::edit::promote(text, name, pool, None) {
                        assert_eq!(config::parse(&changed).unwrap().services[name].active, *pool, "{text}");
                    }
                }
            }
            true
        }
        Err(problems) => {
            assert!(!problems.is_empty() && problems.iter().all(|problem| !problem.message.is_empty()), "{text}");
            false
        }
    }
}
