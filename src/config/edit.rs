//! The one-line change: `active: blue` becomes `active: green`, and no other byte moves.
//!
//! Called by the controller for `promote`. Replaces the one token by its position, so comments, order and style stay; never
//! leaves a file that is half written.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek, Write},
    ops::Range,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use super::{
    Problem, parse,
    yaml::{self, Kind, Node},
};

/// The text with another pool as the active one of a service.
///
/// # Errors
/// The problems of a text that is not valid, or would not be afterwards.
pub fn set_active(text: &str, service: &str, pool: &str) -> Result<String, Vec<Problem>> {
    let mut wanted = parse(text)?;
    let document = yaml::parse(text).map_err(|problem| vec![problem])?;
    let at = format!("services.{service}.active");
    let problem = |message: &str| vec![Problem::new(&at, message)];
    let node = document
        .as_ref()
        .and_then(|d| d.get("services"))
        .and_then(|services| services.get(service))
        .and_then(|s| s.get("active"));
    let body = text.strip_prefix(yaml::BYTE_ORDER_MARK).unwrap_or(text);
    let token = node.and_then(|node| token(body, node)).ok_or_else(|| problem("cannot be found in the file; edit it by hand"))?;
    let mut changed = text.to_owned();
    let mark = text.len() - body.len();
    changed.replace_range(token.start + mark..token.end + mark, &plain_or_quoted(pool));
    if let Some(service) = wanted.services.get_mut(service) {
        pool.clone_into(&mut service.active);
    }
    if parse(&changed)? == wanted { Ok(changed) } else { Err(problem("cannot be changed by itself; edit it by hand")) }
}

/// The bytes of a scalar or of an alias.
fn token(text: &str, node: &Node) -> Option<Range<usize>> {
    let byte = |character: usize| text.char_indices().map(|(i, _)| i).chain([text.len()]).nth(character);
    let start = byte(node.place.start)?;
    let rest = text.get(start..)?;
    let end = match (&node.kind, rest.chars().next()?) {
        (Kind::Scalar { .. }, quote @ ('"' | '\'')) => start + quoted(rest, quote)?,
        (Kind::Scalar { .. }, '|' | '>' | '&') => return None,
        _ => byte(node.place.end)?,
    };
    (end > start).then_some(start..end)
}

/// How long a quoted scalar is, with its quotes; the parser counts what follows it as well.
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

/// Names are letters, digits, `-` and `_`; some of these other readers of YAML would take for something else than a name.
fn plain_or_quoted(name: &str) -> String {
    const WORDS: [&str; 11] = ["true", "false", "yes", "no", "on", "off", "null", "y", "n", "nan", "inf"];
    let letters = name.starts_with(|c: char| c.is_ascii_alphabetic());
    if letters && !WORDS.iter().any(|word| name.eq_ignore_ascii_case(word)) { name.to_owned() } else { format!("\"{name}\"") }
}

/// Says whether the file could be written, without writing it.
///
/// # Errors
/// When it could not.
pub fn check_writable(path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).open(path).map(drop)
}

/// Replaces the file's content at once: a reader sees the old text or the new one. Links are followed, permissions kept.
///
/// A file that cannot be replaced, because it is a mount of its own or its folder may not be written, is written in place.
///
/// # Errors
/// When it can be written in neither way.
pub fn write_atomically(path: &Path, text: &str) -> io::Result<()> {
    let real = fs::canonicalize(path)?;
    match replace(&real, text) {
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::ResourceBusy | io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
            ) =>
        {
            write_in_place(&real, text)
        }
        outcome => outcome,
    }
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let folder: PathBuf = path.parent().unwrap_or(Path::new("/")).to_path_buf();
    let before = fs::metadata(path)?;
    let mut new = tempfile::Builder::new().prefix(".switchover-").tempfile_in(&folder)?;
    new.write_all(text.as_bytes())?;
    new.as_file().set_permissions(fs::Permissions::from_mode(before.mode() & 0o7777))?;
    let ours = new.as_file().metadata()?;
    if (ours.uid(), ours.gid()) != (before.uid(), before.gid()) {
        // Somebody else's file stays somebody else's, or is written in place.
        chown(new.path(), Some(before.uid()), Some(before.gid()))?;
    }
    new.as_file().sync_all()?;
    new.persist(path).map_err(|e| e.error)?;
    // So that the rename outlives a power cut as well.
    File::open(&folder)?.sync_all()
}

fn write_in_place(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.rewind()?;
    file.write_all(text.as_bytes())?;
    file.set_len(text.len() as u64)?;
    file.sync_all()
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
            assert_eq!(set_active(&with_active(before), "shop", "green").as_deref(), Ok(with_active(after).as_str()), "{before}");
        }
    }

    #[test]
    fn a_byte_order_mark_stays() {
        let with_mark = |line: &str| format!("\u{feff}{}", with_active(line));
        assert_eq!(set_active(&with_mark("    active: blue\n"), "shop", "green"), Ok(with_mark("    active: green\n")));
        // Also where the first line is the one that matters.
        let flow = "\u{feff}{listeners: [{address: 0.0.0.0:80}], services: {shop: {pools: {blue: {peers: [a:1]}, green: {peers: [b:1]}}, active: blue}}}";
        assert_eq!(set_active(flow, "shop", "green").unwrap(), flow.replace("active: blue", "active: green"));
    }

    #[test]
    fn flow_style_and_aliases_are_changed_where_they_stand() {
        let flow = "listeners: [{address: 0.0.0.0:80}]\nservices: {shop: {pools: {blue: {version: &v blue, peers: [a:1]}, green: {peers: [b:1]}}, active: blue}}\n";
        assert_eq!(set_active(flow, "shop", "green").unwrap(), flow.replace("active: blue", "active: green"));
        let alias = flow.replace("active: blue", "active: *v ");
        assert_eq!(set_active(&alias, "shop", "green").unwrap(), flow.replace("active: blue", "active: green "));
    }

    #[test]
    fn names_that_others_would_misread_are_quoted() {
        let text = with_active("    active: blue\n");
        assert_eq!(set_active(&text, "shop", "on").unwrap(), with_active("    active: \"on\"\n"));
        assert_eq!(set_active(&text, "shop", "1").unwrap(), with_active("    active: \"1\"\n"));
    }

    #[test]
    fn what_would_not_be_valid_is_refused() {
        let text = with_active("    active: blue\n");
        assert!(set_active(&text, "shop", "gren").unwrap_err()[0].message.contains("did you mean \"green\"?"));
        assert!(set_active(&text, "stop", "green").is_err());
        assert!(set_active("nothing", "shop", "green").is_err());
    }

    #[test]
    fn a_write_follows_links_and_keeps_permissions() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("real.yaml"), folder.path().join("link.yaml"));
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("real.yaml", &link).unwrap();
        write_atomically(&link, "new").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!((fs::read_to_string(&file).unwrap().as_str(), fs::metadata(&file).unwrap().mode() & 0o777), ("new", 0o640));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left behind");
    }

    #[test]
    fn a_write_in_place_leaves_nothing_of_a_longer_text() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.yaml");
        fs::write(&file, "a longer text").unwrap();
        write_in_place(&file, "short").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "short");
        assert!(check_writable(&file).is_ok() && check_writable(&folder.path().join("none")).is_err());
    }
}
