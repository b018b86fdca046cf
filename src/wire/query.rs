//! The legacy OP_QUERY and OP_REPLY, which drivers still use for their first `hello`.

use super::header::{FrameError, HEADER_LEN, Header, OP_QUERY, OP_REPLY, read_i32};
use super::scan::Command;

/// `responseFlags` of a reply to an `awaitCapable` query, as every server sends it.
const AWAIT_CAPABLE: i32 = 8;

/// An OP_QUERY that holds a command.
#[derive(Debug, Clone)]
pub struct Query<'a> {
    /// The message's header.
    pub header: Header,
    /// `database.$cmd`.
    pub namespace: &'a str,
    /// The command.
    pub command: Command<'a>,
    /// The command's document.
    pub body: &'a [u8],
}

impl<'a> Query<'a> {
    /// Parses the complete message `bytes`, header included.
    ///
    /// # Errors
    /// [`FrameError`] when a part is missing or the query is not a document.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FrameError> {
        let header = Header::parse(bytes)?.ok_or(FrameError::Malformed("short header"))?;
        if header.opcode != OP_QUERY || header.length != bytes.len() {
            return Err(FrameError::Malformed("not one whole OP_QUERY"));
        }
        let name = HEADER_LEN + 4;
        let rest = bytes.get(name..).ok_or(FrameError::Malformed("no namespace"))?;
        let nul = rest.iter().position(|byte| *byte == 0).ok_or(FrameError::Malformed("no namespace"))?;
        let namespace = std::str::from_utf8(&rest[..nul]).map_err(|_| FrameError::Malformed("namespace"))?;
        // numberToSkip and numberToReturn stand between.
        let body = name + nul + 1 + 8;
        let length = read_i32(bytes, body).and_then(|length| usize::try_from(length).ok());
        let end = length.and_then(|length| body.checked_add(length)).ok_or(FrameError::Malformed("query"))?;
        let command = Command::scan(bytes, body..end).map_err(|error| FrameError::Malformed(error.0))?;
        Ok(Self { header, namespace, command, body: &bytes[body..end] })
    }
}

/// Builds an OP_REPLY with one document.
#[must_use]
pub fn reply(response_to: i32, document: &[u8]) -> Vec<u8> {
    let length = HEADER_LEN + 20 + document.len();
    let mut out = Vec::with_capacity(length);
    out.extend_from_slice(&Header { length, request_id: 0, response_to, opcode: OP_REPLY }.encode());
    out.extend_from_slice(&AWAIT_CAPABLE.to_le_bytes());
    out.extend_from_slice(&0_i64.to_le_bytes());
    out.extend_from_slice(&0_i32.to_le_bytes());
    out.extend_from_slice(&1_i32.to_le_bytes());
    out.extend_from_slice(document);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(document: &[u8]) -> Vec<u8> {
        let mut rest = vec![0, 0, 0, 0];
        rest.extend_from_slice(b"admin.$cmd\0");
        rest.extend_from_slice(&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        rest.extend_from_slice(document);
        let header = Header { length: 16 + rest.len(), request_id: 3, response_to: 0, opcode: OP_QUERY };
        [header.encode().as_slice(), &rest].concat()
    }

    #[test]
    fn a_legacy_hello_is_understood() {
        let bytes = query(bson::rawdoc! { "isMaster": 1, "helloOk": true }.as_bytes());
        let query = Query::parse(&bytes).unwrap();
        assert_eq!((query.namespace, query.command.name), ("admin.$cmd", "isMaster"));
        for end in 0..bytes.len() {
            assert!(Query::parse(&bytes[..end]).is_err());
        }
    }

    #[test]
    fn a_reply_has_the_length_it_says() {
        let bytes = reply(3, bson::rawdoc! { "ok": 1.0 }.as_bytes());
        let header = Header::parse(&bytes).unwrap().unwrap();
        assert_eq!((header.length, header.response_to, header.opcode), (bytes.len(), 3, OP_REPLY));
    }
}
