//! The access log: one line per request, and per connection that is rejected before it has sent one.
//!
//! [`crate::proxy`] and [`crate::clients`] hand over entries; a separate thread formats and writes them. A request never waits
//! for the log: when the thread falls behind by more than `QUEUE` lines, further lines are dropped. Every line that is not
//! written is counted, whatever the reason.

use std::{
    fmt::Write as _,
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, SystemTime},
};

use chrono::{DateTime, Utc};
use prometheus::{IntCounter, IntCounterVec};
use serde::{Serialize, Serializer};

use crate::{config::LogFormat, tasks};

/// How many lines may wait to be written.
const QUEUE: usize = 8192;
/// The longest target or header value in a line, in bytes; longer ones are cut.
const LONGEST: usize = 2048;

/// The sending half of the access log. Clones share one writer.
#[derive(Clone)]
pub struct AccessLog {
    lines: SyncSender<Box<Entry>>,
    dropped: IntCounter,
    reopen: Arc<AtomicBool>,
}

/// One line: one request, or one rejected connection. Durations are in seconds.
#[derive(Debug, Default, Serialize)]
pub struct Entry {
    /// End of the request.
    #[serde(serialize_with = "rfc3339")]
    pub at: Option<SystemTime>,
    /// Address of the client.
    pub client: String,
    /// Address of the listener, as configured: `0.0.0.0:443`.
    pub listener: String,
    /// Method; empty without a request header.
    pub method: String,
    /// As sent.
    pub host: String,
    /// Path and query.
    pub target: String,
    /// `HTTP/1.1`.
    pub version: &'static str,
    /// `TLSv1.3`; none without TLS.
    pub tls: Option<&'static str>,
    /// Status of the response; 499 if the client left before it, 0 if no response was possible.
    pub status: u16,
    /// Length of the response body.
    pub bytes_sent: u64,
    /// Length of the request body.
    pub bytes_received: u64,
    /// From the request header to the end of the response.
    #[serde(serialize_with = "seconds")]
    pub duration: Option<Duration>,
    /// Time to connect to the peer; 0 for a reused connection.
    #[serde(serialize_with = "seconds")]
    pub connect: Option<Duration>,
    /// From the connection to the peer's response header.
    #[serde(serialize_with = "seconds")]
    pub header: Option<Duration>,
    /// Empty before routing.
    pub service: String,
    /// Empty before a peer was picked.
    pub pool: String,
    /// Address of the peer, as in the configuration.
    pub peer: String,
    /// Number of tries that failed before the last one.
    pub retries: usize,
    /// The client's `X-Request-Id`, or the one generated for it.
    pub request_id: String,
    /// `ok`, or the reason of the failure in one word.
    pub ended: &'static str,
    /// As sent.
    pub referer: String,
    /// As sent.
    pub user_agent: String,
}

impl AccessLog {
    /// Opens `file` (standard output without one) and starts the writer thread.
    ///
    /// # Errors
    /// When the file cannot be opened or the thread cannot be started.
    pub fn start(format: LogFormat, file: Option<PathBuf>, dropped: IntCounter, restarts: IntCounterVec) -> io::Result<Self> {
        let out = open(file.as_deref())?;
        let (lines, entries) = sync_channel(QUEUE);
        let log = Self { lines, dropped, reopen: Arc::default() };
        let reopen = Arc::clone(&log.reopen);
        let mut writer = Writer { out, file, lost: None, torn: false, dropped: log.dropped.clone() };
        thread::Builder::new().name("access log".to_owned()).spawn(move || {
            let write = || write(&entries, &mut writer, format, &reopen);
            tasks::restarted_thread("access_log", &restarts, write);
        })?;
        Ok(log)
    }

    /// Queues one line; drops and counts it if the queue is full.
    pub fn write(&self, entry: Box<Entry>) {
        if self.lines.try_send(entry).is_err() {
            self.dropped.inc();
        }
    }

    /// Makes the writer reopen the file before the next line, for log rotation.
    pub fn reopen(&self) {
        self.reopen.store(true, Relaxed);
    }
}

enum Out {
    Stdout(io::Stdout),
    File(File),
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stdout(out) => out.write(bytes),
            Self::File(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout(out) => out.flush(),
            Self::File(out) => out.flush(),
        }
    }
}

fn open(file: Option<&Path>) -> io::Result<Out> {
    Ok(match file {
        None => Out::Stdout(io::stdout()),
        Some(path) => Out::File(OpenOptions::new().create(true).append(true).open(path)?),
    })
}

/// The output, and whether writing to it works.
struct Writer {
    out: Out,
    file: Option<PathBuf>,
    /// Lines lost since writing began to fail; none while writing works.
    lost: Option<u64>,
    /// Whether the last write ended in the middle of a line.
    torn: bool,
    dropped: IntCounter,
}

impl Writer {
    fn reopen(&mut self) {
        match open(self.file.as_deref()) {
            Ok(new) => (self.out, self.torn) = (new, false),
            Err(e) => log::error!("cannot reopen the access log; the old file stays in use error={e}"),
        }
    }

    /// Writes whole lines and counts the lost ones. Logs one message when writing begins to fail, and one when it works again.
    fn write(&mut self, lines: &[u8]) {
        let mut rest = lines;
        let mut outcome = Ok(());
        if self.torn {
            // Ends the partial line, so that the next line is whole.
            outcome = self.write_all(&mut b"\n".as_slice());
        }
        let outcome = outcome.and_then(|()| self.write_all(&mut rest)).and_then(|()| self.out.flush());
        match (outcome, self.lost) {
            (Ok(()), None) => {}
            (Ok(()), Some(lost)) => {
                log::info!("the access log can be written again lines_lost={lost}");
                self.lost = None;
            }
            (Err(e), lost) => {
                let now: u64 = rest.iter().map(|byte| u64::from(*byte == b'\n')).sum();
                self.dropped.inc_by(now);
                self.lost = Some(lost.unwrap_or(0) + now);
                if lost.is_none() {
                    log::error!("cannot write the access log; lines are lost until it can be written again error={e}");
                }
            }
        }
    }

    /// As [`Write::write_all`], and leaves the unwritten bytes in `rest`.
    fn write_all(&mut self, rest: &mut &[u8]) -> io::Result<()> {
        while !rest.is_empty() {
            match self.out.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    let (done, left) = rest.split_at(written);
                    self.torn = !done.ends_with(b"\n");
                    *rest = left;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// The writer thread: writes all queued lines at once, and ends when the last sender is dropped.
fn write(entries: &Receiver<Box<Entry>>, writer: &mut Writer, format: LogFormat, reopen: &AtomicBool) {
    let mut text = String::new();
    while let Ok(first) = entries.recv() {
        text.clear();
        tasks::panic_if_asked("access_log");
        for entry in std::iter::once(first).chain(entries.try_iter().take(QUEUE)) {
            line(&mut text, &entry, format);
        }
        if reopen.swap(false, Relaxed) {
            writer.reopen();
        }
        writer.write(text.as_bytes());
    }
}

fn line(text: &mut String, entry: &Entry, format: LogFormat) {
    match format {
        LogFormat::Json => text.push_str(&serde_json::to_string(entry).unwrap_or_default()),
        LogFormat::Text => {
            let at = DateTime::<Utc>::from(entry.at.unwrap_or(SystemTime::UNIX_EPOCH)).format("%d/%b/%Y:%H:%M:%S +0000");
            let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { escaped(text) };
            let request = match entry.method.as_str() {
                "" => "-".to_owned(),
                method => format!("{} {} {}", escaped(method), escaped(&entry.target), entry.version),
            };
            let place = format!("{}/{}/{}", or_dash(&entry.service), or_dash(&entry.pool), or_dash(&entry.peer));
            let duration = entry.duration.unwrap_or_default().as_secs_f64();
            let written = write!(
                text,
                "{} - - [{at}] \"{request}\" {} {} \"{}\" \"{}\" {place} {duration:.3} {} {}",
                entry.client,
                entry.status,
                entry.bytes_sent,
                or_dash(&entry.referer),
                or_dash(&entry.user_agent),
                or_dash(&entry.request_id),
                entry.ended,
            );
            debug_assert!(written.is_ok(), "a String takes everything");
        }
    }
    text.push('\n');
}

/// Escapes as nginx does, so that no client can end a line or a quoted value.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte == b'"' || byte == b'\\' || !(b' '..=b'~').contains(&byte) {
            out.push_str(&format!("\\x{byte:02X}"));
        } else {
            out.push(char::from(byte));
        }
    }
    out
}

/// A value from a client as text, cut to `LONGEST` bytes.
pub fn shortened(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.get(..LONGEST).unwrap_or(bytes)).into_owned()
}

fn rfc3339<S: Serializer>(at: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&humantime::format_rfc3339_millis(at.unwrap_or(SystemTime::UNIX_EPOCH)).to_string())
}

fn seconds<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match duration {
        // Rounds to microseconds.
        Some(duration) => serializer.serialize_f64((duration.as_secs_f64() * 1e6).round() / 1e6),
        None => serializer.serialize_none(),
    }
}
