//! The operational log on standard error, as text or as JSON.
//!
//! Only `switchover run` sets it up. Messages may quote responses of peers, so both formats escape control characters.

use std::io::{self, Write};

use env_logger::{Builder, Env, fmt::Formatter};
use log::Record;

use super::out;

/// Turns Pingora's log off: it has a line for every broken connection. switchover counts and logs the relevant ones itself.
const FILTER: &str = "info,pingora_core=off,pingora_proxy=off";

/// The format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum LogFormat {
    /// Text: `[time level target] message`
    Text,
    /// One JSON object per line: time, level, target, message
    Json,
}

/// Starts logging. `RUST_LOG` replaces the default filter.
pub(super) fn start(format: LogFormat) {
    let mut builder = Builder::from_env(Env::default().default_filter_or(FILTER));
    match format {
        LogFormat::Text => builder.format(text),
        LogFormat::Json => builder.format(json),
    };
    builder.init();
}

fn text(line: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let (time, level, target) = (line.timestamp(), record.level(), record.target());
    let style = line.default_level_style(level);
    let message = record.args().to_string();
    writeln!(line, "[{time} {style}{level:<5}{style:#} {target}] {}", out::escape(&message))
}

fn json(line: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let object = serde_json::json!({
        "time": line.timestamp_millis().to_string(),
        "level": record.level().as_str(),
        "target": record.target(),
        "message": record.args().to_string(),
    });
    writeln!(line, "{}", out::escape_json(&object.to_string()))
}
