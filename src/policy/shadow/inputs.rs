//! What a read computes its reply from.

use bson::raw::{RawBsonRef, RawDocumentBuf, cstr};
use bson::{RawDocument, rawdoc};

/// Whether the documents of the reply are documents of the collection, one by one: then each can be looked at by
/// itself. Of all others what they are computed from is looked at.
#[must_use]
pub fn shows_documents(name: &str, body: &RawDocument, cut: bool) -> bool {
    name == "find" && !cut && body.get_document("projection").map_or(true, RawDocument::is_empty)
}

/// What the `_id`s of a reply are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// Those of documents of the collection.
    Ids,
    /// Values that the read computes, as what a `$group` groups by.
    Values,
}

/// What the `_id`s of the reply to the read `body` are. In doubt values.
#[must_use]
pub fn keys_of(name: &str, body: &RawDocument) -> Keys {
    let is_id = |value: RawBsonRef<'_>| {
        matches!(
            value,
            RawBsonRef::Int32(_) | RawBsonRef::Int64(_) | RawBsonRef::Double(_) | RawBsonRef::Boolean(_)
        )
    };
    let takes = |stage: &str| matches!(stage, "$match" | "$sort" | "$limit" | "$skip");
    let ids = match name {
        "find" => body.get_document("projection").map_or(true, |projection| {
            projection.iter().flatten().all(|(name, value)| !name.as_str().starts_with("_id") || is_id(value))
        }),
        "aggregate" => body.get_array("pipeline").is_ok_and(|stages| {
            let first =
                |stage: RawBsonRef<'_>| Some(takes(stage.as_document()?.iter().next()?.ok()?.0.as_str()));
            stages.into_iter().flatten().all(|stage| first(stage) == Some(true))
        }),
        _ => false,
    };
    if ids { Keys::Ids } else { Keys::Values }
}

/// The documents that the read `body` is computed from, as a `find` of them as they are; a pipeline's begin with what
/// its first stages let through.
#[must_use]
pub fn inputs(name: &str, body: &RawDocument) -> RawDocumentBuf {
    let mut inputs = RawDocumentBuf::new();
    let collection = body.iter().next().and_then(Result::ok).and_then(|(_, value)| value.as_str());
    inputs.append(cstr!("find"), collection.unwrap_or_default());
    let filter = match name {
        "find" => body.get_document("filter").ok().map(ToOwned::to_owned),
        "count" | "distinct" => body.get_document("query").ok().map(ToOwned::to_owned),
        _ => matched(body),
    };
    inputs.append(cstr!("filter"), filter.unwrap_or_default());
    for name in [cstr!("collation"), cstr!("let")] {
        if let Ok(Some(value)) = body.get(name) {
            inputs.append(name, value);
        }
    }
    inputs
}

/// What all the first `$match` stages of a pipeline ask for together.
fn matched(body: &RawDocument) -> Option<RawDocumentBuf> {
    let mut all = bson::raw::RawArrayBuf::new();
    let mut any = false;
    for stage in body.get_array("pipeline").ok()? {
        let Ok(RawBsonRef::Document(stage)) = stage else { break };
        let Ok(matched) = stage.get_document("$match") else { break };
        all.push(matched.to_owned());
        any = true;
    }
    any.then(|| rawdoc! { "$and": all })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_computed_has_inputs() {
        let of = |name, body: RawDocumentBuf| inputs(name, &body);
        let all = rawdoc! { "find": "c", "filter": {} };
        assert_eq!(
            of("count", rawdoc! { "count": "c", "query": { "a": 1 } }),
            rawdoc! { "find": "c", "filter": { "a": 1 } }
        );
        assert_eq!(of("distinct", rawdoc! { "distinct": "c", "key": "b" }), all);
        let pipeline = rawdoc! { "aggregate": "c", "pipeline": [{ "$match": { "a": 1 } }, { "$match": { "b": 2 } }, { "$set": {} }, { "$match": { "c": 1 } }] };
        let expected = rawdoc! { "find": "c", "filter": { "$and": [{ "a": 1 }, { "b": 2 }] } };
        assert_eq!(of("aggregate", pipeline), expected);
        assert_eq!(of("aggregate", rawdoc! { "aggregate": "c", "pipeline": [{ "$group": {} }] }), all);
        let find = rawdoc! { "find": "c", "filter": { "a": 1 }, "sort": { "b": 1 }, "limit": 3, "projection": { "b": 1 }, "collation": { "locale": "de" } };
        let expected = rawdoc! { "find": "c", "filter": { "a": 1 }, "collation": { "locale": "de" } };
        assert_eq!(of("find", find), expected);
    }

    #[test]
    fn what_a_read_computes_is_no_id() {
        let find =
            |projection: RawDocumentBuf| keys_of("find", &rawdoc! { "find": "c", "projection": projection });
        assert_eq!([find(rawdoc! { "a": 1 }), find(rawdoc! { "_id": 1 })], [Keys::Ids; 2]);
        assert_eq!(find(rawdoc! { "_id": "$email" }), Keys::Values);
        let pipeline = |stage: RawDocumentBuf| {
            keys_of("aggregate", &rawdoc! { "aggregate": "c", "pipeline": [{ "$match": {} }, stage] })
        };
        assert_eq!(pipeline(rawdoc! { "$sort": { "a": 1 } }), Keys::Ids);
        assert_eq!(pipeline(rawdoc! { "$group": { "_id": "$email" } }), Keys::Values);
        assert_eq!(keys_of("distinct", &rawdoc! { "distinct": "c", "key": "email" }), Keys::Values);
    }

    #[test]
    fn only_plain_finds_show_documents() {
        let find = rawdoc! { "find": "c", "filter": { "a": 1 }, "sort": { "b": 1 } };
        assert!(shows_documents("find", &find, false));
        assert!(!shows_documents("find", &find, true));
        assert!(!shows_documents("find", &rawdoc! { "find": "c", "projection": { "a": 1 } }, false));
        assert!(!shows_documents("aggregate", &rawdoc! { "aggregate": "c", "pipeline": [] }, false));
    }
}
