//! A client that costs little, and the same whatever is at the other end: messages made beforehand, in which
//! only numbers change.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use bson::{RawDocumentBuf, rawdoc};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::wire::{HEADER, check, field, message};

pub(crate) const DATABASE: &str = "bench";
/// Bytes of a document, about.
const DOCUMENT: usize = 1024;
/// Stand where numbers will be; nothing else in the messages looks like them.
const ID_MARK: i64 = 0x6d61_726b_2d69_6421;
const NUMBER_MARK: i64 = 0x6d61_726b_2d6e_6f21;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Operation {
    /// One document of 1 KB, by its `_id`.
    Find,
    /// One document of 1 KB, as drivers insert it: a retryable write.
    Insert,
}

impl Operation {
    pub(crate) const ALL: [Self; 2] = [Self::Find, Self::Insert];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Find => "find by _id",
            Self::Insert => "insert 1 KB",
        }
    }

    /// The collection that it uses.
    pub(crate) fn collection(self) -> &'static str {
        match self {
            Self::Find => "documents",
            Self::Insert => "inserts",
        }
    }
}

/// A document of about 1 KB.
pub(crate) fn document(id: i64) -> RawDocumentBuf {
    let pad = "x".repeat(DOCUMENT - 60);
    rawdoc! { "_id": id, "group": 7_i64, "name": "bench", "pad": pad }
}

/// A message with places for the numbers that change.
struct Template {
    bytes: Vec<u8>,
    id: usize,
    number: Option<usize>,
}

impl Template {
    fn new(operation: Operation, session: &RawDocumentBuf) -> Result<Self> {
        let collection = operation.collection();
        let bytes = match operation {
            Operation::Find => message(
                &rawdoc! {
                    "find": collection, "filter": { "_id": ID_MARK }, "limit": 1_i64, "singleBatch": true,
                    "lsid": session.clone(), "$db": DATABASE,
                },
                None,
            ),
            Operation::Insert => message(
                &rawdoc! {
                    "insert": collection, "ordered": true, "lsid": session.clone(), "txnNumber": NUMBER_MARK,
                    "$db": DATABASE,
                },
                Some(("documents", document(ID_MARK).as_bytes())),
            ),
        }?;
        let place = |mark: i64| bytes.windows(8).position(|window| window == mark.to_le_bytes());
        let id = place(ID_MARK).context("the message has no place for the _id")?;
        let number = place(NUMBER_MARK);
        Ok(Self { bytes, id, number })
    }
}

/// One connection that does one operation at a time.
pub(crate) struct Client {
    stream: TcpStream,
    template: Template,
    reply: Vec<u8>,
    request: i32,
}

impl Client {
    /// Connects and says hello, as every driver does first. `session` must be unique.
    pub(crate) async fn connect(address: SocketAddr, operation: Operation, session: u128) -> Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        let id =
            bson::Binary { subtype: bson::spec::BinarySubtype::Uuid, bytes: session.to_be_bytes().to_vec() };
        let template = Template::new(operation, &rawdoc! { "id": id })?;
        let mut client = Self { stream, template, reply: vec![0; 64 * 1024], request: 0 };
        client.hello().await.with_context(|| format!("hello to {address}"))?;
        Ok(client)
    }

    async fn hello(&mut self) -> Result<()> {
        let mut hello = message(&rawdoc! { "hello": 1, "helloOk": true, "$db": "admin" }, None)?;
        let length = exchange(&mut self.stream, &mut hello, &mut self.request, &mut self.reply).await?;
        check(&self.reply[..length]).map(drop)
    }

    /// Does one operation on the document `id`. `number` is above all that this session had.
    pub(crate) async fn operate(&mut self, id: i64, number: i64) -> Result<()> {
        self.send(id, number).await.map(drop)
    }

    async fn send(&mut self, id: i64, number: i64) -> Result<usize> {
        let template = &mut self.template;
        template.bytes[template.id..template.id + 8].copy_from_slice(&id.to_le_bytes());
        if let Some(place) = template.number {
            template.bytes[place..place + 8].copy_from_slice(&number.to_le_bytes());
        }
        exchange(&mut self.stream, &mut template.bytes, &mut self.request, &mut self.reply).await
    }

    /// As [`Self::operate`], and looks closely at what came of it.
    pub(crate) async fn operate_and_check(
        &mut self,
        operation: Operation,
        id: i64,
        number: i64,
    ) -> Result<()> {
        let length = self.send(id, number).await?;
        let body = check(&self.reply[..length])?;
        match operation {
            Operation::Find => {
                let batch = body.get_document("cursor")?.get_array("firstBatch")?;
                let found = batch.get(0)?.and_then(|found| found.as_document());
                ensure!(found == Some(&*document(id)), "find did not return the document {id}");
            }
            Operation::Insert => ensure!(body.get_i32("n")? == 1, "insert did not insert: {body:?}"),
        }
        Ok(())
    }
}

/// Sends a message under the next number and reads the reply into `reply`; returns its length.
async fn exchange(
    stream: &mut TcpStream,
    message: &mut [u8],
    request: &mut i32,
    reply: &mut [u8],
) -> Result<usize> {
    *request = request.wrapping_add(1);
    message[4..8].copy_from_slice(&request.to_le_bytes());
    stream.write_all(message).await?;
    let mut length = 0;
    let mut wanted = HEADER;
    while length < wanted {
        let read = stream.read(&mut reply[length..]).await?;
        ensure!(read > 0, "the connection was closed");
        length += read;
        if length >= HEADER {
            wanted = usize::try_from(field(reply, 0))?;
            ensure!((HEADER..=reply.len()).contains(&wanted), "a reply of {wanted} bytes");
        }
    }
    ensure!(length == wanted && field(reply, 8) == *request, "the reply is not to this request");
    Ok(length)
}
