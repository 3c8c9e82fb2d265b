//! The whole configuration as a file, with every default: what `check --effective` and `GET /v1/config` print.

use serde_yaml::{Error, Value};

use super::{Config, HealthCheck};

/// A valid file that is the same configuration. Keys without a value are left out, and so are secrets: a probe's headers have
/// `***` as their values, and a token is only named by its file.
///
/// # Errors
/// None of a configuration that was read from a file.
pub fn effective(config: &Config) -> Result<String, Error> {
    let mut document = serde_yaml::to_value(config)?;
    let services = document.get_mut("services").and_then(Value::as_mapping_mut);
    for service in services.into_iter().flat_map(serde_yaml::Mapping::values_mut) {
        let check = service.get_mut("health_check").and_then(Value::as_mapping_mut);
        if let Some(check) = check.filter(|check| check.get("tcp") == Some(&Value::Bool(true))) {
            for key in HealthCheck::HTTP_KEYS {
                check.shift_remove(key);
            }
        }
    }
    serde_yaml::to_string(&document)
}
