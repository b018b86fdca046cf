//! OP_MSG: flag bits, one body document, and document sequences, in any order.
//! Source: specifications/source/message/OP_MSG.md.

use std::ops::Range;

use bytes::BytesMut;

use super::header::{FrameError, HEADER_LEN, Header, OP_MSG, read_i32};

/// A CRC-32C of the whole message follows its last section.
pub const CHECKSUM_PRESENT: u32 = 1;
/// On a request: no reply is wanted. On a reply: another follows unasked.
pub const MORE_TO_COME: u32 = 1 << 1;
/// The client can take replies with [`MORE_TO_COME`].
pub const EXHAUST_ALLOWED: u32 = 1 << 16;

/// Document sequences that a server takes in one message.
const MOST_SEQUENCES: usize = 2;

/// Where the parts of an OP_MSG lie in its bytes. Nothing is copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpMsg {
    /// The message's header.
    pub header: Header,
    /// The flag bits as received.
    pub flags: u32,
    /// The body document.
    pub body: Range<usize>,
    /// Document sequences, at most two, each for another field.
    pub sequences: Vec<SequenceRange>,
}

/// Where one document sequence lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceRange {
    /// The field of the command that the documents stand for, without the NUL.
    pub identifier: Range<usize>,
    /// The documents, back to back.
    pub documents: Range<usize>,
}

impl OpMsg {
    /// Finds the parts of the complete message `bytes`, header included.
    ///
    /// # Errors
    /// [`FrameError`] when a length, a flag or a section is not as the protocol wants it.
    pub fn parse(bytes: &[u8]) -> Result<Self, FrameError> {
        let header = Header::parse(bytes)?.ok_or(FrameError::Malformed("short header"))?;
        if header.opcode != OP_MSG || header.length != bytes.len() {
            return Err(FrameError::Malformed("not one whole OP_MSG"));
        }
        let flags = read_i32(bytes, HEADER_LEN).ok_or(FrameError::Malformed("no flags"))?.cast_unsigned();
        if flags & 0xffff & !(CHECKSUM_PRESENT | MORE_TO_COME) != 0 {
            return Err(FrameError::Malformed("unknown required flag bit"));
        }
        let end = sections_end(bytes, flags)?;
        let mut at = HEADER_LEN + 4;
        let mut body = None;
        let mut sequences = Vec::new();
        while at < end {
            let kind = bytes[at];
            at += 1;
            let length = section_length(bytes, at, end)?;
            match kind {
                0 if body.is_none() => body = Some(at..at + length),
                // Before it is kept: a message has room for millions of empty ones.
                1 if sequences.len() == MOST_SEQUENCES => {
                    return Err(FrameError::Malformed("more than two document sequences"));
                }
                1 => sequences.push(parse_sequence(bytes, at, length)?),
                0 => return Err(FrameError::Malformed("two body sections")),
                _ => return Err(FrameError::Malformed("unknown section kind")),
            }
            at += length;
        }
        let body = body.ok_or(FrameError::Malformed("no body section"))?;
        if let [first, second] = sequences.as_slice()
            && bytes[first.identifier.clone()] == bytes[second.identifier.clone()]
        {
            return Err(FrameError::Malformed("two document sequences for one field"));
        }
        Ok(Self { header, flags, body, sequences })
    }
}

/// Where the sections end; verifies the checksum where there is one.
fn sections_end(bytes: &[u8], flags: u32) -> Result<usize, FrameError> {
    if flags & CHECKSUM_PRESENT == 0 {
        return Ok(bytes.len());
    }
    let end = bytes.len().checked_sub(4).ok_or(FrameError::Malformed("no checksum"))?;
    let sum = read_i32(bytes, end).ok_or(FrameError::Malformed("no checksum"))?.cast_unsigned();
    if crc32c::crc32c(&bytes[..end]) == sum { Ok(end) } else { Err(FrameError::Checksum) }
}

fn section_length(bytes: &[u8], at: usize, end: usize) -> Result<usize, FrameError> {
    let length = read_i32(bytes, at).and_then(|length| usize::try_from(length).ok());
    match length {
        Some(length) if length >= 5 && length <= end - at => Ok(length),
        _ => Err(FrameError::Malformed("section length")),
    }
}

fn parse_sequence(bytes: &[u8], at: usize, length: usize) -> Result<SequenceRange, FrameError> {
    let name = at + 4;
    let nul = bytes[name..at + length].iter().position(|byte| *byte == 0);
    let nul = name + nul.ok_or(FrameError::Malformed("sequence identifier"))?;
    Ok(SequenceRange { identifier: name..nul, documents: nul + 1..at + length })
}

/// Whether `message` is an OP_MSG that says that it has a checksum.
#[must_use]
pub fn has_checksum(message: &[u8]) -> bool {
    let flags = read_i32(message, HEADER_LEN).map_or(0, i32::cast_unsigned);
    read_i32(message, 12) == Some(OP_MSG) && flags & CHECKSUM_PRESENT != 0
}

/// Gives an OP_MSG without a checksum one. Anything else stays as it is.
pub fn append_checksum(message: &mut BytesMut) {
    if read_i32(message, 12) != Some(OP_MSG) || message.len() < HEADER_LEN + 4 || has_checksum(message) {
        return;
    }
    let Ok(length) = i32::try_from(message.len() + 4) else { return };
    message[..4].copy_from_slice(&length.to_le_bytes());
    // The flags' lowest byte.
    message[HEADER_LEN] |= 1;
    let sum = crc32c::crc32c(message);
    message.extend_from_slice(&sum.to_le_bytes());
}

/// Builds an OP_MSG from a body document and at most one sequence of documents laid back to back.
#[must_use]
pub fn build(
    request_id: i32,
    response_to: i32,
    flags: u32,
    body: &[u8],
    sequence: Option<(&str, &[u8])>,
) -> Vec<u8> {
    let announced = sequence.map(|(name, documents)| (name, documents.len()));
    let mut out = build_head(request_id, response_to, flags, body, announced);
    if let Some((_, documents)) = sequence {
        out.extend_from_slice(documents);
    }
    out
}

/// As [`build`], up to the documents of the sequence: of these only the length is needed, so that whoever has
/// them elsewhere need not copy them.
#[must_use]
pub fn build_head(
    request_id: i32,
    response_to: i32,
    flags: u32,
    body: &[u8],
    sequence: Option<(&str, usize)>,
) -> Vec<u8> {
    let extra = sequence.map_or(0, |(name, documents)| 1 + 4 + name.len() + 1 + documents);
    let length = HEADER_LEN + 4 + 1 + body.len() + extra;
    let mut out = Vec::with_capacity(length - sequence.map_or(0, |(_, documents)| documents));
    out.extend_from_slice(&Header { length, request_id, response_to, opcode: OP_MSG }.encode());
    out.extend_from_slice(&flags.to_le_bytes());
    out.push(0);
    out.extend_from_slice(body);
    if let Some((name, _)) = sequence {
        out.push(1);
        let size = i32::try_from(extra - 1).unwrap_or(i32::MAX);
        out.extend_from_slice(&size.to_le_bytes());
        out.extend_from_slice(name.as_bytes());
        out.push(0);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_built_message_are_found_again() {
        let body = bson::rawdoc! { "insert": "c", "$db": "d" };
        let one = bson::rawdoc! { "_id": 1 };
        let bytes = build(7, 0, 0, body.as_bytes(), Some(("documents", one.as_bytes())));
        let message = OpMsg::parse(&bytes).unwrap();
        assert_eq!(message.header.request_id, 7);
        assert_eq!(&bytes[message.body.clone()], body.as_bytes());
        assert_eq!(&bytes[message.sequences[0].identifier.clone()], b"documents");
        assert_eq!(&bytes[message.sequences[0].documents.clone()], one.as_bytes());
    }

    #[test]
    fn two_sequences_for_two_fields_are_all_that_there_may_be() {
        let parsed = |names: &[&str]| {
            let mut bytes = build(1, 0, 0, bson::rawdoc! { "bulkWrite": 1 }.as_bytes(), None);
            for name in names {
                bytes.push(1);
                bytes.extend_from_slice(&u32::try_from(5 + name.len()).unwrap().to_le_bytes());
                bytes.extend_from_slice(name.as_bytes());
                bytes.push(0);
            }
            let length = u32::try_from(bytes.len()).unwrap();
            bytes[..4].copy_from_slice(&length.to_le_bytes());
            OpMsg::parse(&bytes).map(|message| message.sequences.len())
        };
        assert_eq!(parsed(&["ops", "nsInfo"]), Ok(2));
        assert!(parsed(&["ops", "ops"]).is_err());
        assert!(parsed(&["ops", "nsInfo", "x"]).is_err());
    }

    #[test]
    fn a_checksum_is_given_once_and_holds() {
        let body = bson::rawdoc! { "ping": 1 };
        let mut bytes = BytesMut::from(&build(1, 0, MORE_TO_COME, body.as_bytes(), None)[..]);
        assert!(!has_checksum(&bytes));
        append_checksum(&mut bytes);
        let once = bytes.clone();
        append_checksum(&mut bytes);
        assert!(has_checksum(&bytes) && bytes == once);
        assert_eq!(OpMsg::parse(&bytes).unwrap().flags, MORE_TO_COME | CHECKSUM_PRESENT);
        bytes[21] ^= 1;
        assert_eq!(OpMsg::parse(&bytes), Err(FrameError::Checksum));
        let mut other = BytesMut::from(&[0; 24][..]);
        append_checksum(&mut other);
        assert_eq!(&other[..], [0; 24]);
    }

    #[test]
    fn lengths_are_checked_before_use() {
        let body = bson::rawdoc! { "ping": 1 };
        let mut bytes = build(1, 0, 0, body.as_bytes(), None);
        bytes[21] = 0xff;
        assert!(OpMsg::parse(&bytes).is_err());
        assert!(Header::parse(&[0xff; 16]).is_err());
    }
}
