//! A value of the configuration together with its place in the file. Used by `validate` and `edit`, after deserialization.
//!
//! [`at!`] steps to a field of the value, and [`key!`] is the key of a field without a value. Both take it from the field's own name,
//! so that no key is named a second time, and the compiler checks it.

use std::collections::BTreeMap;

use super::{
    Problem,
    reader::Aside,
    yaml::{Kind, Node},
};

/// A value, its path, and its node if the file has it.
pub(super) struct Spot<'a, T: ?Sized> {
    pub value: &'a T,
    pub at: String,
    pub node: Option<&'a Node>,
    /// Nodes that were left out because of a problem.
    aside: &'a Aside,
}

/// The spot of a field: `at!(root, admin.address)`.
macro_rules! at {
    ($spot:expr, $($field:ident).+) => {{
        let spot = &$spot;
        $(let spot = spot.key(&spot.value.$field, stringify!($field));)+
        spot
    }};
}
pub(super) use at;

/// The key of a field: `key!(Service, active)`.
macro_rules! key {
    ($type:ty, $field:ident) => {{
        const _: fn(&$type) = |value| {
            let _ = &value.$field;
        };
        stringify!($field)
    }};
}
pub(super) use key;

impl<'a, T: ?Sized> Spot<'a, T> {
    pub(super) fn root(value: &'a T, document: &'a Node, aside: &'a Aside) -> Self {
        Self { value, at: String::new(), node: Some(document), aside }
    }

    /// Another value at the same place.
    pub(super) fn with<U: ?Sized>(&self, value: &'a U) -> Spot<'a, U> {
        Spot { value, at: self.at.clone(), node: self.node, aside: self.aside }
    }

    /// Called by [`at!`] with the name of a field, and with the names of services and pools.
    pub(super) fn key<U>(&self, value: &'a U, name: &str) -> Spot<'a, U> {
        let dot = if self.at.is_empty() { "" } else { "." };
        let node = self.node.and_then(|node| node.get(name));
        Spot { value, at: format!("{}{dot}{name}", self.at), node, aside: self.aside }
    }

    /// Whether it, or the value of one of its keys, could not be read. That is reported already.
    pub(super) fn is_unread(&self) -> bool {
        let unread = |node: &Node| self.aside.contains(&std::ptr::from_ref(node));
        self.node.is_some_and(|node| match &node.kind {
            Kind::Mapping(entries) => unread(node) || entries.iter().any(|(_, value)| unread(value)),
            Kind::Scalar { .. } | Kind::Sequence(_) => unread(node),
        })
    }

    pub(super) fn problem(&self, message: impl Into<String>) -> Problem {
        match self.node {
            Some(node) => Problem::at(&self.at, node.place, message),
            None => Problem::new(&self.at, message),
        }
    }
}

impl<'a, T> Spot<'a, Vec<T>> {
    /// The items, with their indexes in the file, where items that were left out count too.
    pub(super) fn items(self) -> impl Iterator<Item = Spot<'a, T>> {
        let nodes = match self.node.map(|node| &node.kind) {
            Some(Kind::Sequence(nodes)) => nodes.as_slice(),
            _ => &[],
        };
        let read = nodes.iter().enumerate().filter(|(_, node)| !self.aside.contains(&std::ptr::from_ref(*node)));
        let item = move |(value, (i, node))| Spot { value, at: format!("{}[{i}]", self.at), node: Some(node), aside: self.aside };
        self.value.iter().zip(read).map(item)
    }
}

impl<'a, T> Spot<'a, BTreeMap<String, T>> {
    pub(super) fn entries(self) -> impl Iterator<Item = (&'a String, Spot<'a, T>)> {
        self.value.iter().map(move |(name, value)| (name, self.key(value, name)))
    }

    pub(super) fn entry(&self, name: &str) -> Option<Spot<'a, T>> {
        self.value.get(name).map(|value| self.key(value, name))
    }
}

impl<'a, T> Spot<'a, Option<T>> {
    pub(super) fn some(&self) -> Option<Spot<'a, T>> {
        self.value.as_ref().map(|value| self.with(value))
    }
}
