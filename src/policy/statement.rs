//! One statement of a write: whose document it is about, and whether its effect depends on what is there.

use bson::RawDocument;
use bson::raw::{RawBsonRef, RawDocumentBuf, cstr};

use super::canonical::key_of;
use crate::model::key::Key;
use crate::model::number::number;

/// One statement of a write command.
#[derive(Debug, Clone)]
pub struct Statement {
    /// The document that describes it; of an insert, the document itself.
    pub raw: RawDocumentBuf,
    /// Whose document it is about; `None`: it does not say.
    pub key: Option<Key>,
    /// It may write more than one document.
    pub multi: bool,
    /// It inserts when nothing matches.
    pub upsert: bool,
    /// What it does to the document, if it does it, does not depend on what is there: an insert, a replacement
    /// by `_id` alone, or a deletion.
    pub direct: bool,
}

impl Statement {
    /// A document to insert; it is given an `_id` by `new_id` if it has none.
    pub(super) fn insert(raw: &RawDocument, new_id: &mut impl FnMut() -> bson::oid::ObjectId) -> Self {
        let statement =
            |raw: RawDocumentBuf, key| Self { raw, key, multi: false, upsert: false, direct: true };
        if let Ok(Some(id)) = raw.get("_id") {
            return statement(raw.to_owned(), key_of(id));
        }
        let mut with_id = RawDocumentBuf::new();
        with_id.append(cstr!("_id"), new_id());
        for (name, value) in raw.iter().flatten() {
            with_id.append(name, value);
        }
        let key = with_id.get("_id").ok().flatten().and_then(key_of);
        statement(with_id, key)
    }

    /// One of `updates`. `simple`: its command names no collation.
    pub(super) fn update(raw: &RawDocument, simple: bool) -> Self {
        let simple = simple && !has_collation(raw);
        let filter = raw.get_document("q").ok();
        let replacement = matches!(raw.get("u"), Ok(Some(RawBsonRef::Document(u))) if is_replacement(u));
        Self {
            raw: raw.to_owned(),
            key: filter.and_then(|filter| key_in(filter, simple)),
            multi: raw.get_bool("multi").unwrap_or(false),
            upsert: raw.get_bool("upsert").unwrap_or(false),
            direct: replacement && filter.is_some_and(only_id),
        }
    }

    /// One of `deletes`.
    pub(super) fn delete(raw: &RawDocument, simple: bool) -> Self {
        let simple = simple && !has_collation(raw);
        let filter = raw.get_document("q").ok();
        let one = number(raw, "limit").is_some_and(|limit| limit == 1.0);
        Self {
            raw: raw.to_owned(),
            key: filter.and_then(|filter| key_in(filter, simple)),
            multi: !one,
            upsert: false,
            direct: true,
        }
    }

    /// The only one of a `findAndModify`.
    pub(super) fn find_and_modify(body: &RawDocument, simple: bool) -> Self {
        let filter = body.get_document("query").ok();
        Self {
            raw: RawDocumentBuf::new(),
            key: filter.and_then(|filter| key_in(filter, simple)),
            multi: false,
            upsert: body.get_bool("upsert").unwrap_or(false),
            direct: false,
        }
    }
}

/// Whether it names a collation: a string is no key then.
pub(super) fn has_collation(body: &RawDocument) -> bool {
    matches!(body.get("collation"), Ok(Some(_)))
}

/// Whether an update takes the place of the whole document.
pub(super) fn is_replacement(update: &RawDocument) -> bool {
    update.iter().next().is_none_or(|first| matches!(first, Ok((name, _)) if !name.as_str().starts_with('$')))
}

fn only_id(filter: &RawDocument) -> bool {
    let mut fields = filter.iter();
    matches!(fields.next(), Some(Ok((name, _))) if name.as_str() == "_id") && fields.next().is_none()
}

/// The key that a filter names.
fn key_in(filter: &RawDocument, simple: bool) -> Option<Key> {
    value_in(filter, "_id", simple)
}

/// The one value of `field` that a filter lets through.
#[must_use]
pub fn value_in(filter: &RawDocument, field: &str, simple: bool) -> Option<Key> {
    // Not deeper: drivers and mappers wrap once, and nobody may make this go as deep as a message is long.
    equality(filter, field, simple).or_else(|| {
        let all = filter.get_array("$and").ok()?;
        all.into_iter().flatten().find_map(|condition| equality(condition.as_document()?, field, simple))
    })
}

fn equality(filter: &RawDocument, field: &str, simple: bool) -> Option<Key> {
    let value = filter.get(field).ok().flatten()?;
    let value = match value {
        RawBsonRef::Document(document) => match document.iter().next() {
            Some(Ok((name, inner))) if name.as_str() == "$eq" && document.iter().count() == 1 => inner,
            Some(Ok((name, _))) if name.as_str().starts_with('$') => return None,
            _ => value,
        },
        value => value,
    };
    let text = matches!(value, RawBsonRef::String(_) | RawBsonRef::Document(_) | RawBsonRef::Symbol(_));
    if text && !simple { None } else { key_of(value) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    #[test]
    fn keys_come_from_equality_on_the_id_alone() {
        let of = |filter: RawDocumentBuf| {
            Statement::update(&rawdoc! { "q": filter, "u": { "$inc": { "n": 1 } } }, true).key.is_some()
        };
        assert!(of(rawdoc! { "_id": 1, "a": 2 }));
        assert!(of(rawdoc! { "_id": { "$eq": "x" } }));
        assert!(of(rawdoc! { "_id": { "a": 1 } }));
        assert!(!of(rawdoc! { "_id": { "$gt": 1 } }));
        assert!(of(rawdoc! { "a": 1, "$and": [{ "b": 1 }, { "_id": 1 }] }));
        assert!(!of(rawdoc! { "$and": [{ "_id": { "$gt": 1 } }, { "$and": [{ "_id": 1 }] }] }));
        assert!(!of(rawdoc! { "$or": [{ "_id": 1 }, { "_id": 2 }] }));
        assert!(!of(rawdoc! { "a": 1 }));
    }

    #[test]
    fn what_is_direct_does_not_depend_on_the_document() {
        let direct = |update: RawDocumentBuf| {
            Statement::update(&rawdoc! { "q": { "_id": 1 }, "u": update }, true).direct
        };
        assert!(direct(rawdoc! { "a": 1 }));
        assert!(!direct(rawdoc! { "$set": { "a": 1 } }));
        assert!(!Statement::update(&rawdoc! { "q": { "_id": 1, "a": 2 }, "u": { "a": 1 } }, true).direct);
        // One that was done has removed the document, whatever else it asked for.
        assert!(Statement::delete(&rawdoc! { "q": { "_id": 1, "a": 2 }, "limit": 1 }, true).direct);
    }

    #[test]
    fn a_string_under_a_collation_is_no_key() {
        let delete = rawdoc! { "q": { "_id": "a" }, "limit": 1, "collation": { "locale": "de" } };
        assert_eq!(Statement::delete(&delete, true).key, None);
    }
}
