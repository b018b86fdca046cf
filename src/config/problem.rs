//! What is wrong with a configuration file, in words.

use std::fmt;
use std::path::{Path, PathBuf};

/// One mistake and the way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The line it is on, counted from 1, where there is one.
    pub line: Option<usize>,
    /// The key as `section.key`; empty for the file as a whole.
    pub key: String,
    /// What is the matter and what to write instead.
    pub message: String,
}

impl Problem {
    /// A problem of one key.
    pub(super) fn new(line: Option<usize>, key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { line, key: key.into(), message: message.into() }
    }

    /// A problem of the file as a whole.
    pub(super) fn whole(message: impl Into<String>) -> Self {
        Self::new(None, "", message)
    }
}

/// All mistakes of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// Its mistakes, in the order of the lines.
    pub problems: Vec<Problem>,
}

impl ConfigError {
    pub(super) fn new(file: &Path, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
        Self { file: file.to_owned(), problems }
    }
}

/// One line for each problem, as compilers write them: `FILE:LINE: KEY: MESSAGE`.
impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{}:", self.file.display())?;
            if let Some(line) = problem.line {
                write!(f, "{line}:")?;
            }
            if !problem.key.is_empty() {
                write!(f, " {}:", problem.key)?;
            }
            write!(f, " {}", problem.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
