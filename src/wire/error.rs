//! Errors that the proxy itself answers with. Their text begins with `reshard: `, so that operators can tell
//! them from a server's.

use bson::RawDocumentBuf;
use bson::raw::RawArrayBuf;

use super::op_msg::build;

/// An error code and its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code(pub i32, pub &'static str);

/// The server cannot be reached. Drivers retry what may be retried, and keep their pools.
pub const HOST_UNREACHABLE: Code = Code(6, "HostUnreachable");
/// The value cannot be used.
pub const BAD_VALUE: Code = Code(2, "BadValue");
/// Login failed.
pub const AUTHENTICATION_FAILED: Code = Code(18, "AuthenticationFailed");
/// A login is needed first.
pub const UNAUTHORIZED: Code = Code(13, "Unauthorized");
/// A message that does not belong here.
pub const PROTOCOL_ERROR: Code = Code(17, "ProtocolError");
/// Nobody can log in this way.
pub const MECHANISM_UNAVAILABLE: Code = Code(334, "MechanismUnavailable");
/// There is no such cursor.
pub const CURSOR_NOT_FOUND: Code = Code(43, "CursorNotFound");
/// A value has another type than it must have.
pub const TYPE_MISMATCH: Code = Code(14, "TypeMismatch");
/// `client` in `hello` lacks something.
pub const CLIENT_METADATA_MISSING_FIELD: Code = Code(183, "ClientMetadataMissingField");
/// The application's name is too long.
pub const CLIENT_METADATA_APP_NAME_TOO_LARGE: Code = Code(184, "ClientMetadataAppNameTooLarge");
/// `client` in `hello` is too long.
pub const CLIENT_METADATA_TOO_LARGE: Code = Code(185, "ClientMetadataDocumentTooLarge");
/// `hello` with `client` came a second time.
pub const CLIENT_METADATA_CANNOT_BE_MUTATED: Code = Code(186, "ClientMetadataCannotBeMutated");
/// Only `hello` may come in this old form.
pub const UNSUPPORTED_OP_QUERY: Code = Code(352, "UnsupportedOpQueryCommand");
/// The client expects no balancer, and comes through one.
pub const LOAD_BALANCER_SUPPORT_MISMATCH: Code = Code(354, "LoadBalancerSupportMismatch");
/// `hello` may wait for a change, and what to wait for is not said, or not how long.
pub const INCOMPLETE_WAIT: Code = Code(31_368, "Location31368");
/// What a client knows of a server is newer than the server.
pub const VERSION_FROM_THE_FUTURE: Code = Code(31_382, "Location31382");
/// A command lacks a field that it must have.
pub const FIELD_MISSING: Code = Code(40_414, "Location40414");
/// `hello` may wait for less than no time.
pub const NEGATIVE_WAIT: Code = Code(51_024, "Location51024");
/// The server is a secondary.
pub const NOT_WRITABLE_PRIMARY: Code = Code(10_107, "NotWritablePrimary");
/// The server is a secondary, and the read is for the primary.
pub const NOT_PRIMARY_NO_SECONDARY_OK: Code = Code(13_435, "NotPrimaryNoSecondaryOk");
/// A migration does not allow this now. Not 20 (`IllegalOperation`): of a retryable write drivers take that for
/// a server without retryable writes, and say so in place of the message.
pub const NOT_NOW: Code = Code(115, "CommandNotSupported");
/// A snapshot cannot be read (any more).
pub const SNAPSHOT_TOO_OLD: Code = Code(239, "SnapshotTooOld");
/// A change stream ends, and cannot be resumed.
pub const CHANGE_STREAM_FATAL: Code = Code(280, "ChangeStreamFatalError");
/// The transaction is not open (any more).
pub const NO_SUCH_TRANSACTION: Code = Code(251, "NoSuchTransaction");

/// The driver may send the write again.
pub const RETRYABLE_WRITE: &str = "RetryableWriteError";
/// Surely nothing was written.
pub const NO_WRITES_PERFORMED: &str = "NoWritesPerformed";
/// The application may run the transaction again.
pub const TRANSIENT_TRANSACTION: &str = "TransientTransactionError";
/// The driver may send the commit again.
pub const UNKNOWN_COMMIT: &str = "UnknownTransactionCommitResult";

/// An error reply in the making.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorReply {
    /// Code and name.
    pub code: Code,
    /// What happened, without the prefix.
    pub message: String,
    /// `errorLabels`.
    pub labels: Vec<&'static str>,
}

impl ErrorReply {
    /// An error without labels.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), labels: Vec::new() }
    }

    /// With these labels.
    #[must_use]
    pub fn labelled(mut self, labels: Vec<&'static str>) -> Self {
        self.labels = labels;
        self
    }

    /// The reply's document.
    #[must_use]
    pub fn document(&self) -> RawDocumentBuf {
        let mut document = bson::rawdoc! {
            "ok": 0.0,
            "errmsg": format!("reshard: {}", self.message),
            "code": self.code.0,
            "codeName": self.code.1,
        };
        if !self.labels.is_empty() {
            let mut labels = RawArrayBuf::new();
            for label in &self.labels {
                labels.push(*label);
            }
            document.append(bson::cstr!("errorLabels"), labels);
        }
        document
    }

    /// The whole OP_MSG that answers the request `request_id`.
    #[must_use]
    pub fn message(&self, request_id: i32) -> Vec<u8> {
        build(0, request_id, 0, self.document().as_bytes(), None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_names_the_proxy_and_carries_labels() {
        let error = ErrorReply::new(HOST_UNREACHABLE, "no primary").labelled(vec![RETRYABLE_WRITE]);
        let document = error.document();
        assert_eq!(document.get_str("errmsg").unwrap(), "reshard: no primary");
        assert_eq!(document.get_i32("code").unwrap(), 6);
        let labels: Vec<_> = document.get_array("errorLabels").unwrap().into_iter().flatten().collect();
        assert_eq!(labels[0].as_str(), Some(RETRYABLE_WRITE));
    }
}
