//! A problem of a configuration file and its place, in the one form that every command, log line and response shows.
//!
//! Built by everything that reads or checks a configuration. Knows no key by name.

use std::{fmt, path::Path};

use super::yaml;

/// One problem of a configuration.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Problem {
    /// The path of the configuration file, as it was given; empty for text that does not come from a file.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub file: String,
    /// The path of the key, such as `services.shop.active`; empty for a problem of the whole file.
    pub at: String,
    /// 1-based, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// 1-based, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<usize>,
    /// The value, what is allowed, the next step: `no pool "gren"; pools are blue, green (did you mean "green"?)`.
    pub message: String,
}

impl Problem {
    /// A problem at a key, whose file and line [`place`] finds.
    pub fn new(at: &str, message: impl Into<String>) -> Self {
        Self { file: String::new(), at: at.to_owned(), line: None, column: None, message: message.into() }
    }
}

/// Writes `shop.yaml:5:13: services.shop.active: no pool "gren"; …`.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.is_empty() {
            f.write_str(&self.file)?;
            for number in [self.line, self.column].into_iter().flatten() {
                write!(f, ":{number}")?;
            }
            f.write_str(": ")?;
        }
        if !self.at.is_empty() {
            write!(f, "{}: ", self.at)?;
        }
        f.write_str(&self.message)
    }
}

/// All problems of an invalid configuration file.
#[derive(Debug)]
pub struct LoadError {
    /// Sorted by line; never empty.
    pub problems: Vec<Problem>,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.problems.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

/// Sets the file of each problem, and the line and column of those without one, from the position of their key in `text`.
pub fn place(path: &Path, text: &str, problems: &mut [Problem]) {
    let document = yaml::parse(text).unwrap_or_default();
    for problem in problems {
        problem.file = path.display().to_string();
        if problem.line.is_none() {
            let node = document.as_ref().and_then(|document| document.at(&problem.at));
            (problem.line, problem.column) = node.map(|node| (node.place.line, node.place.column)).unzip();
        }
    }
}
