//! curl: an independent client.

use std::process::Command;

use super::TIMEOUT;

/// What curl prints, or why it failed. It reads no proxy from the environment, and gives up when the tests do.
pub fn curl(url: &str, args: &[&str]) -> Result<String, String> {
    let limit = TIMEOUT.as_secs().to_string();
    let output = Command::new("curl").args(["-sS", "--noproxy", "*", "--max-time", &limit]).args(args).arg(url).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}
