//! The configuration: one TOML file, checked as a whole before anything starts.
//!
//! `config/example.toml` documents every key. A file with mistakes is refused with *all* of them, each with
//! its line, its key and the way out; nothing is ever half applied. Connection strings may hold secrets and
//! are never printed (see [`MongoUri`]).

mod check;
mod listen;
mod problem;
mod reader;
mod section;
mod sections;
mod suggest;
mod uri;

use std::path::Path;

pub use listen::{ExtraListener, Listen};
pub use problem::{ConfigError, Problem};
pub use sections::{Admin, ClusterSection, Migration, StateHome};
pub use uri::MongoUri;

use crate::telemetry::logging::Log;
use reader::Reader;

/// Everything that can be configured, valid as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where applications connect.
    pub listen: Listen,
    /// More addresses, with faces of their own.
    pub listeners: Vec<ExtraListener>,
    /// The cluster that serves today.
    pub old: ClusterSection,
    /// The cluster to move to; without it the process is a plain proxy to old.
    pub new: Option<ClusterSection>,
    /// Limits and timing of migrations.
    pub migration: Migration,
    /// Where operators connect.
    pub admin: Admin,
    /// What is logged, and how.
    pub log: Log,
}

impl Config {
    /// Reads and checks the file at `path`; `uri_file` and `${NAME}` are resolved here.
    ///
    /// # Errors
    /// Every problem that the file has, or that it cannot be read.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            let problem = Problem::whole(format!("cannot be read: {error}"));
            ConfigError::new(path, vec![problem])
        })?;
        Self::parse(path, &text, &|name| std::env::var(name).ok())
    }

    /// Checks `text` as if it were the content of `path`, with `env` for `${NAME}`.
    ///
    /// # Errors
    /// Every problem that the text has.
    pub fn parse(path: &Path, text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let context = uri::Context { directory: path.parent().unwrap_or(Path::new("")), env };
        let mut reader = Reader::new(text);
        let draft = sections::read(&mut reader, &context);
        check::together(&draft, &mut reader);
        let problems = reader.into_problems();
        match draft.whole() {
            Some(config) if problems.is_empty() => Ok(config),
            _ => Err(ConfigError::new(path, problems)),
        }
    }
}
