//! `switchover schema`: what editors and validators read about the configuration file.

use super::{Failure, out};
use crate::config;

pub(super) const EXAMPLES: &str = "Examples:
  switchover schema";

pub(super) fn run() -> Result<(), Failure> {
    out::raw(&(serde_json::to_string_pretty(config::schema()).map_err(Failure::failed)? + "\n"))
}
