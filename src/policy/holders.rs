//! Which documents hold the unique value that another one needs.
//!
//! The index decides that, not the value alone: it has its own collation, it may leave documents out, it takes the elements
//! of an array for values each, and a value may look like an operator of a filter.

use bson::raw::{RawArrayBuf, RawBson, RawBsonRef, RawDocumentBuf};
use bson::{Document, RawDocument, rawdoc};

/// Where to look.
#[derive(Debug, Clone, PartialEq)]
pub struct Holders {
    /// The `filter` of a `find`.
    pub filter: RawDocumentBuf,
    /// Its `collation`.
    pub collation: RawDocumentBuf,
}

/// Who may hold, in the unique index `spec` (as `listIndexes` gives it), a value of `wanted`. It may find documents that
/// hold no such value, and finds all that do. `None` where the specification cannot be read.
#[must_use]
pub fn holders(spec: &Document, wanted: &RawDocument) -> Option<Holders> {
    let paths: Vec<&str> = spec.get_document("key").ok()?.keys().map(String::as_str).collect();
    let mut all = RawArrayBuf::new();
    for path in &paths {
        all.push(any(values(wanted, path).iter().map(|value| condition(path, *value))));
    }
    if matches!(spec.get("sparse"), Some(bson::Bson::Boolean(true))) {
        all.push(any(paths.iter().map(|path| named(path, rawdoc! { "$exists": true }))));
    }
    if let Ok(partial) = spec.get_document("partialFilterExpression") {
        all.push(RawDocumentBuf::try_from(partial).ok()?);
    }
    let collation = spec.get_document("collation").ok().map(RawDocumentBuf::try_from);
    let collation = collation.unwrap_or_else(|| Ok(rawdoc! { "locale": "simple" })).ok()?;
    Some(Holders { filter: rawdoc! { "$and": all }, collation })
}

fn any(conditions: impl Iterator<Item = RawDocumentBuf>) -> RawDocumentBuf {
    let mut either = RawArrayBuf::new();
    conditions.for_each(|condition| either.push(condition));
    rawdoc! { "$or": either }
}

fn named(path: &str, value: impl Into<RawBson>) -> RawDocumentBuf {
    let mut condition = RawDocumentBuf::new();
    // A name with a zero byte is in no document.
    if let Ok(path) = <&bson::raw::CStr>::try_from(path) {
        condition.append(path, value.into());
    }
    condition
}

fn condition(path: &str, value: RawBsonRef<'_>) -> RawDocumentBuf {
    match value {
        // No server compares with it.
        RawBsonRef::Undefined => named(path, rawdoc! { "$type": 6 }),
        value => named(path, rawdoc! { "$eq": RawBson::from(value) }),
    }
}

/// What `document` has at `path`: of arrays each element, and the whole, as a filter sees it.
fn values<'a>(document: &'a RawDocument, path: &str) -> Vec<RawBsonRef<'a>> {
    let mut found = Vec::new();
    descend(RawBsonRef::Document(document), path, &mut found);
    if found.is_empty() {
        found.push(RawBsonRef::Null);
    }
    found
}

fn descend<'a>(value: RawBsonRef<'a>, path: &str, found: &mut Vec<RawBsonRef<'a>>) {
    if path.is_empty() {
        found.push(value);
        if let RawBsonRef::Array(elements) = value {
            found.extend(elements.into_iter().flatten());
        }
        return;
    }
    let (first, rest) = path.split_once('.').unwrap_or((path, ""));
    match value {
        RawBsonRef::Document(document) => match document.get(first) {
            Ok(Some(next)) => descend(next, rest, found),
            _ => found.push(RawBsonRef::Null),
        },
        RawBsonRef::Array(elements) => {
            for (index, element) in elements.into_iter().flatten().enumerate() {
                if first.parse() == Ok(index) {
                    descend(element, rest, found);
                }
                if matches!(element, RawBsonRef::Document(_)) {
                    descend(element, path, found);
                }
            }
        }
        _ => found.push(RawBsonRef::Null),
    }
}

#[cfg(test)]
mod tests {
    use bson::doc;

    use super::*;

    fn at(document: &RawDocumentBuf, path: &str) -> RawArrayBuf {
        values(document, path).into_iter().map(RawBson::from).collect()
    }

    #[test]
    fn the_values_of_a_path() {
        let document = rawdoc! { "a": 1, "b": [1, [2, 3]], "c": [{ "d": 4 }, { "d": [5] }, {}, 6], "e": [] };
        let cases = [
            ("a", rawdoc! { "": [1] }),
            ("x", rawdoc! { "": [RawBson::Null] }),
            ("a.x", rawdoc! { "": [RawBson::Null] }),
            ("b", rawdoc! { "": [[1, [2, 3]], 1, [2, 3]] }),
            ("c.d", rawdoc! { "": [4, [5], 5, RawBson::Null] }),
            ("c.1.d", rawdoc! { "": [RawBson::Null, [5], 5, RawBson::Null, RawBson::Null] }),
            ("e", rawdoc! { "": [RawArrayBuf::new()] }),
            ("e.x", rawdoc! { "": [RawBson::Null] }),
        ];
        for (path, expected) in cases {
            assert_eq!(rawdoc! { "": at(&document, path) }, expected, "{path}");
        }
    }

    #[test]
    fn what_an_index_leaves_out_and_how_it_compares() {
        let plain = holders(&doc! { "key": { "u": 1 } }, &rawdoc! { "u": { "$gt": 1 } }).unwrap();
        assert_eq!(plain.filter, rawdoc! { "$and": [{ "$or": [{ "u": { "$eq": { "$gt": 1 } } }] }] });
        assert_eq!(plain.collation, rawdoc! { "locale": "simple" });
        let spec = doc! {
            "key": { "u": 1, "v.w": -1 }, "sparse": true, "collation": { "locale": "en", "strength": 2 },
            "partialFilterExpression": { "active": true },
        };
        let found = holders(&spec, &rawdoc! { "u": "x", "v": RawBson::Undefined }).unwrap();
        let expected = rawdoc! { "$and": [
            { "$or": [{ "u": { "$eq": "x" } }] },
            { "$or": [{ "v.w": { "$eq": RawBson::Null } }] },
            { "$or": [{ "u": { "$exists": true } }, { "v.w": { "$exists": true } }] },
            { "active": true },
        ] };
        assert_eq!(found.filter, expected);
        assert_eq!(found.collation, rawdoc! { "locale": "en", "strength": 2 });
        assert_eq!(holders(&doc! { "name": "x" }, &rawdoc! {}), None);
    }
}
