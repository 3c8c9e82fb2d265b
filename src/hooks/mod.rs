//! What the user connects to a swap: a check before the promotion, and notifications of its events.
//!
//! The controller runs a [`Check`] as one of the steps between proof and promotion, and hands events over to a [`Notifier`]. Nothing
//! here decides about a swap, and nothing that a hook does can hold up another service.

mod check;
mod command;
mod notify;
mod url;

pub use self::{
    check::{Check, Facts},
    notify::{Event, Kind, Notifier, read_secret},
};

/// Bytes of the output of a hook that are kept, and bytes that are shown as the reason of a failure.
const OUTPUT_KEPT: usize = 2048;

/// The output of a hook in one line: lines are joined, and other control characters are escaped.
fn shown(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let mut shown = String::new();
    for c in lines.join(" | ").chars() {
        if shown.len() >= OUTPUT_KEPT {
            break;
        }
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_becomes_one_line_without_control_characters() {
        assert_eq!(shown(b"checkout: 500\r\n\n  at Checkout.java:7\n"), "checkout: 500 |   at Checkout.java:7");
        assert_eq!(shown(b"\x1b[31mred\x07\xff"), "\\u{1b}[31mred\\u{7}\u{fffd}");
        assert_eq!(shown(&[b'x'; 5000]).len(), OUTPUT_KEPT);
        assert!(shown(&[0; OUTPUT_KEPT]).len() < OUTPUT_KEPT + 10, "escapes count too");
        assert_eq!(shown(b""), "");
    }
}
