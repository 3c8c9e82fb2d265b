//! The configuration: parses and validates the file, and reports every problem with its place.
//!
//! `check`, `run` and every reload use [`load`] and [`parse`]; nothing else reads the file. Both return only valid
//! configurations. This module opens no socket, starts no task, and does not know the running configuration.

mod canary;
pub mod diff;
pub mod edit;
mod effective;
pub mod file;
mod format;
mod host;
mod listener;
mod mirror;
mod model;
mod preview;
mod problem;
mod promotion;
mod reader;
mod schema;
mod service;
mod spot;
mod validate;
mod value;
pub mod write;
mod yaml;

use std::{io, path::Path};

pub(crate) use self::reader::nearest;
use self::spot::key;
pub use self::{
    canary::{Canary, Stick},
    effective::effective,
    listener::{Acme, Certificate, Limits, Listener, ServedPool, Tls},
    mirror::Mirror,
    model::{ADMIN_ADDRESS, AccessLog, Admin, Config, LogFormat, Notify, Tracing},
    preview::Preview,
    problem::{LoadError, Problem, place},
    promotion::{Check, Percentage, Promotion, TakeBack, WarmUp},
    schema::schema,
    service::{
        Balance, Drain, ErrorPage, HashBy, HealthCheck, Peer, PeerAddress, Pool, Protocol, Secret, Service, Timeouts, Upstream,
        UpstreamTls,
    },
};

/// Maximum size of an error page, in bytes. It stays in memory, and each error response copies it.
const LARGEST_PAGE: u32 = 256 * 1024;

/// Maximum number of reported problems.
const LISTED: usize = 100;

/// Parses and validates a configuration.
///
/// # Errors
/// Every problem, sorted by line.
pub fn parse(text: &str) -> Result<Config, Vec<Problem>> {
    let document = yaml::parse(text).map_err(|problem| vec![problem])?;
    let Some(document) = document else {
        return Err(vec![Problem::new("", "is empty; start from conf/minimal.yaml")]);
    };
    let mut problems = Vec::new();
    let mut aside = schema::structure(&document, &mut problems);
    let config: Option<Config> = reader::read(&document, &mut aside, &mut problems);
    if let Some(config) = &config {
        problems.extend(validate::problems(config, &document, &aside));
    }
    match config {
        Some(config) if problems.is_empty() => Ok(config),
        _ => Err(listed(problems)),
    }
}

/// Sorts problems by line, and cuts the list.
fn listed(mut problems: Vec<Problem>) -> Vec<Problem> {
    debug_assert!(!problems.is_empty(), "a file without a configuration has a problem");
    problems.sort_by_key(|problem| (problem.line.unwrap_or(0), problem.column));
    let more = problems.len().saturating_sub(LISTED);
    if more > 0 {
        problems.truncate(LISTED);
        problems.push(Problem::new("", format!("{more} more problems are not listed; correct these first")));
    }
    problems
}

/// The same as [`parse`], and reads the error pages from `folder`.
///
/// # Errors
/// Every problem, including error pages that cannot be read.
pub fn parse_in(folder: &Path, text: &str) -> Result<Config, Vec<Problem>> {
    let mut config = parse(text)?;
    let mut problems = Vec::new();
    for (name, service) in &mut config.services {
        for (status, page) in &mut service.error_pages {
            let path = folder.join(&page.file);
            let text = file::read(&path, LARGEST_PAGE).map_err(|e| e.to_string());
            match text.and_then(|bytes| String::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())) {
                Ok(text) => page.text = text,
                Err(why) => {
                    let at = format!("{}.{name}.{}.{status}", key!(Config, services), key!(Service, error_pages));
                    problems.push(Problem::new(&at, format!("{}: {why}", path.display())));
                }
            }
        }
    }
    if problems.is_empty() { Ok(config) } else { Err(problems) }
}

/// The folder of a configuration file, in which its relative paths are.
pub fn folder(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new(""))
}

/// Reads a file once, and returns its text and its configuration.
///
/// # Errors
/// When it cannot be read or is invalid.
pub fn load(path: &Path) -> Result<(String, Config), LoadError> {
    let text = read(path)?;
    match parse_in(folder(path), &text) {
        Ok(config) => Ok((text, config)),
        Err(mut problems) => {
            place(path, &text, &mut problems);
            Err(LoadError { problems })
        }
    }
}

/// Reads only the `admin` section, so that `status` works while the rest of the file is being edited.
///
/// # Errors
/// When the file cannot be read.
pub fn admin(path: &Path) -> Result<Admin, LoadError> {
    let document = yaml::parse(&read(path)?).unwrap_or_default();
    let admin = document.as_ref().and_then(|document| document.get(key!(Config, admin)));
    let admin = admin.and_then(|admin| reader::read::<Admin>(admin, &mut reader::Aside::new(), &mut Vec::new()));
    let mut admin = admin.unwrap_or_default();
    admin.token_file = admin.token_file.map(|file| folder(path).join(file));
    Ok(admin)
}

fn read(path: &Path) -> Result<String, LoadError> {
    let failed = |problem| LoadError { problems: vec![Problem { file: path.display().to_string(), ..problem }] };
    let of_file = |message: String| failed(Problem::new("", message));
    let bytes = file::read(path, file::LARGEST).map_err(|e| {
        of_file(match e.kind() {
            io::ErrorKind::NotFound => "there is no such file; name another with --config".to_owned(),
            io::ErrorKind::IsADirectory => "is a folder; name the file in it with --config".to_owned(),
            io::ErrorKind::InvalidInput => format!("{e}; name one with --config"),
            io::ErrorKind::FileTooLarge => format!("{e}, more than any configuration needs"),
            io::ErrorKind::PermissionDenied => "may not be read by this user; see its permissions".to_owned(),
            _ => format!("cannot be read: {e}"),
        })
    })?;
    String::from_utf8(bytes).map_err(|e| {
        let line = 1 + e.as_bytes().iter().take(e.utf8_error().valid_up_to()).filter(|byte| **byte == b'\n').count();
        let message = "is not UTF-8 text; save it as UTF-8".to_owned();
        failed(Problem { line: Some(line), ..Problem::new("", message) })
    })
}

#[cfg(test)]
mod tests;
