//! Changes of collections and indexes: what one concerns, whether it is done already, and how it is taken back.

use bson::{Bson, Document, RawDocument, doc};

use super::catalog::{Collection, Index, comparable_options};
use super::nesting::unpacked;
use crate::model::namespace::Namespace;
use crate::model::pattern::Pattern;

/// What a change concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Touched {
    /// These collections.
    Collections(Vec<Namespace>),
    /// All there are in a database.
    Database(String),
}

impl Touched {
    /// Whether it concerns what `spec` names: a collection, or a pattern.
    #[must_use]
    pub fn meets(&self, spec: &str) -> bool {
        let database = spec.split_once('.').map_or(spec, |(database, _)| database);
        match self {
            Self::Database(name) => name == database,
            Self::Collections(names) if Pattern::is_meant(spec) => Pattern::parse(spec)
                .is_ok_and(|it| names.iter().any(|name| it.names(name.database(), name.collection()))),
            Self::Collections(names) => names.iter().any(|name| name.as_str() == spec),
        }
    }
}

/// Whether a `createIndexes` would change nothing where `there` is. One with a time to live may mean other seconds
/// than are there while expiry is suspended.
#[must_use]
pub fn is_done(body: &RawDocument, there: &Collection) -> bool {
    let Ok(indexes) = body.get_array("indexes") else { return false };
    let mut wanted = indexes.into_iter().map(|index| {
        let spec = index.ok().and_then(|index| unpacked(index.as_document()?))?;
        Some(Index { spec, building: false })
    });
    wanted.all(|wanted| {
        wanted.is_some_and(|wanted| {
            let known = there.indexes.iter().find(|known| known.name() == wanted.name());
            known.is_some_and(|known| !known.building && !wanted.is_ttl() && known.same_as(&wanted))
        })
    })
}

/// How a change is taken back.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Undo {
    /// Commands, in order.
    pub commands: Vec<Document>,
    /// TTL indexes among those that are made again: their expiry must be suspended.
    pub suspend: Vec<String>,
}

/// What makes a collection that is like `now` like `before` again.
#[must_use]
pub fn undo(collection: &str, before: &Collection, now: &Collection) -> Undo {
    let mut undo = Undo::default();
    let find = |of: &Collection, name: &str| of.indexes.iter().find(|index| index.name() == name).cloned();
    for made in now.indexes.iter().filter(|index| find(before, index.name()).is_none()) {
        undo.commands.push(doc! { "dropIndexes": collection, "index": made.name() });
    }
    for gone in before.indexes.iter().filter(|index| find(now, index.name()).is_none()) {
        undo.commands.push(doc! { "createIndexes": collection, "indexes": [gone.creation()] });
        undo.suspend.extend(gone.is_ttl().then(|| gone.name().to_owned()));
    }
    for index in &before.indexes {
        let changed = find(now, index.name()).and_then(|now| modified(index, &now));
        undo.commands.extend(changed.map(|index| doc! { "collMod": collection, "index": index }));
    }
    undo.commands.extend(options(collection, before, now));
    undo
}

/// What `collMod` takes to make an index as it was.
fn modified(before: &Index, now: &Index) -> Option<Document> {
    let mut index = doc! { "name": before.name() };
    for option in ["hidden", "prepareUnique"] {
        let is_set = |index: &Index| index.spec.get_bool(option).unwrap_or(false);
        if is_set(before) != is_set(now) {
            index.insert(option, is_set(before));
        }
    }
    if let Some(seconds) = before.ttl().filter(|seconds| now.ttl() != Some(*seconds)) {
        index.insert("expireAfterSeconds", seconds);
    }
    (index.len() > 1).then_some(index)
}

fn options(collection: &str, before: &Collection, now: &Collection) -> Option<Document> {
    let (had, has) = (comparable_options(&before.options), comparable_options(&now.options));
    let mut change = doc! { "collMod": collection };
    let defaults: [(&str, Bson); 4] = [
        ("validator", Bson::Document(Document::new())),
        ("validationLevel", "strict".into()),
        ("validationAction", "error".into()),
        ("changeStreamPreAndPostImages", Bson::Document(doc! { "enabled": false })),
    ];
    for (name, default) in defaults {
        if had.get(name) != has.get(name) {
            change.insert(name, before.options.get(name).cloned().unwrap_or(default));
        }
    }
    (change.len() > 1).then_some(change)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    fn index(spec: Document) -> Index {
        Index { spec, building: false }
    }

    fn with(indexes: &[Document], options: Document) -> Collection {
        let indexes = indexes.iter().cloned().map(index).collect();
        Collection { kind: "collection".into(), options, indexes }
    }

    #[test]
    fn a_change_concerns_collections_by_name_and_by_pattern() {
        let one = Touched::Collections(vec![Namespace::new("shop", "a"), Namespace::new("other", "b")]);
        for spec in ["shop.a", "other.b", "shop.*", "other.b*"] {
            assert!(one.meets(spec), "{spec}");
        }
        for spec in ["shop.b", "shop.b*", "stop.*"] {
            assert!(!one.meets(spec), "{spec}");
        }
        let all = Touched::Database("shop".into());
        assert!(all.meets("shop.a") && all.meets("shop.*") && !all.meets("shopping.a"));
    }

    #[test]
    fn what_is_there_as_asked_for_is_done() {
        let a = doc! { "v": 2, "key": { "a": 1 }, "name": "a_1" };
        let there = with(&[doc! { "v": 2, "key": { "_id": 1 }, "name": "_id_" }, a], doc! {});
        let asked = |index: bson::RawDocumentBuf| {
            is_done(&rawdoc! { "createIndexes": "c", "indexes": [index] }, &there)
        };
        assert!(asked(rawdoc! { "key": { "a": 1.0 }, "name": "a_1", "background": true }));
        assert!(!asked(rawdoc! { "key": { "a": -1 }, "name": "a_1" }));
        assert!(!asked(rawdoc! { "key": { "a": 1 }, "name": "a_1", "unique": true }));
        assert!(!asked(rawdoc! { "key": { "b": 1 }, "name": "b_1" }));
        let ttl = with(&[doc! { "key": { "t": 1 }, "name": "t_1", "expireAfterSeconds": 7 }], doc! {});
        let same = rawdoc! { "key": { "t": 1 }, "name": "t_1", "expireAfterSeconds": 7 };
        assert!(!is_done(&rawdoc! { "createIndexes": "c", "indexes": [same] }, &ttl));
        let building = Collection {
            indexes: there.indexes.iter().map(|index| Index { building: true, ..index.clone() }).collect(),
            ..there.clone()
        };
        let body = rawdoc! { "createIndexes": "c", "indexes": [{ "key": { "a": 1 }, "name": "a_1" }] };
        assert!(is_done(&body, &there) && !is_done(&body, &building) && !is_done(&rawdoc! {}, &there));
    }

    #[test]
    fn nothing_is_taken_back_where_nothing_has_changed() {
        let one = with(&[doc! { "key": { "a": 1 }, "name": "a_1" }], doc! { "validator": { "a": 1 } });
        assert_eq!(undo("c", &one, &one), Undo::default());
    }

    #[test]
    fn indexes_are_taken_back() {
        let a = doc! { "v": 2, "key": { "a": 1 }, "name": "a_1" };
        let t = doc! { "v": 2, "key": { "t": 1 }, "name": "t_1", "expireAfterSeconds": 2_147_483_647 };
        let hidden = doc! { "v": 2, "key": { "h": 1 }, "name": "h_1", "hidden": true };
        let shown = doc! { "v": 2, "key": { "h": 1 }, "name": "h_1" };
        let made = undo("c", &with(&[], doc! {}), &with(std::slice::from_ref(&a), doc! {}));
        assert_eq!(made.commands, [doc! { "dropIndexes": "c", "index": "a_1" }]);
        let dropped = undo("c", &with(&[a, t], doc! {}), &with(&[], doc! {}));
        let of = |number: usize| dropped.commands[number].get_array("indexes").unwrap()[0].clone();
        assert_eq!(of(0), Bson::Document(doc! { "key": { "a": 1 }, "name": "a_1" }));
        assert_eq!((dropped.commands.len(), dropped.suspend), (2, vec!["t_1".to_owned()]));
        let changed = undo(
            "c",
            &with(std::slice::from_ref(&hidden), doc! {}),
            &with(std::slice::from_ref(&shown), doc! {}),
        );
        assert_eq!(changed.commands, [doc! { "collMod": "c", "index": { "name": "h_1", "hidden": true } }]);
        let back = undo("c", &with(&[shown], doc! {}), &with(&[hidden], doc! {}));
        assert_eq!(back.commands, [doc! { "collMod": "c", "index": { "name": "h_1", "hidden": false } }]);
    }

    #[test]
    fn options_are_taken_back() {
        let none = with(&[], doc! {});
        let some = with(&[], doc! { "validator": { "a": 1 }, "validationLevel": "moderate" });
        let removed = doc! { "collMod": "c", "validator": {}, "validationLevel": "strict" };
        assert_eq!(undo("c", &none, &some).commands, [removed]);
        let set = doc! { "collMod": "c", "validator": { "a": 1 }, "validationLevel": "moderate" };
        assert_eq!(undo("c", &some, &none).commands, [set]);
    }
}
