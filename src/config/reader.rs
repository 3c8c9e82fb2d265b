//! A serde deserializer over the position tree, which reports every problem with its place.
//!
//! serde stops at the first problem. [`read`] records it, sets its node aside and deserializes again without that node, until the
//! rest succeeds. `structure` finds missing keys, because serde reports only one of them at a time. Called by `parse` and
//! `admin`; knows no key of the configuration.

use std::{
    collections::HashSet,
    fmt::{self, Display},
};

use serde::{
    Deserialize, Deserializer, de,
    de::{DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor, value::StrDeserializer},
    forward_to_deserialize_any,
};

use super::{
    Problem,
    yaml::{Key, Kind, Node, Place},
};

/// Maximum length of a value in a message, in characters.
const SHOWN: usize = 60;

/// Maximum number of problems in one file; each costs one more pass.
const ROUNDS: usize = 100;

/// Nodes that are left out because of a problem, by their addresses.
pub(super) type Aside = HashSet<*const Node>;

/// Deserializes a tree. A value with a problem gets its default, or is left out of its list. Returns none if the root is not a
/// mapping.
pub(super) fn read<'de, T: Deserialize<'de>>(document: &'de Node, aside: &mut Aside, problems: &mut Vec<Problem>) -> Option<T> {
    for _ in 0..ROUNDS {
        let fault = match T::deserialize(Reader { node: document, at: Path::Root, aside }) {
            Ok(value) => return Some(value),
            Err(fault) => fault,
        };
        let node = fault.node.unwrap_or(document);
        problems.extend(fault.problem.map(|problem| *problem));
        if !aside.insert(node) || std::ptr::eq(node, document) {
            return None;
        }
    }
    problems.push(Problem::new("", "has more problems than are listed; correct these first"));
    None
}

/// The reason why a node cannot be deserialized.
#[derive(Debug)]
pub(super) struct Fault {
    /// Set by the reader of the innermost node.
    node: Option<*const Node>,
    message: String,
    /// None for a missing key: `structure` reports it, unless its value was set aside.
    problem: Option<Box<Problem>>,
}

impl Fault {
    /// Sets the node and the place, unless an inner node has set them.
    fn locate(mut self, node: &Node, at: impl Display, place: Place) -> Self {
        if self.node.is_none() {
            self.node = Some(node);
            if !self.message.is_empty() {
                self.problem = Some(Box::new(Problem::at(&at.to_string(), place, self.message.clone())));
            }
        }
        self
    }
}

impl std::error::Error for Fault {}

impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl de::Error for Fault {
    fn custom<T: Display>(message: T) -> Self {
        Self { node: None, message: message.to_string(), problem: None }
    }

    fn invalid_type(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let found = match found {
            de::Unexpected::Seq => "a list".to_owned(),
            de::Unexpected::Map => "keys and values".to_owned(),
            de::Unexpected::Str(text) => shown(text),
            other => other.to_string(),
        };
        Self::custom(format!("has to be {expected}, not {found}"))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let allowed = match expected {
            [others @ .., last] if !others.is_empty() => format!("{} or {last}", others.join(", ")),
            few => few.join(""),
        };
        Self::custom(format!("{} is not allowed; use {allowed}{}", shown(variant), nearest(variant, expected.iter().copied())))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let hint = nearest(field, expected.iter().copied());
        Self::custom(match expected {
            [one] => format!("unknown key; only {one} is allowed{hint}"),
            several => format!("unknown key; {} are allowed{hint}", several.join(", ")),
        })
    }

    fn missing_field(_: &'static str) -> Self {
        Self::custom("")
    }
}

/// The path of a node, as a linked list of steps to the root. Formatted only for a problem.
#[derive(Clone, Copy)]
pub(super) enum Path<'a> {
    Root,
    Key(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Key(outer, key) => {
                let dot = if matches!(outer, Self::Root) { "" } else { "." };
                write!(f, "{outer}{dot}")?;
                key.chars().take(SHOWN).flat_map(char::escape_debug).try_for_each(|c| write!(f, "{c}"))
            }
            Self::Index(outer, index) => write!(f, "{outer}[{index}]"),
        }
    }
}

/// A deserializer of one node.
struct Reader<'a, 'de> {
    node: &'de Node,
    at: Path<'a>,
    aside: &'a Aside,
}

impl<'de> Reader<'_, 'de> {
    fn locate<T>(&self, outcome: Result<T, Fault>) -> Result<T, Fault> {
        outcome.map_err(|fault| fault.locate(self.node, self.at, self.node.place))
    }

    fn text(&self) -> Result<&'de str, Fault> {
        match &self.node.kind {
            _ if self.node.is_null() => self.refuse("is empty; write a value, or leave the key out"),
            Kind::Scalar { text, .. } => Ok(text),
            other => self.refuse(format!("has to be one value, not {}", describe(other))),
        }
    }

    fn refuse<T>(&self, message: impl Display) -> Result<T, Fault> {
        self.locate(Err(de::Error::custom(message)))
    }

    /// The entries of a mapping. An empty value counts as a mapping without entries.
    fn entries<V: Visitor<'de>>(&self, visitor: V, expected: impl Display) -> Result<V::Value, Fault> {
        let entries = match &self.node.kind {
            Kind::Mapping(entries) => entries.as_slice(),
            _ if self.node.is_null() => &[],
            other => return self.refuse(format!("has to be {expected}, not {}", describe(other))),
        };
        self.locate(visitor.visit_map(Entries { entries: entries.iter(), current: None, at: &self.at, aside: self.aside }))
    }
}

impl<'de> Deserializer<'de> for Reader<'_, 'de> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.node.kind {
            Kind::Scalar { .. } => self.deserialize_str(visitor),
            Kind::Sequence(_) => self.deserialize_seq(visitor),
            Kind::Mapping(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let text = self.text()?;
        self.locate(visitor.visit_str(text))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.text()?.parse() {
            Ok(value) => self.locate(visitor.visit_bool(value)),
            Err(_) => self.refuse(format!("{} is not allowed; use true or false", describe(&self.node.kind))),
        }
    }

    fn deserialize_enum<V>(self, _: &'static str, _: &'static [&'static str], visitor: V) -> Result<V::Value, Fault>
    where
        V: Visitor<'de>,
    {
        let name: StrDeserializer<'_, Fault> = self.text()?.into_deserializer();
        self.locate(visitor.visit_enum(name))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_some(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let items = match &self.node.kind {
            Kind::Sequence(items) => items.as_slice(),
            _ if self.node.is_null() => &[],
            other => return self.refuse(format!("has to be a list, not {}", describe(other))),
        };
        self.locate(visitor.visit_seq(Items { items: items.iter().enumerate(), at: &self.at, aside: self.aside }))
    }

    fn deserialize_struct<V>(self, _: &'static str, _: &'static [&'static str], visitor: V) -> Result<V::Value, Fault>
    where
        V: Visitor<'de>,
    {
        self.entries(visitor, "keys and values")
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.at {
            Path::Key(_, key) => self.entries(visitor, format_args!("{key} by name")),
            Path::Root | Path::Index(..) => self.entries(visitor, "keys and values"),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char string bytes byte_buf unit unit_struct tuple tuple_struct identifier
    }
}

struct Items<'a, 'de> {
    items: std::iter::Enumerate<std::slice::Iter<'de, Node>>,
    at: &'a Path<'a>,
    aside: &'a Aside,
}

impl<'de> SeqAccess<'de> for Items<'_, 'de> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        let aside = self.aside;
        let next = self.items.find(|(_, node)| !aside.contains(&std::ptr::from_ref(*node)));
        next.map(|(i, node)| seed.deserialize(Reader { node, at: Path::Index(self.at, i), aside })).transpose()
    }
}

struct Entries<'a, 'de> {
    entries: std::slice::Iter<'de, (Key, Node)>,
    current: Option<&'de (Key, Node)>,
    at: &'a Path<'a>,
    aside: &'a Aside,
}

impl<'de> Entries<'_, 'de> {
    fn advance(&mut self) -> Option<&'de (Key, Node)> {
        let aside = self.aside;
        self.current = self.entries.find(|(_, node)| !aside.contains(&std::ptr::from_ref(node)));
        self.current
    }

    fn key<K: DeserializeSeed<'de>>(&self, seed: K, (key, node): &'de (Key, Node)) -> Result<K::Value, Fault> {
        let name: StrDeserializer<'_, Fault> = key.name.as_str().into_deserializer();
        seed.deserialize(name).map_err(|fault| fault.locate(node, Path::Key(self.at, &key.name), key.place))
    }

    fn value<V: DeserializeSeed<'de>>(&self, seed: V, (key, node): &'de (Key, Node)) -> Result<V::Value, Fault> {
        seed.deserialize(Reader { node, at: Path::Key(self.at, &key.name), aside: self.aside })
    }
}

impl<'de> MapAccess<'de> for Entries<'_, 'de> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        self.advance().map(|entry| self.key(seed, entry)).transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        match self.current {
            Some(entry) => self.value(seed, entry),
            None => Err(de::Error::custom("a value was asked for before its key")),
        }
    }

    /// Reads the value before the key, so that a bad name of a service does not hide problems inside of the service.
    fn next_entry_seed<K, V>(&mut self, key: K, value: V) -> Result<Option<(K::Value, V::Value)>, Fault>
    where
        K: DeserializeSeed<'de>,
        V: DeserializeSeed<'de>,
    {
        let Some(entry) = self.advance() else { return Ok(None) };
        let value = self.value(value, entry)?;
        Ok(Some((self.key(key, entry)?, value)))
    }
}

/// `(did you mean "green"?)`, if a candidate is similar enough.
pub(crate) fn nearest<'a>(wrong: &str, right: impl Iterator<Item = &'a str>) -> String {
    if wrong.len() > SHOWN {
        return String::new();
    }
    let near = right.map(|right| (strsim::damerau_levenshtein(wrong, right), right)).min();
    match near {
        Some((distance, right)) if distance <= 1 + right.len().min(wrong.len()) / 4 => format!(" (did you mean \"{right}\"?)"),
        _ => String::new(),
    }
}

/// Formats a value for a message: on one line, cut to `SHOWN` characters.
pub(super) fn shown(text: &str) -> String {
    let mut escaped: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().count() > SHOWN {
        escaped.push('…');
    }
    format!("\"{escaped}\"")
}

fn describe(kind: &Kind) -> String {
    match kind {
        Kind::Scalar { text, .. } => shown(text),
        Kind::Sequence(_) => "a list".to_owned(),
        Kind::Mapping(_) => "keys and values".to_owned(),
    }
}
