//! Everything of ours that parses what strangers send, on mutations of seeds: it never panics, and what it accepts has the properties
//! that the rest relies on. Coverage-guided fuzzers need a nightly compiler; this runs with every `cargo test`, the same each time.

use std::{fs, path::Path};

use super::{
    chunks::Chunks,
    head::{self, Body, Scan},
};
use crate::config::{self, Limits};

/// Mutations of each kind of input.
const TRIES: u64 = 200_000;

/// Numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        // xorshift64* (Vigna, 2016).
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap() % bound.max(1)
    }

    /// One of the seeds, changed in a few places: a byte, a piece repeated or cut out, a piece of another seed, a word.
    fn mutate(&mut self, seeds: &[Vec<u8>], words: &[&[u8]]) -> Vec<u8> {
        let mut bytes = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len() + 1);
            let end = at + self.below(bytes.len() - at + 1).min(40);
            match self.below(5) {
                0 if at < bytes.len() => bytes[at] = u8::try_from(self.below(256)).unwrap(),
                1 => drop(bytes.drain(at..end)),
                2 => {
                    let piece = bytes[at..end].to_vec();
                    bytes.splice(at..at, piece);
                }
                3 => {
                    let other = &seeds[self.below(seeds.len())];
                    let from = self.below(other.len());
                    bytes.splice(at..end, other[from..].iter().take(30).copied());
                }
                _ => drop(bytes.splice(at..at, words[self.below(words.len())].iter().copied())),
            }
        }
        bytes
    }
}

fn seeds(folder: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files.into_iter().filter(|path| path.is_file()).map(|path| fs::read(path).unwrap()).collect()
}

const WORDS: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\t",
    b":",
    b",",
    b"0",
    b"\0",
    b"\x0b",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Host: a\r\n",
    b"chunked",
    b"HTTP/1.0",
    b"HTTP/1.1",
    b"http://",
    b"\r\n\r\n",
    b";",
    b"ffffffffffffffff",
    b"\xff",
    b"_",
];

#[test]
fn a_head_that_passes_means_one_thing() {
    let (seeds, limits, mut random, mut passed) = (seeds("tests/seeds/heads"), Limits::default(), Random(1), 0);
    for _ in 0..TRIES {
        let bytes = random.mutate(&seeds, WORDS);
        let mut scan = Scan::default();
        let Ok(Some(length)) = scan.end(&bytes, &limits) else { continue };
        let original = &bytes[..length];
        let Ok(first) = head::judge(original, &limits) else { continue };
        passed += 1;
        let sent = first.rewritten.as_deref().unwrap_or(original);
        let text = String::from_utf8_lossy(sent).to_lowercase();
        assert!(text.ends_with("\r\n\r\n") && !text.replace("\r\n", "").contains(['\r', '\n', '\0']), "{text:?}");
        let count = |name: &str| text.lines().skip(1).filter(|line| line.split(':').next() == Some(name)).count();
        let (lengths, encodings) = (count("content-length"), count("transfer-encoding"));
        assert!(lengths + encodings <= 1 && count("host") <= 1, "{text:?}");
        assert_eq!(encodings == 1, first.body == Body::Chunked, "{text:?}");
        assert!(lengths == 1 || matches!(first.body, Body::Length(0) | Body::Chunked), "{text:?}");
        assert!(text.split(' ').nth(1).is_some_and(|target| target.starts_with('/') || target == "*"), "{text:?}");
        // What is sent on is fine as it is.
        let again = head::judge(sent, &limits).unwrap_or_else(|e| panic!("{text:?}: {e}"));
        assert!(again.body == first.body && again.rewritten.is_none(), "{text:?}");
    }
    assert!(passed > TRIES / 20, "only {passed} passed: the seeds are not good for much");
}

#[test]
fn a_chunked_body_ends_in_the_same_place_however_it_is_cut() {
    let (seeds, mut random, mut done) = (seeds("tests/seeds/chunks"), Random(2), 0);
    for _ in 0..TRIES {
        let bytes = random.mutate(&seeds, WORDS);
        let mut whole = Chunks::new(Some(1000));
        let at_once = whole.pass(&bytes);
        let (mut pieces, mut passed, mut refused) = (Chunks::new(Some(1000)), 0, None);
        let mut rest = bytes.as_slice();
        while !rest.is_empty() && !pieces.done() && refused.is_none() {
            let (piece, behind) = rest.split_at(1 + random.below(rest.len().min(9)));
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
        done += u64::from(whole.done());
    }
    assert!(done > TRIES / 20, "only {done} were whole");
}

#[test]
fn no_configuration_makes_it_panic() {
    let mut seeds = seeds("conf");
    seeds.extend(self::seeds("tests/invalid").into_iter().filter(|file| file.starts_with(b"listeners")));
    let words: &[&[u8]] = &[
        b"\n", b"  ", b": ", b"- ", b"{", b"}", b"[", b"]", b"&a ", b"*a", b"<<: ", b"\t", b"\"", b"'", b"|\n", b"!!x ",
        b"---\n", b"0",
    ];
    let mut random = Random(3);
    for _ in 0..TRIES / 20 {
        let bytes = random.mutate(&seeds, words);
        if let Ok(text) = String::from_utf8(bytes)
            && let Err(problems) = config::parse(&text)
        {
            assert!(!problems.is_empty() && problems.iter().all(|problem| !problem.message.is_empty()), "{text}");
        }
    }
}

#[tokio::test]
async fn a_proxy_protocol_header_is_read_or_refused_and_nothing_behind_it_is_touched() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (seeds, mut random, mut read) = (seeds("tests/seeds/proxy"), Random(4), 0);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    for turn in 0..3000 {
        let bytes = if turn % 10 == 0 { seeds[turn / 10 % seeds.len()].clone() } else { random.mutate(&seeds, WORDS) };
        let sent = [&bytes[..], b"behind"].concat();
        let mut far = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut near, _) = listener.accept().await.unwrap();
        far.write_all(&sent).await.unwrap();
        far.shutdown().await.unwrap();
        if super::proxy_protocol::read(&mut near).await.is_ok() {
            let mut rest = Vec::new();
            near.read_to_end(&mut rest).await.unwrap();
            let header = match sent[0] {
                b'P' => sent.windows(2).position(|pair| pair == b"\r\n").unwrap() + 2,
                _ => 16 + usize::from(u16::from_be_bytes([sent[14], sent[15]])),
            };
            assert_eq!(rest, sent[header..], "{sent:?}");
            read += 1;
        }
    }
    assert!(read >= 300, "only {read} were read");
}
