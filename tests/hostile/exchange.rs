//! One exchange of a hostile client: what it sends, and what comes back.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bson::RawDocumentBuf;
use reshard::wire::compressed::{Compressors, decompress};
use reshard::wire::element::Elements;
use reshard::wire::header::{Header, OP_COMPRESSED, OP_MSG, OP_REPLY};
use reshard::wire::op_msg::{OpMsg, build};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// No answer has come after this, nor an end.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
/// The number of the request behind a hostile one.
const LAST: i32 = 999_999;

/// What came back.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// To the hostile message.
    pub(crate) replies: Vec<Answer>,
    /// To the request behind it; none if the connection was closed.
    pub(crate) last: Option<Answer>,
}

/// It must not take longer.
pub(crate) async fn within<T>(exchange: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(PATIENCE, exchange).await.context("neither an answer nor an end")?
}

/// Sends `bytes`, and `last` behind them if they are a whole message; what came back until the end.
pub(crate) async fn exchange(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    bytes: &[u8],
    last: &RawDocumentBuf,
) -> Result<Told> {
    // It may be closed before all is sent; what was said before that may be lost then.
    _ = stream.write_all(bytes).await;
    if is_whole(bytes) {
        _ = stream.write_all(&build(LAST, 0, 0, last.as_bytes(), None)).await;
        _ = stream.flush().await;
    } else {
        // More is waited for, and an answer to what is left would not be.
        _ = stream.shutdown().await;
    }
    read_all(stream).await
}

/// The first message of a client; it may compress from then on.
pub(crate) async fn greet(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<()> {
    let hello = bson::rawdoc! { "hello": 1, "compression": ["zstd", "zlib", "snappy"], "$db": "admin" };
    stream.write_all(&build(1, 0, 0, hello.as_bytes(), None)).await?;
    stream.flush().await?;
    let mut head = [0; 16];
    stream.read_exact(&mut head).await?;
    let header = Header::parse(&head)?.context("header")?;
    stream.read_exact(&mut vec![0; header.length - 16]).await?;
    Ok(())
}

/// One message, as its header says.
fn is_whole(bytes: &[u8]) -> bool {
    Header::parse(bytes).is_ok_and(|header| header.is_some_and(|it| it.length == bytes.len()))
}

/// The replies until the end or the last one's; they must be whole and proper.
async fn read_all(stream: &mut (impl AsyncRead + Unpin)) -> Result<Told> {
    let mut told = Told::default();
    loop {
        let mut bytes = vec![0; 16];
        match stream.read(&mut bytes[..1]).await {
            Ok(0) | Err(_) => return Ok(told),
            Ok(_) => {}
        }
        stream.read_exact(&mut bytes[1..]).await.context("half a header")?;
        let header = Header::parse(&bytes)?.context("header")?;
        bytes.resize(header.length, 0);
        stream.read_exact(&mut bytes[16..]).await.context("half a reply")?;
        if header.response_to == LAST {
            told.last = Some(reply(&bytes)?);
            return Ok(told);
        }
        told.replies.push(reply(&bytes)?);
    }
}

fn reply(message: &[u8]) -> Result<Answer> {
    let mut plain = bytes::BytesMut::from(message);
    if Header::parse(message)?.is_some_and(|header| header.opcode == OP_COMPRESSED) {
        decompress(message, Compressors::ALL, &mut plain)?;
    }
    let body = match Header::parse(&plain)?.context("header")?.opcode {
        OP_MSG => plain[OpMsg::parse(&plain)?.body].to_vec(),
        OP_REPLY => plain[36..].to_vec(),
        other => bail!("a reply of opcode {other}"),
    };
    // Text of a hostile client comes back in errors, as bytes that are no UTF-8; the structure is what counts.
    let mut answer = Answer::default();
    for element in Elements::of(&body)? {
        let element = element?;
        match element.key {
            b"ok" => answer.ok = element.as_bool() == Some(true),
            b"writeErrors" => answer.refused = true,
            b"code" => (answer.refused, answer.code) = (true, element.as_i64()),
            _ => {}
        }
    }
    Ok(answer)
}

/// What a reply says.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) ok: bool,
    pub(crate) refused: bool,
    /// The code of its error.
    pub(crate) code: Option<i64>,
}
