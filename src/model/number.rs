//! Numbers: in documents, whatever type they come in; and in words.

use bson::RawDocument;
use bson::raw::RawBsonRef;

/// A field that any numeric type may hold, as servers and drivers send them.
#[must_use]
pub fn number(document: &RawDocument, field: &str) -> Option<f64> {
    match document.get(field).ok().flatten()? {
        RawBsonRef::Double(value) => Some(value),
        RawBsonRef::Int32(value) => Some(f64::from(value)),
        #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
        RawBsonRef::Int64(value) => Some(value as f64),
        RawBsonRef::Boolean(value) => Some(f64::from(u8::from(value))),
        _ => None,
    }
}

/// `1234567` as `1,234,567`.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
