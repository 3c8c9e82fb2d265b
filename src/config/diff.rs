//! What a reload may not change. Pure; called by the controller before it takes anything in.

use super::{Config, Problem};

/// The static fields that differ, each with its two values.
pub fn static_changes(running: &Config, new: &Config) -> Vec<Problem> {
    let listeners = |config: &Config| config.listeners.iter().map(|l| l.address.to_string()).collect::<Vec<_>>().join(", ");
    let threads = |config: &Config| config.threads.map_or("one per CPU".to_owned(), |threads| threads.to_string());
    [
        differs("listeners", &listeners(running), &listeners(new)),
        differs("admin.address", &running.admin.address.to_string(), &new.admin.address.to_string()),
        differs("threads", &threads(running), &threads(new)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn differs(at: &str, running: &str, new: &str) -> Option<Problem> {
    let message = format!("is static: {running} runs, {new} is in the file; put it back, or restart switchover");
    (running != new).then(|| Problem { at: at.to_owned(), line: None, column: None, message })
}
