//! `OP_COMPRESSED`: another message, all behind its header compressed.
//! Source: specifications/source/compression/OP_COMPRESSED.md.

use std::io::{Read, Write};

use bytes::BytesMut;

use super::header::{FrameError, HEADER_LEN, Header, MAX_MESSAGE_LEN, OP_COMPRESSED, read_i32};

/// Header, opcode and length of what is inside, and who compressed it.
const FIXED: usize = HEADER_LEN + 4 + 4 + 1;
/// Servers use this level too.
const ZSTD_LEVEL: i32 = 3;
/// Snappy's shortest form of a repetition: 3 bytes for 64.
const SNAPPY_MOST: usize = 64;

/// How a message is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compressor {
    /// Fast, and not much smaller.
    Snappy,
    /// Slow, and everywhere.
    Zlib,
    /// Small.
    Zstd,
}

impl Compressor {
    /// All of them, in the order that servers prefer.
    pub const ALL: [Self; 3] = [Self::Snappy, Self::Zstd, Self::Zlib];

    /// Its name in `hello`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Snappy => "snappy",
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
        }
    }

    fn id(self) -> u8 {
        match self {
            Self::Snappy => 1,
            Self::Zlib => 2,
            Self::Zstd => 3,
        }
    }
}

/// A set of compressors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compressors(u8);

impl Compressors {
    /// All that there are.
    pub const ALL: Self = Self(0b1110);
    /// None.
    pub const NONE: Self = Self(0);

    /// With one more.
    #[must_use]
    pub fn with(self, one: Compressor) -> Self {
        Self(self.0 | 1 << one.id())
    }

    /// Whether `one` is among them.
    #[must_use]
    pub fn contain(self, one: Compressor) -> bool {
        self.0 & 1 << one.id() != 0
    }

    /// The one of that name, if it is among them.
    #[must_use]
    pub fn named(self, name: &str) -> Option<Compressor> {
        Compressor::ALL.into_iter().find(|one| one.name() == name && self.contain(*one))
    }

    fn numbered(self, id: u8) -> Option<Compressor> {
        Compressor::ALL.into_iter().find(|one| one.id() == id && self.contain(*one))
    }
}

/// Puts the message inside the complete message `bytes` into `plain`; tells how it was compressed (`None`: it
/// was not, which the protocol allows for tests).
///
/// # Errors
/// [`FrameError`] when it is not one of `agreed`, or when what is inside is not what it says. At most the
/// length that it says is written, and no message is longer than [`MAX_MESSAGE_LEN`].
pub fn decompress(
    bytes: &[u8],
    agreed: Compressors,
    plain: &mut BytesMut,
) -> Result<Option<Compressor>, FrameError> {
    let header = Header::parse(bytes)?.ok_or(FrameError::Malformed("short header"))?;
    let (Some(opcode), Some(length), Some(id)) =
        (read_i32(bytes, HEADER_LEN), read_i32(bytes, HEADER_LEN + 4), bytes.get(FIXED - 1))
    else {
        return Err(FrameError::Malformed("short compressed message"));
    };
    if opcode == OP_COMPRESSED {
        return Err(FrameError::Malformed("a compressed message within another"));
    }
    let length = usize::try_from(length).ok().filter(|length| *length <= MAX_MESSAGE_LEN - HEADER_LEN);
    let length = length.ok_or(FrameError::Malformed("the length of what is compressed is out of bounds"))?;
    let inside = &bytes[FIXED..];
    let compressor = match id {
        0 => None,
        id => Some(agreed.numbered(*id).ok_or(FrameError::Malformed("this compressor was not agreed on"))?),
    };
    plain.clear();
    let whole = Header { length: HEADER_LEN + length, opcode, ..header };
    plain.extend_from_slice(&whole.encode());
    match compressor {
        None => plain.extend_from_slice(inside),
        Some(compressor) => plain.extend_from_slice(&inflate(inside, compressor, length)?),
    }
    if plain.len() != whole.length {
        return Err(FrameError::Malformed("what is compressed has another length than it says"));
    }
    Ok(compressor)
}

fn inflate(bytes: &[u8], compressor: Compressor, length: usize) -> Result<Vec<u8>, FrameError> {
    let broken = FrameError::Malformed("what is compressed cannot be read");
    match compressor {
        Compressor::Snappy => {
            let said = snap::raw::decompress_len(bytes).map_err(|_| broken.clone())?;
            if said != length || length > bytes.len().saturating_mul(SNAPPY_MOST) {
                return Err(broken);
            }
            snap::raw::Decoder::new().decompress_vec(bytes).map_err(|_| broken)
        }
        Compressor::Zlib => {
            let mut out = Vec::new();
            let most = u64::try_from(length).map_err(|_| broken.clone())? + 1;
            flate2::read::ZlibDecoder::new(bytes).take(most).read_to_end(&mut out).map_err(|_| broken)?;
            Ok(out)
        }
        // In one piece: a stream would be given a window as large as the sender asks for.
        Compressor::Zstd => zstd::bulk::decompress(bytes, length).map_err(|_| broken),
    }
}

/// Puts `message` into `out`, compressed, though that may be longer; `false` when it is none, or would be longer than
/// the longest message that servers and drivers take: then it goes as it is, as servers send theirs.
pub fn compress(message: &[u8], compressor: Compressor, out: &mut BytesMut) -> bool {
    compress_within(MAX_MESSAGE_LEN, message, compressor, out)
}

fn compress_within(most: usize, message: &[u8], compressor: Compressor, out: &mut BytesMut) -> bool {
    let (Ok(Some(header)), Some(inside)) = (Header::parse(message), message.get(HEADER_LEN..)) else {
        return false;
    };
    let Some(bytes) = deflate(inside, compressor) else { return false };
    out.clear();
    let length = FIXED + bytes.len();
    if length > most {
        return false;
    }
    out.extend_from_slice(&Header { length, opcode: OP_COMPRESSED, ..header }.encode());
    out.extend_from_slice(&header.opcode.to_le_bytes());
    out.extend_from_slice(&i32::try_from(inside.len()).unwrap_or(i32::MAX).to_le_bytes());
    out.extend_from_slice(&[compressor.id()]);
    out.extend_from_slice(&bytes);
    true
}

fn deflate(bytes: &[u8], compressor: Compressor) -> Option<Vec<u8>> {
    match compressor {
        Compressor::Snappy => snap::raw::Encoder::new().compress_vec(bytes).ok(),
        Compressor::Zlib => {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(bytes).ok()?;
            encoder.finish().ok()
        }
        Compressor::Zstd => zstd::bulk::compress(bytes, ZSTD_LEVEL).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::header::MAX_COMPRESSED_LEN;
    use crate::wire::op_msg::{OpMsg, build};
    use proptest::prelude::*;

    fn message(text: &str) -> Vec<u8> {
        build(7, 5, 0, bson::rawdoc! { "ping": text, "$db": "d" }.as_bytes(), None).to_vec()
    }

    fn compressed(plain: &[u8], compressor: Compressor) -> BytesMut {
        let mut out = BytesMut::new();
        assert!(compress(plain, compressor, &mut out));
        out
    }

    #[test]
    fn what_goes_in_comes_out() {
        let plain = message(&"again and again ".repeat(1000));
        for compressor in Compressor::ALL {
            let small = compressed(&plain, compressor);
            assert!(small.len() < plain.len() / 4, "{compressor:?}: {}", small.len());
            let mut out = BytesMut::new();
            assert_eq!(decompress(&small, Compressors::ALL, &mut out), Ok(Some(compressor)));
            assert_eq!(out, plain);
            assert_eq!(OpMsg::parse(&out).unwrap().header.response_to, 5);
        }
    }

    #[test]
    fn what_gets_no_shorter_comes_out_too() {
        let plain = message("");
        for compressor in Compressor::ALL {
            let mut out = BytesMut::new();
            let long = compressed(&plain, compressor);
            assert!(long.len() > plain.len(), "{compressor:?}");
            assert_eq!(decompress(&long, Compressors::ALL, &mut out), Ok(Some(compressor)));
            assert_eq!(out, plain);
        }
    }

    /// A message of that length that no compressor makes shorter.
    fn noise(length: usize) -> Vec<u8> {
        let frame = |bytes: &[u8]| {
            build(7, 5, 0, bson::rawdoc! { "insert": "c" }.as_bytes(), Some(("documents", bytes)))
        };
        let mut bytes = vec![0; length - frame(&[]).len()];
        rand::fill(&mut bytes[..]);
        frame(&bytes)
    }

    #[test]
    fn what_would_get_too_long_for_a_message_is_left_as_it_is() {
        let plain = noise(100_000);
        for compressor in Compressor::ALL {
            let mut out = BytesMut::new();
            assert!(!compress_within(plain.len(), &plain, compressor, &mut out), "{compressor:?}");
            assert!(compress_within(plain.len() * 2, &plain, compressor, &mut out), "{compressor:?}");
        }
    }

    #[test]
    fn the_longest_message_that_nothing_makes_shorter_goes_as_it_is_and_is_taken_from_drivers() {
        let longest = noise(MAX_MESSAGE_LEN);
        let (mut long, mut out) = (BytesMut::new(), BytesMut::new());
        assert!(!compress(&longest, Compressor::Snappy, &mut long));
        assert!(compress_within(usize::MAX, &longest, Compressor::Snappy, &mut long));
        assert!(long.len() > MAX_MESSAGE_LEN && long.len() <= MAX_COMPRESSED_LEN);
        assert_eq!(decompress(&long, Compressors::ALL, &mut out), Ok(Some(Compressor::Snappy)));
        assert!(out == longest);
        let bound = snap::raw::max_compress_len(MAX_MESSAGE_LEN - HEADER_LEN);
        assert!(FIXED + bound <= MAX_COMPRESSED_LEN);
    }

    #[test]
    fn only_what_was_agreed_on_is_taken() {
        let plain = message(&"again and again ".repeat(1000));
        let small = compressed(&plain, Compressor::Zstd);
        let agreed = Compressors::NONE.with(Compressor::Snappy).with(Compressor::Zlib);
        assert_eq!(agreed.named("zstd"), None);
        assert_eq!(agreed.named("zlib"), Some(Compressor::Zlib));
        assert!(decompress(&small, agreed, &mut BytesMut::new()).is_err());
    }

    #[test]
    fn a_bomb_is_no_larger_than_it_says() {
        let plain = message(&"0".repeat(10_000_000));
        for compressor in Compressor::ALL {
            for said in [-1, 0, 1000, 9_000_000, 48_000_000, i32::MAX] {
                let mut bomb = compressed(&plain, compressor);
                bomb[HEADER_LEN + 4..HEADER_LEN + 8].copy_from_slice(&said.to_le_bytes());
                let mut out = BytesMut::new();
                assert!(decompress(&bomb, Compressors::ALL, &mut out).is_err(), "{compressor:?} {said}");
            }
        }
    }

    #[test]
    fn one_within_another_is_refused() {
        let plain = message(&"again and again ".repeat(1000));
        let mut twice = compressed(&plain, Compressor::Zlib);
        twice[HEADER_LEN..HEADER_LEN + 4].copy_from_slice(&OP_COMPRESSED.to_le_bytes());
        assert!(decompress(&twice, Compressors::ALL, &mut BytesMut::new()).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(inside in proptest::collection::vec(any::<u8>(), 0..200), id in 0_u8..5) {
            let length = i32::try_from(FIXED + inside.len()).unwrap();
            let mut bytes = Vec::new();
            for field in [length, 1, 0, OP_COMPRESSED, 2013, 1000] {
                bytes.extend_from_slice(&field.to_le_bytes());
            }
            bytes.push(id);
            bytes.extend_from_slice(&inside);
            let mut out = BytesMut::new();
            _ = decompress(&bytes, Compressors::ALL, &mut out);
            prop_assert!(out.len() <= HEADER_LEN + 1001);
        }
    }
}
