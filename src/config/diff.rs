//! What a reload may not change. Pure; called by the controller before it takes anything in.

use std::path::Path;

use super::{Config, Problem};

/// The static fields that differ, each with its two values.
pub fn static_changes(running: &Config, new: &Config) -> Vec<Problem> {
    let listeners = |config: &Config| config.listeners.iter().map(|l| l.address.to_string()).collect::<Vec<_>>().join(", ");
    let settings = |config: &Config| {
        let settings = config.listeners.iter().map(|l| (&l.tls, l.redirect_to_https, l.proxy_protocol, &l.limits));
        settings.map(|of_one| format!("{of_one:?}")).collect::<Vec<_>>()
    };
    // The addresses say enough where they differ; the rest is too long to be repeated.
    let same_settings = settings(running) == settings(new);
    let threads = |config: &Config| config.threads.map_or("one per CPU".to_owned(), |threads| threads.to_string());
    [
        differs("listeners", &listeners(running), &listeners(new)),
        (!same_settings && listeners(running) == listeners(new)).then(|| {
            let message = "tls, redirect_to_https, proxy_protocol and limits are static; put them back, or restart switchover";
            Problem::new("listeners", message)
        }),
        differs("admin.address", &running.admin.address.to_string(), &new.admin.address.to_string()),
        differs("admin.token_file", &shown(running.admin.token_file.as_deref()), &shown(new.admin.token_file.as_deref())),
        differs("access_log", &format!("{:?}", running.access_log), &format!("{:?}", new.access_log)),
        differs("state_dir", &shown(running.state_dir.as_deref()), &shown(new.state_dir.as_deref())),
        differs("threads", &threads(running), &threads(new)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn shown(path: Option<&Path>) -> String {
    path.map_or("none".to_owned(), |path| path.display().to_string())
}

fn differs(at: &str, running: &str, new: &str) -> Option<Problem> {
    let message = format!("is static: {running} runs, {new} is in the file; put it back, or restart switchover");
    (running != new).then(|| Problem::new(at, message))
}
