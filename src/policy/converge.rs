//! What to do to the mirror's document so that it equals the authority's.

use bson::RawDocument;
use bson::raw::RawBsonRef;

/// Two documents of more than this many bytes together do not fit one command with its guard.
const GUARDED_LIMIT: usize = 15 * 1024 * 1024;

/// One guarded change of the mirror.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Action<'a> {
    /// Equal bytes.
    Nothing,
    /// The mirror has nothing: insert if still absent.
    Insert(&'a RawDocument),
    /// The mirror has nothing, and an insert would change a `Timestamp(0, 0)`: insert the rest, then look
    /// again.
    InsertStub(&'a RawDocument),
    /// Replace, if the mirror still has `seen`.
    Replace {
        /// What was read from the mirror.
        seen: &'a RawDocument,
        /// What the authority has.
        want: &'a RawDocument,
    },
    /// As [`Action::Replace`], but the two are too large for one command: a transaction is the guard.
    ReplaceLarge {
        /// What was read from the mirror.
        seen: &'a RawDocument,
        /// What the authority has.
        want: &'a RawDocument,
    },
    /// Delete, if the mirror still has `seen`.
    Delete {
        /// What was read from the mirror.
        seen: &'a RawDocument,
        /// It stands in the way of what the authority has: then look again.
        in_the_way: bool,
    },
}

/// Decides from the bytes read on the mirror (first) and on the authority (second).
#[must_use]
pub fn decide<'a>(seen: Option<&'a RawDocument>, want: Option<&'a RawDocument>) -> Action<'a> {
    match (seen, want) {
        (None, None) => Action::Nothing,
        (Some(seen), Some(want)) if seen.as_bytes() == want.as_bytes() => Action::Nothing,
        (None, Some(want)) if insert_would_change(want) => Action::InsertStub(want),
        (None, Some(want)) => Action::Insert(want),
        (Some(seen), None) => Action::Delete { seen, in_the_way: false },
        // An update cannot change 1 to 1.0 in an `_id`.
        (Some(seen), Some(want)) if !same_id_bytes(seen, want) => Action::Delete { seen, in_the_way: true },
        (Some(seen), Some(want)) if seen.as_bytes().len() + want.as_bytes().len() > GUARDED_LIMIT => {
            Action::ReplaceLarge { seen, want }
        }
        (Some(seen), Some(want)) => Action::Replace { seen, want },
    }
}

/// Whether a server would change `document` on insert: it sets a top-level `Timestamp(0, 0)` to its clock.
#[must_use]
pub fn insert_would_change(document: &RawDocument) -> bool {
    // The end of a name and a timestamp of zeros. Few documents have that, and those are looked at closely.
    memchr::memmem::find(document.as_bytes(), &[0; 9]).is_some() && has_zero_timestamp(document)
}

fn has_zero_timestamp(document: &RawDocument) -> bool {
    document.iter().any(
        |element| matches!(element, Ok((name, value)) if name.as_str() != "_id" && is_zero_timestamp(value)),
    )
}

/// What a server sets to its clock.
#[must_use]
pub fn is_zero_timestamp(value: RawBsonRef<'_>) -> bool {
    matches!(value, RawBsonRef::Timestamp(time) if time.time == 0 && time.increment == 0)
}

fn same_id_bytes(one: &RawDocument, other: &RawDocument) -> bool {
    match (one.get("_id"), other.get("_id")) {
        (Ok(Some(one)), Ok(Some(other))) => {
            // Compared as bytes: `1 == 1.0` must not count.
            let wrap = |id: RawBsonRef<'_>| {
                let mut document = bson::RawDocumentBuf::new();
                document.append(bson::raw::cstr!("_id"), id);
                document
            };
            wrap(one).as_bytes() == wrap(other).as_bytes()
        }
        _ => false,
    }
}

/// What became of one statement that a mirror was asked to run.
#[derive(Debug, Clone, PartialEq)]
pub enum Failure {
    /// The mirror had changed in between: read again.
    Guard,
    /// Another document on the mirror holds a value of a unique index.
    Unique {
        /// The key of the index.
        key_pattern: bson::RawDocumentBuf,
        /// The value, as the error gives it: for people, as it may be written as the index's collation has it.
        key_value: bson::RawDocumentBuf,
    },
    /// The mirror will not take it.
    Refused {
        /// MongoDB's error code.
        code: i32,
        /// MongoDB's words.
        message: String,
    },
}

/// Reads one element of `writeErrors`.
#[must_use]
pub fn failure(error: &RawDocument) -> Failure {
    let code = error.get_i32("code").unwrap_or(0);
    let message = error.get_str("errmsg").unwrap_or("").to_owned();
    if code != 11000 {
        // 112 WriteConflict: somebody else was faster; the guard says who.
        return if code == 112 { Failure::Guard } else { Failure::Refused { code, message } };
    }
    match (error.get_document("keyPattern"), error.get_document("keyValue")) {
        (Ok(pattern), _) if pattern.iter().flatten().all(|(name, _)| name.as_str() == "_id") => {
            Failure::Guard
        }
        (Ok(pattern), Ok(value)) => {
            Failure::Unique { key_pattern: pattern.to_owned(), key_value: value.to_owned() }
        }
        _ => Failure::Refused { code, message },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{Timestamp, rawdoc};

    #[test]
    fn equality_is_by_bytes() {
        let (int, double) = (rawdoc! { "_id": 1, "a": 1 }, rawdoc! { "_id": 1, "a": 1.0 });
        assert_eq!(decide(Some(&int), Some(&int)), Action::Nothing);
        assert_eq!(decide(Some(&int), Some(&double)), Action::Replace { seen: &int, want: &double });
    }

    #[test]
    fn an_id_of_another_type_is_deleted_first() {
        let (int, double) = (rawdoc! { "_id": 1 }, rawdoc! { "_id": 1.0 });
        assert_eq!(decide(Some(&int), Some(&double)), Action::Delete { seen: &int, in_the_way: true });
        assert_eq!(decide(Some(&int), None), Action::Delete { seen: &int, in_the_way: false });
    }

    #[test]
    fn a_zero_timestamp_is_not_inserted_plainly() {
        let zero = rawdoc! { "_id": 1, "t": Timestamp { time: 0, increment: 0 } };
        assert_eq!(decide(None, Some(&zero)), Action::InsertStub(&zero));
    }

    #[test]
    fn duplicates_count_as_present_only_on_the_id() {
        let on_id =
            rawdoc! { "index": 0, "code": 11000, "keyPattern": { "_id": 1 }, "keyValue": { "_id": 5 } };
        assert_eq!(failure(&on_id), Failure::Guard);
        let on_email =
            rawdoc! { "index": 0, "code": 11000, "keyPattern": { "email": 1 }, "keyValue": { "email": "x" } };
        let (key_pattern, key_value) = (rawdoc! { "email": 1 }, rawdoc! { "email": "x" });
        assert_eq!(failure(&on_email), Failure::Unique { key_pattern, key_value });
    }
}
