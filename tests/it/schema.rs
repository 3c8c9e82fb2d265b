//! The JSON Schema, the tables of the reference and the effective configuration, which are generated from the configuration's
//! types. `UPDATE_EXPECTED=1` (`make docs`) writes the schema and the tables.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use switchover::config::{self, Config};

use crate::support::switchover::run;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every configuration file in `conf` and `deploy`.
pub(crate) fn configurations() -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "yaml")
                && fs::read_to_string(&path).unwrap().lines().any(|line| line == "listeners:")
            {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    ["conf", "deploy"].iter().for_each(|folder| walk(&root().join(folder), &mut found));
    found.sort();
    assert!(found.len() >= 7, "{found:?}");
    found
}

/// Compares a file with its expected content, or writes it.
fn expect(path: &Path, wanted: &str) {
    if std::env::var_os("UPDATE_EXPECTED").is_some() {
        fs::write(path, wanted).unwrap();
    }
    let found = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(found == wanted, "{} is out of date; run make docs", path.display());
}

#[test]
fn the_schema_in_the_repository_is_the_one_that_is_printed() {
    let output = run(&["schema"]);
    assert_eq!(output.code, 0, "{output:?}");
    expect(&root().join("conf/switchover.schema.json"), &output.stdout);
}

#[test]
fn every_configuration_names_the_schema_for_editors() {
    let schema = root().join("conf/switchover.schema.json").canonicalize().unwrap();
    for path in configurations() {
        let text = fs::read_to_string(&path).unwrap();
        let named = text.lines().next().unwrap().strip_prefix("# yaml-language-server: $schema=");
        let named = named.unwrap_or_else(|| panic!("{} names no schema", path.display()));
        assert_eq!(path.parent().unwrap().join(named).canonicalize().unwrap(), schema, "{}", path.display());
    }
}

/// The tables of the reference match the types.
#[test]
fn the_tables_of_the_reference_are_the_schema() {
    let page = root().join("docs/configuration.md");
    let mut text = fs::read_to_string(&page).unwrap();
    for table in TABLES {
        let begin = format!("<!-- {table}: written by make docs -->\n");
        let start = text.find(&begin).unwrap_or_else(|| panic!("no {begin}")) + begin.len();
        let end = start + text[start..].find("<!-- end -->").unwrap();
        let schema = if table == "Config" { config::schema() } else { &config::schema()["$defs"][table] };
        let mut rows = String::from("| key | default | range | |\n|---|---|---|---|\n");
        write_rows(&mut rows, schema, "");
        text.replace_range(start..end, &rows);
    }
    expect(&page, &text);
}

/// Types with a separate table.
const TABLES: [&str; 3] = ["Config", "Limits", "Service"];

fn write_rows(rows: &mut String, schema: &Value, prefix: &str) {
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, field) in schema["properties"].as_object().unwrap() {
        let inner = ["", "/items", "/additionalProperties"].iter().zip(["", "[]", ".*"]);
        let inner = inner.filter_map(|(at, mark)| Some((keys_of(field.pointer(at)?)?, mark))).next();
        let default = match &field["default"] {
            _ if required.contains(&name.as_str()) => "required".to_owned(),
            Value::Null => "none".to_owned(),
            Value::Object(_) if inner.is_some() => String::new(),
            Value::String(text) => format!("`{text}`"),
            other => format!("`{other}`"),
        };
        let own_table = inner.and_then(|((table, _), _)| table).filter(|table| TABLES.contains(table));
        let mut text = field["description"].as_str().unwrap_or_else(|| panic!("{prefix}{name} is not described")).to_owned();
        for variant in variants(field) {
            text += &format!(" `{}`: {}", variant["const"].as_str().unwrap(), variant["description"].as_str().unwrap());
        }
        if let Some(table) = own_table {
            text += &format!(" See [below](#{}).", table.to_lowercase());
        }
        let text = text.replace('\n', " ").replace('|', "\\|");
        let range = range(field).unwrap_or_default();
        *rows += &format!("| `{prefix}{name}` | {default} | {range} | {text} |\n");
        if let (Some(((_, keys), mark)), None) = (inner, own_table) {
            write_rows(rows, keys, &format!("{prefix}{name}{mark}."));
        }
    }
}

/// The type of a mapping with fixed keys, and its schema.
fn keys_of(field: &Value) -> Option<(Option<&str>, &Value)> {
    if let Some(name) = field["$ref"].as_str().and_then(|name| name.strip_prefix("#/$defs/")) {
        return keys_of(&config::schema()["$defs"][name]).map(|(inner, keys)| (inner.or(Some(name)), keys));
    }
    match field["anyOf"].as_array() {
        Some(any) => any.iter().find_map(keys_of),
        None => field.get("properties").map(|_| (None, field)),
    }
}

fn range(field: &Value) -> Option<String> {
    if let Some(any) = field["anyOf"].as_array() {
        return any.iter().find_map(range);
    }
    if let Some(text) = field["$comment"].as_str() {
        return Some(text.to_owned());
    }
    Some(format!("{} to {}", field.get("minimum")?, field.get("maximum")?))
}

fn variants(field: &Value) -> Vec<&Value> {
    if let Some(name) = field["$ref"].as_str() {
        return variants(config::schema().pointer(&name[1..]).unwrap());
    }
    field["oneOf"].as_array().into_iter().flatten().collect()
}

#[test]
fn the_effective_configuration_is_a_file_that_says_the_same() {
    for path in configurations() {
        let text = fs::read_to_string(&path).unwrap();
        let output = run(&["check", "--effective", "--config", path.to_str().unwrap()]);
        assert_eq!(output.code, 0, "{output:?}");
        assert_eq!(config::parse(&output.stdout), config::parse(&text), "{}", output.stdout);
        for default in ["  retries: ", "    header_timeout: ", "access_log: ", "    ready_timeout: "] {
            assert!(output.stdout.contains(default), "no {default:?}: {}", output.stdout);
        }
    }
}

#[test]
fn the_effective_configuration_shows_no_secret_and_nothing_that_is_not_allowed_together() {
    let text = "listeners: [{address: 127.0.0.1:0}]\naccess_log: {format: json, file: a.log}\nservices:\n  a:\n    active: x\n    pools: {x: {peers: [a:1]}}\n    \
                health_check: {headers: {Authorization: Bearer hush}, expect_status: [200, 204-206]}\n    error_pages: {502: a.html}\n  \
                b: {hosts: [b.test], active: x, pools: {x: {peers: [b:1]}}, health_check: {tcp: true}}\n";
    let config = config::parse(text).unwrap();
    let shown = config::effective(&config).unwrap();
    assert!(shown.contains("Authorization: '***'") && !shown.contains("hush"), "{shown}");
    assert!(!format!("{config:?}").contains("hush"));
    let mut again = config::parse(&shown).unwrap_or_else(|problems| panic!("{problems:?}: {shown}"));
    let service = again.services.get_mut("a").unwrap();
    service.health_check.headers = config.services["a"].health_check.headers.clone();
    assert_eq!(again, config, "{shown}");
}

/// serde_yaml reads every file of the repository as the same configuration.
#[test]
fn serde_yaml_reads_the_same_configuration() {
    for path in configurations() {
        let text = fs::read_to_string(&path).unwrap();
        let theirs: Config = serde_yaml::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!(config::parse(&text), Ok(theirs), "{}", path.display());
    }
}

/// The number of reported problems, and the cost of finding them, are bounded.
#[test]
fn a_file_of_thousands_of_problems_lists_a_hundred_of_them() {
    let peers = "{address: x, weight: 0}, ".repeat(1500);
    let text = format!("services: {{a: {{active: x, pools: {{x: {{peers: [{peers}]}}}}}}}}\n");
    let problems = config::parse(&text).unwrap_err();
    assert!((50..=101).contains(&problems.len()) && problems[0].message.contains("more problems"), "{problems:?}");
    let keys: String = (0..3000).map(|i| format!("k{i}: 1\n")).collect();
    assert_eq!(config::parse(&keys).unwrap_err().len(), 101);
    let empty = format!("listeners: [{}]\n", "{}, ".repeat(3000));
    let problems = config::parse(&empty).unwrap_err();
    assert!(problems.len() == 101 && problems[100].message.contains("more problems"), "{:?}", problems[100]);
}
