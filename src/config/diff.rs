//! Finds changes of static values, which a reload cannot apply. Pure; the controller calls it before it applies a configuration.

use serde_json::Value;

use super::{
    Config, Problem,
    schema::{flow, static_keys},
};

/// Maximum length of a value in a message, in characters.
const SHOWN: usize = 100;

/// Reports each static value that differs, with both values.
pub fn static_changes(running: &Config, new: &Config) -> Vec<Problem> {
    // Serializing cannot fail for a configuration that was parsed from a file.
    let [running, new] = [running, new].map(|config| serde_json::to_value(config).unwrap_or_default());
    let mut problems = Vec::new();
    for key in static_keys() {
        differences(key, running.get(key), new.get(key), &mut problems);
    }
    problems
}

fn differences(at: &str, running: Option<&Value>, new: Option<&Value>, problems: &mut Vec<Problem>) {
    match (running, new) {
        (Some(Value::Object(running)), Some(Value::Object(new))) => {
            let added = new.keys().filter(|key| !running.contains_key(*key));
            for key in running.keys().chain(added) {
                differences(&format!("{at}.{key}"), running.get(key), new.get(key), problems);
            }
        }
        (Some(Value::Array(running)), Some(Value::Array(new))) => {
            for i in 0..running.len().max(new.len()) {
                differences(&format!("{at}[{i}]"), running.get(i), new.get(i), problems);
            }
        }
        (running, new) if running != new => {
            let shown = |value: Option<&Value>| match value.map(flow) {
                Some(text) if text.chars().count() > SHOWN => text.chars().take(SHOWN).chain(['…']).collect(),
                Some(text) => text,
                None => "no value".to_owned(),
            };
            let (running, new) = (shown(running), shown(new));
            let message = format!("is static: {running} runs, the file has {new}; put it back, or restart switchover");
            problems.push(Problem::new(at, message));
        }
        _ => {}
    }
}
