//! One command over a plain connection, without the driver.
//!
//! The driver refuses servers before 4.4 and keeps monitors for each client. All that a test bed asks a
//! server that has no access control is one command and one answer.

use anyhow::{Context, Result, bail, ensure};
use bson::{Bson, Document};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const OP_MSG: i32 = 2013;
const HEADER: usize = 16;
/// Flags and the kind of the only section.
const PRELUDE: usize = 5;
const LARGEST_ANSWER: usize = 48 << 20;

/// Runs `command` on `database`; an answer that is not ok is an error.
pub(crate) async fn command(address: &str, database: &str, mut command: Document) -> Result<Document> {
    command.insert("$db", database);
    let body = command.to_vec()?;
    let length = i32::try_from(HEADER + PRELUDE + body.len())?;
    let mut message = Vec::with_capacity(HEADER + PRELUDE + body.len());
    for field in [length, 1, 0, OP_MSG, 0] {
        message.extend(field.to_le_bytes());
    }
    message.push(0);
    message.extend(body);

    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(&message).await?;
    let length = usize::try_from(stream.read_i32_le().await.context("reading the answer")?)?;
    ensure!((HEADER + PRELUDE..LARGEST_ANSWER).contains(&length), "an answer of {length} bytes");
    let mut answer = vec![0; length - size_of::<i32>()];
    stream.read_exact(&mut answer).await.context("reading the answer")?;
    let document = Document::from_reader(&answer[HEADER - size_of::<i32>() + PRELUDE..])?;
    let ok = match document.get("ok") {
        Some(Bson::Double(value)) => *value > 0.0,
        Some(Bson::Int32(value)) => *value > 0,
        _ => false,
    };
    if !ok {
        bail!("the server answered {document}");
    }
    Ok(document)
}
