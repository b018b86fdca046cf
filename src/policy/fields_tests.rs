use super::*;
use crate::policy::nesting::tests::nested;
use bson::{Bson, RawDocumentBuf, doc};
use proptest::prelude::*;

fn kinds(served: bson::Document, shadow: bson::Document) -> Vec<(String, FieldKind)> {
    let raw = |document| RawDocumentBuf::try_from(&document).unwrap();
    let found = differing(&raw(served), &raw(shadow), 100);
    found.into_iter().map(|one| (one.path, one.kind)).collect()
}

fn one(served: impl Into<Bson>, shadow: impl Into<Bson>) -> Option<FieldKind> {
    let found = kinds(doc! { "a": { "b": [0, served.into()] } }, doc! { "a": { "b": [0, shadow.into()] } });
    assert!(found.iter().all(|(path, _)| path == "a.b.1"), "{found:?}");
    assert!(found.len() <= 1, "{found:?}");
    found.into_iter().next().map(|(_, kind)| kind)
}

fn decimal(text: &str) -> Bson {
    Bson::Decimal128(text.parse().unwrap())
}

#[test]
fn each_way_to_differ_has_its_kind() {
    assert_eq!(one(1, 1), None);
    assert_eq!(one(1, 2), Some(FieldKind::Value));
    assert_eq!(one("a", "b"), Some(FieldKind::Value));
    assert_eq!(one(1, 1_i64), Some(FieldKind::Type));
    assert_eq!(one(1, 1.0), Some(FieldKind::Type));
    assert_eq!(one(1, "1"), Some(FieldKind::Type));
    assert_eq!(one(1, Bson::Null), Some(FieldKind::Type));
    assert_eq!(one(1.0, decimal("1")), Some(FieldKind::Type));
    assert_eq!(one(doc! {}, Bson::Array(vec![])), Some(FieldKind::Type));
    assert_eq!(one(0.0, -0.0), Some(FieldKind::NegativeZero));
    assert_eq!(one(f64::NAN, f64::NAN), None);
    assert_eq!(one(f64::NAN, -f64::NAN), Some(FieldKind::Nan));
    assert_eq!(one(f64::NAN, 1.0), Some(FieldKind::Nan));
    assert_eq!(one(decimal("NaN"), decimal("NaN")), None);
    assert_eq!(one(decimal("NaN"), decimal("1")), Some(FieldKind::Nan));
    assert_eq!(one(decimal("1.0"), decimal("1.0")), None);
    assert_eq!(one(decimal("1.0"), decimal("1.00")), Some(FieldKind::Decimal128));
    assert_eq!(one(decimal("0"), decimal("-0")), Some(FieldKind::Decimal128));
    assert_eq!(one(decimal("1.0"), decimal("1.1")), Some(FieldKind::Value));
}

#[test]
fn fields_that_are_missing_too_many_or_in_another_order_are_told_apart() {
    use FieldKind::{Extra, FieldOrder, Missing, Value};
    assert_eq!(kinds(doc! { "a": 1, "b": 2 }, doc! { "a": 1 }), [("b".to_owned(), Missing)]);
    assert_eq!(kinds(doc! { "a": 1 }, doc! { "a": 1, "b": 2 }), [("b".to_owned(), Extra)]);
    assert_eq!(
        kinds(doc! { "x": { "a": 1, "b": 2 } }, doc! { "x": { "b": 2, "a": 1 } }),
        [("x".to_owned(), FieldOrder)]
    );
    // In another order and with another value: both are told.
    assert_eq!(
        kinds(doc! { "a": 1, "b": 2 }, doc! { "b": 3, "a": 1 }),
        [("b".to_owned(), Value), (String::new(), FieldOrder)]
    );
    // A field between two others does not put these in another order.
    assert_eq!(kinds(doc! { "a": 1, "c": 2 }, doc! { "a": 1, "b": 0, "c": 2 }), [("b".to_owned(), Extra)]);
    assert_eq!(kinds(doc! { "a": [1, 2] }, doc! { "a": [1] }), [("a.1".to_owned(), Missing)]);
}

#[test]
fn what_several_fields_of_one_name_hold_is_compared_one_by_one() {
    let several = |values: [i32; 2]| {
        let mut document = RawDocumentBuf::new();
        values.into_iter().for_each(|value| document.append(bson::raw::cstr!("a"), value));
        document
    };
    assert_eq!(differing(&several([1, 2]), &several([1, 2]), 9), []);
    assert_eq!(differing(&several([1, 2]), &several([1, 3]), 9).len(), 1);
}

#[test]
fn what_nests_too_deep_ends_and_differs() {
    let deep = nested(100_000);
    let mut other = deep.clone().into_bytes();
    let place = other.iter().rposition(|byte| *byte == b'a').unwrap();
    other[place] = b'b';
    let other = RawDocumentBuf::from_bytes(other).unwrap();
    assert_eq!(differing(&deep, &deep, 9), []);
    assert_eq!(differing(&deep, &other, 9).len(), 1);
}

#[test]
fn no_more_are_told_than_asked_for() {
    let many = |value: i32| (0..50).map(|field| (field.to_string(), Bson::Int32(value))).collect();
    let raw = |document: bson::Document| RawDocumentBuf::try_from(&document).unwrap();
    assert_eq!(differing(&raw(many(1)), &raw(many(2)), 20).len(), 20);
}

pub(crate) fn any_document() -> impl Strategy<Value = bson::Document> {
    let leaf = prop_oneof![
        any::<i32>().prop_map(Bson::from),
        any::<i64>().prop_map(Bson::from),
        any::<f64>().prop_map(Bson::from),
        "[a-c]{0,2}".prop_map(Bson::from),
        Just(Bson::Null),
        Just(Bson::Double(-0.0)),
        Just(Bson::Double(f64::NAN)),
        Just(Bson::Decimal128("1.00".parse().unwrap())),
    ];
    let value = leaf.prop_recursive(3, 24, 4, |inner| {
        let document = prop::collection::vec(("[a-d]", inner.clone()), 0..4);
        prop_oneof![
            prop::collection::vec(inner, 0..4).prop_map(Bson::Array),
            document.prop_map(|fields| Bson::Document(fields.into_iter().collect())),
        ]
    });
    prop::collection::vec(("[a-d]", value), 0..5).prop_map(|fields| fields.into_iter().collect())
}

proptest! {
    #[test]
    fn nothing_differs_exactly_where_the_bytes_are_equal(left in any_document(), right in any_document()) {
        let raw = |document: &bson::Document| RawDocumentBuf::try_from(document).unwrap();
        let (left, right) = (raw(&left), raw(&right));
        prop_assert_eq!(differing(&left, &left, 100), vec![]);
        prop_assert_eq!(differing(&left, &right, 100).is_empty(), left.as_bytes() == right.as_bytes());
    }

    #[test]
    fn both_directions_find_as_much(left in any_document(), right in any_document()) {
        let raw = |document: &bson::Document| RawDocumentBuf::try_from(document).unwrap();
        let (left, right) = (raw(&left), raw(&right));
        let swapped = |kind| match kind {
            FieldKind::Missing => FieldKind::Extra,
            FieldKind::Extra => FieldKind::Missing,
            kind => kind,
        };
        let places = |found: Vec<FieldDifference>| {
            let mut places: Vec<_> = found.into_iter().map(|one| (one.path, one.kind)).collect();
            places.sort();
            places
        };
        let there = places(differing(&left, &right, 1000));
        let back = places(differing(&right, &left, 1000).into_iter().map(|one| FieldDifference { kind: swapped(one.kind), ..one }).collect());
        prop_assert_eq!(there, back);
    }
}
