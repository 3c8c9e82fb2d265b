//! What is wrong with a configuration, and where: the one form in which every command, log line and answer shows it.
//!
//! Made by everything that reads or judges a configuration. Knows nothing of what the keys mean.

use std::{fmt, path::Path};

use super::yaml;

/// One thing that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Problem {
    /// The configuration file, as its path was given; empty for a text that is in no file.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub file: String,
    /// Where: `services.shop.active`; empty where the file as a whole is meant.
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

/// `shop.yaml:5:13: services.shop.active: no pool "gren"; …`: the one form, in every command, log line and answer.
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

/// A file that holds no valid configuration, with everything that is wrong with it.
#[derive(Debug)]
pub struct LoadError {
    /// In the order of their lines; never empty.
    pub problems: Vec<Problem>,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.problems.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

/// Names the file in problems of it, and finds the line and column of those that have none by where they are in `text`.
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
