//! Writes the whole configuration as YAML, with every default, for `check --effective` and `GET /v1/config`.

use serde_yaml::{Error, Value};

use super::{Config, HealthCheck, Service, schema, spot::key};

/// Returns a valid file with the same configuration, without keys that have no value. Contains no secrets: the headers of probes
/// have the value `***`, and a token appears only as the name of its file.
///
/// # Errors
/// Never for a configuration that was parsed from a file.
pub fn effective(config: &Config) -> Result<String, Error> {
    let mut document = serde_yaml::to_value(config)?;
    let services = document.get_mut(key!(Config, services)).and_then(Value::as_mapping_mut);
    for service in services.into_iter().flat_map(serde_yaml::Mapping::values_mut) {
        let check = service.get_mut(key!(Service, health_check)).and_then(Value::as_mapping_mut);
        if let Some(check) = check.filter(|check| check.get(key!(HealthCheck, tcp)) == Some(&Value::Bool(true))) {
            for key in schema::http_keys() {
                check.shift_remove(key);
            }
        }
    }
    serde_yaml::to_string(&document)
}
