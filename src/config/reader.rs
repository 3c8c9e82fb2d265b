//! Reads values out of the tree and collects every problem on the way.
//!
//! `file` says which keys there are and what their values may be; this says so to the person who wrote something else. It
//! never stops at a problem: what cannot be read has its default for the rest of the reading.

use super::{
    Problem,
    yaml::{Key, Kind, Node, Place},
};

/// How much of a wrong value is repeated in a message.
const SHOWN: usize = 60;

/// Collects problems.
#[derive(Default)]
pub(super) struct Reader {
    pub problems: Vec<Problem>,
}

/// A mapping that is being read: every key that is asked for is allowed, the others are not.
pub(super) struct Map<'a> {
    /// Where it stands: `services.shop`.
    pub at: String,
    pub place: Place,
    entries: &'a [(Key, Node)],
    allowed: Vec<&'static str>,
}

/// A value and where it stands.
#[derive(Clone)]
pub(super) struct Field<'a> {
    pub at: String,
    pub node: &'a Node,
}

impl Field<'_> {
    /// Whether a list has nothing in it; anything but a list is told of elsewhere.
    pub(super) fn is_empty(&self) -> bool {
        self.node.is_null() || matches!(&self.node.kind, Kind::Sequence(items) if items.is_empty())
    }
}

impl<'a> Map<'a> {
    /// Allows a key, and gives its value if it is there.
    pub(super) fn get(&mut self, key: &'static str) -> Option<Field<'a>> {
        self.allowed.push(key);
        let (_, node) = self.entries.iter().find(|(known, _)| known.name == key)?;
        Some(Field { at: join(&self.at, key), node })
    }
}

impl Reader {
    pub(super) fn problem(&mut self, at: &str, place: Place, message: impl Into<String>) {
        self.problems.push(Problem::at(at, place, message));
    }

    /// Reads a mapping with fixed keys; one that is left empty has none.
    pub(super) fn map<'a>(&mut self, field: &Field<'a>) -> Option<Map<'a>> {
        let entries = match &field.node.kind {
            Kind::Mapping(entries) => entries.as_slice(),
            _ if field.node.is_null() => &[],
            other => {
                self.problem(&field.at, field.node.place, format!("has to be keys and values, not {}", describe(other)));
                return None;
            }
        };
        Some(Map { at: field.at.clone(), place: field.node.place, entries, allowed: Vec::new() })
    }

    /// Says which keys of a mapping nobody asked for, or are there twice.
    pub(super) fn finish(&mut self, map: &Map<'_>) {
        self.twice(&map.at, map.entries);
        for (key, _) in map.entries {
            if map.allowed.contains(&key.name.as_str()) {
                continue;
            }
            let hint = nearest(&key.name, map.allowed.iter().copied());
            let message = format!("unknown key; {} allowed{hint}", are(&map.allowed));
            self.problem(&join(&map.at, &key.name), key.place, message);
        }
    }

    /// Reads a mapping whose keys are names of the user's own.
    pub(super) fn named<'a>(&mut self, field: &Field<'a>, what: &str) -> Vec<(&'a Key, Field<'a>)> {
        match &field.node.kind {
            Kind::Mapping(entries) if !entries.is_empty() => {
                self.twice(&field.at, entries);
                let mut seen = std::collections::HashSet::new();
                let first = entries.iter().filter(|(key, _)| seen.insert(key.name.as_str()));
                first.map(|(key, node)| (key, Field { at: join(&field.at, &key.name), node })).collect()
            }
            Kind::Mapping(_) => {
                self.problem(&field.at, field.node.place, format!("is empty; name at least one {what}"));
                Vec::new()
            }
            _ if field.node.is_null() => {
                self.problem(&field.at, field.node.place, format!("is empty; name at least one {what}"));
                Vec::new()
            }
            other => {
                self.problem(&field.at, field.node.place, format!("has to be {what}s by name, not {}", describe(other)));
                Vec::new()
            }
        }
    }

    /// Reads a list; a single value is not one.
    pub(super) fn list<'a>(&mut self, field: &Field<'a>) -> Vec<Field<'a>> {
        match &field.node.kind {
            Kind::Sequence(items) => {
                items.iter().enumerate().map(|(i, node)| Field { at: format!("{}[{i}]", field.at), node }).collect()
            }
            _ if field.node.is_null() => Vec::new(),
            other => {
                self.problem(&field.at, field.node.place, format!("has to be a list, not {}", describe(other)));
                Vec::new()
            }
        }
    }

    /// Reads one value.
    pub(super) fn value<T>(&mut self, field: &Field<'_>, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let outcome = match &field.node.kind {
            _ if field.node.is_null() => Err("is empty; write a value, or leave the key out".to_owned()),
            Kind::Scalar { text, .. } => parse(text),
            other => Err(format!("has to be one value, not {}", describe(other))),
        };
        outcome.map_err(|message| self.problem(&field.at, field.node.place, message)).ok()
    }

    /// Reads the value of a key that may be left out.
    pub(super) fn value_or<T>(
        &mut self,
        map: &mut Map<'_>,
        key: &'static str,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> T {
        map.get(key).and_then(|field| self.value(&field, parse)).unwrap_or(default)
    }

    /// Reads the value of a key that has to be there.
    pub(super) fn required<'a>(&mut self, map: &mut Map<'a>, key: &'static str, hint: &str) -> Option<Field<'a>> {
        let field = map.get(key);
        if field.is_none() {
            self.problem(&join(&map.at, key), map.place, format!("is missing; {hint}"));
        }
        field
    }

    fn twice(&mut self, at: &str, entries: &[(Key, Node)]) {
        for (i, (key, _)) in entries.iter().enumerate() {
            if let Some((first, _)) = entries.iter().take(i).find(|(first, _)| first.name == key.name) {
                let line = first.place.line;
                self.problem(&join(at, &key.name), key.place, format!("is there twice, first in line {line}; keep one"));
            }
        }
    }
}

/// `(did you mean "green"?)`, if something is near enough to be meant.
pub(crate) fn nearest<'a>(wrong: &str, right: impl Iterator<Item = &'a str>) -> String {
    let near = right.map(|right| (strsim::damerau_levenshtein(wrong, right), right)).min();
    match near {
        Some((distance, right)) if distance <= 1 + right.len().min(wrong.len()) / 4 => format!(" (did you mean \"{right}\"?)"),
        _ => String::new(),
    }
}

/// A value as it is repeated in a message: on one line, and not longer than a line.
pub(super) fn shown(text: &str) -> String {
    let mut escaped: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().count() > SHOWN {
        escaped.push('…');
    }
    format!("\"{escaped}\"")
}

pub(super) fn join(at: &str, key: &str) -> String {
    let key: String = key.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if at.is_empty() { key } else { format!("{at}.{key}") }
}

fn are(keys: &[&str]) -> String {
    match keys {
        [one] => format!("only {one} is"),
        several => format!("{} are", several.join(", ")),
    }
}

fn describe(kind: &Kind) -> String {
    match kind {
        Kind::Scalar { text, .. } => shown(text),
        Kind::Sequence(_) => "a list".to_owned(),
        Kind::Mapping(_) => "keys and values".to_owned(),
    }
}
