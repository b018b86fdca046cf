//! Changes to a message that is forwarded: a list of edits over its bytes. What is not changed is not copied.

use std::io::IoSlice;
use std::ops::Range;

use super::header::{HEADER_LEN, Header};
use super::op_msg::{CHECKSUM_PRESENT, EXHAUST_ALLOWED, MORE_TO_COME, OpMsg};

/// Bytes that stand in the place of others.
#[derive(Debug, Clone)]
struct Edit {
    place: Range<usize>,
    bytes: Vec<u8>,
}

/// The edits that turn a client's OP_MSG into the one a server gets.
///
/// The server is never allowed to stream replies nor to stay silent, and gets no checksum: those flags
/// are cleared where they are set.
#[derive(Debug, Clone)]
pub struct Patch {
    header: Header,
    body: Range<usize>,
    flags: u32,
    edits: Vec<Edit>,
    growth: isize,
}

impl Patch {
    /// A patch of `message` that changes no more than flags.
    #[must_use]
    pub fn new(message: &OpMsg) -> Self {
        Self {
            header: message.header,
            body: message.body.clone(),
            flags: message.flags,
            edits: Vec::new(),
            growth: 0,
        }
    }

    /// Removes an element of the body.
    pub fn remove(&mut self, element: Range<usize>) {
        self.replace(element, Vec::new());
    }

    /// Puts `bytes` in place of a range inside the body. Ranges of one patch must not overlap; inside a
    /// nested document the length must not change.
    pub fn replace(&mut self, place: Range<usize>, bytes: Vec<u8>) {
        self.growth += signed(bytes.len()) - signed(place.len());
        self.edits.push(Edit { place, bytes });
    }

    /// Adds an element (type, key, value) at the end of the body.
    pub fn append(&mut self, element: Vec<u8>) {
        let end = self.body.end - 1;
        self.replace(end..end, element);
    }

    /// Overwrites a whole number with another, in the type that it has.
    pub fn set_number(&mut self, element: &super::element::Element<'_>, number: i32) {
        let bytes = match element.value_range().len() {
            4 => number.to_le_bytes().to_vec(),
            _ if element.kind == super::element::DOUBLE => f64::from(number).to_le_bytes().to_vec(),
            _ => i64::from(number).to_le_bytes().to_vec(),
        };
        self.replace(element.value_range(), bytes);
    }

    /// Completes the edits: lengths and flags.
    #[must_use]
    pub fn finish(mut self) -> Patched {
        let kept = self.flags & !(CHECKSUM_PRESENT | MORE_TO_COME | EXHAUST_ALLOWED);
        let dropped = if self.flags & CHECKSUM_PRESENT == 0 { 0 } else { 4 };
        if self.edits.is_empty() && kept == self.flags {
            return Patched { edits: Vec::new() };
        }
        if dropped > 0 {
            let end = self.header.length;
            self.edits.push(Edit { place: end - dropped..end, bytes: Vec::new() });
        }
        let length = self.header.length.wrapping_add_signed(self.growth) - dropped;
        let body_length = self.body.len().wrapping_add_signed(self.growth);
        let at = self.body.start;
        // One piece, so that whoever sends it finds the whole header in the first part.
        let mut front = Vec::with_capacity(HEADER_LEN + 4);
        front.extend_from_slice(&Header { length, ..self.header }.encode());
        front.extend_from_slice(&kept.to_le_bytes());
        self.edits.push(Edit { place: 0..front.len(), bytes: front });
        self.edits.push(Edit { place: at..at + 4, bytes: prefix(body_length) });
        // Stable, so that appended elements keep their order.
        self.edits.sort_by_key(|edit| edit.place.start);
        Patched { edits: self.edits }
    }
}

/// A finished patch.
#[derive(Debug, Clone)]
pub struct Patched {
    edits: Vec<Edit>,
}

impl Patched {
    /// The message in parts, for a vectored write.
    #[must_use]
    pub fn parts<'a>(&'a self, message: &'a [u8]) -> Vec<IoSlice<'a>> {
        let mut parts = Vec::with_capacity(2 * self.edits.len() + 1);
        let mut at = 0;
        for edit in &self.edits {
            if at < edit.place.start {
                parts.push(IoSlice::new(&message[at..edit.place.start]));
            }
            if !edit.bytes.is_empty() {
                parts.push(IoSlice::new(&edit.bytes));
            }
            at = edit.place.end;
        }
        if at < message.len() {
            parts.push(IoSlice::new(&message[at..]));
        }
        parts
    }

    /// The message as one piece.
    #[must_use]
    pub fn to_vec(&self, message: &[u8]) -> Vec<u8> {
        self.parts(message).iter().flat_map(|part| part.iter().copied()).collect()
    }
}

/// An element that holds a document.
#[must_use]
pub fn document_element(key: &str, document: &[u8]) -> Vec<u8> {
    let mut element = Vec::with_capacity(2 + key.len() + document.len());
    element.push(super::element::DOCUMENT);
    element.extend_from_slice(key.as_bytes());
    element.push(0);
    element.extend_from_slice(document);
    element
}

fn signed(length: usize) -> isize {
    // Messages are below 48 MB.
    isize::try_from(length).unwrap_or(isize::MAX)
}

fn prefix(length: usize) -> Vec<u8> {
    i32::try_from(length).unwrap_or(i32::MAX).to_le_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::op_msg::{append_checksum, build};
    use crate::wire::scan::Command;
    use bson::{RawDocument, rawdoc};
    use bytes::BytesMut;

    #[test]
    fn edits_leave_the_rest_as_it_is() {
        let body = rawdoc! {
            "insert": "c", "$clusterTime": { "a": 1 }, "writeConcern": { "w": 0_i64 }, "$db": "d",
        };
        let one = rawdoc! { "_id": 1 };
        let mut bytes =
            build(9, 0, MORE_TO_COME | EXHAUST_ALLOWED, body.as_bytes(), Some(("documents", one.as_bytes())));
        // With a checksum.
        bytes[16] |= 1;
        let whole = i32::try_from(bytes.len() + 4).unwrap();
        bytes[0..4].copy_from_slice(&whole.to_le_bytes());
        let sum = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());

        let message = OpMsg::parse(&bytes).unwrap();
        let command = Command::scan(&bytes, message.body.clone()).unwrap();
        let mut patch = Patch::new(&message);
        patch.set_number(&command.unacknowledged().unwrap(), 1);
        patch.remove(command.cluster_time.unwrap().range());
        patch.append(document_element("$clusterTime", rawdoc! { "b": 2 }.as_bytes()));
        let out = patch.finish().to_vec(&bytes);

        let message = OpMsg::parse(&out).unwrap();
        assert_eq!((message.flags, message.header.request_id), (0, 9));
        let expected = rawdoc! {
            "insert": "c", "writeConcern": { "w": 1_i64 }, "$db": "d", "$clusterTime": { "b": 2 },
        };
        assert_eq!(RawDocument::from_bytes(&out[message.body.clone()]).unwrap(), &*expected);
        assert_eq!(&out[message.sequences[0].documents.clone()], one.as_bytes());
    }

    #[test]
    fn a_body_behind_its_documents_is_edited_like_one_before_them() {
        let body = rawdoc! { "insert": "c", "$clusterTime": { "a": 1 }, "$db": "d" };
        let one = rawdoc! { "_id": 1 };
        let bytes = turned(&build(9, 0, 0, body.as_bytes(), Some(("documents", one.as_bytes()))));
        let mut bytes = BytesMut::from(&bytes[..]);
        append_checksum(&mut bytes);

        let message = OpMsg::parse(&bytes).unwrap();
        assert!(message.body.start > message.sequences[0].documents.start);
        let command = Command::scan(&bytes, message.body.clone()).unwrap();
        assert_eq!((command.name, command.database), ("insert", Some("d")));
        let mut patch = Patch::new(&message);
        patch.remove(command.cluster_time.unwrap().range());
        patch.append(document_element("$clusterTime", rawdoc! { "longer": "than before" }.as_bytes()));
        let out = patch.finish().to_vec(&bytes);

        let message = OpMsg::parse(&out).unwrap();
        assert_eq!((message.flags, message.header.length), (0, out.len()));
        let expected = rawdoc! { "insert": "c", "$db": "d", "$clusterTime": { "longer": "than before" } };
        assert_eq!(RawDocument::from_bytes(&out[message.body.clone()]).unwrap(), &*expected);
        assert_eq!(&out[message.sequences[0].documents.clone()], one.as_bytes());
    }

    /// The same message with its body as the last section.
    fn turned(message: &[u8]) -> Vec<u8> {
        let parts = OpMsg::parse(message).unwrap();
        let (body, rest) = (&message[20..parts.body.end], &message[parts.body.end..]);
        [&message[..20], rest, body].concat()
    }

    #[test]
    fn nothing_to_change_is_one_part() {
        let body = rawdoc! { "ping": 1 };
        let bytes = build(1, 0, 0, body.as_bytes(), None);
        let patched = Patch::new(&OpMsg::parse(&bytes).unwrap()).finish();
        assert_eq!(patched.parts(&bytes).len(), 1);
    }
}
