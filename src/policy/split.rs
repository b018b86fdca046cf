//! Splitting a batch by authority, and making one reply of several.

use bson::RawDocument;
use bson::raw::{RawArrayBuf, RawBsonRef, RawDocumentBuf, cstr};

use crate::model::side::Side;

/// Statements that go to one cluster together, by their place in the client's command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Where to.
    pub side: Side,
    /// Which statements, ascending.
    pub indexes: Vec<usize>,
}

/// Cuts a batch whose statements have these bytes. An ordered one into runs, since later statements wait for earlier
/// ones; an unordered one into one part for each cluster. What has more than `most` bytes, as it has when the
/// largest message there is was given `_id`s, is cut again.
#[must_use]
pub fn parts(statements: &[(Side, usize)], ordered: bool, most: usize) -> Vec<Part> {
    let mut parts: Vec<(Part, usize)> = Vec::new();
    for (index, (side, bytes)) in statements.iter().enumerate() {
        let joins = if ordered {
            parts.last_mut().filter(|(last, _)| last.side == *side)
        } else {
            // A full one is followed by another.
            parts.iter_mut().rev().find(|(part, _)| part.side == *side)
        };
        match joins.filter(|(_, has)| has + bytes <= most) {
            Some((part, has)) => {
                part.indexes.push(index);
                *has += bytes;
            }
            None => parts.push((Part { side: *side, indexes: vec![index] }, *bytes)),
        }
    }
    parts.into_iter().map(|(part, _)| part).collect()
}

/// Whether a part's reply ends an ordered batch.
#[must_use]
pub fn stops(reply: &RawDocument) -> bool {
    reply.get_array("writeErrors").is_ok()
}

/// One reply from those of the parts: counts added, places in the client's command restored.
#[must_use]
pub fn merge(replies: &[(Part, RawDocumentBuf)]) -> RawDocumentBuf {
    let sum = |field: &str| -> Option<i32> {
        let values: Vec<i32> = replies.iter().filter_map(|(_, reply)| reply.get_i32(field).ok()).collect();
        (!values.is_empty()).then(|| values.iter().sum())
    };
    let mut merged = RawDocumentBuf::new();
    merged.append(cstr!("n"), sum("n").unwrap_or(0));
    // The order of fields is the servers'.
    if let Some(errors) = all_indexed(replies, "writeErrors") {
        merged.append(cstr!("writeErrors"), errors);
    }
    let retried = replies.iter().flat_map(|(_, reply)| reply.get_array("retriedStmtIds"));
    let retried: Vec<_> = retried.flatten().flatten().map(bson::raw::RawBson::from).collect();
    if !retried.is_empty() {
        merged.append(cstr!("retriedStmtIds"), retried.into_iter().collect::<RawArrayBuf>());
    }
    if let Some(upserted) = all_indexed(replies, "upserted") {
        merged.append(cstr!("upserted"), upserted);
    }
    if let Some(modified) = sum("nModified") {
        merged.append(cstr!("nModified"), modified);
    }
    if let Some(error) = replies.iter().find_map(|(_, reply)| reply.get_document("writeConcernError").ok()) {
        merged.append(cstr!("writeConcernError"), error.to_owned());
    }
    merged.append(cstr!("ok"), 1.0);
    merged
}

/// The items of all replies at their places in the client's command, one a statement: what was sent for it to
/// many documents may have failed for each.
fn all_indexed(replies: &[(Part, RawDocumentBuf)], field: &str) -> Option<RawArrayBuf> {
    let mut items: Vec<(i32, RawDocumentBuf)> = Vec::new();
    for (part, reply) in replies {
        items.extend(indexed(reply, field).map(|item| restore(part, item)));
    }
    items.sort_by_key(|(index, _)| *index);
    items.dedup_by_key(|(index, _)| *index);
    (!items.is_empty()).then(|| items.into_iter().map(|(_, item)| item).collect())
}

fn indexed<'a>(reply: &'a RawDocument, field: &str) -> impl Iterator<Item = &'a RawDocument> {
    reply.get_array(field).into_iter().flatten().flatten().filter_map(|item| match item {
        RawBsonRef::Document(document) => Some(document),
        _ => None,
    })
}

fn restore(part: &Part, item: &RawDocument) -> (i32, RawDocumentBuf) {
    let index = item.get_i32("index").ok().and_then(|index| usize::try_from(index).ok());
    let place = index.and_then(|index| part.indexes.get(index)).copied().unwrap_or(0);
    let place = i32::try_from(place).unwrap_or(i32::MAX);
    let mut copy = RawDocumentBuf::new();
    copy.append(cstr!("index"), place);
    for (name, value) in item.iter().flatten().filter(|(name, _)| name.as_str() != "index") {
        copy.append(name, value);
    }
    (place, copy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Side::{New, Old};
    use bson::rawdoc;

    #[test]
    fn ordered_batches_are_cut_into_runs() {
        let statements = [Old, Old, New, Old].map(|side| (side, 1));
        let cut = |ordered, most| {
            let parts = parts(&statements, ordered, most).into_iter();
            parts.map(|part| part.indexes).collect::<Vec<_>>()
        };
        assert_eq!(cut(true, 9), [vec![0, 1], vec![2], vec![3]]);
        assert_eq!(cut(false, 9), [vec![0, 1, 3], vec![2]]);
        // What is too large for one message.
        assert_eq!(cut(true, 1), [vec![0], vec![1], vec![2], vec![3]]);
        assert_eq!(cut(false, 2), [vec![0, 1], vec![2], vec![3]]);
        assert_eq!(cut(false, 0), [vec![0], vec![1], vec![2], vec![3]]);
    }

    #[test]
    fn merged_replies_name_the_clients_places() {
        let first = (Part { side: Old, indexes: vec![0, 2] }, rawdoc! { "n": 2, "nModified": 1, "ok": 1.0 });
        let second = (
            Part { side: New, indexes: vec![1, 3] },
            rawdoc! {
                "n": 1, "nModified": 0, "upserted": [{ "index": 0, "_id": 9 }],
                "writeErrors": [{ "index": 1, "code": 11000, "errmsg": "x" }], "ok": 1.0,
            },
        );
        let merged = merge(&[first, second]);
        assert_eq!((merged.get_i32("n").unwrap(), merged.get_i32("nModified").unwrap()), (3, 1));
        let place = |field| indexed(&merged, field).next().unwrap().get_i32("index").unwrap();
        assert_eq!((place("upserted"), place("writeErrors")), (1, 3));
    }

    #[test]
    fn a_statement_fails_once_however_many_documents_it_was_sent_for() {
        let error = |index: i32| rawdoc! { "index": index, "code": 9 };
        let reply = rawdoc! { "n": 0, "nModified": 0, "writeErrors": [error(0), error(1)], "ok": 1.0 };
        let part = |side| Part { side, indexes: vec![4, 4] };
        let merged = merge(&[(part(Old), reply.clone()), (part(New), reply)]);
        assert_eq!(merged.get_array("writeErrors").unwrap().into_iter().count(), 1);
        let names: Vec<_> = merged.iter().flatten().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["n", "writeErrors", "nModified", "ok"]);
    }
}
