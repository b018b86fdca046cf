//! A door to a server: behind it, it seems to be of MongoDB 8.0, and where a script has an answer to a `bulkWrite` or to
//! a `getMore` of its cursor, that is its answer.

use std::collections::VecDeque;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bson::{Document, RawDocument, RawDocumentBuf};
use parking_lot::Mutex;
use reshard::wire::header::{Header, OP_MSG};
use reshard::wire::op_msg::{OpMsg, build};
use tokio::io::AsyncWriteExt as _;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

use super::raw::read;

/// That of MongoDB 8.0.
const VERSION: i32 = 25;

/// Answers that are given one after the other, and what they were given to.
#[derive(Debug, Default)]
pub(crate) struct Script {
    pub(crate) answers: Mutex<VecDeque<RawDocumentBuf>>,
    pub(crate) asked: Mutex<Vec<Document>>,
}

impl Script {
    /// The whole answer to a message, if it is the script's to give.
    fn answer(&self, header: Header, message: &[u8]) -> Result<Option<Vec<u8>>> {
        if header.opcode != OP_MSG {
            return Ok(None);
        }
        let body = Document::try_from(RawDocument::from_bytes(&message[OpMsg::parse(message)?.body])?)?;
        let name = body.keys().next().context("a name")?;
        let is_for_us = match name.as_str() {
            "bulkWrite" => true,
            "getMore" => body.get_str("collection").is_ok_and(|name| name == "$cmd.bulkWrite"),
            _ => false,
        };
        let answer = if is_for_us { self.answers.lock().pop_front() } else { None };
        let Some(answer) = answer else { return Ok(None) };
        self.asked.lock().push(body);
        Ok(Some(build(1, header.request_id, 0, answer.as_bytes(), None)))
    }
}

/// A way to `server`; the connection string.
pub(crate) async fn door(server: &str, script: Arc<Script>) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let server = server.to_owned();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (server, script) = (server.clone(), script.clone());
            tokio::spawn(async move { pass(client, TcpStream::connect(server).await?, script).await });
        }
    });
    Ok(format!("mongodb://127.0.0.1:{port}/?directConnection=true"))
}

async fn pass(client: TcpStream, server: TcpStream, script: Arc<Script>) -> Result<()> {
    let (from_client, to_client) = client.into_split();
    let (mut from_server, to_server) = server.into_split();
    let to_client = Arc::new(tokio::sync::Mutex::new(to_client));
    let up = tokio::spawn(upwards(from_client, to_server, to_client.clone(), script));
    let name = b"\x10maxWireVersion\0";
    while let Ok((_, mut message)) = read(&mut from_server).await {
        if let Some(at) = message.windows(name.len()).position(|window| window == name) {
            message[at + name.len()..at + name.len() + 4].copy_from_slice(&VERSION.to_le_bytes());
        }
        to_client.lock().await.write_all(&message).await?;
    }
    up.abort();
    Ok(())
}

async fn upwards(
    mut from_client: OwnedReadHalf,
    mut to_server: OwnedWriteHalf,
    to_client: Arc<tokio::sync::Mutex<OwnedWriteHalf>>,
    script: Arc<Script>,
) -> Result<()> {
    while let Ok((header, message)) = read(&mut from_client).await {
        match script.answer(header, &message)? {
            Some(answer) => to_client.lock().await.write_all(&answer).await?,
            None => to_server.write_all(&message).await?,
        }
    }
    Ok(to_server.shutdown().await?)
}
