//! Whether a reply shows what it is sorted by.

use bson::RawDocument;
use bson::raw::RawBsonRef;

use super::sorting::Sort;

/// What a projection says of one field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Shown,
    LeftOut,
    /// Something else stands in its place: a part of an array, a result.
    Made,
}

/// Whether the documents of the `find` in `body` show all fields of `sort` as they are in the collection. In doubt not.
#[must_use]
pub fn shows(body: &RawDocument, sort: &Sort) -> bool {
    if matches!(body.get("returnKey"), Ok(Some(RawBsonRef::Boolean(true)))) {
        return false;
    }
    let Ok(projection) = body.get_document("projection") else { return true };
    let said: Vec<(&str, Said)> =
        projection.iter().flatten().map(|(name, value)| said(name.as_str(), value)).collect();
    let keeps_others = keeps_others(projection);
    sort.paths().all(|path| {
        let covers = |name: &str| name == path || below(name, path);
        let touches = |name: &str| covers(name) || below(path, name);
        let untouched = !said.iter().any(|(name, said)| *said != Said::Shown && touches(name));
        let shown = said.iter().any(|(name, said)| *said == Said::Shown && covers(name));
        untouched && (shown || keeps_others || covers_id(path))
    })
}

/// It is shown unless it is left out by its name.
fn covers_id(path: &str) -> bool {
    path == "_id" || below("_id", path)
}

/// Whether `path` leads into what `name` is.
fn below(name: &str, path: &str) -> bool {
    path.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'))
}

fn said<'a>(name: &'a str, value: RawBsonRef<'_>) -> (&'a str, Said) {
    if let Some((array, _)) = name.split_once(".$") {
        return (array, Said::Made);
    }
    match truth(value) {
        Some(true) => (name, Said::Shown),
        Some(false) => (name, Said::LeftOut),
        None => (name, Said::Made),
    }
}

fn truth(value: RawBsonRef<'_>) -> Option<bool> {
    match value {
        RawBsonRef::Boolean(truth) => Some(truth),
        RawBsonRef::Int32(number) => Some(number != 0),
        RawBsonRef::Int64(number) => Some(number != 0),
        RawBsonRef::Double(number) => Some(number != 0.0),
        _ => None,
    }
}

/// Whether fields that it does not name are shown: it only leaves out, or takes parts of arrays.
fn keeps_others(projection: &RawDocument) -> bool {
    projection.iter().flatten().all(|(name, value)| match value {
        RawBsonRef::Document(made) => {
            made.iter().flatten().all(|(name, _)| matches!(name.as_str(), "$slice" | "$meta"))
        }
        value => !name.as_str().contains(".$") && truth(value) == Some(false),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{RawDocumentBuf, rawdoc};

    fn shown(projection: RawDocumentBuf, sort: &RawDocument) -> bool {
        shows(&rawdoc! { "find": "c", "projection": projection }, &Sort::of(sort).unwrap())
    }

    #[test]
    fn what_is_sorted_by_is_shown_or_not() {
        let by = rawdoc! { "a.b": 1 };
        for projection in [
            rawdoc! {},
            rawdoc! { "a": 1 },
            rawdoc! { "a.b": true, "c": 1 },
            rawdoc! { "c": 0 },
            rawdoc! { "_id": 0 },
            rawdoc! { "c": { "$slice": 1 } },
            rawdoc! { "ab": 0 },
        ] {
            assert!(shown(projection.clone(), &by), "{projection:?}");
        }
        for projection in [
            rawdoc! { "c": 1 },
            rawdoc! { "_id": 1 },
            rawdoc! { "a": 0 },
            rawdoc! { "a.b": 0 },
            rawdoc! { "a.b.c": 1 },
            rawdoc! { "a.b.c": 0 },
            rawdoc! { "a": { "$slice": 1 } },
            rawdoc! { "a": { "$elemMatch": { "b": 1 } } },
            rawdoc! { "a.$": 1 },
            rawdoc! { "a": "$other" },
            rawdoc! { "a": { "b": 1 } },
            rawdoc! { "x": { "$add": ["$c", 1] } },
        ] {
            assert!(!shown(projection.clone(), &by), "{projection:?}");
        }
        let by_both = rawdoc! { "a": 1, "_id": 1 };
        assert!(shown(rawdoc! { "a": 1 }, &by_both) && !shown(rawdoc! { "a": 1, "_id": 0 }, &by_both));
        let keys_alone = rawdoc! { "find": "c", "returnKey": true };
        assert!(!shows(&keys_alone, &Sort::of(&by).unwrap()));
    }
}
