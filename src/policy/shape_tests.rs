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

/// What must show in no shape.
const SECRET: &str = "secret";

fn value() -> RawDocumentBuf {
    rawdoc! { "secret": SECRET, "n": [SECRET] }
}

#[test]
fn no_value_shows_in_a_filter() {
    let regex = bson::Regex { pattern: SECRET.try_into().unwrap(), options: "".try_into().unwrap() };
    let filters = [
        rawdoc! { "a": SECRET },
        rawdoc! { "a": value() },
        rawdoc! { "a": { "$eq": value() } },
        rawdoc! { "a": { "$gt": 1, "secret": 1 } },
        rawdoc! { "a": { "$in": [SECRET, value()] } },
        rawdoc! { "a": { "$not": { "$all": [{ "$elemMatch": { "b": value() } }] } } },
        rawdoc! { "a": { "$elemMatch": { "b": value(), "$or": [{ "c": SECRET }] } } },
        rawdoc! { "a": regex.clone() },
        rawdoc! { "a": { "$regex": SECRET, "$options": SECRET } },
        rawdoc! { "$comment": SECRET },
        rawdoc! { "$comment": { "$secret": 1 } },
        rawdoc! { "$where": SECRET },
        rawdoc! { "$text": { "$search": SECRET, "$language": SECRET } },
        rawdoc! { "$jsonSchema": { "properties": { "secret": 1 } } },
        rawdoc! { "$expr": { "$eq": ["$a", SECRET] } },
        rawdoc! { "$expr": { "$eq": ["$a", value()] } },
        rawdoc! { "$expr": { "$in": ["$a", [SECRET, SECRET]] } },
        rawdoc! { "$expr": { "$regexMatch": { "input": "$a", "regex": regex } } },
        rawdoc! { "$expr": { "$eq": ["$a", { "$literal": "$secret" }] } },
        rawdoc! { "a.secret@example.com.n": 1 },
    ];
    for filter in filters {
        let found = text(&rawdoc! { "find": "orders", "filter": filter });
        assert!(!found.contains(SECRET), "{found}");
    }
}

#[test]
fn no_value_shows_in_a_pipeline() {
    let join = |more: (&str, RawDocumentBuf)| {
        let mut join = rawdoc! { "from": "c", "as": "d" };
        join.append(bson::raw::CString::try_from(more.0).unwrap(), more.1);
        rawdoc! { "$lookup": join }
    };
    let stages = [
        rawdoc! { "$match": { "a": value() } },
        rawdoc! { "$set": { "from": SECRET, "as": SECRET, "path": SECRET, "unit": SECRET, "coll": SECRET, "x": "$y" } },
        rawdoc! { "$set": { "a": value(), "b": { "c": [value()] } } },
        rawdoc! { "$group": { "_id": { "localField": SECRET, "x": "$y" } } },
        rawdoc! { "$replaceWith": value() },
        join(("let", rawdoc! { "x": SECRET, "y": value() })),
        join(("pipeline", rawdoc! { "$match": { "a": value(), "$expr": { "$eq": ["$$x", SECRET] } } })),
        rawdoc! { "$lookup": { "from": "c", "as": "d", "pipeline": [{ "$match": { "a": { "$in": [SECRET] } } }] } },
        rawdoc! { "$graphLookup": { "from": "c", "startWith": SECRET, "restrictSearchWithMatch": { "a": value(), "b": { "$gt": 1 } } } },
        rawdoc! { "$geoNear": { "near": [1, 2], "key": "at", "query": { "a": value(), "b": SECRET, "c": { "$gt": 1 } } } },
        rawdoc! { "$documents": [value()] },
        rawdoc! { "$search": { "text": { "query": SECRET, "path": SECRET } } },
        rawdoc! { "$bucket": { "groupBy": "$a", "boundaries": [SECRET], "default": SECRET } },
        rawdoc! { "$project": { "a": { "$elemMatch": { "b": value() } }, "c": { "$concat": ["$a", SECRET] } } },
        rawdoc! { "$dateAdd": { "startDate": "$a", "unit": SECRET, "timezone": SECRET } },
    ];
    for stage in stages {
        let found = text(&rawdoc! { "aggregate": "orders", "pipeline": [stage] });
        assert!(!found.contains(SECRET), "{found}");
    }
}

#[test]
fn no_value_shows_beside_a_filter() {
    let of_command = rawdoc! {
        "find": "orders", "comment": SECRET, "let": { "x": SECRET }, "hint": SECRET, "sort": { "a": SECRET },
        "collation": { "locale": SECRET, "caseFirst": SECRET, "version": SECRET }, "min": { "a": SECRET },
        "max": { "a": value() }, "projection": { "a": { "$elemMatch": { "b": value() } }, "b": SECRET },
    };
    assert!(!text(&of_command).contains(SECRET), "{}", text(&of_command));
    let update = rawdoc! { "q": { "a": value() }, "u": { "$set": { "a": value(), "b.c": SECRET }, "$push": { "d": { "$each": [value()] } } },
    "arrayFilters": [{ "e.a": value() }], "c": { "x": SECRET } };
    let body = rawdoc! { "update": "orders" };
    let shape =
        Asked { namespace: "shop.orders", body: &body, statements: Some(("updates", Some(&update), 1)) };
    assert!(!shape.text().contains(SECRET), "{}", shape.text());
}

#[test]
fn what_servers_and_indexes_have_names_for_is_shown() {
    let body = rawdoc! { "find": "orders", "sort": { "score": { "$meta": "textScore" }, "a": -1 }, "hint": "customer_id_1_at_-1",
    "collation": { "locale": "de_AT", "strength": 2, "alternate": "shifted" } };
    let expected = "{find: orders, sort: {score: {$meta: textScore}, a: -1}, hint: customer_id_1_at_-1, \
                    collation: {locale: de_AT, strength: ?, alternate: shifted}}";
    assert_eq!(text(&body), expected);
    let hints = ["_id_", "at_-1", "place_2dsphere", "my index", "a@b.com_1", "507f1f77bcf86cd799439011_1"];
    let shown = hints.map(|hint| !text(&rawdoc! { "find": "orders", "hint": hint }).contains('?'));
    assert_eq!(shown, [true, true, true, false, false, false]);
    let branches = rawdoc! { "$set": { "b": { "$switch": { "branches": [{ "case": { "$gt": ["$a", 1] }, "then": "x" }] } } } };
    assert!(
        text(&rawdoc! { "aggregate": "orders", "pipeline": [branches] })
            .contains("{case: {$gt: [$a, ?]}, then: ?}")
    );
    let unit = rawdoc! { "$set": { "b": { "$dateAdd": { "startDate": "$a", "unit": "day", "amount": 3 } } } };
    assert!(text(&rawdoc! { "aggregate": "orders", "pipeline": [unit] }).contains("unit: day"));
}

#[test]
fn values_that_are_used_as_names_make_one_shape() {
    let hash = |name: &str| {
        let mut filter = RawDocumentBuf::new();
        filter.append(bson::raw::CString::try_from(format!("scores.{name}.best")).unwrap(), 1);
        asked(&rawdoc! { "find": "orders", "filter": filter }).hash()
    };
    let long = |letter: &str| letter.repeat(MOST_SEGMENT + 1);
    let made_up = [
        ["17", "3"].map(str::to_owned),
        ["2026-11-29", "2026-11-30"].map(str::to_owned),
        ["507f1f77bcf86cd799439011", "507f191e810c19729de860ea"].map(str::to_owned),
        ["3f2504e0-4f89-11d3-9a0c-0305e82c3301", "9a0c04e0-4f89-11d3-3f25-0305e82c3301"].map(str::to_owned),
        ["a@example", "b@example"].map(str::to_owned),
        ["user_123456", "user_98765"].map(str::to_owned),
        [long("a"), long("b")],
    ];
    for [one, other] in made_up {
        assert_eq!(hash(&one), hash(&other), "{one} {other}");
    }
    for [one, other] in [["line1", "line2"], ["a", "b"], ["cafe", "deadbeef"]] {
        assert_ne!(hash(one), hash(other), "{one} {other}");
    }
    let found = |values: &[i32]| {
        let values: bson::raw::RawArrayBuf =
            values.iter().map(|value| bson::raw::RawBson::Int32(*value)).collect();
        let expression = rawdoc! { "$expr": { "$in": ["$a", values] } };
        asked(&rawdoc! { "find": "orders", "filter": expression }).hash()
    };
    assert_eq!(found(&[1, 2]), found(&[1, 2, 3]), "a list is one, however long");
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
    let mut wide = RawDocumentBuf::new();
    for index in 0..300 {
        let name = format!("{}{index}", "ä".repeat(25));
        wide.append(bson::raw::CString::try_from(name).unwrap(), 1);
    }
    let found = text(&rawdoc! { "find": "orders", "filter": wide });
    assert!(found.len() < MOST_TEXT + 10 && found.ends_with("..."), "{}", found.len());
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
