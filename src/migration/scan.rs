//! How a copy reads a range: by `_id`, from where it stands.

use bson::raw::{RawBson, RawBsonRef, RawDocumentBuf, cstr};
use bson::{Timestamp, rawdoc};

use super::backfill::BATCH_DOCUMENTS;
use super::ranges::Range;
use crate::cluster::command::Request;

/// The scan of a range, from where it stands.
pub(super) fn find(range: &Range, after: Timestamp) -> Request {
    let mut body = rawdoc! {
        "find": range.namespace.collection(), "hint": { "_id": 1 }, "sort": { "_id": 1 },
        "batchSize": BATCH_DOCUMENTS,
        "readConcern": { "level": "majority", "afterClusterTime": after },
    };
    if range.next.as_ref().is_some_and(is_max_key) {
        // Nothing but that one document is left, and `min` does not take it.
        return max_key(range, after);
    }
    // From the last key copied, again: it is there already then.
    for (name, bound) in
        [(cstr!("min"), range.next.as_ref().or(range.low.as_ref())), (cstr!("max"), range.high.as_ref())]
    {
        if let Some(id) = bound {
            let mut document = RawDocumentBuf::new();
            document.append(cstr!("_id"), id.as_raw_bson_ref());
            body.append(name, document);
        }
    }
    Request::new(range.namespace.database(), body)
}

fn is_max_key(id: &RawBson) -> bool {
    matches!(id, RawBson::MaxKey)
}

/// Reads the document whose `_id` is `MaxKey`.
pub(super) fn max_key(range: &Range, after: Timestamp) -> Request {
    let mut equal = RawDocumentBuf::new();
    equal.append(cstr!("$eq"), RawBsonRef::MaxKey);
    let body = rawdoc! {
        "find": range.namespace.collection(), "filter": { "_id": equal },
        "readConcern": { "level": "majority", "afterClusterTime": after },
    };
    Request::new(range.namespace.database(), body)
}
