use super::*;
use crate::policy::canonical::key_of;
use crate::policy::order::compare;
use bson::spec::BinarySubtype;
use bson::{Bson, oid::ObjectId};
use proptest::prelude::*;
use std::cmp::Ordering;

fn range(name: &str, from: impl Into<Option<Bson>>, to: impl Into<Option<Bson>>) -> KeyRange {
    KeyRange { name: name.to_owned(), from: from.into(), to: to.into() }
}

fn key(value: &Bson) -> Key {
    let raw = bson::raw::RawBson::try_from(value.clone()).unwrap();
    key_of(raw.as_raw_bson_ref()).unwrap()
}

fn dec(text: &str) -> Bson {
    Bson::Decimal128(text.parse().unwrap())
}

fn wrong(ranges: Vec<KeyRange>) -> String {
    KeyRanges::new(ranges).unwrap_err().join("; ")
}

fn told<'a>(ranges: &'a KeyRanges, value: &Bson) -> Option<&'a str> {
    let key = key(value);
    let range = ranges.with(&key).map(|range| &*range.name);
    // One and the same, by its slot.
    let slot = ranges.slot_of(&key);
    assert_eq!(range.and_then(|name| ranges.named(name)), range.map(|_| slot));
    assert_eq!(range.is_some(), slot.number() >= ranges.layout().hashed());
    range
}

#[test]
fn a_range_holds_its_first_bound_and_not_its_second_whatever_their_type() {
    let ranges = KeyRanges::new(vec![
        range("few", Bson::Int32(10), Bson::Double(20.0)),
        range("more", dec("20.00"), Bson::Int64(30)),
        range("least", None, Bson::Int32(-5)),
        range("texts", Bson::from("m"), None),
    ])
    .unwrap();
    let is = |value: Bson| told(&ranges, &value);
    for inside in [Bson::Int32(10), Bson::Int64(10), Bson::Double(10.0), dec("10.00"), Bson::Double(19.999)] {
        assert_eq!(is(inside), Some("few"));
    }
    assert_eq!(is(dec("19.99999999999999999999999999999999")), Some("few"));
    for outside in [Bson::Double(9.999), dec("9.99999999999999999999999999"), Bson::Int32(30), dec("1E3000")]
    {
        assert_eq!(is(outside), None);
    }
    assert_eq!((is(Bson::Double(20.0)), is(dec("29.5"))), (Some("more"), Some("more")));
    // What is no number is the least of all, and so are infinities below all.
    for least in [
        Bson::Double(f64::NAN),
        dec("NaN"),
        Bson::Double(-1e300),
        dec("-1E3000"),
        dec("-Infinity"),
        dec("-5.5"),
    ] {
        assert_eq!(is(least), Some("least"));
    }
    assert_eq!((is(Bson::Int32(-5)), is(dec("-4.5"))), (None, None));
    assert_eq!((is("m".into()), is("zz".into()), is("lz".into())), (Some("texts"), Some("texts"), None));
    // Only values of its kind.
    for other in [Bson::Null, Bson::Boolean(true), Bson::MinKey, Bson::MaxKey, ObjectId::new().into()] {
        assert_eq!(is(other), None);
    }
    assert_eq!(is(bson::bson!({ "a": 15 })), None);
}

#[test]
fn object_ids_dates_and_uuids_have_ranges_too() {
    let id = |first: u8| Bson::ObjectId(ObjectId::from_bytes([first; 12]));
    let date = |millis| Bson::DateTime(bson::DateTime::from_millis(millis));
    let uuid =
        |first: u8| Bson::Binary(bson::Binary { subtype: BinarySubtype::Uuid, bytes: vec![first; 16] });
    let ranges = KeyRanges::new(vec![
        range("ids", id(1), id(3)),
        range("dates", date(-5), date(5)),
        range("uuids", uuid(7), uuid(8)),
    ])
    .unwrap();
    let all = [id(1), id(2), id(3), date(-6), date(-5), date(4), uuid(7), uuid(8)];
    let told: Vec<_> = all.iter().map(|value| told(&ranges, value)).collect();
    let [ids, dates, uuids] = [Some("ids"), Some("dates"), Some("uuids")];
    assert_eq!(told, [ids, ids, None, None, dates, dates, uuids, None]);
}

#[test]
fn what_is_wrong_is_told() {
    let number = Bson::Int32;
    assert!(wrong(vec![range("a b", number(1), None)]).contains("use 1 to 64 letters"));
    assert!(wrong(vec![range("a", None, None)]).contains("no bound"));
    assert!(wrong(vec![range("a", number(1), Bson::from("b"))]).contains("of one kind"));
    assert!(wrong(vec![range("a", number(2), number(2))]).contains("empty"));
    assert!(wrong(vec![range("a", Bson::Double(1.5), None)]).contains("no whole number"));
    assert!(wrong(vec![range("a", dec("1E30"), None)]).contains("no whole number"));
    assert!(wrong(vec![range("a", Bson::Null, number(1))]).contains("is no bound"));
    assert!(wrong(vec![range("a", Bson::from("x".repeat(LARGEST_BOUND + 1)), None)]).contains("at most"));
    let two = |a, b| wrong(vec![a, b]);
    assert!(
        two(range("a", number(1), number(3)), range("b", Bson::Double(2.0), None))
            .contains("a and b overlap")
    );
    assert!(two(range("a", number(5), None), range("b", number(7), number(8))).contains("overlap"));
    assert!(two(range("a", number(5), number(6)), range("a", number(7), number(8))).contains("twice"));
    let many = (0..=i32::from(MOST_RANGES)).map(|n| range(&format!("r{n}"), number(n), number(n + 1)));
    assert!(wrong(many.collect()).contains("24 can be"));
}

#[test]
fn without_ranges_slots_are_what_they_were() {
    for number in 0..2000 {
        let key = key(&Bson::Int32(number));
        assert_eq!(KeyRanges::none().slot_of(&key), key.id_slot());
    }
}

#[test]
fn slots_beside_ranges_are_pinned() {
    // Part of the stored format, as those without are.
    let ranges = KeyRanges::new(vec![
        range("later", Bson::Int32(100), Bson::Int32(200)),
        range("first", Bson::Int32(0), Bson::Int32(1)),
    ])
    .unwrap();
    let slot = |value: Bson| ranges.slot_of(&key(&value)).number();
    assert_eq!((slot(Bson::Int32(150)), slot(Bson::Double(0.5))), (1022, 1023));
    for value in [Bson::Int32(1), Bson::from("a"), Bson::Int32(99), Bson::Int32(200)] {
        assert_eq!(u64::from(slot(value.clone())), key(&value).slot_hash() % 1022);
    }
    assert_eq!((slot(Bson::Int32(1)), slot("a".into())), (696, 241));
}

/// Numbers of all types, many of them close to each other, and other values.
fn values() -> impl Strategy<Value = Bson> {
    prop_oneof![
        (-50..50_i32).prop_map(Bson::Int32),
        (-50..50_i64).prop_map(Bson::Int64),
        (-200..200_i32).prop_map(|quarters| Bson::Double(f64::from(quarters) / 4.0)),
        (-200..200_i32, 0..3_u32).prop_map(|(n, places)| dec(&format!("{n}E-{places}"))),
        any::<i64>().prop_map(Bson::Int64),
        any::<f64>().prop_map(Bson::Double),
        "[ab]{0,3}".prop_map(Bson::String),
        proptest::array::uniform12(0..3_u8).prop_map(|bytes| Bson::ObjectId(ObjectId::from_bytes(bytes))),
        (-5..5_i64).prop_map(|millis| Bson::DateTime(bson::DateTime::from_millis(millis))),
        proptest::collection::vec(0..3_u8, 0..4)
            .prop_map(|bytes| Bson::Binary(bson::Binary { subtype: BinarySubtype::Generic, bytes })),
        Just(Bson::Null),
        Just(Bson::Boolean(true)),
    ]
}

fn is_within(range: &KeyRange, value: &Bson) -> bool {
    let rank = crate::policy::order::rank;
    let kind = range.from.as_ref().or(range.to.as_ref()).map(rank);
    kind == Some(rank(value))
        && range.from.as_ref().is_none_or(|from| compare(from, value) != Ordering::Greater)
        && range.to.as_ref().is_none_or(|to| compare(value, to) == Ordering::Less)
}

proptest! {
    /// Against each range in turn, by the order that merged results are sorted in.
    #[test]
    fn a_key_is_in_the_range_that_bson_order_says(
        mut bounds in proptest::collection::vec(values(), 2..24),
        open in proptest::option::of(0..12_usize),
        probes in proptest::collection::vec(values(), 1..80),
    ) {
        bounds.retain(|value| bound(value).is_ok());
        bounds.sort_by(compare);
        bounds.dedup_by(|a, b| compare(a, b) == Ordering::Equal);
        let mut declared: Vec<KeyRange> = bounds
            .windows(2)
            .enumerate()
            .filter(|(number, pair)| number % 3 != 2 && bound(&pair[0]).unwrap().kind() == bound(&pair[1]).unwrap().kind())
            .map(|(number, pair)| range(&format!("r{number}"), pair[0].clone(), pair[1].clone()))
            .collect();
        let last = declared.len().saturating_sub(1);
        if let (Some(true), Some(range)) = (open.map(|n| n % 2 == 0), declared.get_mut(last)) {
            range.to = None;
        }
        declared.reverse();
        let ranges = KeyRanges::new(declared.clone()).unwrap();
        for value in probes.iter().chain(&bounds) {
            let expected = declared.iter().find(|range| is_within(range, value)).map(|range| &*range.name);
            prop_assert_eq!(told(&ranges, value), expected, "{}", value);
        }
    }

    /// Spellings of one key lie in one slot, whatever the ranges.
    #[test]
    fn equal_keys_have_one_slot(
        whole in -100..100_i64, cents in 0..100_i64, from in -100..100_i64, to in -100..100_i64,
    ) {
        prop_assume!(from < to);
        let ranges = KeyRanges::new(vec![range("r", Bson::Int64(from), Bson::Int64(to))]).unwrap();
        let slot = |value: Bson| ranges.slot_of(&key(&value));
        let decimal = dec(&format!("{}E-2", whole * 100 + cents));
        let spelled = dec(&format!("{}E-5", (whole * 100 + cents) * 1000));
        prop_assert_eq!(slot(decimal.clone()), slot(spelled));
        if cents % 25 == 0 {
            #[expect(clippy::cast_precision_loss)]
            let double = (whole * 100 + cents) as f64 / 100.0;
            prop_assert_eq!(slot(decimal), slot(Bson::Double(double)));
        }
    }
}
