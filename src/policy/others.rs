//! Which collections a command reads or writes besides the one that it names.

use bson::RawDocument;
use bson::raw::{RawArray, RawBsonRef};

use crate::model::namespace::Namespace;

/// Pipelines nest no deeper than servers let them.
const DEEPEST: u32 = 100;

/// The other collections of a command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Others {
    /// Read by `$lookup`, `$graphLookup` or `$unionWith`.
    pub read: Vec<Namespace>,
    /// Written by `$out`, `$merge` or `mapReduce`.
    pub written: Vec<Namespace>,
}

impl Others {
    /// Of an `aggregate` or a `mapReduce` in `database`.
    #[must_use]
    pub fn of(database: &str, body: &RawDocument) -> Self {
        let mut others = Self::default();
        if let Ok(Some(RawBsonRef::Array(stages))) = body.get("pipeline") {
            others.pipeline(database, stages, DEEPEST);
        }
        let writes = match body.get("out").ok().flatten() {
            Some(RawBsonRef::Document(out)) => {
                let into = ["replace", "merge", "reduce"].into_iter().find_map(|how| out.get_str(how).ok());
                into.map(|into| Namespace::new(out.get_str("db").unwrap_or(database), into))
            }
            Some(RawBsonRef::String(into)) => Some(Namespace::new(database, into)),
            _ => None,
        };
        others.written.extend(writes);
        others
    }

    /// The collections that a view reads: `options` has its `viewOn` and its `pipeline`.
    #[must_use]
    pub fn of_view(database: &str, options: &RawDocument) -> Vec<Namespace> {
        let on = options.get_str("viewOn").ok().map(|on| Namespace::new(database, on));
        on.into_iter().chain(Self::of(database, options).read).collect()
    }

    fn pipeline(&mut self, database: &str, stages: &RawArray, depth: u32) {
        for stage in stages.into_iter().flatten().filter_map(RawBsonRef::as_document) {
            let Some(Ok((name, what))) = stage.iter().next() else { continue };
            match name.as_str() {
                "$lookup" | "$graphLookup" => self.joined(database, what, "from", depth),
                "$unionWith" => self.joined(database, what, "coll", depth),
                "$facet" => {
                    let facets = what.as_document().into_iter().flatten().flatten();
                    for stages in facets.filter_map(|(_, stages)| stages.as_array()) {
                        self.nested(database, stages, depth);
                    }
                }
                "$out" => self.written.extend(named(database, what, "coll")),
                "$merge" => {
                    let into = match what {
                        RawBsonRef::Document(merge) => merge.get("into").ok().flatten(),
                        text => Some(text),
                    };
                    self.written.extend(into.and_then(|into| named(database, into, "coll")));
                }
                _ => {}
            }
        }
    }

    fn joined(&mut self, database: &str, what: RawBsonRef<'_>, field: &str, depth: u32) {
        let from = match what {
            RawBsonRef::Document(stage) => stage.get(field).ok().flatten(),
            text => Some(text),
        };
        self.read.extend(from.and_then(|from| named(database, from, "coll")));
        let stages = what.as_document().and_then(|stage| stage.get_array("pipeline").ok());
        if let Some(stages) = stages {
            self.nested(database, stages, depth);
        }
    }

    fn nested(&mut self, database: &str, stages: &RawArray, depth: u32) {
        if let Some(depth) = depth.checked_sub(1) {
            self.pipeline(database, stages, depth);
        }
    }
}

/// A collection's name, alone or with its database.
fn named(database: &str, value: RawBsonRef<'_>, field: &str) -> Option<Namespace> {
    match value {
        RawBsonRef::String(collection) => Some(Namespace::new(database, collection)),
        RawBsonRef::Document(both) => {
            Some(Namespace::new(both.get_str("db").unwrap_or(database), both.get_str(field).ok()?))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{RawDocumentBuf, rawdoc};

    fn others(body: &RawDocumentBuf) -> (Vec<String>, Vec<String>) {
        let Others { read, written } = Others::of("d", body);
        let names = |found: Vec<Namespace>| found.iter().map(|name| name.as_str().to_owned()).collect();
        (names(read), names(written))
    }

    fn pipeline(stage: RawDocumentBuf) -> (Vec<String>, Vec<String>) {
        others(&rawdoc! { "aggregate": "c", "pipeline": [{ "$match": { "$out": "x" } }, stage] })
    }

    #[test]
    fn what_is_joined_is_found_at_any_depth() {
        assert_eq!(pipeline(rawdoc! { "$lookup": { "from": "a", "as": "x" } }).0, ["d.a"]);
        assert_eq!(pipeline(rawdoc! { "$graphLookup": { "from": "a" } }).0, ["d.a"]);
        assert_eq!(pipeline(rawdoc! { "$unionWith": "a" }).0, ["d.a"]);
        let union = rawdoc! { "$unionWith": { "coll": "a", "pipeline": [{ "$unionWith": "b" }] } };
        assert_eq!(pipeline(union).0, ["d.a", "d.b"]);
        let facet = rawdoc! { "$facet": { "one": [{ "$lookup": { "from": "a" } }], "two": [] } };
        assert_eq!(pipeline(facet).0, ["d.a"]);
        let documents = rawdoc! { "$lookup": { "as": "x", "pipeline": [{ "$documents": [] }] } };
        assert_eq!(pipeline(documents).0, <[&str; 0]>::default());
    }

    #[test]
    fn what_is_written_is_found_in_every_form() {
        assert_eq!(pipeline(rawdoc! { "$out": "a" }).1, ["d.a"]);
        assert_eq!(pipeline(rawdoc! { "$out": { "db": "e", "coll": "a" } }).1, ["e.a"]);
        assert_eq!(pipeline(rawdoc! { "$merge": "a" }).1, ["d.a"]);
        assert_eq!(pipeline(rawdoc! { "$merge": { "into": "a", "on": "_id" } }).1, ["d.a"]);
        assert_eq!(pipeline(rawdoc! { "$merge": { "into": { "db": "e", "coll": "a" } } }).1, ["e.a"]);
        assert_eq!(others(&rawdoc! { "mapReduce": "c", "out": "a" }).1, ["d.a"]);
        assert_eq!(others(&rawdoc! { "mapReduce": "c", "out": { "merge": "a", "db": "e" } }).1, ["e.a"]);
        assert_eq!(others(&rawdoc! { "mapReduce": "c", "out": { "inline": 1 } }), (vec![], vec![]));
    }
}
