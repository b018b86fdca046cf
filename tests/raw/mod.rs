//! Messages as a client writes them, and replies as it reads them.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bson::{Document, RawDocument, RawDocumentBuf};
use reshard::wire::header::{Header, OP_MSG};
use reshard::wire::op_msg::{CHECKSUM_PRESENT, OpMsg, build};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// One whole message.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<(Header, Vec<u8>)> {
    let mut bytes = vec![0; 16];
    stream.read_exact(&mut bytes).await?;
    let header = Header::parse(&bytes)?.context("header")?;
    bytes.resize(header.length, 0);
    stream.read_exact(&mut bytes[16..]).await?;
    Ok((header, bytes))
}

/// One whole reply, within `limit`.
pub(crate) async fn reply_within(
    stream: &mut (impl AsyncRead + Unpin),
    limit: Duration,
) -> Result<(Header, Document)> {
    let (header, bytes) = tokio::time::timeout(limit, read(stream)).await??;
    ensure!(header.opcode == OP_MSG);
    let parts = OpMsg::parse(&bytes)?;
    // A checksum answers a checksum.
    ensure!(parts.flags & !CHECKSUM_PRESENT == 0, "flags {:x}", parts.flags);
    let body = RawDocument::from_bytes(&bytes[parts.body])?;
    Ok((header, Document::try_from(body)?))
}

/// A request under `number`, and its reply within `limit`.
pub(crate) async fn ask_as(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    number: i32,
    body: &RawDocumentBuf,
    limit: Duration,
) -> Result<Document> {
    stream.write_all(&build(number, 0, 0, body.as_bytes(), None)).await?;
    let (header, document) = reply_within(stream, limit).await?;
    ensure!(header.response_to == number, "an answer to {} instead of {number}", header.response_to);
    Ok(document)
}
