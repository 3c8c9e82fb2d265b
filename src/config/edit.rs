//! Edits the text of the file for a promotion: `active: blue` becomes `active: green`, and the version of the pool is set if one
//! is given. All other bytes stay the same.
//!
//! Called by the controller for `promote`. Replaces tokens by their position, so that comments, order and style stay. Then parses
//! the new text, which must give exactly the wanted configuration. [`super::write`] writes the file.

use std::ops::Range;

use super::{
    Pool, Problem, parse,
    reader::Aside,
    spot::{Spot, at},
    value,
    yaml::{self, Kind, Node},
};

/// Returns `text` with `pool` as the active pool of `service`, and with the version of that pool if one is given.
///
/// # Errors
/// The problems of `text`, or of the new text.
pub fn promote(text: &str, service: &str, pool: &str, version: Option<&str>) -> Result<String, Vec<Problem>> {
    if let Some(text) = text.strip_prefix(yaml::BYTE_ORDER_MARK) {
        return promote(text, service, pool, version).map(|text| format!("{}{text}", yaml::BYTE_ORDER_MARK));
    }
    let (config, aside) = (parse(text)?, Aside::new());
    let mut wanted = config.clone();
    let document = yaml::parse(text).map_err(|problem| vec![problem])?;
    let by_hand = |at: &str| vec![Problem::new(at, "cannot be found in the file; edit it by hand")];
    let root = document.as_ref().map(|document| Spot::root(&config, document, &aside));
    let services = root.as_ref().map(|root| at!(root, services)).ok_or_else(|| by_hand(""))?;
    let spot = services.entry(service).ok_or_else(|| by_hand(&format!("{}.{service}", services.at)))?;
    let (active, pools) = (at!(spot, active), at!(spot, pools));
    let token = active.node.and_then(|node| token(text, node)).ok_or_else(|| by_hand(&active.at))?;
    let mut edits = vec![vec![(token, plain_or_quoted(pool))]];
    if let Some(settings) = wanted.services.get_mut(service) {
        pool.clone_into(&mut settings.active);
    }
    if let Some(version) = version {
        let settings = wanted.services.get_mut(service).and_then(|service| service.pools.get_mut(pool));
        let settings = settings.ok_or_else(|| by_hand(&format!("{}.{pool}", pools.at)))?;
        if settings.version.as_deref() != Some(version) {
            settings.version = Some(version.to_owned());
            let ways = pools.entry(pool).map(|pool| versions(text, &pool, version)).unwrap_or_default();
            edits = ways.into_iter().map(|way| edits.iter().flatten().cloned().chain([way]).collect()).collect();
        }
    }
    let mut invalid = None;
    for changed in edits.into_iter().map(|edits| replaced(text, edits)) {
        match parse(&changed) {
            Ok(config) if config == wanted => return Ok(changed),
            Ok(_) => {}
            Err(problems) => invalid = Some(problems),
        }
    }
    // With a version, these problems may come from a wrong guess of its position.
    Err(invalid
        .filter(|_| version.is_none())
        .unwrap_or_else(|| vec![Problem::new(&active.at, "cannot be changed by itself; edit it by hand")]))
}

/// Checks the version of a release.
///
/// # Errors
/// When it is not allowed; says what is.
pub fn check_version(version: &str) -> Result<(), String> {
    value::label(version).map(drop)
}

type Replacement = (Range<usize>, String);

fn replaced(text: &str, mut edits: Vec<Replacement>) -> String {
    let mut changed = text.to_owned();
    // From the end, so that the positions of the remaining edits stay valid.
    edits.sort_by_key(|(range, _)| std::cmp::Reverse(range.start));
    for (range, new) in edits {
        changed.replace_range(range, &new);
    }
    changed
}

/// Possible edits that set the version of a pool: replace the existing version, or insert a new first line, or insert a new first
/// entry between braces. The caller parses the results to find which of the last two is right.
fn versions(text: &str, pool: &Spot<'_, Pool>, version: &str) -> Vec<Replacement> {
    let quoted = format!("\"{}\"", version.replace('\\', "\\\\").replace('"', "\\\""));
    let key = at!(pool, version);
    if let Some(node) = key.node {
        return token(text, node).map(|range| (range, quoted)).into_iter().collect();
    }
    let Some(Kind::Mapping(entries)) = pool.node.map(|node| &node.kind) else { return Vec::new() };
    let Some(first) = entries.first().and_then(|(key, _)| byte(text, key.place.start)) else { return Vec::new() };
    let line = text.get(..first).and_then(|before| before.rfind('\n')).map_or(0, |newline| newline + 1);
    let indent = text.get(line..first).unwrap_or_default();
    let newline = if text.get(first..).and_then(|rest| rest.split_once('\n')).is_some_and(|(rest, _)| rest.ends_with('\r')) {
        "\r\n"
    } else {
        "\n"
    };
    vec![(line..line, format!("{indent}version: {quoted}{newline}")), (first..first, format!("version: {quoted}, "))]
}

fn byte(text: &str, character: usize) -> Option<usize> {
    text.char_indices().map(|(i, _)| i).chain([text.len()]).nth(character)
}

/// The bytes of a scalar or of an alias.
fn token(text: &str, node: &Node) -> Option<Range<usize>> {
    let start = byte(text, node.place.start)?;
    let rest = text.get(start..)?;
    let end = match (&node.kind, rest.chars().next()?) {
        (Kind::Scalar { .. }, quote @ ('"' | '\'')) => start + quoted(rest, quote)?,
        (Kind::Scalar { .. }, '|' | '>' | '&') => return None,
        _ => byte(text, node.place.end)?,
    };
    (end > start).then_some(start..end)
}

/// The length of a quoted scalar with its quotes. The position from the parser also includes the text behind it.
fn quoted(text: &str, quote: char) -> Option<usize> {
    let mut characters = text.char_indices().skip(1).peekable();
    while let Some((i, character)) = characters.next() {
        let escapes = match quote {
            '"' => character == '\\',
            _ => character == '\'' && characters.peek().is_some_and(|(_, next)| *next == '\''),
        };
        if escapes {
            characters.next();
        } else if character == quote {
            return Some(i + 1);
        }
    }
    None
}

/// Quotes a name that other YAML parsers would read as a boolean, a null or a number.
fn plain_or_quoted(name: &str) -> String {
    const WORDS: [&str; 11] = ["true", "false", "yes", "no", "on", "off", "null", "y", "n", "nan", "inf"];
    let letters = name.starts_with(|c: char| c.is_ascii_alphabetic());
    if letters && !WORDS.iter().any(|word| name.eq_ignore_ascii_case(word)) { name.to_owned() } else { format!("\"{name}\"") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_active(line: &str) -> String {
        format!(
            "# größe ☃\nlisteners: [{{address: \"0.0.0.0:8080\"}}] # keep\nservices:\n  shop:\n{line}    pools:\n      blue: {{peers: [a:1]}}\n      \
             green: {{peers: [b:1]}}\n      on: {{peers: [c:1]}}\n      \"1\": {{peers: [d:1]}}\n"
        )
    }

    #[test]
    fn only_the_token_changes() {
        for (before, after) in [
            ("    active: blue\n", "    active: green\n"),
            ("    active:   blue   # edit me\n", "    active:   green   # edit me\n"),
            ("    active: \"blue\" # ü\n", "    active: green # ü\n"),
            ("    active: 'blue'\n", "    active: green\n"),
            ("    active: \"bl\\u0075e\"\n", "    active: green\n"),
            ("    active: blue\r\n", "    active: green\r\n"),
            ("    active:\n      blue\n", "    active:\n      green\n"),
        ] {
            assert_eq!(
                promote(&with_active(before), "shop", "green", None).as_deref(),
                Ok(with_active(after).as_str()),
                "{before}"
            );
        }
    }

    #[test]
    fn a_byte_order_mark_stays() {
        let with_mark = |line: &str| format!("\u{feff}{}", with_active(line));
        assert_eq!(promote(&with_mark("    active: blue\n"), "shop", "green", None), Ok(with_mark("    active: green\n")));
        // Also where the first line is the one that matters.
        let flow = "\u{feff}{listeners: [{address: 0.0.0.0:80}], services: {shop: {pools: {blue: {peers: [a:1]}, green: {peers: [b:1]}}, active: blue}}}";
        assert_eq!(promote(flow, "shop", "green", None).unwrap(), flow.replace("active: blue", "active: green"));
    }

    #[test]
    fn flow_style_and_aliases_are_changed_where_they_stand() {
        let flow = "listeners: [{address: 0.0.0.0:80}]\nservices: {shop: {pools: {blue: {version: &v blue, peers: [a:1]}, green: {peers: [b:1]}}, active: blue}}\n";
        assert_eq!(promote(flow, "shop", "green", None).unwrap(), flow.replace("active: blue", "active: green"));
        let alias = flow.replace("active: blue", "active: *v ");
        assert_eq!(promote(&alias, "shop", "green", None).unwrap(), flow.replace("active: blue", "active: green "));
    }

    #[test]
    fn names_that_others_would_misread_are_quoted() {
        let text = with_active("    active: blue\n");
        assert_eq!(promote(&text, "shop", "on", None).unwrap(), with_active("    active: \"on\"\n"));
        assert_eq!(promote(&text, "shop", "1", None).unwrap(), with_active("    active: \"1\"\n"));
    }

    #[test]
    fn what_would_not_be_valid_is_refused() {
        let text = with_active("    active: blue\n");
        assert!(promote(&text, "shop", "gren", None).unwrap_err()[0].message.contains("did you mean \"green\"?"));
        assert!(promote(&text, "stop", "green", None).is_err());
        assert!(promote("nothing", "shop", "green", None).is_err());
    }

    #[test]
    fn a_version_is_written_with_the_pool_in_block_and_in_flow_style() {
        let head = "listeners: [{address: 0.0.0.0:80}]\nservices:\n  shop:\n    active: blue # keep\n    pools:\n";
        for (before, after) in [
            (
                "      blue: {peers: [a:1]}\n      green:\n        # two\n        peers: [b:1]\n",
                "      blue: {peers: [a:1]}\n      green:\n        # two\n        version: \"2.0\"\n        peers: [b:1]\n",
            ),
            (
                "      blue: {peers: [a:1]}\n      green: { peers: [b:1] } # keep\n",
                "      blue: {peers: [a:1]}\n      green: { version: \"2.0\", peers: [b:1] } # keep\n",
            ),
            (
                "      blue: {peers: [a:1]}\n      green: {\n        peers: [b:1]}\n",
                "      blue: {peers: [a:1]}\n      green: {\n        version: \"2.0\", peers: [b:1]}\n",
            ),
            (
                "      blue: {peers: [a:1]}\r\n      green:\r\n        peers:\r\n          - b:1\r\n",
                "      blue: {peers: [a:1]}\r\n      green:\r\n        version: \"2.0\"\r\n        peers:\r\n          - b:1\r\n",
            ),
            (
                "      blue: {peers: [a:1]}\n      green:\n        peers: [b:1]\n        version: 1.40 # old\n",
                "      blue: {peers: [a:1]}\n      green:\n        peers: [b:1]\n        version: \"2.0\" # old\n",
            ),
        ] {
            let wanted = format!("{head}{after}").replace("active: blue", "active: green");
            assert_eq!(
                promote(&format!("{head}{before}"), "shop", "green", Some("2.0")).as_deref(),
                Ok(wanted.as_str()),
                "{before}"
            );
        }
        let text = format!("{head}      blue: {{peers: [a:1]}}\n");
        let odd = promote(&text, "shop", "blue", Some("a \"b\" \\ #c")).unwrap();
        let odd = parse(&odd).unwrap();
        assert_eq!(odd.services["shop"].pools["blue"].version.as_deref(), Some("a \"b\" \\ #c"));
        assert!(check_version("2.0").is_ok() && check_version("two\nlines").is_err() && check_version("").is_err());
    }
}
