//! What an error says about the write that it ended, and counts of errors.

use std::collections::BTreeMap;
use std::fmt;

use mongodb::error::{
    Error, ErrorKind, NO_WRITES_PERFORMED, RETRYABLE_WRITE_ERROR, TRANSIENT_TRANSACTION_ERROR,
    UNKNOWN_TRANSACTION_COMMIT_RESULT, WriteFailure,
};
use serde::Serialize;

use crate::ledger::Verdict;
use crate::ops::OpKind;

/// Codes with which the server refuses a command before it does anything.
/// With any other code the outcome counts as unknown: an earlier attempt of
/// the driver may have been executed.
const REFUSED: [i32; 22] =
    [2, 9, 13, 14, 18, 20, 26, 40, 48, 59, 61, 66, 72, 73, 112, 115, 121, 167, 263, 303, 11000, 20009];

/// Duplicate key.
pub(crate) const DUPLICATE_KEY: i32 = 11000;

/// What the error of a single-document write says about it.
pub(crate) fn verdict(error: &Error) -> Verdict {
    if error.contains_label(NO_WRITES_PERFORMED) {
        return Verdict::Failed;
    }
    match error.kind.as_ref() {
        ErrorKind::Write(WriteFailure::WriteError(_))
        | ErrorKind::ServerSelection { .. }
        | ErrorKind::InvalidArgument { .. }
        | ErrorKind::Authentication { .. }
        | ErrorKind::DnsResolve { .. }
        | ErrorKind::BsonSerialization(_) => Verdict::Failed,
        ErrorKind::Command(command)
            if REFUSED.contains(&command.code) && !error.contains_label(RETRYABLE_WRITE_ERROR) =>
        {
            Verdict::Failed
        }
        _ => Verdict::Unknown,
    }
}

/// The error's code, if the server gave one.
pub(crate) fn code(error: &Error) -> Option<i32> {
    match error.kind.as_ref() {
        ErrorKind::Command(command) => Some(command.code),
        ErrorKind::Write(WriteFailure::WriteError(write)) => Some(write.code),
        ErrorKind::Write(WriteFailure::WriteConcernError(concern)) => Some(concern.code),
        ErrorKind::InsertMany(many) => {
            let write = many.write_errors.as_ref().and_then(|errors| errors.first());
            write.map(|e| e.code).or(many.write_concern_error.as_ref().map(|e| e.code))
        }
        _ => None,
    }
}

/// Whether the driver would send a retryable write once more.
pub(crate) fn is_retryable(error: &Error) -> bool {
    error.contains_label(RETRYABLE_WRITE_ERROR)
        || matches!(error.kind.as_ref(), ErrorKind::Io(_) | ErrorKind::ConnectionPoolCleared { .. })
}

pub(crate) fn is_transient(error: &Error) -> bool {
    error.contains_label(TRANSIENT_TRANSACTION_ERROR)
}

pub(crate) fn is_unknown_commit(error: &Error) -> bool {
    error.contains_label(UNKNOWN_TRANSACTION_COMMIT_RESULT)
}

fn label(error: &Error) -> String {
    if let Some(code) = code(error) {
        return format!("code {code}");
    }
    let name = format!("{:?}", error.kind);
    name.split(|c: char| !c.is_alphanumeric()).next().unwrap_or("other").to_owned()
}

/// One error that the application saw.
#[derive(Clone, Debug, Serialize)]
pub struct ErrorSample {
    /// Time since the start of the load.
    pub at_seconds: f64,
    /// The operation.
    pub operation: String,
    /// The server's code, if there is one.
    pub code: Option<i32>,
    /// The error's text.
    pub message: String,
}

/// Errors that the application saw.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ErrorStats {
    /// All of them.
    pub total: u64,
    /// By what they were.
    pub by_label: BTreeMap<String, u64>,
    /// By operation.
    pub by_operation: BTreeMap<String, u64>,
    /// The first ones.
    pub first: Vec<ErrorSample>,
}

impl ErrorStats {
    pub(crate) fn note(&mut self, at_seconds: f64, kind: OpKind, error: &Error, keep: usize) {
        self.total += 1;
        *self.by_label.entry(label(error)).or_default() += 1;
        *self.by_operation.entry(kind.name().to_owned()).or_default() += 1;
        if self.first.len() < keep {
            let mut message = error.to_string();
            if message.len() > 400 {
                message = message.chars().take(400).collect();
            }
            self.first.push(ErrorSample {
                at_seconds,
                operation: kind.name().into(),
                code: code(error),
                message,
            });
        }
    }
}

impl fmt::Display for ErrorStats {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "errors seen by the application: {}", self.total)?;
        for (label, count) in &self.by_label {
            writeln!(out, "  {count} x {label}")?;
        }
        for sample in self.first.iter().take(5) {
            writeln!(out, "  {:.2} s {}: {}", sample.at_seconds, sample.operation, sample.message)?;
        }
        Ok(())
    }
}
