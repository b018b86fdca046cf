//! The 16 bytes in front of every message.
//! Source: <https://www.mongodb.com/docs/manual/reference/mongodb-wire-protocol/>.

/// Length of the header in bytes.
pub const HEADER_LEN: usize = 16;
/// Largest message MongoDB accepts, header included, in bytes.
pub const MAX_MESSAGE_LEN: usize = 48_000_000;
/// Longest compressed message that is taken, in bytes. Drivers cut their messages before they compress them, and what
/// cannot be compressed gets longer: by a sixth and a bit more at worst (snappy).
pub const MAX_COMPRESSED_LEN: usize = MAX_MESSAGE_LEN + MAX_MESSAGE_LEN / 6 + 64;

/// Reply to `OP_QUERY`.
pub const OP_REPLY: i32 = 1;
/// Legacy query; only used for the first `hello`.
pub const OP_QUERY: i32 = 2004;
/// A compressed message.
pub const OP_COMPRESSED: i32 = 2012;
/// Every command and reply since MongoDB 3.6.
pub const OP_MSG: i32 = 2013;

/// The header of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Length of the message in bytes, this header included.
    pub length: usize,
    /// Chosen by the sender.
    pub request_id: i32,
    /// The `request_id` this answers, or 0.
    pub response_to: i32,
    /// What follows.
    pub opcode: i32,
}

/// Why bytes are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length is below the header's or above the limit.
    #[error("message length {0} is not between 16 and {MAX_MESSAGE_LEN}")]
    Length(i64),
    /// The inside does not follow the protocol.
    #[error("malformed message: {0}")]
    Malformed(&'static str),
    /// The CRC-32C at the end does not match.
    #[error("checksum mismatch")]
    Checksum,
}

/// Reads the little-endian `i32` at `at`, if it is there.
#[must_use]
pub fn read_i32(bytes: &[u8], at: usize) -> Option<i32> {
    let field = bytes.get(at..at.checked_add(4)?)?;
    Some(i32::from_le_bytes([field[0], field[1], field[2], field[3]]))
}

impl Header {
    /// Parses the header at the start of `bytes`; `None` while fewer than 16 bytes are there.
    ///
    /// # Errors
    /// [`FrameError::Length`] before anything is allocated for a length out of bounds.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, FrameError> {
        let (Some(length), Some(request_id), Some(response_to), Some(opcode)) =
            (read_i32(bytes, 0), read_i32(bytes, 4), read_i32(bytes, 8), read_i32(bytes, 12))
        else {
            return Ok(None);
        };
        let most = if opcode == OP_COMPRESSED { MAX_COMPRESSED_LEN } else { MAX_MESSAGE_LEN };
        match usize::try_from(length) {
            Ok(len) if (HEADER_LEN..=most).contains(&len) => {
                Ok(Some(Self { length: len, request_id, response_to, opcode }))
            }
            _ => Err(FrameError::Length(i64::from(length))),
        }
    }

    /// The header as bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        let length = i32::try_from(self.length).unwrap_or(i32::MAX);
        out[0..4].copy_from_slice(&length.to_le_bytes());
        out[4..8].copy_from_slice(&self.request_id.to_le_bytes());
        out[8..12].copy_from_slice(&self.response_to.to_le_bytes());
        out[12..16].copy_from_slice(&self.opcode.to_le_bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_compressed_may_be_longer_than_a_message() {
        let parsed = |length: usize, opcode: i32| {
            let header = Header { length, request_id: 1, response_to: 0, opcode };
            Header::parse(&header.encode()).is_ok()
        };
        assert!(parsed(MAX_MESSAGE_LEN, OP_MSG) && !parsed(MAX_MESSAGE_LEN + 1, OP_MSG));
        assert!(parsed(MAX_COMPRESSED_LEN, OP_COMPRESSED) && !parsed(MAX_COMPRESSED_LEN + 1, OP_COMPRESSED));
    }
}
