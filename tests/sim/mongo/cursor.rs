//! Cursors of a member: over a collection, over a finished result, over the change stream.

use std::collections::{BTreeMap, VecDeque};

use bson::raw::RawDocumentBuf;

use super::key::Key;
use super::store::{Doc, Ns};
use super::stream::Stream;

/// A `find` that goes on; each batch sees the collection as it is by then.
#[derive(Clone)]
pub(crate) struct Scan {
    pub(crate) filter: RawDocumentBuf,
    pub(crate) projection: Option<RawDocumentBuf>,
    /// The next batch begins above this key.
    pub(crate) after: Option<Key>,
    /// At or above this key.
    pub(crate) low: Option<Key>,
    /// Below this key.
    pub(crate) high: Option<Key>,
    /// How many more documents.
    pub(crate) left: usize,
    pub(crate) majority: bool,
}

/// What a cursor reads.
pub(crate) enum Source {
    /// A collection.
    Scan(Box<Scan>),
    /// Documents that are known already.
    Results(VecDeque<Doc>),
    /// The change stream.
    Stream(Box<Stream>),
}

/// An open cursor.
pub(crate) struct Cursor {
    /// Its namespace, as replies name it.
    pub(crate) ns: Ns,
    /// The term of the member on which it lives.
    pub(crate) term: u32,
    /// What it reads.
    pub(crate) source: Source,
}

/// The open cursors.
#[derive(Default)]
pub(crate) struct Cursors {
    open: BTreeMap<i64, Cursor>,
    last: i64,
}

impl Cursors {
    /// Opens a cursor.
    pub(crate) fn insert(&mut self, cursor: Cursor) -> i64 {
        self.last += 1;
        self.open.insert(self.last, cursor);
        self.last
    }

    /// Takes a cursor to work on it; it must be put back.
    pub(crate) fn take(&mut self, id: i64) -> Option<Cursor> {
        self.open.remove(&id)
    }

    /// Puts a cursor back.
    pub(crate) fn put_back(&mut self, id: i64, cursor: Cursor) {
        self.open.insert(id, cursor);
    }

    /// Closes a cursor.
    pub(crate) fn kill(&mut self, id: i64) -> bool {
        self.open.remove(&id).is_some()
    }

    /// Closes all, as a failover does.
    pub(crate) fn clear(&mut self) {
        self.open.clear();
    }
}
