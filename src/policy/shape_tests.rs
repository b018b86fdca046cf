use super::*;
use bson::{RawDocumentBuf, rawdoc};
use proptest::prelude::*;

fn asked(body: &RawDocument) -> Asked<'_> {
    Asked { namespace: "shop.orders", body, statements: None }
}

fn text(body: &RawDocumentBuf) -> String {
    asked(body).text()
}

#[test]
fn a_shape_shows_what_is_asked_and_no_value() {
    let cases = [
        (
            rawdoc! { "find": "orders", "filter": { "customer_id": 7, "at": { "$gt": "x" } }, "sort": { "at": 1.0 },
            "limit": 5, "lsid": { "id": 3 }, "$db": "shop" },
            "{find: orders, filter: {customer_id: ?, at: {$gt: ?}}, sort: {at: 1}, limit: ?}",
        ),
        (
            rawdoc! { "find": "orders", "filter": { "a": { "$in": [1, 2, 3] }, "$or": [{ "b": { "x": 1 } }, { "c": [1] }] } },
            "{find: orders, filter: {a: {$in: [?]}, $or: [{b: ?}, {c: [?]}]}}",
        ),
        (
            rawdoc! { "find": "orders", "filter": { "items": { "$elemMatch": { "sku": "s", "n": { "$not": { "$lt": 3 } } } } },
            "projection": { "_id": 0, "a": true } },
            "{find: orders, filter: {items: {$elemMatch: {sku: ?, n: {$not: {$lt: ?}}}}}, projection: {_id: ?, a: ?}}",
        ),
        (
            rawdoc! { "aggregate": "orders", "pipeline": [{ "$match": { "a": "$secret", "$expr": { "$eq": ["$b", "secret"] } } },
            { "$sort": { "a": -1 } }, { "$lookup": { "from": "c", "localField": "a", "foreignField": "b", "as": "d" } },
            { "$group": { "_id": "$a", "n": { "$sum": 1 } } }, { "$limit": 5 }], "cursor": {} },
            "{aggregate: orders, pipeline: [{$match: {a: ?, $expr: {$eq: [$b, ?]}}}, {$sort: {a: -1}}, \
             {$lookup: {from: c, localField: a, foreignField: b, as: d}}, {$group: {_id: $a, n: {$sum: ?}}}, {$limit: ?}]}",
        ),
        (rawdoc! { "count": "orders", "query": { "a": 1 } }, "{count: orders, query: {a: ?}}"),
        (rawdoc! { "distinct": "orders", "key": "a.b", "query": {} }, "{distinct: orders, key: a.b}"),
        (
            rawdoc! { "findAndModify": "orders", "query": { "_id": 1 }, "update": { "$set": { "items.3.n": 4, "d": { "e": 1 } } },
            "new": true },
            "{findAndModify: orders, query: {_id: ?}, update: {$set: {items.#.n: ?, d: ?}}, new: true}",
        ),
    ];
    for (body, expected) in cases {
        assert_eq!(text(&body), expected);
    }
}

#[test]
fn statements_beside_a_command_are_part_of_its_shape() {
    let body = rawdoc! { "update": "orders", "ordered": true };
    let one = rawdoc! { "q": { "_id": 1 }, "u": { "$inc": { "n": 1 } }, "upsert": true };
    let shape = |count| Asked {
        namespace: "shop.orders",
        body: &body,
        statements: Some(("updates", Some(&one), count)),
    };
    assert_eq!(
        shape(1).text(),
        "{update: orders, updates: [{q: {_id: ?}, u: {$inc: {n: ?}}, upsert: true}]}"
    );
    assert!(shape(2).text().ends_with(", ...]}"));
    assert_ne!(shape(1).hash(), shape(2).hash());
    let replacement = rawdoc! { "q": { "_id": 1 }, "u": { "_id": 1, "secret": 1 } };
    let shape =
        Asked { namespace: "shop.orders", body: &body, statements: Some(("updates", Some(&replacement), 1)) };
    assert_eq!(shape.text(), "{update: orders, updates: [{q: {_id: ?}, u: {...}}]}");
    let insert = rawdoc! { "insert": "orders" };
    let shape = Asked { namespace: "shop.orders", body: &insert, statements: Some(("documents", None, 1)) };
    assert_eq!(shape.text(), "{insert: orders, documents: [?]}");
}

#[test]
fn the_hash_is_pinned_and_tells_namespaces_apart() {
    let body = rawdoc! { "find": "orders", "filter": { "a": 1 } };
    assert_eq!(asked(&body).hash(), PINNED, "{:#x}", asked(&body).hash());
    assert_ne!(asked(&body).hash(), Asked { namespace: "b.orders", ..asked(&body) }.hash());
}

/// Of `{find: orders, filter: {a: ?}}` on `shop.orders`; baselines are stored under it.
const PINNED: u64 = 0xa1f5_681f_aa35_6407;

#[test]
fn a_deep_or_long_command_is_cut() {
    let mut deep = rawdoc! { "a": 1 };
    for _ in 0..100 {
        deep = rawdoc! { "$and": [deep] };
    }
    assert!(text(&rawdoc! { "find": "orders", "filter": deep }).len() < 1000);
    let mut long = RawDocumentBuf::new();
    for index in 0..5000 {
        long.append(bson::raw::CString::try_from(format!("f{index}")).unwrap(), 1);
    }
    assert!(text(&rawdoc! { "find": "orders", "filter": long }).len() < 10_000);
}

proptest! {
    #[test]
    fn values_do_not_matter_and_never_show(a in "[a-z]{8}", b in "[a-z]{8}", n in 2..1000_i32, m in 2..1000_i32) {
        let of = |text: &str, number: i32| rawdoc! { "find": "orders",
            "filter": { "f": text, "g": { "$gte": number }, "h": { "$in": [text, number] } }, "skip": number };
        let (one, other) = (of(&a, n), of(&b, m));
        prop_assert_eq!(asked(&one).hash(), asked(&other).hash());
        prop_assert!(!text(&one).contains(&a));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
        let mut document = vec![0; 4];
        document.extend(&bytes);
        document.push(0);
        let length = i32::try_from(document.len()).unwrap().to_le_bytes();
        document[..4].copy_from_slice(&length);
        if let Ok(body) = RawDocument::from_bytes(&document) {
            let _ = asked(body).hash();
            let _ = asked(body).text();
        }
    }
}
