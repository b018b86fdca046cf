//! The log: what changed, when, and for which retryable statement.

use std::sync::Arc;

use bson::raw::RawDocumentBuf;
use bson::{RawBson, Timestamp};

use super::key::Key;
use super::sessions::Statement;
use super::store::{Doc, Ns};

/// What kind of write a stream reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A new document.
    Insert,
    /// Changed by operators or a pipeline.
    Update,
    /// Replaced as a whole.
    Replace,
}

/// One change of state.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    /// A document is now this.
    Put {
        /// Where.
        ns: Ns,
        /// Its canonical `_id`.
        key: Key,
        /// The document.
        document: Doc,
        /// How it came about.
        kind: Kind,
    },
    /// A document is gone.
    Delete {
        /// Where.
        ns: Ns,
        /// Its canonical `_id`.
        key: Key,
        /// Its `_id`.
        id: RawBson,
    },
    /// A new collection.
    Create {
        /// Where.
        ns: Ns,
        /// Its identity.
        uuid: u64,
    },
    /// A collection is gone.
    Drop {
        /// Where.
        ns: Ns,
    },
    /// A new index.
    Index {
        /// Where.
        ns: Ns,
        /// Its specification.
        spec: Arc<RawDocumentBuf>,
    },
    /// Nothing; time goes on.
    Noop,
}

/// One change at one time. A transaction is several entries at one time.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// When, on the cluster's time line.
    pub(crate) time: Timestamp,
    /// Its place among the entries of this time.
    pub(crate) part: u32,
    /// What changed.
    pub(crate) op: Op,
    /// The retryable statement that made it.
    pub(crate) statement: Option<Arc<Statement>>,
}

impl Entry {
    /// Where the entry stands among all.
    pub(crate) fn position(&self) -> (Timestamp, u32) {
        (self.time, self.part)
    }
}
