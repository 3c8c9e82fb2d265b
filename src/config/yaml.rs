//! YAML as a small tree that remembers where everything stands.
//!
//! Built from parser events, because serde_yaml gives no places for single values: every problem of a file has its line and column,
//! and `promote` replaces exactly one token. Read by `reader`, `schema`, `validate` and `edit`; knows no key, is the only file
//! that names the parser, and never follows an alias into more nodes than its budget.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Span};

use super::Problem;

/// No configuration is larger; a file that is, is something else.
const NODES: usize = 10_000;

/// One value.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub kind: Kind,
    pub place: Place,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Scalar {
        text: String,
        plain: bool,
    },
    Sequence(Vec<Node>),
    /// In the order of the file; a key can be there twice.
    Mapping(Vec<(Key, Node)>),
}

#[derive(Clone, Debug)]
pub(super) struct Key {
    pub name: String,
    pub place: Place,
}

/// Where a token stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// From 1.
    pub line: usize,
    /// From 1.
    pub column: usize,
    /// Where it begins, counted in characters.
    pub start: usize,
    /// Where a plain scalar or an alias ends; a quoted one ends with its quote, which the parser does not tell.
    pub end: usize,
}

impl Node {
    /// Written as nothing, `~` or `null`.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.kind, Kind::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// The value of a key.
    pub(super) fn get(&self, name: &str) -> Option<&Self> {
        match &self.kind {
            Kind::Mapping(entries) => entries.iter().find(|(key, _)| key.name == name).map(|(_, value)| value),
            _ => None,
        }
    }

    /// The value at a path such as `services.shop.pools.blue.peers[1]`.
    pub(super) fn at(&self, path: &str) -> Option<&Self> {
        path.split('.').try_fold(self, |node, step| match step.split_once('[') {
            None => node.get(step),
            Some((key, index)) => match &node.get(key)?.kind {
                Kind::Sequence(items) => items.get(index.trim_end_matches(']').parse::<usize>().ok()?),
                Kind::Scalar { .. } | Kind::Mapping(_) => None,
            },
        })
    }

    /// The text of a scalar.
    pub(super) fn as_text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Scalar { text, .. } => Some(text),
            Kind::Sequence(_) | Kind::Mapping(_) => None,
        }
    }
}

impl Problem {
    pub(super) fn at(at: &str, place: Place, message: impl Into<String>) -> Self {
        Self { line: Some(place.line), column: Some(place.column), ..Self::new(at, message) }
    }
}

/// The mark that some editors put before the first character of UTF-8; no part of the document.
pub(super) const BYTE_ORDER_MARK: char = '\u{feff}';

/// The tree of a text that holds one document; none for one that says nothing. Places are counted without a byte order mark.
pub(super) fn parse(text: &str) -> Result<Option<Node>, Problem> {
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    let mut tree = Tree { parser: Parser::new_from_str(text), anchors: HashMap::new(), budget: NODES };
    let mut document = None;
    while let Some((event, span)) = tree.next()? {
        match event {
            Event::StreamStart | Event::StreamEnd | Event::DocumentEnd | Event::Nothing => {}
            Event::DocumentStart(_) if document.is_some() => {
                return Err(Problem::at("", place(span), "a second document begins here; put everything into one"));
            }
            Event::DocumentStart(_) => {}
            event => document = Some(tree.node(event, span)?),
        }
    }
    Ok(document.filter(|node: &Node| !node.is_null()))
}

struct Tree<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    anchors: HashMap<usize, (Node, usize)>,
    budget: usize,
}

impl<'a> Tree<'a> {
    fn next(&mut self) -> Result<Option<(Event<'a>, Span)>, Problem> {
        self.parser.next_event().transpose().map_err(|e| syntax(&e))
    }

    /// What comes inside a collection; the parser never ends within one without an error.
    fn inner(&mut self, outer: Place) -> Result<(Event<'a>, Span), Problem> {
        self.next()?.ok_or_else(|| Problem::at("", outer, "what begins here has no end"))
    }

    /// Recursion is bounded: the parser refuses to nest deeper than 255.
    fn node(&mut self, event: Event<'a>, span: Span) -> Result<Node, Problem> {
        let place = place(span);
        self.spend(1, place)?;
        let before = self.budget;
        let (kind, anchor, tag) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                (Kind::Scalar { text: text.into_owned(), plain: style == ScalarStyle::Plain }, anchor, tag)
            }
            Event::SequenceStart(anchor, tag) => (Kind::Sequence(self.sequence(place)?), anchor, tag),
            Event::MappingStart(anchor, tag) => (Kind::Mapping(self.mapping(place)?), anchor, tag),
            Event::Alias(anchor) => {
                let Some((node, size)) = self.anchors.get(&anchor).cloned() else {
                    return Err(Problem::at("", place, "an alias of something that is not there yet"));
                };
                self.spend(size, place)?;
                return Ok(Node { place, ..node });
            }
            _ => return Err(Problem::at("", place, "a value is missing here")),
        };
        if tag.is_some() {
            return Err(Problem::at("", place, "tags (!…) mean nothing here; leave it out"));
        }
        let node = Node { kind, place };
        if anchor > 0 {
            self.anchors.insert(anchor, (node.clone(), before - self.budget));
        }
        Ok(node)
    }

    fn sequence(&mut self, outer: Place) -> Result<Vec<Node>, Problem> {
        let mut items = Vec::new();
        loop {
            match self.inner(outer)? {
                (Event::SequenceEnd, _) => return Ok(items),
                (event, span) => items.push(self.node(event, span)?),
            }
        }
    }

    fn mapping(&mut self, outer: Place) -> Result<Vec<(Key, Node)>, Problem> {
        let mut entries = Vec::new();
        loop {
            let (event, span) = match self.inner(outer)? {
                (Event::MappingEnd, _) => return Ok(entries),
                key => key,
            };
            let key = match self.node(event, span)? {
                Node { kind: Kind::Scalar { text, .. }, place } => Key { name: text, place },
                Node { place, .. } => return Err(Problem::at("", place, "a key has to be a word")),
            };
            let (event, span) = self.inner(outer)?;
            let value = self.node(event, span)?;
            entries.push((key, value));
        }
    }

    /// Aliases of aliases grow by powers; the budget is what they cannot grow beyond.
    fn spend(&mut self, nodes: usize, place: Place) -> Result<(), Problem> {
        match self.budget.checked_sub(nodes) {
            Some(left) => self.budget = left,
            None => return Err(Problem::at("", place, format!("more than {NODES} values; this is no configuration"))),
        }
        Ok(())
    }
}

fn syntax(error: &ScanError) -> Problem {
    Problem::at("", marked(*error.marker(), 0), format!("not YAML: {}", error.info()))
}

fn place(span: Span) -> Place {
    marked(span.start, span.end.index())
}

fn marked(marker: Marker, end: usize) -> Place {
    Place { line: marker.line(), column: marker.col() + 1, start: marker.index(), end }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_files_are_refused_at_little_cost() {
        let laughs = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned()
            + &(1..10).map(|i| format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 10].join(","))).collect::<String>();
        assert!(parse(&laughs).unwrap_err().message.contains("more than 10000 values"));
        assert!(parse(&"[".repeat(100_000)).unwrap_err().message.contains("recursion limit"));
        assert!(parse(&format!("a: [{}]", "1,".repeat(20_000))).is_err());
        assert!(parse("a: 1\n---\nb: 2\n").unwrap_err().message.contains("second document"));
        assert!(parse("a: !!python/object x\n").unwrap_err().message.contains("tags"));
    }

    #[test]
    fn nothing_is_no_document() {
        for text in ["", "\n\n", "# only words\n", "---\n", "~\n"] {
            assert!(parse(text).unwrap().is_none(), "{text:?}");
        }
    }

    #[test]
    fn an_alias_stands_for_its_anchor() {
        let node = parse("a: &p [1, 2]\nb: *p\n").unwrap().unwrap();
        assert!(matches!(&node.get("b").unwrap().kind, Kind::Sequence(items) if items.len() == 2));
        assert_eq!(node.get("b").unwrap().place.line, 2);
    }
}
