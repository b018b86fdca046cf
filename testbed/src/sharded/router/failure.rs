//! Errors that the router answers with: its own, and those of servers.

use bson::{Bson, Document, doc};
use reshard::cluster::command::SendError;

/// A reply with `ok: 0`.
#[derive(Debug, Clone)]
pub(super) struct Failure(pub(super) Document);

/// A routing table was out of date: `StaleConfig`, `StaleDbVersion`, `StaleShardVersion`, `StaleEpoch`.
pub(super) const STALE: [i32; 4] = [13388, 249, 63, 150];
/// `NamespaceNotFound`.
pub(super) const NAMESPACE_NOT_FOUND: i32 = 26;
/// `HostUnreachable`.
pub(super) const HOST_UNREACHABLE: i32 = 6;

impl Failure {
    pub(super) fn new(code: i32, name: &str, message: impl Into<String>) -> Self {
        Self(doc! {"ok": 0.0, "errmsg": message.into(), "code": code, "codeName": name})
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::new(NAMESPACE_NOT_FOUND, "NamespaceNotFound", message)
    }

    pub(super) fn bad_value(message: impl Into<String>) -> Self {
        Self::new(2, "BadValue", format!("router: {}", message.into()))
    }

    /// A server could not be asked.
    pub(super) fn of_send(error: &SendError) -> Self {
        match error {
            SendError::NotSent(why) | SendError::Busy(why) | SendError::LoginRefused(why) => {
                Self::new(133, "FailedToSatisfyReadPreference", format!("router: {why}"))
            }
            SendError::Unknown(why) => {
                Self::new(HOST_UNREACHABLE, "HostUnreachable", format!("router: connection lost: {why}"))
            }
        }
    }

    pub(super) fn label(mut self, label: &str) -> Self {
        self.0.insert("errorLabels", vec![Bson::from(label)]);
        self
    }

    /// As a client gets it whose write has a number, which shards know: it may send the write again.
    pub(super) fn of_numbered_write(self) -> Self {
        if self.code() == HOST_UNREACHABLE { self.label("RetryableWriteError") } else { self }
    }

    pub(super) fn code(&self) -> i32 {
        code_of(&self.0)
    }
}

impl From<bson::error::Error> for Failure {
    fn from(error: bson::error::Error) -> Self {
        Self::new(22, "InvalidBSON", format!("router: {error}"))
    }
}

/// The `code` of a document; 0 without one.
pub(super) fn code_of(document: &Document) -> i32 {
    whole(document, "code").and_then(|code| i32::try_from(code).ok()).unwrap_or(0)
}

/// Whether a reply says `ok: 1`.
pub(super) fn is_ok(document: &Document) -> bool {
    whole(document, "ok") == Some(1)
}

/// A whole number of any type.
pub(super) fn whole(document: &Document, key: &str) -> Option<i64> {
    match document.get(key)? {
        Bson::Int32(number) => Some(i64::from(*number)),
        Bson::Int64(number) => Some(*number),
        #[expect(clippy::cast_possible_truncation, reason = "saturates, as the server does")]
        Bson::Double(number) => Some(*number as i64),
        _ => None,
    }
}

/// Truth as servers read it.
pub(super) fn truth(document: &Document, key: &str) -> bool {
    match document.get(key) {
        Some(Bson::Boolean(value)) => *value,
        _ => whole(document, key).is_some_and(|number| number != 0),
    }
}
