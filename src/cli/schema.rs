//! `switchover schema`: prints the JSON Schema of the configuration file, for editors and validators.

use super::{Failure, out};
use crate::config;

pub(super) const EXAMPLES: &str = "Examples:
  switchover schema";

pub(super) fn run() -> Result<(), Failure> {
    out::raw(&(serde_json::to_string_pretty(config::schema()).map_err(Failure::failed)? + "\n"))
}
