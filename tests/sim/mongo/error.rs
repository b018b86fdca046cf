//! Errors of commands and of single writes, as servers report them.

use bson::raw::RawDocumentBuf;
use bson::{RawArrayBuf, rawdoc};

/// `BadValue`.
pub(crate) const BAD_VALUE: i32 = 2;
/// `CursorNotFound`.
pub(crate) const CURSOR_NOT_FOUND: i32 = 43;
/// `MaxTimeMSExpired`.
pub(crate) const MAX_TIME_EXPIRED: i32 = 50;
/// `InvalidOptions`.
pub(crate) const INVALID_OPTIONS: i32 = 72;
/// `TransactionTooOld`.
pub(crate) const TRANSACTION_TOO_OLD: i32 = 225;
/// `ChangeStreamHistoryLost`.
pub(crate) const HISTORY_LOST: i32 = 286;
/// `Interrupted`.
pub(crate) const INTERRUPTED: i32 = 11601;
/// `InterruptedDueToReplStateChange`.
pub(crate) const STEPPED_DOWN: i32 = 11602;
/// `NotWritablePrimary`.
pub(crate) const NOT_PRIMARY: i32 = 10107;
/// `DuplicateKey`.
pub(crate) const DUPLICATE_KEY: i32 = 11000;

/// Why a command, or one write of it, failed.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    /// MongoDB's code.
    pub(crate) code: i32,
    /// The message.
    pub(crate) message: String,
    /// `keyPattern` and `keyValue` of a duplicate key.
    pub(crate) duplicate: Option<(RawDocumentBuf, RawDocumentBuf)>,
}

/// The outcome of a part of a command.
pub(crate) type Outcome<T> = Result<T, Failure>;

impl Failure {
    /// A failure with `code`.
    pub(crate) fn new(code: i32, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), duplicate: None }
    }

    /// A value of a unique index that another document has.
    pub(crate) fn duplicate(pattern: RawDocumentBuf, value: RawDocumentBuf) -> Self {
        let message = format!("E11000 duplicate key error, dup key: {value:?}");
        Self { code: DUPLICATE_KEY, message, duplicate: Some((pattern, value)) }
    }

    /// The reply of a command that failed as a whole.
    pub(crate) fn reply(&self) -> RawDocumentBuf {
        let mut reply = rawdoc! { "ok": 0.0, "errmsg": self.message.as_str(), "code": self.code };
        self.append_duplicate(&mut reply);
        if matches!(self.code, NOT_PRIMARY | STEPPED_DOWN | 189) {
            reply.append(bson::raw::cstr!("errorLabels"), labels());
        }
        reply
    }

    /// The entry of `writeErrors` for the statement at `index`.
    pub(crate) fn write_error(&self, index: usize) -> RawDocumentBuf {
        let mut error = rawdoc! { "index": index as i32, "code": self.code };
        self.append_duplicate(&mut error);
        error.append(bson::raw::cstr!("errmsg"), self.message.as_str());
        error
    }

    fn append_duplicate(&self, to: &mut RawDocumentBuf) {
        if let Some((pattern, value)) = &self.duplicate {
            to.append(bson::raw::cstr!("keyPattern"), pattern);
            to.append(bson::raw::cstr!("keyValue"), value);
        }
    }
}

/// The labels of an error after which a retryable write may be sent again.
pub(crate) fn labels() -> RawArrayBuf {
    ["RetryableWriteError"].into_iter().collect()
}

impl From<bson::error::Error> for Failure {
    fn from(error: bson::error::Error) -> Self {
        Self::new(BAD_VALUE, error.to_string())
    }
}
