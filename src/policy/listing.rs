//! What there is on two clusters while collections are served by one or the other, told as if by one.

use std::collections::BTreeMap;

use bson::{Bson, Document, RawDocument, RawDocumentBuf};

use crate::model::side::{PerSide, Side};

/// The fields of `listCollections` and `listDatabases` that both clusters get; what is left out belongs to a session, to
/// one cluster or to the batches of a cursor.
const PASSED_ON: [&str; 11] = [
    "listCollections",
    "listDatabases",
    "filter",
    "nameOnly",
    "authorizedCollections",
    "authorizedDatabases",
    "comment",
    "maxTimeMS",
    "apiVersion",
    "apiStrict",
    "apiDeprecationErrors",
];

/// The command that each cluster is asked with, from a client's.
#[must_use]
pub fn asked(body: &RawDocument) -> RawDocumentBuf {
    let mut asked = RawDocumentBuf::new();
    for (name, value) in body.iter().flatten().filter(|(name, _)| PASSED_ON.contains(&name.as_str())) {
        asked.append(name, value);
    }
    asked
}

/// The entries of the collections of both clusters: each from the one that serves it, as `home` says; `None`:
/// nothing has made it move.
#[must_use]
pub fn collections(
    listed: PerSide<Vec<RawDocumentBuf>>,
    home: impl Fn(&str) -> Option<Side>,
) -> Vec<RawDocumentBuf> {
    let home = |entry: &RawDocumentBuf| entry.get_str("name").ok().and_then(&home);
    let of_old = listed.old.into_iter().filter(|entry| home(entry) != Some(Side::New));
    let mut shown: Vec<_> = of_old.collect();
    shown.extend(listed.new.into_iter().filter(|entry| home(entry) == Some(Side::New)));
    shown
}

/// The databases of old, and those of new that serve something (`serves`), with the sizes of both.
#[must_use]
pub fn databases(listed: &PerSide<Document>, serves: impl Fn(&str) -> bool) -> Document {
    let mut shown: BTreeMap<String, Document> = BTreeMap::new();
    for side in Side::BOTH {
        for entry in
            listed.get(side).get_array("databases").into_iter().flatten().filter_map(Bson::as_document)
        {
            let Ok(name) = entry.get_str("name") else { continue };
            if side == Side::New && !serves(name) {
                continue;
            }
            match shown.get_mut(name) {
                None => _ = shown.insert(name.to_owned(), entry.clone()),
                Some(both) => add(both, entry),
            }
        }
    }
    let mut reply = Document::new();
    if listed.old.contains_key("totalSize") {
        let sizes = shown.values().filter_map(|entry| whole(entry, "sizeOnDisk"));
        let total = sizes.fold(0_i64, i64::saturating_add);
        reply.insert("totalSize", total);
        reply.insert("totalSizeMb", total / (1 << 20));
    }
    reply.insert("databases", shown.into_values().map(Bson::from).collect::<Vec<_>>());
    reply.insert("ok", 1.0);
    reply
}

fn add(both: &mut Document, other: &Document) {
    if let (Some(one), Some(two)) = (whole(both, "sizeOnDisk"), whole(other, "sizeOnDisk")) {
        both.insert("sizeOnDisk", one.saturating_add(two));
    }
    if let (Ok(one), Ok(two)) = (both.get_bool("empty"), other.get_bool("empty")) {
        both.insert("empty", one && two);
    }
}

#[expect(clippy::cast_possible_truncation, reason = "sizes that older servers tell as doubles")]
fn whole(entry: &Document, field: &str) -> Option<i64> {
    match entry.get(field)? {
        Bson::Int32(size) => Some(i64::from(*size)),
        Bson::Int64(size) => Some(*size),
        Bson::Double(size) => Some(*size as i64),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{doc, rawdoc};

    #[test]
    fn each_collection_is_told_of_by_the_cluster_that_serves_it() {
        let listed = PerSide {
            old: vec![
                rawdoc! { "name": "moved", "at": "old" },
                rawdoc! { "name": "moving", "at": "old" },
                rawdoc! { "name": "other", "at": "old" },
            ],
            new: vec![
                rawdoc! { "name": "moved", "at": "new" },
                rawdoc! { "name": "moving", "at": "new" },
                rawdoc! { "name": "of new alone", "at": "new" },
            ],
        };
        let home = |name: &str| match name {
            "moved" => Some(Side::New),
            "moving" => Some(Side::Old),
            _ => None,
        };
        let shown: Vec<_> =
            collections(listed, home).iter().map(|entry| Document::try_from(entry).unwrap()).collect();
        let expected = [("moving", "old"), ("other", "old"), ("moved", "new")];
        assert_eq!(shown, expected.map(|(name, at)| doc! { "name": name, "at": at }));
    }

    #[test]
    fn databases_of_new_count_where_it_serves_something() {
        let entry = |name: &str, size: i64| doc! { "name": name, "sizeOnDisk": size, "empty": size == 0 };
        let listed = PerSide {
            old: doc! { "databases": [entry("admin", 1), entry("shop", 0)], "totalSize": 1_i64, "ok": 1.0 },
            new: doc! { "databases": [entry("gone", 3 << 20), entry("reshard", 9), entry("shop", 2)], "ok": 1.0 },
        };
        let shown = databases(&listed, |name| name != "reshard");
        let entries = [entry("admin", 1), entry("gone", 3 << 20), entry("shop", 2)];
        let total = (3_i64 << 20) + 3;
        let expected =
            doc! { "totalSize": total, "totalSizeMb": 3_i64, "databases": entries.to_vec(), "ok": 1.0 };
        assert_eq!(shown, expected);
        let names = PerSide {
            old: doc! { "databases": [{ "name": "a" }], "ok": 1.0 },
            new: doc! { "databases": [{ "name": "a" }], "ok": 1.0 },
        };
        assert_eq!(databases(&names, |_| true), doc! { "databases": [{ "name": "a" }], "ok": 1.0 });
    }

    #[test]
    fn what_belongs_to_a_session_or_a_cursor_is_not_passed_on() {
        let body = rawdoc! {
            "listCollections": 1, "filter": { "name": "a" }, "cursor": { "batchSize": 1 }, "lsid": { "id": 1 }, "$db": "shop",
        };
        assert_eq!(asked(&body), rawdoc! { "listCollections": 1, "filter": { "name": "a" } });
    }
}
