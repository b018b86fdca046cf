//! One reply to a `bulkWrite` from those to its parts.

use bson::RawDocument;
use bson::raw::{RawArrayBuf, RawBson, RawBsonRef, RawDocumentBuf, cstr};

use super::bulk::BulkPart;
use super::writes::Verb;
use crate::model::number::number;

/// The cursor in a reply is that of no collection.
const NAMESPACE: &str = "admin.$cmd.bulkWrite";

/// What all parts so far have come to.
#[derive(Debug, Default)]
pub struct BulkReply {
    errors_only: bool,
    results: Vec<(usize, RawDocumentBuf)>,
    counts: [i32; 6],
    retried: Vec<RawBson>,
    concern: Option<RawDocumentBuf>,
}

const NAMES: [&bson::raw::CStr; 6] = [
    cstr!("nErrors"),
    cstr!("nInserted"),
    cstr!("nMatched"),
    cstr!("nModified"),
    cstr!("nUpserted"),
    cstr!("nDeleted"),
];
const ERRORS: usize = 0;
const INSERTED: usize = 1;
const MATCHED: usize = 2;
const MODIFIED: usize = 3;
const UPSERTED: usize = 4;
const DELETED: usize = 5;

impl BulkReply {
    /// Of no part yet.
    #[must_use]
    pub fn new(errors_only: bool) -> Self {
        Self { errors_only, ..Self::default() }
    }

    /// Whether no part has been answered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.results.is_empty() && self.counts == [0; 6]
    }

    /// Takes the answer to a part. Returns whether one of its operations failed.
    pub fn take(&mut self, part: &BulkPart, reply: &RawDocument) -> bool {
        self.count(part.verb, reply);
        if let Ok(concern) = reply.get_document("writeConcernError") {
            self.concern = Some(concern.to_owned());
        }
        let retried = reply.get_array("retriedStmtIds").into_iter().flatten().flatten();
        self.retried.extend(retried.map(RawBson::from));
        let mut first_failed = part.indexes.len();
        let mut failed = vec![false; part.indexes.len()];
        for error in indexed(reply, "writeErrors") {
            let at = place(error).min(part.indexes.len() - 1);
            first_failed = first_failed.min(at);
            failed[at] = true;
            self.fail(part.indexes[at], part.verb, error);
        }
        let stopped = part.body.get_bool("ordered").unwrap_or(true) && first_failed < part.indexes.len();
        for (at, index) in part.indexes.iter().enumerate() {
            if failed[at] || stopped && at > first_failed {
                continue;
            }
            self.succeed(*index, at, part, reply);
        }
        first_failed < part.indexes.len()
    }

    /// A part was refused as a whole: each of its operations, or of an ordered command the first one.
    pub fn refuse(&mut self, part: &BulkPart, ordered: bool, error: &RawDocument) {
        for index in part.indexes.iter().take(if ordered { 1 } else { usize::MAX }) {
            self.fail(*index, part.verb, error);
        }
    }

    fn count(&mut self, verb: Verb, reply: &RawDocument) {
        let of = |field: &str| {
            #[expect(clippy::cast_possible_truncation, reason = "a count of what one message asked for")]
            let count = number(reply, field).unwrap_or(0.0) as i32;
            count
        };
        let upserted = i32::try_from(indexed(reply, "upserted").count()).unwrap_or(i32::MAX);
        let mut add = |which: usize, count: i32| {
            self.counts[which] = self.counts[which].saturating_add(count);
        };
        match verb {
            Verb::Insert => add(INSERTED, of("n")),
            Verb::Delete | Verb::FindAndModify => add(DELETED, of("n")),
            Verb::Update => {
                add(MATCHED, of("n").saturating_sub(upserted));
                add(MODIFIED, of("nModified"));
                add(UPSERTED, upserted);
            }
        }
    }

    fn succeed(&mut self, index: usize, at: usize, part: &BulkPart, reply: &RawDocument) {
        if self.errors_only {
            return;
        }
        let mut result = RawDocumentBuf::new();
        result.append(cstr!("ok"), 1.0);
        result.append(cstr!("idx"), as_i32(index));
        #[expect(clippy::cast_possible_truncation, reason = "a count of documents, as servers give it")]
        let count = |field: &str| number(reply, field).unwrap_or(0.0) as i32;
        // One statement alone, but for inserts.
        result.append(cstr!("n"), if part.verb == Verb::Insert { 1 } else { count("n") });
        if part.verb == Verb::Update {
            result.append(cstr!("nModified"), count("nModified"));
        }
        if let Some(upserted) = indexed(reply, "upserted").find(|one| place(one) == at)
            && let Ok(Some(id)) = upserted.get("_id")
        {
            let mut made = RawDocumentBuf::new();
            made.append(cstr!("_id"), id);
            result.append(cstr!("upserted"), made);
        }
        self.results.push((index, result));
    }

    fn fail(&mut self, index: usize, verb: Verb, error: &RawDocument) {
        self.counts[ERRORS] = self.counts[ERRORS].saturating_add(1);
        let mut result = RawDocumentBuf::new();
        result.append(cstr!("ok"), 0.0);
        result.append(cstr!("idx"), as_i32(index));
        // In this order, whatever order they had in the answer to a part.
        let of_all = [cstr!("code"), cstr!("errmsg")];
        let of_some = [cstr!("keyPattern"), cstr!("keyValue"), cstr!("collation"), cstr!("errInfo")];
        for name in of_all.into_iter().chain(of_some) {
            if let Ok(Some(value)) = error.get(name) {
                result.append(name, value);
            }
        }
        result.append(cstr!("n"), 0);
        if verb == Verb::Update {
            result.append(cstr!("nModified"), 0);
        }
        self.results.push((index, result));
    }

    /// The reply.
    #[must_use]
    pub fn finish(mut self) -> RawDocumentBuf {
        self.results.sort_by_key(|(index, _)| *index);
        let mut cursor = RawDocumentBuf::new();
        cursor.append(cstr!("id"), 0_i64);
        let batch: RawArrayBuf = self.results.into_iter().map(|(_, result)| result).collect();
        cursor.append(cstr!("firstBatch"), batch);
        cursor.append(cstr!("ns"), NAMESPACE);
        let mut reply = RawDocumentBuf::new();
        reply.append(cstr!("cursor"), cursor);
        for (name, count) in NAMES.into_iter().zip(self.counts) {
            reply.append(name, count);
        }
        if !self.retried.is_empty() {
            reply.append(cstr!("retriedStmtIds"), self.retried.into_iter().collect::<RawArrayBuf>());
        }
        if let Some(concern) = self.concern {
            reply.append(cstr!("writeConcernError"), concern);
        }
        reply.append(cstr!("ok"), 1.0);
        reply
    }
}

fn indexed<'a>(reply: &'a RawDocument, field: &str) -> impl Iterator<Item = &'a RawDocument> {
    reply.get_array(field).into_iter().flatten().flatten().filter_map(RawBsonRef::as_document)
}

fn place(item: &RawDocument) -> usize {
    item.get_i32("index").ok().and_then(|index| usize::try_from(index).ok()).unwrap_or(0)
}

fn as_i32(index: usize) -> i32 {
    i32::try_from(index).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    fn part(verb: Verb, indexes: &[usize], ordered: bool) -> BulkPart {
        let body = rawdoc! { "ordered": ordered };
        BulkPart { indexes: indexes.to_vec(), verb, body, documents: Vec::new() }
    }

    fn results(reply: &RawDocument) -> Vec<RawDocumentBuf> {
        let batch = reply.get_document("cursor").unwrap().get_array("firstBatch").unwrap();
        batch.into_iter().map(|one| one.unwrap().as_document().unwrap().to_owned()).collect()
    }

    fn counts(reply: &RawDocument) -> [i32; 6] {
        NAMES.map(|name| reply.get_i32(name.as_str()).unwrap())
    }

    #[test]
    fn all_that_was_done_is_told_at_the_clients_places() {
        let mut all = BulkReply::new(false);
        assert!(!all.take(&part(Verb::Insert, &[0, 3], false), &rawdoc! { "n": 2, "ok": 1.0 }));
        let upserted =
            rawdoc! { "n": 1, "nModified": 0, "upserted": [{ "index": 0, "_id": "u" }], "ok": 1.0 };
        all.take(&part(Verb::Update, &[1], false), &upserted);
        all.take(&part(Verb::Update, &[4], false), &rawdoc! { "n": 3, "nModified": 2, "ok": 1.0 });
        all.take(&part(Verb::Delete, &[2], false), &rawdoc! { "n": 5, "ok": 1.0 });
        let reply = all.finish();
        let expected = [
            rawdoc! { "ok": 1.0, "idx": 0, "n": 1 },
            rawdoc! { "ok": 1.0, "idx": 1, "n": 1, "nModified": 0, "upserted": { "_id": "u" } },
            rawdoc! { "ok": 1.0, "idx": 2, "n": 5 },
            rawdoc! { "ok": 1.0, "idx": 3, "n": 1 },
            rawdoc! { "ok": 1.0, "idx": 4, "n": 3, "nModified": 2 },
        ];
        assert_eq!(results(&reply), expected);
        assert_eq!(counts(&reply), [0, 2, 3, 2, 1, 5]);
        let names: Vec<_> = reply.iter().flatten().map(|(name, _)| name.as_str()).collect();
        let order =
            ["cursor", "nErrors", "nInserted", "nMatched", "nModified", "nUpserted", "nDeleted", "ok"];
        assert_eq!(names, order);
        assert_eq!(reply.get_document("cursor").unwrap().get_i64("id").unwrap(), 0);
    }

    fn duplicate(index: i32) -> RawDocumentBuf {
        let error = rawdoc! {
            "index": index, "code": 11000, "errmsg": "E11000", "keyPattern": { "_id": 1 }, "keyValue": { "_id": 7 },
        };
        rawdoc! { "n": 1, "writeErrors": [error], "ok": 1.0 }
    }

    #[test]
    fn what_an_ordered_part_did_not_come_to_is_not_told() {
        let mut all = BulkReply::new(false);
        assert!(all.take(&part(Verb::Insert, &[4, 5, 6], true), &duplicate(1)));
        let failed = rawdoc! {
            "ok": 0.0, "idx": 5, "code": 11000, "errmsg": "E11000", "keyPattern": { "_id": 1 }, "keyValue": { "_id": 7 }, "n": 0,
        };
        let reply = all.finish();
        assert_eq!(results(&reply), [rawdoc! { "ok": 1.0, "idx": 4, "n": 1 }, failed]);
        assert_eq!(counts(&reply), [1, 1, 0, 0, 0, 0]);
    }

    #[test]
    fn only_errors_are_told_where_only_they_are_wanted() {
        let mut all = BulkReply::new(true);
        assert!(all.take(&part(Verb::Insert, &[0, 1, 2], false), &duplicate(1)));
        all.take(&part(Verb::Update, &[3, 4], false), &rawdoc! { "n": 2, "nModified": 1, "ok": 1.0 });
        let reply = all.finish();
        let told: Vec<_> = results(&reply).iter().map(|one| one.get_i32("idx").unwrap()).collect();
        assert_eq!(told, [1]);
        assert_eq!(counts(&reply), [1, 1, 2, 1, 0, 0]);
    }

    #[test]
    fn a_part_that_was_refused_fails_in_each_operation_or_in_the_first() {
        let error = rawdoc! { "ok": 0.0, "errmsg": "no", "code": 115, "codeName": "CommandNotSupported" };
        for (ordered, told) in [(true, 1), (false, 3)] {
            let mut all = BulkReply::new(true);
            all.refuse(&part(Verb::Update, &[1, 2, 3], ordered), ordered, &error);
            let reply = all.finish();
            assert_eq!(results(&reply).len(), told);
            let first = rawdoc! { "ok": 0.0, "idx": 1, "code": 115, "errmsg": "no", "n": 0, "nModified": 0 };
            assert_eq!(results(&reply)[0], first);
            assert_eq!(counts(&reply)[ERRORS], i32::try_from(told).unwrap());
        }
    }

    #[test]
    fn what_was_retried_and_what_was_not_replicated_is_told_once() {
        let mut all = BulkReply::new(true);
        let concern = rawdoc! { "code": 64, "errmsg": "w" };
        let reply =
            rawdoc! { "n": 1, "retriedStmtIds": [3], "writeConcernError": concern.clone(), "ok": 1.0 };
        all.take(&part(Verb::Insert, &[3], true), &reply);
        all.take(&part(Verb::Delete, &[4], true), &rawdoc! { "n": 1, "retriedStmtIds": [4], "ok": 1.0 });
        let reply = all.finish();
        let ids: RawArrayBuf = [3, 4].into_iter().collect();
        assert_eq!(reply.get_array("retriedStmtIds").unwrap(), &*ids);
        assert_eq!(reply.get_document("writeConcernError").unwrap(), &*concern);
    }
}
