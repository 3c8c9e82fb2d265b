//! What commands print: the one way to standard output, and the escaping of text that peers and files have written.
//!
//! Every command prints through here. A reader that has gone away (`switchover check | head -1`) ends a command quietly, and no
//! byte of a probe's answer or of a name reaches the terminal as a control sequence.

use std::{
    borrow::Cow,
    fmt::{self, Write as _},
    io::{self, ErrorKind, Write},
};

use super::Failure;

/// What a shell reports of a program that SIGPIPE has ended. Rust ignores that signal, and without `unsafe` it stays ignored.
const BROKEN_PIPE: u8 = 141;

/// Prints one line, escaped.
///
/// # Errors
/// When standard output cannot be written to; silent if its reader has gone away.
pub(super) fn line(text: impl fmt::Display) -> Result<(), Failure> {
    raw(&format!("{}\n", escape(&text.to_string())))
}

/// Prints text that is escaped already, or is ours alone.
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

/// Prints an error, line by line. A standard error that is closed changes nothing.
pub(super) fn error(message: &str) {
    let mut stderr = io::stderr().lock();
    for line in message.lines() {
        writeln!(stderr, "{}", escape(line)).unwrap_or_default();
    }
}

/// The text with control characters, and those that reorder or hide others, as `\u{1b}`.
pub(super) fn escape(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let shown = |c: char| if is_unsafe(c) { c.escape_default().to_string() } else { c.to_string() };
    Cow::Owned(text.chars().map(shown).collect())
}

/// JSON stays JSON: `\u001b`. Characters outside its strings are never unsafe.
pub(super) fn escape_json(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        if is_unsafe(c) {
            // Writing to a string cannot fail, and none of these is longer than four digits.
            write!(escaped, "\\u{:04x}", u32::from(c)).unwrap_or_default();
        } else {
            escaped.push(c);
        }
    }
    escaped
}

/// Control characters (terminals obey U+009B as well as ESC), and what changes the order or hides the presence of others.
fn is_unsafe(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Whole seconds as people read them: `12 s`, `1 m 48 s`, `2 m`.
pub(super) fn seconds(seconds: f64) -> String {
    // A float becomes the nearest whole number, and 0 if it is none.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
    let whole = seconds.max(0.0).round() as u64;
    match (whole / 60, whole % 60) {
        (0, seconds) => format!("{seconds} s"),
        (minutes, 0) => format!("{minutes} m"),
        (minutes, seconds) => format!("{minutes} m {seconds} s"),
    }
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
