//! Prints to standard output and standard error, and escapes text from peers and files.
//!
//! Every command prints through this module. A closed pipe (`switchover check | head -1`) ends a command without a message, and
//! no text of a peer or a file reaches the terminal as a control sequence.

use std::{
    borrow::Cow,
    fmt::{self, Write as _},
    io::{self, ErrorKind, Write},
};

use super::Failure;
use crate::status::{Observation, Swap};

/// The exit code that shells report for a program that SIGPIPE has ended. Rust ignores this signal, and only `unsafe` code could
/// restore it.
const BROKEN_PIPE: u8 = 141;

/// Prints one line, escaped.
///
/// # Errors
/// When standard output cannot be written to; the error has no message if the pipe is closed.
pub(super) fn line(text: impl fmt::Display) -> Result<(), Failure> {
    raw(&format!("{}\n", escape(&text.to_string())))
}

/// Prints text that is escaped already, or contains only text of this program.
///
/// # Errors
/// As [`line`].
pub(super) fn raw(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|e| match e.kind() {
        ErrorKind::BrokenPipe => Failure { code: BROKEN_PIPE, message: String::new() },
        _ => Failure::failed(format!("cannot write to standard output: {e}")),
    })
}

/// Prints an error, line by line. Ignores a closed standard error.
pub(super) fn error(message: &str) {
    let mut stderr = io::stderr().lock();
    for line in message.lines() {
        writeln!(stderr, "{}", escape(line)).unwrap_or_default();
    }
}

/// Escapes control characters, and characters that reorder or hide text, as `\u{1b}`.
pub(super) fn escape(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let shown = |c: char| if is_unsafe(c) { c.escape_default().to_string() } else { c.to_string() };
    Cow::Owned(text.chars().map(shown).collect())
}

/// Escapes the same characters as JSON does: `\u001b`. They occur only inside of strings, so the result is still JSON.
pub(super) fn escape_json(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        if is_unsafe(c) {
            // Writing to a string cannot fail, and all of these characters have at most four digits.
            write!(escaped, "\\u{:04x}", u32::from(c)).unwrap_or_default();
        } else {
            escaped.push(c);
        }
    }
    escaped
}

/// Control characters (terminals obey U+009B as well as ESC), and characters that reorder or hide text.
fn is_unsafe(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Formats whole seconds: `12 s`, `1 m 48 s`, `2 m`.
pub(super) fn seconds(seconds: f64) -> String {
    // `as` rounds toward zero, saturates, and turns NaN into 0.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
    let whole = seconds.max(0.0).round() as u64;
    match (whole / 60, whole % 60) {
        (0, seconds) => format!("{seconds} s"),
        (minutes, 0) => format!("{minutes} m"),
        (minutes, seconds) => format!("{minutes} m {seconds} s"),
    }
}

/// The observation of a swap that is in progress: `observing green for another 7 s, 0 of 431 requests failed`.
pub(super) fn observing(swap: &Swap) -> String {
    let Observation { left_seconds, requests, failed, .. } = swap.observation.clone().unwrap_or_default();
    let left = seconds(left_seconds.ceil());
    let text = format!("observing {} for another {left}, {failed} of {requests} requests failed", swap.to);
    match (&swap.from, swap.in_flight) {
        (Some(from), in_flight @ 1..) => format!("{text}, {in_flight} in flight on {from}"),
        _ => text,
    }
}

/// The observation of a swap that has ended: `, observed for 10 s`; empty without one.
pub(super) fn observed(swap: &Swap) -> String {
    swap.observation.as_ref().map(|of| format!(", observed for {}", seconds(of.seconds))).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_sequences_are_shown_and_not_obeyed() {
        assert_eq!(escape("503 größe ☃"), "503 größe ☃");
        assert_eq!(escape("a\x1b]0;owned\x07b\u{9b}2Jc\r\n\t"), "a\\u{1b}]0;owned\\u{7}b\\u{9b}2Jc\\r\\n\\t");
        assert_eq!(escape("\u{202e}txt\u{2066}"), "\\u{202e}txt\\u{2066}");
        let json = serde_json::to_string(&serde_json::json!({"reason": "\x1b[2J\u{9b}2J\u{202e}ü"})).unwrap();
        let escaped = escape_json(&json);
        assert!(escaped.is_ascii() || !escaped.chars().any(is_unsafe), "{escaped}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).unwrap()["reason"], "\x1b[2J\u{9b}2J\u{202e}ü");
    }

    #[test]
    fn seconds_are_rounded_and_split() {
        assert_eq!([0.2, 12.4, 60.0, 107.6].map(seconds), ["0 s", "12 s", "1 m", "1 m 48 s"]);
    }
}
