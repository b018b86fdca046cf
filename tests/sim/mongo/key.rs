//! A byte form of BSON values that sorts and compares as MongoDB does: `1`, `1.0` and long `1` are one key.

use bson::{RawBsonRef, RawDocument};

/// A value in canonical form.
pub(crate) type Key = Vec<u8>;

/// The canonical form of `value`.
pub(crate) fn key_of(value: RawBsonRef<'_>) -> Key {
    let mut out = Vec::with_capacity(24);
    encode(value, &mut out);
    out
}

/// The key of a document: its `_id`, null if it has none.
pub(crate) fn document_key(document: &RawDocument) -> Key {
    key_of(document.get("_id").ok().flatten().unwrap_or(RawBsonRef::Null))
}

/// Equal as MongoDB compares, numeric types apart.
pub(crate) fn equal(left: RawBsonRef<'_>, right: RawBsonRef<'_>) -> bool {
    match (left, right) {
        (RawBsonRef::Document(a), RawBsonRef::Document(b)) if a.as_bytes() == b.as_bytes() => true,
        (RawBsonRef::String(a), RawBsonRef::String(b)) => a == b,
        (RawBsonRef::Int32(a), RawBsonRef::Int32(b)) => a == b,
        (RawBsonRef::Int64(a), RawBsonRef::Int64(b)) => a == b,
        (RawBsonRef::ObjectId(a), RawBsonRef::ObjectId(b)) => a == b,
        _ => key_of(left) == key_of(right),
    }
}

/// The class that sorts and range queries stay within.
pub(crate) fn class(value: RawBsonRef<'_>) -> u8 {
    match value {
        RawBsonRef::MinKey => 1,
        RawBsonRef::Undefined => 4,
        RawBsonRef::Null => 5,
        RawBsonRef::Int32(_) | RawBsonRef::Int64(_) | RawBsonRef::Double(_) | RawBsonRef::Decimal128(_) => 10,
        RawBsonRef::String(_) | RawBsonRef::Symbol(_) => 15,
        RawBsonRef::Document(_) => 20,
        RawBsonRef::Array(_) => 25,
        RawBsonRef::Binary(_) => 30,
        RawBsonRef::ObjectId(_) => 35,
        RawBsonRef::Boolean(_) => 40,
        RawBsonRef::DateTime(_) => 45,
        RawBsonRef::Timestamp(_) => 47,
        RawBsonRef::RegularExpression(_) => 50,
        RawBsonRef::DbPointer(_) => 55,
        RawBsonRef::JavaScriptCode(_) => 60,
        RawBsonRef::JavaScriptCodeWithScope(_) => 65,
        RawBsonRef::MaxKey => 127,
    }
}

fn encode(value: RawBsonRef<'_>, out: &mut Vec<u8>) {
    out.push(class(value));
    match value {
        RawBsonRef::Int32(value) => number(f64::from(value), 0, out),
        RawBsonRef::Int64(value) => {
            let nearest = value as f64;
            number(nearest, (i128::from(value) - nearest as i128) as i16, out);
        }
        RawBsonRef::Double(value) => number(value, 0, out),
        RawBsonRef::Decimal128(value) => number(value.to_string().parse().unwrap_or(f64::NAN), 0, out),
        RawBsonRef::String(value) | RawBsonRef::Symbol(value) | RawBsonRef::JavaScriptCode(value) => {
            text(value.as_bytes(), out);
        }
        RawBsonRef::Document(document) => elements(document.iter().flatten(), out, true),
        RawBsonRef::Array(array) => {
            elements(array.into_iter().flatten().map(|item| (bson::raw::cstr!(""), item)), out, false);
        }
        RawBsonRef::Binary(binary) => {
            out.extend_from_slice(&(binary.bytes.len() as u32).to_be_bytes());
            out.push(u8::from(binary.subtype));
            out.extend_from_slice(binary.bytes);
        }
        RawBsonRef::ObjectId(id) => out.extend_from_slice(&id.bytes()),
        RawBsonRef::Boolean(value) => out.push(u8::from(value)),
        RawBsonRef::DateTime(value) => ordered(value.timestamp_millis(), out),
        RawBsonRef::Timestamp(value) => {
            out.extend_from_slice(&value.time.to_be_bytes());
            out.extend_from_slice(&value.increment.to_be_bytes());
        }
        RawBsonRef::RegularExpression(regex) => {
            text(regex.pattern.as_str().as_bytes(), out);
            text(regex.options.as_str().as_bytes(), out);
        }
        RawBsonRef::DbPointer(_) | RawBsonRef::JavaScriptCodeWithScope(_) => {
            text(format!("{value:?}").as_bytes(), out);
        }
        RawBsonRef::MinKey | RawBsonRef::MaxKey | RawBsonRef::Null | RawBsonRef::Undefined => {}
    }
}

fn elements<'a>(
    items: impl Iterator<Item = (&'a bson::raw::CStr, RawBsonRef<'a>)>,
    out: &mut Vec<u8>,
    named: bool,
) {
    for (name, value) in items {
        out.push(class(value));
        if named {
            text(name.as_str().as_bytes(), out);
        }
        encode(value, out);
    }
    out.push(0);
}

/// The nearest double, then how far the exact value is from it.
fn number(nearest: f64, rest: i16, out: &mut Vec<u8>) {
    let bits = if nearest.is_nan() {
        0
    } else {
        let bits = (nearest + 0.0).to_bits();
        if bits >> 63 == 1 { !bits } else { bits | (1 << 63) }
    };
    out.extend_from_slice(&bits.to_be_bytes());
    out.extend_from_slice(&((rest as u16) ^ 0x8000).to_be_bytes());
}

fn ordered(value: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(&((value as u64) ^ (1 << 63)).to_be_bytes());
}

fn text(bytes: &[u8], out: &mut Vec<u8>) {
    for &byte in bytes {
        out.push(byte);
        if byte == 0 {
            out.push(0xff);
        }
    }
    out.extend_from_slice(&[0, 0]);
}

#[cfg(test)]
mod tests {
    use super::{equal, key_of};
    use bson::{Bson, RawBson, rawdoc};

    fn raw(value: impl Into<Bson>) -> RawBson {
        value.into().try_into().unwrap()
    }

    #[test]
    fn numbers_of_all_types_are_one_key() {
        let one = key_of(raw(1_i32).as_raw_bson_ref());
        assert_eq!(one, key_of(raw(1_i64).as_raw_bson_ref()));
        assert_eq!(one, key_of(raw(1.0).as_raw_bson_ref()));
        assert_eq!(key_of(raw(-0.0).as_raw_bson_ref()), key_of(raw(0_i32).as_raw_bson_ref()));
        assert!(key_of(raw(i64::MAX - 1).as_raw_bson_ref()) < key_of(raw(i64::MAX).as_raw_bson_ref()));
        assert!(key_of(raw(f64::NAN).as_raw_bson_ref()) < key_of(raw(f64::NEG_INFINITY).as_raw_bson_ref()));
    }

    #[test]
    fn documents_compare_by_value_and_order() {
        let (a, b) = (rawdoc! { "x": 1, "y": [1.0] }, rawdoc! { "x": 1.0, "y": [1_i64] });
        assert!(equal((&a).into(), (&b).into()));
        let swapped = rawdoc! { "y": [1], "x": 1 };
        assert!(!equal((&a).into(), (&swapped).into()));
    }
}
