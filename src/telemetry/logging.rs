//! Logs: to standard error, as text for people or as JSON for machines.

use std::str::FromStr;

use tracing_subscriber::EnvFilter;

use super::log_writer::LogWriter;

/// `[log]`: what is logged, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Log {
    /// What is logged.
    pub level: Level,
    /// How it is written.
    pub format: Format,
}

/// How a line of the log is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object for each line.
    Json,
}

/// What is logged: a level, and levels of single modules where wished, like `info,reshard::router=debug`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Level(String);

impl Default for Level {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

/// The text is not a [`Level`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not a level; write error, warn, info, debug or trace, or with modules: \
     info,reshard::router=debug"
)]
pub struct BadLevel(String);

impl FromStr for Level {
    type Err = BadLevel;

    /// Stricter than the filter's own syntax, which takes a misspelt level for the name of a module.
    fn from_str(text: &str) -> Result<Self, BadLevel> {
        let is_level = |word: &str| matches!(word, "error" | "warn" | "info" | "debug" | "trace" | "off");
        let is_module = |word: &str| {
            !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':')
        };
        let good = text.split(',').all(|part| match part.split_once('=') {
            Some((module, level)) => is_module(module) && is_level(level),
            None => is_level(part),
        });
        if good { Ok(Self(text.to_owned())) } else { Err(BadLevel(text.to_owned())) }
    }
}

/// Sends the logs of the whole process to standard error; returns what can wait until they are there.
///
/// # Errors
/// In words, when logging was set up before, the level is not understood, or there is no thread.
pub fn init(log: &Log) -> Result<LogWriter, String> {
    let filter = EnvFilter::try_new(&log.level.0).map_err(|error| error.to_string())?;
    let writer = LogWriter::start(std::io::stderr()).map_err(|error| error.to_string())?;
    let lines = writer.clone();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(move || lines.clone());
    match log.format {
        Format::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    }
    .map_err(|error| error.to_string())?;
    Ok(writer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_understood_or_refused() {
        for good in ["info", "off", "warn,reshard::router=debug", "reshard=trace,info"] {
            assert!(good.parse::<Level>().is_ok(), "{good}");
        }
        for bad in ["", "inof", "INFO", "info,", "info,reshard=loud", "=debug", "a b=info"] {
            assert!(bad.parse::<Level>().is_err(), "{bad}");
        }
    }
}
