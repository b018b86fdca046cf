//! Numbers in documents, whatever type they come in.

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
