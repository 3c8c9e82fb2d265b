//! Checks [`super::properties`] on mutations of seeds, the same in every `cargo test`. `make fuzz` searches further, in minutes.

use std::{fs, path::Path};

use super::properties;

/// Number of mutations for each kind of input.
const TRIES: usize = 200_000;

/// A pseudorandom sequence that is the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        // xorshift64* (Vigna, 2016).
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap() % bound.max(1)
    }

    /// Changes a seed in a few places: a byte, a repeated or removed piece, a piece of another seed, a word.
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
fn an_accepted_head_is_unambiguous() {
    let (seeds, mut random) = (seeds("tests/seeds/head"), Random(1));
    let passed = (0..TRIES).filter(|_| properties::head(&random.mutate(&seeds, WORDS))).count();
    assert!(passed > TRIES / 20, "only {passed} were accepted: the seeds are too far from valid input");
}

#[test]
fn a_chunked_body_ends_in_the_same_place_however_it_is_cut() {
    let (seeds, mut random) = (seeds("tests/seeds/chunks"), Random(2));
    let whole = (0..TRIES).filter(|cut| properties::chunks(&random.mutate(&seeds, WORDS), *cut)).count();
    assert!(whole > TRIES / 20, "only {whole} were whole");
}

#[test]
fn a_proxy_protocol_header_is_read_or_rejected_and_no_byte_after_it_is_read() {
    let (seeds, mut random) = (seeds("tests/seeds/proxy_protocol"), Random(4));
    let read =
        (0..TRIES).filter(|_| properties::proxy_protocol(&[&random.mutate(&seeds, WORDS), &b"behind"[..]].concat())).count();
    assert!(read > TRIES / 20, "only {read} were read");
}

#[test]
fn frames_are_read_equally_however_they_are_cut() {
    let (seeds, mut random) = (seeds("tests/seeds/frames"), Random(5));
    let refused = (0..TRIES).filter(|cut| properties::frames(&random.mutate(&seeds, WORDS), *cut)).count();
    assert!(refused > TRIES / 20, "only {refused} had a rejection");
}

#[test]
fn no_configuration_makes_it_panic() {
    let words: &[&[u8]] = &[
        b"\n", b"  ", b": ", b"- ", b"{", b"}", b"[", b"]", b"&a ", b"*a", b"<<: ", b"\t", b"\"", b"'", b"|\n", b"!!x ",
        b"---\n", b"0",
    ];
    let (seeds, mut random) = (seeds("conf"), Random(3));
    let texts = (0..TRIES / 20).filter_map(|_| String::from_utf8(random.mutate(&seeds, words)).ok());
    let read = texts.filter(|text| properties::configuration(text)).count();
    assert!(read > 100, "only {read} were read");
}
