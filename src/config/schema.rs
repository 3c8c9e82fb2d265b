//! The JSON Schema of the configuration file, and the checks that use it: missing, duplicate and empty keys.
//!
//! serde reports only one missing key of a mapping at a time, so [`structure`] looks for all of them in the tree before the types
//! are deserialized. Called by `parse`, by `switchover schema` and by the tests of the documentation.

use std::{collections::HashMap, sync::LazyLock};

use schemars::{Schema, generate::SchemaSettings, transform::RecursiveTransform};
use serde_json::{Value, json};

use super::{
    Config, HealthCheck, Problem,
    reader::{Aside, Path},
    spot::key,
    yaml::{Key, Kind, Node},
};

const STATIC: &str = "x-static";
const HTTP: &str = "x-http";

static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    // Doc comments have line breaks of the source.
    let unwrap = RecursiveTransform(|schema: &mut Schema| {
        if let Some(Value::String(description)) = schema.get_mut("description") {
            *description = description.replace('\n', " ");
        }
    });
    let settings = SchemaSettings::draft2020_12().with_transform(unwrap);
    settings.into_generator().into_root_schema_for::<Config>().to_value()
});

/// The JSON Schema (draft 2020-12) of a configuration file.
pub fn schema() -> &'static Value {
    &SCHEMA
}

/// Marks a field as static: a reload cannot change it.
pub(super) fn is_static(field: &mut Schema) {
    field.insert(STATIC.to_owned(), true.into());
    let description = field.get("description").and_then(Value::as_str).unwrap_or_default();
    let description = format!("{description} Static: a change needs a restart.");
    field.insert("description".to_owned(), description.into());
}

/// The top-level keys that a reload cannot change.
pub(super) fn static_keys() -> impl Iterator<Item = &'static str> {
    let properties = SCHEMA.get("properties").and_then(Value::as_object).into_iter().flatten();
    properties.filter(|(_, field)| field.get(STATIC).is_some()).map(|(key, _)| key.as_str())
}

/// Marks a field that only HTTP probes have.
pub(super) fn is_http(field: &mut Schema) {
    field.insert(HTTP.to_owned(), true.into());
}

/// Rejects the marked fields of [`HealthCheck`] where `tcp` is true.
pub(super) fn without_http_keys(schema: &mut Schema) {
    let fields = schema.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten();
    let marked = fields.filter_map(|(key, field)| field.as_object_mut()?.remove(HTTP).map(|_| (key.clone(), false.into())));
    let forbidden: serde_json::Map<_, Value> = marked.collect();
    let tcp = key!(HealthCheck, tcp);
    schema.insert("if".to_owned(), json!({"properties": {tcp: {"const": true}}, "required": [tcp]}));
    schema.insert("then".to_owned(), json!({"properties": forbidden}));
}

/// The keys that [`without_http_keys`] rejects.
pub(super) fn http_keys() -> impl Iterator<Item = &'static str> {
    let forbidden = SCHEMA.pointer("/$defs/HealthCheck/then/properties").and_then(Value::as_object);
    forbidden.into_iter().flatten().map(|(key, _)| key.as_str())
}

/// Reports duplicate and missing keys, and lists and mappings that must not be empty. Returns the nodes of duplicate keys.
pub(super) fn structure(document: &Node, problems: &mut Vec<Problem>) -> Aside {
    let mut walk = Walk { aside: Aside::new(), problems };
    walk.node(document, &SCHEMA, Path::Root);
    walk.aside
}

struct Walk<'a> {
    aside: Aside,
    problems: &'a mut Vec<Problem>,
}

impl Walk<'_> {
    fn node(&mut self, node: &Node, field: &Value, at: Path<'_>) {
        let schema = resolved(field, node);
        let (is_empty, least) = match &node.kind {
            Kind::Mapping(entries) => (entries.is_empty(), ["minProperties"].as_slice()),
            Kind::Sequence(items) => (items.is_empty(), ["minItems"].as_slice()),
            Kind::Scalar { .. } => (node.is_null(), ["minItems", "minProperties"].as_slice()),
        };
        if is_empty && least.iter().any(|key| schema.get(*key).is_some()) {
            let message = format!("is empty; write: {}", example(field));
            self.problems.push(Problem::at(&at.to_string(), node.place, message));
        }
        match &node.kind {
            Kind::Mapping(entries) => self.mapping(node, entries, schema, at),
            Kind::Sequence(items) => {
                let item = schema.get("items").unwrap_or(&Value::Null);
                items.iter().enumerate().for_each(|(i, node)| self.node(node, item, Path::Index(&at, i)));
            }
            // An empty value instead of a mapping: all its required keys are missing.
            Kind::Scalar { .. } if node.is_null() => self.mapping(node, &[], schema, at),
            Kind::Scalar { .. } => {}
        }
    }

    fn mapping(&mut self, node: &Node, entries: &[(Key, Node)], schema: &Value, at: Path<'_>) {
        let mut first = HashMap::new();
        for (key, value) in entries {
            let here = Path::Key(&at, &key.name);
            if let Some(line) = first.get(key.name.as_str()) {
                let message = format!("is a duplicate, first in line {line}; keep one");
                self.problems.push(Problem::at(&here.to_string(), key.place, message));
                self.aside.insert(value);
                continue;
            }
            first.insert(key.name.as_str(), key.place.line);
            let property = schema.get("properties").and_then(|properties| properties.get(&key.name));
            self.node(value, property.or(schema.get("additionalProperties")).unwrap_or(&Value::Null), here);
        }
        let required = schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        for key in required.filter(|key| !first.contains_key(key)) {
            let field = schema.get("properties").and_then(|properties| properties.get(key)).unwrap_or(&Value::Null);
            let message = format!("is missing; write: {key}: {}", example(field));
            self.problems.push(Problem::at(&Path::Key(&at, key).to_string(), node.place, message));
        }
    }
}

/// The schema for a node: follows references, and picks the alternative for the kind of the node.
fn resolved<'a>(mut schema: &'a Value, node: &Node) -> &'a Value {
    let kind = match node.kind {
        Kind::Mapping(_) => "object",
        Kind::Sequence(_) => "array",
        Kind::Scalar { .. } => "string",
    };
    let is_for = |schema: &&Value| schema.get("type").is_some_and(|of| of == kind);
    loop {
        schema = if let Some(name) = schema.get("$ref").and_then(Value::as_str) {
            SCHEMA.pointer(name.trim_start_matches('#')).unwrap_or(&Value::Null)
        } else if let Some(any) = schema.get("anyOf").and_then(Value::as_array) {
            let resolved = any.iter().map(|one| resolved(one, node));
            return resolved.into_iter().find(is_for).unwrap_or(&Value::Null);
        } else {
            return schema;
        }
    }
}

fn example(field: &Value) -> String {
    flow(field.pointer("/examples/0").or(field.get("default")).unwrap_or(&Value::Null))
}

/// Formats a value as one line of YAML.
pub(super) fn flow(value: &Value) -> String {
    match value {
        Value::String(text) if text.is_empty() || text.contains([':', ',', '[', ']', '{', '}', '#', '"', '\'']) => {
            format!("{text:?}")
        }
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Value::Object(entries) => {
            let entries = entries.iter().map(|(key, value)| format!("{key}: {}", flow(value)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}
