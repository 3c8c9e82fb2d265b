//! The tasks of the process, none of which may end without a word.
//!
//! The composition root starts those that the process cannot do without by [`Tasks::critical`]: when one of them ends, the process
//! stops. Tasks that can begin again at any moment run in [`restarted`]. Nothing here knows what a task does.

use std::{
    any::Any,
    future::Future,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::FutureExt;
use log::error;
use prometheus::IntCounterVec;
use tokio::{runtime::Handle, sync::mpsc};

/// Before a task begins again: one that always panics at once must not keep a processor busy.
const PAUSE: Duration = Duration::from_secs(1);

/// Starts critical tasks.
#[derive(Clone)]
pub struct Tasks {
    ended: mpsc::UnboundedSender<String>,
    stopping: Arc<AtomicBool>,
}

impl Tasks {
    /// The receiver gets the name of each critical task that ends while `stopping` is not set.
    pub fn new(stopping: Arc<AtomicBool>) -> (Self, mpsc::UnboundedReceiver<String>) {
        let (ended, receiver) = mpsc::unbounded_channel();
        (Self { ended, stopping }, receiver)
    }

    /// Runs a task without which the process is of no use.
    pub fn critical(&self, runtime: &Handle, name: impl Into<String>, task: impl Future<Output = ()> + Send + 'static) {
        let (name, tasks) = (name.into(), self.clone());
        runtime.spawn(async move {
            let ended = caught(&name, task).await;
            if ended.is_ok() && tasks.stopping.load(Relaxed) {
                return;
            }
            error!(
                "a task has ended, the process stops task=\"{name}\" reason=\"{}\"",
                ended.err().unwrap_or("it returned".into())
            );
            // Without a receiver the process is stopping already.
            drop(tasks.ended.send(name));
        });
    }
}

/// Runs the task that `make` makes until it returns; one that panics is logged, counted as `name`, and made again.
pub async fn restarted<F: Future<Output = ()>>(name: &str, restarts: &IntCounterVec, mut make: impl FnMut() -> F) {
    while let Err(panic) = caught(name, make()).await {
        count_restart(name, &panic, restarts);
        tokio::time::sleep(PAUSE).await;
    }
}

/// As [`restarted`], for the body of a thread.
pub fn restarted_thread(name: &str, restarts: &IntCounterVec, mut body: impl FnMut()) {
    while let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(&mut body)) {
        count_restart(name, &message(&*panic), restarts);
        std::thread::sleep(PAUSE);
    }
}

fn count_restart(name: &str, panic: &str, restarts: &IntCounterVec) {
    restarts.with_label_values(&[name]).inc();
    error!("a task has ended and is started again task=\"{name}\" reason=\"{panic}\"");
}

/// Runs `task`; an error is the message of its panic.
async fn caught(name: &str, task: impl Future<Output = ()>) -> Result<(), String> {
    let task = async {
        tokio::select! {
            () = task => {}
            () = panic_when_asked(name) => {}
        }
    };
    AssertUnwindSafe(task).catch_unwind().await.map_err(|panic| message(&*panic))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.map_or_else(|| "a panic".to_owned(), |text| format!("a panic: {text}"))
}

/// Lets a test end any task: panics when the file that `SWITCHOVER_TEST_PANIC` names holds the name of the task. Not in a release.
#[cfg(debug_assertions)]
async fn panic_when_asked(name: &str) {
    if std::env::var_os(TEST_PANIC).is_none() {
        return std::future::pending().await;
    }
    loop {
        tokio::time::sleep(Duration::from_millis(10)).await;
        panic_if_asked(name);
    }
}

#[cfg(not(debug_assertions))]
async fn panic_when_asked(_name: &str) {
    std::future::pending().await
}

#[cfg(debug_assertions)]
const TEST_PANIC: &str = "SWITCHOVER_TEST_PANIC";

/// As `panic_when_asked`, at this moment. The file is removed, so that the task is asked once.
#[cfg(debug_assertions)]
#[allow(clippy::panic, reason = "a test asks for it")]
pub fn panic_if_asked(name: &str) {
    if let Some(file) = std::env::var_os(TEST_PANIC)
        && std::fs::read_to_string(&file).is_ok_and(|asked| asked == name)
        && std::fs::remove_file(&file).is_ok()
    {
        panic!("a test asked {name} to panic");
    }
}

/// Nothing, in a release.
#[cfg(not(debug_assertions))]
pub fn panic_if_asked(_name: &str) {}
