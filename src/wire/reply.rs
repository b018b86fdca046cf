//! What the proxy needs to know about a server's reply, and what it takes out of it.

use std::ops::Range;

use bytes::BytesMut;

use super::element::{Element, Elements, ScanError, TIMESTAMP};
use super::header::{FrameError, HEADER_LEN, read_i32};
use super::op_msg::{CHECKSUM_PRESENT, MORE_TO_COME, OpMsg};

/// A number of a reply and where it lies, to overwrite it in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Number {
    /// Its value.
    pub value: i64,
    /// Where its bytes lie in the message.
    pub place: Range<usize>,
}

/// The fields of a reply that the proxy looks at. Positions count from the start of the message and hold
/// until the message is changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplyFields {
    /// Where the body lies.
    pub body: Range<usize>,
    /// `ok: 1`.
    pub ok: bool,
    /// The error code; 0 when there is none.
    pub code: i32,
    /// `errorLabels` holds `TransientTransactionError`.
    pub transient_transaction: bool,
    /// `cursor.id`.
    pub cursor: Option<Number>,
    /// The whole `$clusterTime` element.
    pub cluster_time: Option<Range<usize>>,
    /// The document in `$clusterTime`.
    pub cluster_time_value: Option<Range<usize>>,
    /// `operationTime`: seconds in the upper half, the increment in the lower.
    pub operation_time: Option<u64>,
    /// The whole `topologyVersion` element.
    pub topology_version: Option<Range<usize>>,
    /// The whole `recoveryToken` element.
    pub recovery_token: Option<Range<usize>>,
    /// `writeConcernError.code`.
    pub write_concern_error: Option<Number>,
}

impl ReplyFields {
    /// Reads the fields of a whole OP_MSG. Batches of documents are skipped by their length.
    ///
    /// # Errors
    /// [`FrameError`] when it is not a well-formed OP_MSG with a BSON body.
    pub fn scan(message: &[u8]) -> Result<Self, FrameError> {
        let parts = OpMsg::parse(message)?;
        let mut fields = Self { body: parts.body.clone(), ..Self::default() };
        for element in Elements::within(message, parts.body).map_err(malformed)? {
            fields.take(&element.map_err(malformed)?);
        }
        Ok(fields)
    }

    fn take(&mut self, element: &Element<'_>) {
        match element.key {
            b"ok" => self.ok = element.as_bool() == Some(true),
            b"code" => self.code = element.as_i64().and_then(|code| i32::try_from(code).ok()).unwrap_or(0),
            b"errorLabels" => self.transient_transaction = has_text(element, "TransientTransactionError"),
            b"cursor" => self.cursor = number_in(element, b"id"),
            b"$clusterTime" => {
                self.cluster_time = Some(element.range());
                self.cluster_time_value = Some(element.value_range());
            }
            b"operationTime" if element.kind == TIMESTAMP => {
                self.operation_time = element.value().try_into().ok().map(u64::from_le_bytes);
            }
            b"topologyVersion" => self.topology_version = Some(element.range()),
            b"recoveryToken" => self.recovery_token = Some(element.range()),
            b"writeConcernError" => self.write_concern_error = number_in(element, b"code"),
            _ => {}
        }
    }

    /// Takes out of `message` what clients must not see: `$clusterTime` and `topologyVersion`, which belong to
    /// one cluster and one server, and flags that were not asked for. Positions of `self` are void after it.
    pub fn strip(self, message: &mut BytesMut) {
        let flags = read_i32(message, HEADER_LEN).unwrap_or(0).cast_unsigned();
        if flags & CHECKSUM_PRESENT != 0 {
            message.truncate(message.len() - 4);
        }
        let kept = flags & !(CHECKSUM_PRESENT | MORE_TO_COME);
        message[HEADER_LEN..HEADER_LEN + 4].copy_from_slice(&kept.to_le_bytes());
        let mut body = self.body;
        let (first, second) = (self.cluster_time, self.topology_version);
        let later_first = first.as_ref().map(|range| range.start) > second.as_ref().map(|range| range.start);
        let removals = if later_first { [first, second] } else { [second, first] };
        for removal in removals.into_iter().flatten() {
            body.end -= removal.len();
            let kept = message.len() - removal.len();
            message.copy_within(removal.end.., removal.start);
            message.truncate(kept);
        }
        put_length(message, body.start, body.len());
        let whole = message.len();
        put_length(message, 0, whole);
    }
}

/// Appends an element to the body of a message that has no other section.
pub fn append_element(message: &mut BytesMut, element: &[u8]) {
    let body = super::header::HEADER_LEN + 5;
    let (Some(length), Some(size)) = (read_i32(message, 0), read_i32(message, body)) else { return };
    let Ok(added) = i32::try_from(element.len()) else { return };
    message.truncate(message.len() - 1);
    message.extend_from_slice(element);
    message.extend_from_slice(&[0]);
    message[0..4].copy_from_slice(&(length + added).to_le_bytes());
    message[body..body + 4].copy_from_slice(&(size + added).to_le_bytes());
}

/// Takes an element, whose place is `range`, out of the body of a message that has no other section.
pub fn remove_element(message: &mut BytesMut, range: Range<usize>) {
    let body = HEADER_LEN + 5;
    let Some(size) = read_i32(message, body).and_then(|size| usize::try_from(size).ok()) else { return };
    let kept = message.len() - range.len();
    message.copy_within(range.end.., range.start);
    message.truncate(kept);
    put_length(message, body, size - range.len());
    put_length(message, 0, kept);
}

/// Overwrites a whole number in place, in the width that it has.
pub fn overwrite(message: &mut [u8], place: &Range<usize>, value: i64) {
    let bytes = value.to_le_bytes();
    if let Some(target) = message.get_mut(place.clone())
        && (target.len() == 4 || target.len() == 8)
    {
        let width = target.len();
        target.copy_from_slice(&bytes[..width]);
    }
}

/// Makes `message` the answer to the request `request_id`.
pub fn answer_to(message: &mut [u8], request_id: i32) {
    if let Some(field) = message.get_mut(8..12) {
        field.copy_from_slice(&request_id.to_le_bytes());
    }
}

fn put_length(message: &mut [u8], at: usize, length: usize) {
    let length = i32::try_from(length).unwrap_or(i32::MAX);
    message[at..at + 4].copy_from_slice(&length.to_le_bytes());
}

fn number_in(element: &Element<'_>, key: &[u8]) -> Option<Number> {
    let number = element.children()?.flatten().find(|child| child.key == key)?;
    if number.kind == super::element::DOUBLE {
        return None;
    }
    Some(Number { value: number.as_i64()?, place: number.value_range() })
}

fn has_text(element: &Element<'_>, text: &str) -> bool {
    element.children().is_some_and(|labels| labels.flatten().any(|label| label.as_str() == Some(text)))
}

fn malformed(error: ScanError) -> FrameError {
    FrameError::Malformed(error.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::op_msg::build;
    use bson::{RawDocument, rawdoc};

    fn message(body: &RawDocument) -> BytesMut {
        BytesMut::from(&build(1, 2, 0, body.as_bytes(), None)[..])
    }

    #[test]
    fn fields_after_a_batch_are_found() {
        let time = bson::Timestamp { time: 3, increment: 4 };
        let reply = message(&rawdoc! {
            "cursor": { "firstBatch": [{ "a": "x".repeat(5000) }], "id": 99_i64, "ns": "d.c" },
            "ok": 1.0, "operationTime": time,
        });
        let fields = ReplyFields::scan(&reply).unwrap();
        assert!(fields.ok);
        assert_eq!(fields.operation_time, Some((3 << 32) | 4));
        assert_eq!(fields.cursor.unwrap().value, 99);
    }

    #[test]
    fn what_is_stripped_leaves_a_valid_message() {
        for flip in [false, true] {
            let body = if flip {
                rawdoc! { "$clusterTime": { "x": 1 }, "n": 1, "topologyVersion": { "y": 1 }, "ok": 1.0 }
            } else {
                rawdoc! { "n": 1, "topologyVersion": { "y": 1 }, "ok": 1.0, "$clusterTime": { "x": 1 } }
            };
            let mut reply = message(&body);
            ReplyFields::scan(&reply).unwrap().strip(&mut reply);
            let parts = OpMsg::parse(&reply).unwrap();
            let kept = RawDocument::from_bytes(&reply[parts.body]).unwrap();
            assert_eq!(kept, &*rawdoc! { "n": 1, "ok": 1.0 });
        }
    }

    #[test]
    fn codes_and_labels_of_errors() {
        let mut reply = message(&rawdoc! {
            "ok": 0.0, "code": 251, "errorLabels": ["A", "TransientTransactionError"],
            "writeConcernError": { "code": 91, "errmsg": "x" },
        });
        let fields = ReplyFields::scan(&reply).unwrap();
        assert_eq!((fields.ok, fields.code, fields.transient_transaction), (false, 251, true));
        let place = fields.write_concern_error.unwrap().place;
        overwrite(&mut reply, &place, 6);
        assert_eq!(ReplyFields::scan(&reply).unwrap().write_concern_error.unwrap().value, 6);
    }

    proptest::proptest! {
        #[test]
        fn damaged_replies_never_panic(at in 0_usize..120, byte: u8) {
            let mut reply = message(&rawdoc! {
                "cursor": { "firstBatch": [], "id": 9_i64 }, "ok": 1.0, "$clusterTime": { "x": 1 },
                "topologyVersion": { "y": 1 }, "writeConcernError": { "code": 1 },
            });
            let at = at.min(reply.len() - 1);
            reply[at] = byte;
            if let Ok(fields) = ReplyFields::scan(&reply) {
                fields.strip(&mut reply);
            }
        }
    }
}
