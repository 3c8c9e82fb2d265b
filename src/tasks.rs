//! Supervises the tasks of the process, so that none of them ends unnoticed.
//!
//! The composition root starts critical tasks with [`Tasks::critical`]: when one of them ends, the process stops. Tasks that can
//! be restarted at any time run in [`restarted`]. This module does not know what a task does.

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

/// Delay before a restart. A task that panics at once, every time, must not keep a CPU busy.
const RESTART_DELAY: Duration = Duration::from_secs(1);

/// Starts critical tasks.
#[derive(Clone)]
pub struct Tasks {
    ended: mpsc::UnboundedSender<String>,
    stopping: Arc<AtomicBool>,
}

impl Tasks {
    /// Returns a receiver for the name of each critical task that ends before `stopping` is set, or that panics.
    pub fn new(stopping: Arc<AtomicBool>) -> (Self, mpsc::UnboundedReceiver<String>) {
        let (ended, receiver) = mpsc::unbounded_channel();
        (Self { ended, stopping }, receiver)
    }

    /// Spawns a task that must run until the process stops.
    pub fn critical(&self, runtime: &Handle, name: impl Into<String>, task: impl Future<Output = ()> + Send + 'static) {
        let (name, tasks) = (name.into(), self.clone());
        runtime.spawn(async move {
            let ended = caught(&name, task).await;
            if ended.is_ok() && tasks.stopping.load(Relaxed) {
                return;
            }
            error!(
                "a critical task has ended, stopping the process task=\"{name}\" reason=\"{}\"",
                ended.err().unwrap_or("it returned".into())
            );
            // Fails only if the process is stopping already.
            drop(tasks.ended.send(name));
        });
    }
}

/// Runs the future that `make` creates until it returns. If it panics, logs and counts the panic under `name`, and starts a new
/// one.
pub async fn restarted<F: Future<Output = ()>>(name: &str, restarts: &IntCounterVec, mut make: impl FnMut() -> F) {
    while let Err(panic) = caught(name, make()).await {
        count_restart(name, &panic, restarts);
        tokio::time::sleep(RESTART_DELAY).await;
    }
}

/// The same as [`restarted`], for the body of a thread.
pub fn restarted_thread(name: &str, restarts: &IntCounterVec, mut body: impl FnMut()) {
    while let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(&mut body)) {
        count_restart(name, &message(&*panic), restarts);
        std::thread::sleep(RESTART_DELAY);
    }
}

fn count_restart(name: &str, panic: &str, restarts: &IntCounterVec) {
    restarts.with_label_values(&[name]).inc();
    error!("a task has panicked and is restarted task=\"{name}\" reason=\"{panic}\"");
}

/// Runs `task`. The error is the message of its panic.
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

/// Lets a test end any task: panics when the file named by `SWITCHOVER_TEST_PANIC` contains the name of the task. Never panics in
/// a release build.
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

/// Checks the file of `panic_when_asked` once. Removes the file before the panic, so that the restarted task does not panic
/// again.
#[cfg(debug_assertions)]
#[allow(clippy::panic, reason = "only for tests")]
pub fn panic_if_asked(name: &str) {
    if let Some(file) = std::env::var_os(TEST_PANIC)
        && std::fs::read_to_string(&file).is_ok_and(|asked| asked == name)
        && std::fs::remove_file(&file).is_ok()
    {
        panic!("a test asked {name} to panic");
    }
}

/// Does nothing in a release build.
#[cfg(not(debug_assertions))]
pub fn panic_if_asked(_name: &str) {}
