//! Parses YAML into a small tree with the position of every node.
//!
//! Built from parser events, because serde_yaml has no positions of single values; they are needed for the line and column of
//! each problem, and for `promote`, which replaces exactly one token. Used by `reader`, `schema`, `validate` and `edit`. Only
//! this file uses the parser. It knows no key, and limits the number of nodes, so that aliases cannot exhaust the memory.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Span};

use super::Problem;

/// Maximum number of nodes; no real configuration has as many.
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
    /// In the order of the file, including duplicate keys.
    Mapping(Vec<(Key, Node)>),
}

#[derive(Clone, Debug)]
pub(super) struct Key {
    pub name: String,
    pub place: Place,
}

/// The position of a token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// 1-based.
    pub line: usize,
    /// 1-based.
    pub column: usize,
    /// Offset of its first character, in characters.
    pub start: usize,
    /// Offset of the end of a plain scalar or an alias. Not exact for a quoted scalar: the parser does not report its closing
    /// quote.
    pub end: usize,
}

impl Node {
    /// Whether it is empty, `~` or `null`.
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

/// The byte order mark that some editors write at the start of UTF-8; not a part of the document.
pub(super) const BYTE_ORDER_MARK: char = '\u{feff}';

/// Parses a text with one document; returns none for an empty one. Positions do not count a byte order mark.
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

    /// The next event inside of a collection. The parser reports an error for a collection without an end.
    fn inner(&mut self, outer: Place) -> Result<(Event<'a>, Span), Problem> {
        self.next()?.ok_or_else(|| Problem::at("", outer, "what begins here has no end"))
    }

    /// The recursion is bounded, because the parser rejects more than 255 levels.
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
            return Err(Problem::at("", place, "tags (!…) are not supported; remove it"));
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

    /// Counts the copied nodes too: aliases of aliases grow exponentially.
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
