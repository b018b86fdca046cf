//! How deep documents may nest: what walks one level by level must end before the stack does.

use bson::raw::RawBsonRef;
use bson::{Document, RawDocument};

/// Levels that servers take (`maxBSONDepth`); they refuse a command that nests deeper.
pub const DEEPEST: u32 = 200;

/// A document of a client, unpacked; `None` when it does not parse or nests deeper than servers take.
#[must_use]
pub fn unpacked(document: &RawDocument) -> Option<Document> {
    fits(document, DEEPEST).then(|| Document::try_from(document).ok()).flatten()
}

fn fits(document: &RawDocument, depth: u32) -> bool {
    document.iter().all(|element| element.is_ok_and(|(_, value)| value_fits(value, depth)))
}

fn value_fits(value: RawBsonRef<'_>, depth: u32) -> bool {
    let Some(below) = depth.checked_sub(1) else { return false };
    match value {
        RawBsonRef::Document(document) => fits(document, below),
        RawBsonRef::Array(array) => {
            array.into_iter().all(|item| item.is_ok_and(|item| value_fits(item, below)))
        }
        RawBsonRef::JavaScriptCodeWithScope(code) => fits(code.scope, below),
        _ => true,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use bson::{RawDocumentBuf, rawdoc};

    /// So many documents in each other, the innermost one empty.
    pub(in crate::policy) fn nested(depth: u32) -> RawDocumentBuf {
        let mut bytes = Vec::new();
        for inside in (1..depth).rev() {
            bytes.extend_from_slice(&(5 + 8 * inside).to_le_bytes());
            bytes.extend_from_slice(b"\x03a\0");
        }
        bytes.extend_from_slice(b"\x05\0\0\0\0");
        bytes.resize(bytes.len() + usize::try_from(depth).unwrap() - 1, 0);
        RawDocumentBuf::from_bytes(bytes).unwrap()
    }

    #[test]
    fn documents_are_unpacked_to_a_depth() {
        let document = rawdoc! { "a": [{ "b": [1, { "c": null }] }], "d": { "e": "f" } };
        assert_eq!(unpacked(&document).unwrap(), Document::try_from(&*document).unwrap());
        assert_eq!(unpacked(&nested(3)).unwrap(), bson::doc! { "a": { "a": {} } });
        assert!(unpacked(&nested(200)).is_some());
        assert!(unpacked(&nested(202)).is_none());
        assert!(unpacked(&nested(100_000)).is_none());
    }
}
