//! Notifications: each event of a swap as a JSON object to a URL of the user, by POST, signed if there is a secret.
//!
//! The controller hands over an event and goes on; a task delivers the events one after the other. The queue is bounded: if the URL is
//! slow or down, events are dropped and counted. A swap never waits for a notification.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use log::{info, warn};
use parking_lot::Mutex;
use pingora::connectors::http::Connector;
use ring::hmac;
use serde::Serialize;
use tokio::{
    sync::{Mutex as AsyncMutex, mpsc},
    task::spawn_blocking,
    time::timeout,
};

use super::url;
use crate::{
    config::{self, file},
    metrics::Metrics,
    status::Outcome,
    tasks,
};

/// Events that wait for their delivery.
const QUEUE: usize = 100;
/// Time limit of one try.
const TRY: Duration = Duration::from_secs(5);
/// Pauses before the second and the third try.
const RETRIES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];
/// Maximum size of the secret.
const LARGEST_SECRET: u32 = 4096;
/// The HMAC of the body with the secret, as GitHub sends it: `sha256=` and 64 hexadecimal digits.
const SIGNATURE: &str = "X-Switchover-Signature";

/// What happened. The name in JSON is the value of `event`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The new pool is being proven.
    Proving,
    /// The new pool serves.
    Promoted,
    /// The new pool has failed while it was observed; the old pool serves again.
    TakenBack,
    /// No request runs on the old pool.
    Drained,
    /// Requests still run on the old pool after `drain.timeout`.
    DrainTimedOut,
    /// The new pool was not ready, or its check refused it; the old pool serves.
    Refused,
    /// A newer edit replaced the swap.
    Superseded,
    /// A command cancelled the swap.
    Cancelled,
}

/// One event of a swap.
#[derive(Clone, Debug, Serialize)]
pub struct Event {
    /// What happened.
    pub event: Kind,
    /// Name of the service.
    pub service: String,
    /// The previous active pool; none at the start of a service.
    pub from: Option<String>,
    /// The new pool.
    pub to: String,
    /// The release of the new pool, if the file has one.
    pub version: Option<String>,
    /// The outcome of a swap that has ended.
    pub outcome: Option<Outcome>,
    /// Why it failed.
    pub reason: Option<String>,
    /// Age of the swap.
    pub seconds: f64,
}

/// Hands events over for delivery.
pub struct Notifier {
    target: Mutex<Option<Arc<Target>>>,
    folder: PathBuf,
    queue: mpsc::Sender<Message>,
    metrics: Arc<Metrics>,
    /// The ID of an event is that of the process and its number.
    process: u128,
    number: AtomicU64,
}

struct Target {
    config: config::Notify,
    folder: PathBuf,
}

/// An event with the target at its time.
struct Message {
    target: Arc<Target>,
    what: String,
    body: Bytes,
}

/// The body of a notification.
#[derive(Serialize)]
struct Notification {
    /// The same for each try, different for each event.
    id: String,
    /// RFC 3339.
    at: String,
    #[serde(flatten)]
    event: Event,
}

impl Notifier {
    /// Starts the task that delivers. Relative paths are in `folder`. Call it within a Tokio runtime.
    pub fn start(folder: PathBuf, connector: Arc<Connector>, metrics: Arc<Metrics>) -> Self {
        let (queue, receiver) = mpsc::channel(QUEUE);
        let receiver = Arc::new(AsyncMutex::new(receiver));
        let of_task = Arc::clone(&metrics);
        tokio::spawn(async move {
            let deliver = || deliver(Arc::clone(&receiver), Arc::clone(&connector), Arc::clone(&of_task));
            tasks::restarted("notify", &of_task.task_restarts, deliver).await;
        });
        let process = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        Self { target: Mutex::default(), folder, queue, metrics, process, number: AtomicU64::new(1) }
    }

    /// Sets the URL of the events from now on; none ends the notifications.
    pub fn configure(&self, config: Option<&config::Notify>) {
        let target = config.map(|config| Arc::new(Target { config: config.clone(), folder: self.folder.clone() }));
        *self.target.lock() = target;
    }

    /// Hands over an event. Never waits.
    pub fn send(&self, event: Event) {
        let Some(target) = self.target.lock().clone() else { return };
        let what = format!("service={} event={:?} to={}", event.service, event.event, event.to);
        let id = format!("{:x}-{}", self.process, self.number.fetch_add(1, Relaxed));
        let at = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let body = match serde_json::to_vec(&Notification { id, at, event }) {
            Ok(body) => Bytes::from(body),
            Err(e) => return warn!("a notification cannot be written {what} reason={e}"),
        };
        if let Err(e) = self.queue.try_send(Message { target, what, body }) {
            self.metrics.hooks.with_label_values(&["notify", "dropped"]).inc();
            let (mpsc::error::TrySendError::Full(message) | mpsc::error::TrySendError::Closed(message)) = e;
            warn!("a notification was dropped, because {QUEUE} others wait {}", message.what);
        }
    }
}

/// Delivers events until the sender is dropped. A panic loses only the event that is being delivered.
async fn deliver(queue: Arc<AsyncMutex<mpsc::Receiver<Message>>>, connector: Arc<Connector>, metrics: Arc<Metrics>) {
    let mut queue = queue.lock().await;
    while let Some(message) = queue.recv().await {
        let mut outcome = message.post(&connector).await;
        for pause in RETRIES {
            let Err(why) = &outcome else { break };
            info!("a notification is sent again in {} s {} reason={why}", pause.as_secs(), message.what);
            tokio::time::sleep(pause).await;
            outcome = message.post(&connector).await;
        }
        metrics.hooks.with_label_values(&["notify", if outcome.is_ok() { "success" } else { "failure" }]).inc();
        if let Err(why) = outcome {
            warn!("a notification was not delivered {} reason={why}", message.what);
        }
    }
}

impl Message {
    async fn post(&self, connector: &Connector) -> Result<(), String> {
        let Target { config, folder } = &*self.target;
        let headers = match config.secret_file.as_ref().map(|file| folder.join(file)) {
            Some(file) => vec![(SIGNATURE, sign(file, self.body.clone()).await?)],
            None => Vec::new(),
        };
        let posted = timeout(TRY, url::post(connector, &config.url, &headers, self.body.clone())).await;
        posted.unwrap_or_else(|_| Err(format!("no response within {} s", TRY.as_secs())))
    }
}

/// The value of the signature header. The secret is read each time, so that it can be replaced; on a blocking thread, because the disk
/// may be slow.
async fn sign(file: PathBuf, body: Bytes) -> Result<String, String> {
    let read = spawn_blocking(move || {
        let secret = read_secret(&file)?;
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret), &body);
        Ok(tag.as_ref().iter().fold("sha256=".to_owned(), |text, byte| text + &format!("{byte:02x}")))
    });
    read.await.unwrap_or_else(|e| Err(e.to_string()))
}

/// Reads the secret for the signature: the content of the file without line ends and spaces around it.
///
/// # Errors
/// When the file cannot be read or holds no secret.
pub fn read_secret(file: &Path) -> Result<Vec<u8>, String> {
    let bytes = file::read(file, LARGEST_SECRET).map_err(|e| format!("{} cannot be read: {e}", file.display()))?;
    let secret = bytes.trim_ascii();
    if secret.is_empty() { Err(format!("{} is empty", file.display())) } else { Ok(secret.to_vec()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4231, test case 2.
    #[tokio::test]
    async fn the_signature_is_that_of_the_rfc() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "Jefe\n").unwrap();
        let signature = sign(file.path().to_path_buf(), Bytes::from_static(b"what do ya want for nothing?")).await;
        assert_eq!(signature.as_deref(), Ok("sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"));
    }
}
