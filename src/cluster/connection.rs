//! One connection to a server: whole messages out, whole messages in.

use std::io::{self, IoSlice};

use bson::{RawDocument, RawDocumentBuf};
use bytes::BytesMut;

use crate::wire::compressed::{Compressor, Compressors, compress, decompress};
use crate::wire::header::{FrameError, HEADER_LEN, Header, OP_COMPRESSED, OP_MSG, read_i32};
use crate::wire::op_msg::{self, MORE_TO_COME, OpMsg};

use super::stream::{Cutter, Stream};

/// Room to read into before the reply's length is known; most replies fit and need one system call.
const FIRST_READ: usize = 16 * 1024;

/// Why an exchange failed. The connection is of no use afterwards.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExchangeError {
    /// Not one byte was written.
    #[error("{0}")]
    NotSent(io::Error),
    /// The connection broke after something was written.
    #[error("{0}")]
    Broken(io::Error),
    /// The server answered something that is no reply.
    #[error("{0}")]
    Frame(#[from] FrameError),
}

/// One connection to a server.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    last_request_id: i32,
    compressor: Option<Compressor>,
}

impl Connection {
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream, last_request_id: 0, compressor: None }
    }

    /// From now on messages go compressed; what must not be is left as it is.
    pub(super) fn compress(&mut self, with: Option<Compressor>) {
        self.compressor = with;
    }

    /// What ends the connection while it is in use.
    pub(super) fn cutter(&self) -> Cutter {
        self.stream.cutter()
    }

    /// Whether the server has neither closed the connection nor sent anything unasked.
    pub(super) fn is_quiet(&mut self) -> bool {
        self.stream.is_quiet()
    }

    /// Sends one whole message and reads one whole reply into `reply`, which is cleared first.
    /// Returns whether the connection is at rest afterwards, that is, no further reply follows unasked.
    /// When the future is dropped, the connection is of no use any more.
    pub(super) async fn exchange(
        &mut self,
        message: &mut [IoSlice<'_>],
        reply: &mut BytesMut,
    ) -> Result<bool, ExchangeError> {
        let request_id = message.first().and_then(|part| read_i32(part, 4));
        let header = match self.compressor {
            None => {
                self.write(message).await?;
                self.read(reply).await?
            }
            Some(compressor) => self.exchange_compressed(message, compressor, reply).await?,
        };
        if request_id.is_some_and(|id| id != header.response_to) {
            return Err(FrameError::Malformed("it answers another request").into());
        }
        let flags = read_i32(reply, HEADER_LEN).map_or(0, i32::cast_unsigned);
        Ok(header.opcode != OP_MSG || flags & MORE_TO_COME == 0)
    }

    /// What answers a message is compressed as that was: short ones too, which hardly get shorter.
    async fn exchange_compressed(
        &mut self,
        message: &mut [IoSlice<'_>],
        compressor: Compressor,
        reply: &mut BytesMut,
    ) -> Result<Header, ExchangeError> {
        let (mut plain, mut small) = (BytesMut::new(), BytesMut::new());
        message.iter().for_each(|part| plain.extend_from_slice(part));
        if may_be_compressed(&plain) && compress(&plain, compressor, &mut small) {
            drop(plain);
            self.write(&mut [IoSlice::new(&small)]).await?;
        } else {
            self.write(message).await?;
        }
        let header = self.read(reply).await?;
        if header.opcode != OP_COMPRESSED {
            return Ok(header);
        }
        decompress(reply, Compressors::NONE.with(compressor), &mut small)?;
        std::mem::swap(reply, &mut small);
        Header::parse(reply)?.ok_or(ExchangeError::Frame(FrameError::Malformed("a reply without a header")))
    }

    async fn write(&mut self, mut rest: &mut [IoSlice<'_>]) -> Result<(), ExchangeError> {
        let mut sent = false;
        // Leaves out empty parts at the start, which would look like a write of nothing.
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            match self.stream.write(rest).await {
                Ok(0) => return Err(broken(sent, io::ErrorKind::WriteZero.into())),
                Ok(count) => IoSlice::advance_slices(&mut rest, count),
                Err(error) => return Err(broken(sent, error)),
            }
            sent = true;
        }
        self.stream.flush().await.map_err(ExchangeError::Broken)
    }

    async fn read(&mut self, reply: &mut BytesMut) -> Result<Header, ExchangeError> {
        reply.clear();
        reply.reserve(FIRST_READ);
        let header = loop {
            if let Some(header) = Header::parse(reply)? {
                break header;
            }
            self.read_some(reply).await?;
        };
        reply.reserve(header.length.saturating_sub(reply.len()));
        while reply.len() < header.length {
            self.read_some(reply).await?;
        }
        if reply.len() > header.length {
            return Err(FrameError::Malformed("more than one reply").into());
        }
        Ok(header)
    }

    async fn read_some(&mut self, reply: &mut BytesMut) -> Result<(), ExchangeError> {
        match self.stream.read(reply).await {
            Ok(0) => Err(ExchangeError::Broken(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => Ok(()),
            Err(error) => Err(ExchangeError::Broken(error)),
        }
    }

    /// Runs a small command of the cluster layer itself; `body` has its `$db`.
    pub(super) async fn command(&mut self, body: &RawDocument) -> Result<RawDocumentBuf, ExchangeError> {
        self.last_request_id = self.last_request_id.wrapping_add(1);
        let message = op_msg::build(self.last_request_id, 0, 0, body.as_bytes(), None);
        let mut reply = BytesMut::new();
        self.exchange(&mut [IoSlice::new(&message)], &mut reply).await?;
        let body = OpMsg::parse(&reply)?.body;
        let body = RawDocument::from_bytes(&reply[body]);
        Ok(body.map_err(|_| FrameError::Malformed("the body is not BSON"))?.to_owned())
    }
}

/// Whether a message is of a command that may be compressed.
/// Source: specifications/source/compression/OP_COMPRESSED.md, "Messages not allowed to be compressed".
fn may_be_compressed(message: &[u8]) -> bool {
    const NEVER: [&str; 11] = [
        "hello",
        "isMaster",
        "ismaster",
        "saslStart",
        "saslContinue",
        "getnonce",
        "authenticate",
        "createUser",
        "updateUser",
        "copydbSaslStart",
        "copydbgetnonce",
    ];
    let Ok(parsed) = OpMsg::parse(message) else { return false };
    let body = RawDocument::from_bytes(&message[parsed.body]).ok();
    let command = body.and_then(|body| body.iter().next()?.ok());
    command.is_some_and(|(name, _)| !NEVER.contains(&name.as_str()))
}

fn broken(sent: bool, error: io::Error) -> ExchangeError {
    if sent { ExchangeError::Broken(error) } else { ExchangeError::NotSent(error) }
}
