//! The canonical form of a key: equal to MongoDB's index means equal bytes here.
//!
//! Two proxies, or two versions, that disagree here would disagree about authority: the form is part of
//! the stored format and never changes.

use bson::raw::{RawBson, RawBsonRef};
use bson::{Decimal128, RawDocument, RawDocumentBuf};

use super::nesting::DEEPEST;
use crate::model::key::Key;

/// The key of an `_id`; `None` for values that MongoDB does not take as one (arrays, regular
/// expressions, undefined, what nests too deep) and for documents that do not parse.
#[must_use]
pub fn key_of(id: RawBsonRef<'_>) -> Option<Key> {
    if matches!(id, RawBsonRef::Array(_) | RawBsonRef::RegularExpression(_) | RawBsonRef::Undefined) {
        return None;
    }
    let mut canonical = Vec::with_capacity(16);
    write_value(&mut canonical, id, DEEPEST)?;
    Some(Key::new(RawBson::from(id), canonical.into_boxed_slice()))
}

fn write_value(out: &mut Vec<u8>, value: RawBsonRef<'_>, depth: u32) -> Option<()> {
    match value {
        RawBsonRef::Int32(_) | RawBsonRef::Int64(_) | RawBsonRef::Double(_) | RawBsonRef::Decimal128(_) => {
            write_number(out, number_of(value)?);
        }
        RawBsonRef::String(text) | RawBsonRef::Symbol(text) => write_bytes(out, b'S', text.as_bytes()),
        RawBsonRef::Document(document) => write_document(out, document, depth)?,
        RawBsonRef::Array(array) => {
            out.push(b'A');
            let depth = depth.checked_sub(1)?;
            for item in array {
                write_value(out, item.ok()?, depth)?;
            }
            out.push(0);
        }
        RawBsonRef::ObjectId(id) => write_bytes(out, b'I', &id.bytes()),
        RawBsonRef::Boolean(truth) => write_bytes(out, b'B', &[u8::from(truth)]),
        RawBsonRef::DateTime(date) => write_bytes(out, b'T', &date.timestamp_millis().to_le_bytes()),
        RawBsonRef::Timestamp(time) => {
            write_bytes(out, b'O', &time.time.to_le_bytes());
            out.extend_from_slice(&time.increment.to_le_bytes());
        }
        RawBsonRef::Binary(binary) => {
            write_bytes(out, b'Y', &[binary.subtype.into()]);
            write_bytes(out, b'y', binary.bytes);
        }
        RawBsonRef::Null => out.push(b'0'),
        RawBsonRef::MinKey => out.push(b'<'),
        RawBsonRef::MaxKey => out.push(b'>'),
        RawBsonRef::JavaScriptCode(code) => write_bytes(out, b'J', code.as_bytes()),
        RawBsonRef::JavaScriptCodeWithScope(code) => {
            write_bytes(out, b'j', code.code.as_bytes());
            write_document(out, code.scope, depth)?;
        }
        RawBsonRef::DbPointer(_) => {
            let mut alone = RawDocumentBuf::new();
            alone.append(bson::cstr!(""), value);
            // The library shows no parts of it. Behind the length, the type and the empty name; before the end.
            write_bytes(out, b'P', alone.as_bytes().get(6..)?.split_last()?.1);
        }
        // Not as a whole _id, but MongoDB takes them inside one.
        RawBsonRef::RegularExpression(regex) => {
            write_bytes(out, b'R', regex.pattern.as_str().as_bytes());
            write_bytes(out, b'r', regex.options.as_str().as_bytes());
        }
        RawBsonRef::Undefined => out.push(b'U'),
    }
    Some(())
}

fn write_document(out: &mut Vec<u8>, document: &RawDocument, depth: u32) -> Option<()> {
    let depth = depth.checked_sub(1)?;
    out.push(b'{');
    for element in document {
        let (name, value) = element.ok()?;
        write_bytes(out, b'f', name.as_str().as_bytes());
        write_value(out, value, depth)?;
    }
    out.push(b'}');
    Some(())
}

fn write_bytes(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// A number by its value, whatever type it came in.
#[derive(Debug, PartialEq)]
pub(super) enum Number {
    Integer(i64),
    /// Not an integer of 64 bits; bits of a double that holds it exactly.
    Double(u64),
    /// Only a decimal holds it: sign, coefficient without trailing zeros, exponent.
    Decimal(bool, u128, i32),
}

/// The number that a value is, if it is one.
pub(super) fn number_of(value: RawBsonRef<'_>) -> Option<Number> {
    match value {
        RawBsonRef::Int32(number) => Some(Number::Integer(i64::from(number))),
        RawBsonRef::Int64(number) => Some(Number::Integer(number)),
        RawBsonRef::Double(number) => Some(double(number)),
        RawBsonRef::Decimal128(number) => Some(decimal(number)),
        _ => None,
    }
}

fn write_number(out: &mut Vec<u8>, number: Number) {
    match number {
        Number::Integer(value) => {
            out.push(b'N');
            out.extend_from_slice(&value.to_le_bytes());
        }
        Number::Double(bits) => {
            out.push(b'D');
            out.extend_from_slice(&bits.to_le_bytes());
        }
        Number::Decimal(negative, coefficient, exponent) => {
            out.push(b'M');
            out.push(u8::from(negative));
            out.extend_from_slice(&coefficient.to_le_bytes());
            out.extend_from_slice(&exponent.to_le_bytes());
        }
    }
}

const TWO_POW_63: f64 = 9_223_372_036_854_775_808.0;

fn double(value: f64) -> Number {
    if value.is_nan() {
        return Number::Double(f64::NAN.to_bits());
    }
    if value.trunc() == value && (-TWO_POW_63..TWO_POW_63).contains(&value) {
        #[expect(clippy::cast_possible_truncation, reason = "whole and in range; -0.0 becomes 0")]
        return Number::Integer(value as i64);
    }
    Number::Double(value.to_bits())
}

/// Decimal128 in the binary integer encoding that BSON uses (IEEE 754-2008, 3.5.2).
fn decimal(value: Decimal128) -> Number {
    let bits = u128::from_le_bytes(value.bytes());
    let negative = bits >> 127 == 1;
    let combination = (bits >> 122) & 0x1f;
    if combination == 0x1f {
        return Number::Double(f64::NAN.to_bits());
    }
    if combination == 0x1e {
        let infinity = if negative { f64::NEG_INFINITY } else { f64::INFINITY };
        return Number::Double(infinity.to_bits());
    }
    // The large form starts with 11 and holds coefficients above 10^34, which count as zero.
    let large = (bits >> 125) & 0b11 == 0b11;
    let exponent = if large { (bits >> 111) & 0x3fff } else { (bits >> 113) & 0x3fff };
    let coefficient = if large { 0 } else { bits & ((1 << 113) - 1) };
    let coefficient = if coefficient >= 10u128.pow(34) { 0 } else { coefficient };
    let exponent = i32::try_from(exponent).unwrap_or(0) - 6176;
    from_decimal_parts(negative, coefficient, exponent)
}

fn from_decimal_parts(negative: bool, mut coefficient: u128, mut exponent: i32) -> Number {
    if coefficient == 0 {
        return Number::Integer(0);
    }
    while coefficient.is_multiple_of(10) {
        coefficient /= 10;
        exponent += 1;
    }
    if let Some(integer) = as_integer(negative, coefficient, exponent) {
        return Number::Integer(integer);
    }
    match as_exact_double(coefficient, exponent) {
        Some(value) => Number::Double(if negative { -value } else { value }.to_bits()),
        None => Number::Decimal(negative, coefficient, exponent),
    }
}

fn as_integer(negative: bool, coefficient: u128, exponent: i32) -> Option<i64> {
    let scale = 10u128.checked_pow(u32::try_from(exponent).ok()?)?;
    let magnitude = i128::try_from(coefficient.checked_mul(scale)?).ok()?;
    i64::try_from(if negative { -magnitude } else { magnitude }).ok()
}

/// The double that holds `coefficient * 10^exponent` exactly, if there is one: the odd part of the number
/// must fit 53 bits. (A coefficient has no trailing zero here.)
fn as_exact_double(coefficient: u128, exponent: i32) -> Option<f64> {
    let twos = coefficient.trailing_zeros();
    let mut odd = coefficient >> twos;
    let fives = 5u128.checked_pow(exponent.unsigned_abs());
    if exponent >= 0 {
        odd = odd.checked_mul(fives?)?;
    } else {
        let fives = fives?;
        if !odd.is_multiple_of(fives) {
            return None;
        }
        odd /= fives;
    }
    if odd >= 1 << 53 {
        return None;
    }
    let power = i32::try_from(twos).ok()? + exponent;
    // Beyond these no finite normal double holds it; subnormals are left as decimals on both sides.
    if !(-1022..=970).contains(&power) {
        return None;
    }
    #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
    Some(odd as f64 * 2f64.powi(power))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::nesting::tests::nested;
    use bson::{Bson, doc, oid::ObjectId, rawdoc};
    use proptest::prelude::*;

    fn canonical(value: impl Into<Bson>) -> Vec<u8> {
        let document = bson::RawDocumentBuf::try_from(&doc! { "_id": value.into() }).unwrap();
        key_of(document.get("_id").unwrap().unwrap()).unwrap().canonical().to_vec()
    }

    fn dec(text: &str) -> Bson {
        Bson::Decimal128(text.parse().unwrap())
    }

    #[test]
    fn equal_numbers_are_one_key() {
        for same in [Bson::Int64(1), Bson::Double(1.0), dec("1"), dec("1.00"), dec("100E-2")] {
            assert_eq!(canonical(same), canonical(1));
        }
        assert_eq!(canonical(-0.0), canonical(0));
        assert_eq!(canonical(dec("-0.0")), canonical(0));
        assert_eq!(canonical(dec("0.5")), canonical(0.5));
        assert_eq!(canonical(dec("-2.75")), canonical(-2.75));
        assert_eq!(canonical(dec("1E20")), canonical(1e20));
        assert_eq!(canonical(dec("NaN")), canonical(f64::NAN));
        assert_eq!(canonical(-f64::NAN), canonical(f64::NAN));
        assert_eq!(canonical(dec("-Infinity")), canonical(f64::NEG_INFINITY));
        assert_eq!(canonical(dec("9223372036854775807")), canonical(i64::MAX));
        assert_eq!(canonical(-9_223_372_036_854_775_808.0), canonical(i64::MIN));
    }

    #[test]
    fn near_numbers_are_different_keys() {
        assert_ne!(canonical(dec("0.1")), canonical(0.1));
        assert_ne!(canonical(9_007_199_254_740_993_i64), canonical(9_007_199_254_740_992.0));
        assert_ne!(canonical("1"), canonical(1));
        assert_ne!(canonical(dec("9223372036854775808")), canonical(i64::MAX));
    }

    #[test]
    fn fields_of_documents_compare_by_value_and_order() {
        assert_eq!(canonical(doc! { "a": 1, "b": 2.0 }), canonical(doc! { "a": 1.0, "b": 2_i64 }));
        assert_ne!(canonical(doc! { "a": 1, "b": 2 }), canonical(doc! { "b": 2, "a": 1 }));
    }

    #[test]
    fn no_key_for_what_cannot_be_an_id() {
        let document = rawdoc! { "a": [1], "r": bson::Regex { pattern: "x".try_into().unwrap(), options: "".try_into().unwrap() } };
        assert!(key_of(document.get("a").unwrap().unwrap()).is_none());
        assert!(key_of(document.get("r").unwrap().unwrap()).is_none());
    }

    #[test]
    fn whatever_may_be_an_id_is_a_key() {
        let pointer = |namespace: &str, last: u8| -> Bson {
            let id = format!("507f1f77bcf86cd7994390{last:02x}");
            let json = serde_json::json!({ "$dbPointer": { "$ref": namespace, "$id": { "$oid": id } } });
            Bson::try_from(json).unwrap()
        };
        assert_eq!(canonical(pointer("d.c", 1)), canonical(pointer("d.c", 1)));
        assert_ne!(canonical(pointer("d.c", 1)), canonical(pointer("d.c", 2)));
        assert_ne!(canonical(pointer("d.c", 1)), canonical(pointer("d.d", 1)));
        let regex = |pattern: &str, options: &str| bson::Regex {
            pattern: pattern.try_into().unwrap(),
            options: options.try_into().unwrap(),
        };
        let inside = [
            doc! { "a": regex("xi", "") },
            doc! { "a": regex("x", "i") },
            doc! { "a": Bson::Undefined },
            doc! { "a": Bson::Null },
            doc! { "a": [regex("x", "")] },
        ];
        let all: std::collections::HashSet<_> = inside.into_iter().map(canonical).collect();
        assert_eq!(all.len(), 5);
    }

    #[test]
    fn what_nests_deeper_than_servers_take_is_no_key() {
        let is_key = |depth| key_of(RawBsonRef::Document(&nested(depth))).is_some();
        assert!(is_key(199) && !is_key(202) && !is_key(100_000));
    }

    #[test]
    fn slots_are_pinned() {
        // Part of the stored format: a change here would move authority between processes.
        let id = ObjectId::parse_str("507f1f77bcf86cd799439011").unwrap();
        let slots: Vec<u16> = [Bson::Int32(1), Bson::String("a".into()), Bson::ObjectId(id)]
            .into_iter()
            .map(|id| {
                let document = bson::RawDocumentBuf::try_from(&doc! { "_id": id }).unwrap();
                key_of(document.get("_id").unwrap().unwrap()).unwrap().id_slot().number()
            })
            .collect();
        assert_eq!(slots, [362, 533, 223]);
    }

    proptest! {
        #[test]
        fn whole_doubles_and_longs_agree(value in -(1_i64 << 53)..(1_i64 << 53)) {
            #[expect(clippy::cast_precision_loss)]
            let as_double = value as f64;
            prop_assert_eq!(canonical(value), canonical(as_double));
            prop_assert_eq!(canonical(dec(&value.to_string())), canonical(value));
        }

        #[test]
        fn doubles_and_their_exact_decimals_agree(eighths in -1_000_000_i32..1_000_000) {
            let value = f64::from(eighths) / 8.0;
            prop_assert_eq!(canonical(dec(&format!("{value:.3}"))), canonical(value));
        }
    }
}
