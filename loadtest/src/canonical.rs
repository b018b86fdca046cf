//! One form for all `_id`s that the server takes as equal, and hashes.

use std::hash::{DefaultHasher, Hasher};

use bson::{RawBsonRef, RawDocument};

/// Bytes that are equal exactly if the server takes the two values as the same
/// `_id`: all numeric types are one.
pub(crate) fn canonical_id(value: RawBsonRef<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(24);
    write_value(&mut out, value);
    out
}

fn write_value(out: &mut Vec<u8>, value: RawBsonRef<'_>) {
    match value {
        RawBsonRef::Int32(number) => write_number(out, &number.to_string()),
        RawBsonRef::Int64(number) => write_number(out, &number.to_string()),
        RawBsonRef::Double(number) => write_number(out, &plain_double(number)),
        RawBsonRef::Decimal128(number) => write_number(out, &number.to_string()),
        RawBsonRef::String(text) | RawBsonRef::Symbol(text) => {
            out.push(b's');
            out.extend_from_slice(text.as_bytes());
            out.push(0);
        }
        RawBsonRef::Document(document) => {
            out.push(b'd');
            write_document(out, document);
        }
        RawBsonRef::Array(array) => {
            out.push(b'a');
            for item in array.into_iter().flatten() {
                write_value(out, item);
            }
            out.push(0);
        }
        RawBsonRef::ObjectId(id) => {
            out.push(b'o');
            out.extend_from_slice(&id.bytes());
        }
        RawBsonRef::Binary(binary) => {
            out.push(b'b');
            out.push(binary.subtype.into());
            out.extend_from_slice(&u32::try_from(binary.bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
            out.extend_from_slice(binary.bytes);
        }
        RawBsonRef::DateTime(date) => {
            out.push(b't');
            out.extend_from_slice(&date.timestamp_millis().to_be_bytes());
        }
        RawBsonRef::Boolean(value) => out.extend_from_slice(&[b'?', u8::from(value)]),
        other => {
            out.push(b'x');
            out.extend_from_slice(format!("{other:?}").as_bytes());
        }
    }
}

fn write_document(out: &mut Vec<u8>, document: &RawDocument) {
    for (key, value) in document.iter().flatten() {
        out.extend_from_slice(key.as_str().as_bytes());
        out.push(0);
        write_value(out, value);
    }
    out.push(0);
}

fn write_number(out: &mut Vec<u8>, text: &str) {
    out.push(b'n');
    out.extend_from_slice(normal_number(text).as_bytes());
    out.push(0);
}

/// The exact decimal expansion.
fn plain_double(number: f64) -> String {
    if number.fract() == 0.0 || !number.is_finite() {
        return format!("{number:.0}");
    }
    let text = format!("{number:.60}");
    if number.abs() > 1e-5 && text.ends_with("00000000") { text } else { format!("{number:.1100}") }
}

/// `-12.50E+1` and `-125` become the same text: sign, digits without zeros at
/// either end, exponent.
fn normal_number(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    if lower.contains("nan") {
        return "nan".into();
    }
    let (sign, digits) = lower.strip_prefix('-').map_or(("", lower.as_str()), |rest| ("-", rest));
    if digits.starts_with("inf") {
        return format!("{sign}inf");
    }
    let (mantissa, exponent) = digits.split_once('e').unwrap_or((digits, "0"));
    let mut exponent: i64 = exponent.parse().unwrap_or_default();
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    exponent -= i64::try_from(fraction.len()).unwrap_or_default();
    let all = format!("{whole}{fraction}");
    let all = all.trim_start_matches('0');
    let kept = all.trim_end_matches('0');
    if kept.is_empty() {
        return "0".into();
    }
    exponent += i64::try_from(all.len() - kept.len()).unwrap_or_default();
    format!("{sign}{kept}e{exponent}")
}

/// A 64-bit hash of bytes.
pub(crate) fn hash64(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// A 128-bit hash of an `_id`.
pub(crate) fn id_hash(value: RawBsonRef<'_>) -> u128 {
    let bytes = canonical_id(value);
    let mut second = DefaultHasher::new();
    second.write_u64(0x5eed);
    second.write(&bytes);
    (u128::from(hash64(&bytes)) << 64) | u128::from(second.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{Bson, RawBson, bson};

    fn canon(value: impl Into<Bson>) -> Vec<u8> {
        canonical_id(RawBson::try_from(value.into()).unwrap().as_raw_bson_ref())
    }

    fn decimal(text: &str) -> Bson {
        Bson::Decimal128(text.parse().unwrap())
    }

    #[test]
    fn equal_numbers_are_one() {
        for other in [bson!(100_i64), bson!(100.0), decimal("100"), decimal("1E2"), decimal("100.000")] {
            assert_eq!(canon(100_i32), canon(other));
        }
        assert_eq!(canon(0.5), canon(decimal("0.50")));
        assert_eq!(canon(0.0), canon(-0.0));
        assert_eq!(canon(f64::NAN), canon(decimal("NaN")));
        assert_ne!(canon(0.1), canon(decimal("0.1")));
        assert_ne!(canon(1_i32), canon(-1_i32));
        assert_ne!(canon(1_i32), canon("1"));
        assert_ne!(canon(1_i32), canon(true));
        assert_eq!(canon(bson!({"a": 1, "b": [2]})), canon(bson!({"a": 1.0, "b": [2_i64]})));
        assert_ne!(canon(bson!({"a": 1, "b": 2})), canon(bson!({"b": 2, "a": 1})));
    }
}
