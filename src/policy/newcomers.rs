//! Which collections may come into being where a migration waits for them.

use bson::RawDocument;
use bson::raw::RawBsonRef;

/// What a `create` would make that cannot move; `None` when it can.
#[must_use]
pub fn cannot_move(create: &RawDocument) -> Option<&'static str> {
    let has = |field: &str| create.get(field).ok().flatten();
    let truth = |field: &str| match has(field) {
        Some(RawBsonRef::Boolean(truth)) => truth,
        Some(RawBsonRef::Int32(number)) => number != 0,
        Some(RawBsonRef::Int64(number)) => number != 0,
        Some(RawBsonRef::Double(number)) => number != 0.0,
        _ => false,
    };
    let collation = create.get_document("collation").ok();
    if has("viewOn").is_some() {
        Some("a view")
    } else if has("timeseries").is_some() {
        Some("a time-series collection")
    } else if truth("capped") {
        Some("a capped collection")
    } else if has("encryptedFields").is_some() {
        Some("a collection with queryable encryption")
    } else if collation.is_some_and(|collation| collation.get_str("locale").ok() != Some("simple")) {
        Some("a collection with a default collation")
    } else if has("expireAfterSeconds").is_some() {
        Some("a clustered collection that removes documents after a time")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    #[test]
    fn what_cannot_move_is_told_from_its_creation() {
        for (create, what) in [
            (rawdoc! { "create": "c", "viewOn": "d", "pipeline": [] }, "view"),
            (rawdoc! { "create": "c", "timeseries": { "timeField": "t" } }, "time-series"),
            (rawdoc! { "create": "c", "capped": 1, "size": 1000 }, "capped"),
            (rawdoc! { "create": "c", "encryptedFields": {} }, "encryption"),
            (rawdoc! { "create": "c", "collation": { "locale": "de" } }, "collation"),
            (rawdoc! { "create": "c", "expireAfterSeconds": 60 }, "removes documents"),
        ] {
            assert!(cannot_move(&create).is_some_and(|told| told.contains(what)), "{create:?}");
        }
        let plain =
            rawdoc! { "create": "c", "capped": false, "collation": { "locale": "simple" }, "validator": {} };
        assert_eq!(cannot_move(&plain), None);
    }
}
