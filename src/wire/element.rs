//! One forward walk over the elements of a BSON document, by types and lengths. Nothing is copied, nothing
//! below the first level is looked at, and no input makes it panic.

use std::ops::Range;

use super::header::read_i32;

/// Bytes are not a BSON document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed BSON: {0}")]
pub struct ScanError(pub &'static str);

/// BSON type of a double.
pub const DOUBLE: u8 = 0x01;
/// BSON type of a string.
pub const STRING: u8 = 0x02;
/// BSON type of a document.
pub const DOCUMENT: u8 = 0x03;
/// BSON type of an array.
pub const ARRAY: u8 = 0x04;
/// BSON type of binary data.
pub const BINARY: u8 = 0x05;
/// BSON type of a boolean.
pub const BOOLEAN: u8 = 0x08;
/// BSON type of a 32-bit integer.
pub const INT32: u8 = 0x10;
/// BSON type of a timestamp.
pub const TIMESTAMP: u8 = 0x11;
/// BSON type of a 64-bit integer.
pub const INT64: u8 = 0x12;

/// One element; positions count from the start of the bytes that were walked.
#[derive(Debug, Clone, Copy)]
pub struct Element<'a> {
    bytes: &'a [u8],
    /// The BSON type.
    pub kind: u8,
    /// The key without its NUL.
    pub key: &'a [u8],
    start: usize,
    value: usize,
    end: usize,
}

impl<'a> Element<'a> {
    /// Where the whole element lies: type, key and value.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.start..self.end
    }

    /// Where the value lies.
    #[must_use]
    pub fn value_range(&self) -> Range<usize> {
        self.value..self.end
    }

    /// The value's bytes.
    #[must_use]
    pub fn value(&self) -> &'a [u8] {
        &self.bytes[self.value..self.end]
    }

    /// The text of a string; `None` for other types and for what is not UTF-8.
    #[must_use]
    pub fn as_str(&self) -> Option<&'a str> {
        if self.kind != STRING {
            return None;
        }
        let text = self.value().get(4..)?;
        std::str::from_utf8(text.get(..text.len().checked_sub(1)?)?).ok()
    }

    /// A whole number of any numeric type, as servers take them.
    #[must_use]
    pub fn as_i64(&self) -> Option<i64> {
        let value = self.value();
        match self.kind {
            INT32 => Some(i64::from(read_i32(value, 0)?)),
            INT64 => Some(i64::from_le_bytes(value.try_into().ok()?)),
            #[expect(clippy::cast_possible_truncation, reason = "saturates, as the server does")]
            DOUBLE => Some(f64::from_le_bytes(value.try_into().ok()?) as i64),
            _ => None,
        }
    }

    /// Truth as servers read it: a boolean, or a number other than 0.
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        match self.kind {
            BOOLEAN => Some(self.value() != [0]),
            DOUBLE => Some(f64::from_le_bytes(self.value().try_into().ok()?) != 0.0),
            _ => self.as_i64().map(|number| number != 0),
        }
    }

    /// The elements of a document or an array.
    #[must_use]
    pub fn children(&self) -> Option<Elements<'a>> {
        if self.kind == DOCUMENT || self.kind == ARRAY {
            Elements::within(self.bytes, self.value_range()).ok()
        } else {
            None
        }
    }
}

/// The elements of one document, in order.
#[derive(Debug, Clone)]
pub struct Elements<'a> {
    bytes: &'a [u8],
    at: usize,
    end: usize,
}

impl<'a> Elements<'a> {
    /// Walks the document that is all of `bytes`.
    ///
    /// # Errors
    /// [`ScanError`] when its length does not fit.
    pub fn of(bytes: &'a [u8]) -> Result<Self, ScanError> {
        Self::within(bytes, 0..bytes.len())
    }

    /// Walks the document at `document` of `bytes`; positions of elements count from the start of `bytes`.
    ///
    /// # Errors
    /// [`ScanError`] when its length does not fit.
    pub fn within(bytes: &'a [u8], document: Range<usize>) -> Result<Self, ScanError> {
        let inside = bytes.get(document.clone()).ok_or(ScanError("document out of bounds"))?;
        let length = read_i32(inside, 0).and_then(|length| usize::try_from(length).ok());
        if inside.len() < 5 || length != Some(inside.len()) || inside[inside.len() - 1] != 0 {
            return Err(ScanError("document length"));
        }
        Ok(Self { bytes, at: document.start + 4, end: document.end - 1 })
    }

    fn step(&mut self) -> Result<Element<'a>, ScanError> {
        let start = self.at;
        let kind = self.bytes[start];
        let key_at = start + 1;
        let rest = &self.bytes[key_at..self.end];
        let key_len = rest.iter().position(|byte| *byte == 0).ok_or(ScanError("key"))?;
        let value = key_at + key_len + 1;
        let length = value_length(kind, &self.bytes[value..self.end])?;
        let end = value + length;
        self.at = end;
        Ok(Element { bytes: self.bytes, kind, key: &rest[..key_len], start, value, end })
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = Result<Element<'a>, ScanError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.end {
            return None;
        }
        let element = self.step();
        if element.is_err() {
            self.at = self.end;
        }
        Some(element)
    }
}

/// Length of a value of type `kind` at the start of `rest`; never more than `rest` holds.
fn value_length(kind: u8, rest: &[u8]) -> Result<usize, ScanError> {
    let length = match kind {
        0x06 | 0x0a | 0x7f | 0xff => Some(0),
        BOOLEAN => Some(1),
        INT32 => Some(4),
        DOUBLE | 0x09 | TIMESTAMP | INT64 => Some(8),
        0x07 => Some(12),
        0x13 => Some(16),
        STRING | 0x0d | 0x0e => string_length(rest),
        DOCUMENT | ARRAY => prefix(rest).filter(|length| *length >= 5),
        0x0f => prefix(rest).filter(|length| *length >= 14),
        BINARY => prefix(rest).and_then(|length| length.checked_add(5)),
        0x0b => two_texts(rest),
        0x0c => string_length(rest).and_then(|length| length.checked_add(12)),
        _ => return Err(ScanError("unknown type")),
    };
    length.filter(|length| *length <= rest.len()).ok_or(ScanError("value length"))
}

fn prefix(rest: &[u8]) -> Option<usize> {
    read_i32(rest, 0).and_then(|length| usize::try_from(length).ok())
}

/// Length of a string: its prefix, its bytes, and the NUL that must be there.
fn string_length(rest: &[u8]) -> Option<usize> {
    let length = prefix(rest).filter(|length| *length >= 1)?.checked_add(4)?;
    (rest.get(length - 1) == Some(&0)).then_some(length)
}

/// Length of a regular expression: two texts that end with NUL.
fn two_texts(rest: &[u8]) -> Option<usize> {
    let first = rest.iter().position(|byte| *byte == 0)? + 1;
    let second = rest[first..].iter().position(|byte| *byte == 0)? + 1;
    Some(first + second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::RawDocument;
    use proptest::prelude::*;

    fn agrees_with_bson(bytes: &[u8]) {
        let Ok(elements) = Elements::of(bytes) else { return };
        let ours: Vec<_> = elements.collect();
        let Ok(document) = RawDocument::from_bytes(bytes) else { return };
        for (ours, theirs) in ours.iter().zip(document.iter_elements()) {
            let (Ok(ours), Ok(theirs)) = (ours, theirs) else { return };
            assert_eq!(ours.key, theirs.key().as_str().as_bytes());
            assert_eq!(ours.kind, theirs.element_type() as u8);
        }
    }

    pub(crate) fn any_bson() -> impl Strategy<Value = bson::Bson> {
        let leaf = prop_oneof![
            any::<f64>().prop_map(bson::Bson::Double),
            ".*".prop_map(bson::Bson::String),
            any::<bool>().prop_map(bson::Bson::Boolean),
            any::<i32>().prop_map(bson::Bson::Int32),
            any::<i64>().prop_map(bson::Bson::Int64),
            Just(bson::Bson::Null),
            Just(bson::Bson::MinKey),
            any::<(u32, u32)>().prop_map(|(time, increment)| bson::Timestamp { time, increment }.into()),
            proptest::collection::vec(any::<u8>(), 0..20).prop_map(|bytes| {
                bson::Binary { subtype: bson::spec::BinarySubtype::Generic, bytes }.into()
            }),
            "[a-z]*".prop_map(bson::Bson::JavaScriptCode),
            any::<[u8; 12]>().prop_map(|id| bson::oid::ObjectId::from_bytes(id).into()),
            any::<[u8; 16]>().prop_map(|bytes| bson::Decimal128::from_bytes(bytes).into()),
        ];
        leaf.prop_recursive(3, 24, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(bson::Bson::Array),
                proptest::collection::vec(("[a-z$]{0,6}", inner), 0..4)
                    .prop_map(|pairs| bson::Bson::Document(pairs.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn elements_are_those_of_the_bson_crate(pairs in proptest::collection::vec(("[a-z$]{0,8}", any_bson()), 0..8)) {
            let document: bson::Document = pairs.into_iter().collect();
            let bytes = document.to_vec().unwrap();
            let ours: Vec<_> = Elements::of(&bytes).unwrap().collect::<Result<_, _>>().unwrap();
            prop_assert_eq!(ours.len(), document.len());
            for (element, (key, value)) in ours.iter().zip(&document) {
                prop_assert_eq!(element.key, key.as_bytes());
                prop_assert_eq!(element.kind, value.element_type() as u8);
                if let bson::Bson::String(text) = value {
                    prop_assert_eq!(element.as_str(), Some(text.as_str()));
                }
            }
        }

        #[test]
        fn damaged_documents_never_panic(
            pairs in proptest::collection::vec(("[a-z]{0,8}", any_bson()), 0..6),
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        ) {
            let document: bson::Document = pairs.into_iter().collect();
            let mut bytes = document.to_vec().unwrap();
            for (index, byte) in damage {
                let at = index.index(bytes.len());
                bytes[at] = byte;
            }
            agrees_with_bson(&bytes);
        }
    }
}
