//! The plainest copy there can be: read a batch, insert it, several ranges at a time. Nothing is followed,
//! nothing can go on after a failure. What a migration's copy is compared with.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use bson::raw::{RawArray, RawBson, RawBsonRef, cstr};
use bson::{RawDocument, RawDocumentBuf, rawdoc};
use parking_lot::Mutex;

use crate::wire::{HEADER, check, field, message};

/// Ranges copied at a time, as a migration does by default.
const PARALLEL: usize = 4;
/// Ranges in all: many, so that all ends at about the same time.
const RANGES: i32 = 16;
const SAMPLES: i32 = 20;
const BATCH: i32 = 10_000;

/// What is copied, and where to.
#[derive(Clone, Copy)]
pub(crate) struct Copy<'a> {
    pub(crate) from: &'a str,
    pub(crate) to: &'a str,
    pub(crate) database: &'a str,
    pub(crate) source: &'a str,
    pub(crate) target: &'a str,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Copied {
    pub(crate) documents: u64,
    pub(crate) bytes: u64,
    pub(crate) took: Duration,
}

/// From the first `_id` up to the second one; `None` is open.
type Range = (Option<RawBson>, Option<RawBson>);

/// One connection.
struct Link {
    stream: TcpStream,
    reply: Vec<u8>,
    request: i32,
}

impl Link {
    fn connect(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, reply: Vec::new(), request: 0 })
    }

    fn ask(&mut self, body: &RawDocumentBuf, documents: Option<(&str, &[u8])>) -> Result<&RawDocument> {
        self.request += 1;
        let mut message = message(body, documents)?;
        message[4..8].copy_from_slice(&self.request.to_le_bytes());
        self.stream.write_all(&message)?;
        self.reply.resize(HEADER, 0);
        self.stream.read_exact(&mut self.reply)?;
        let length = usize::try_from(field(&self.reply, 0))?;
        ensure!(length >= HEADER && field(&self.reply, 8) == self.request, "a reply to something else");
        self.reply.resize(length, 0);
        self.stream.read_exact(&mut self.reply[HEADER..])?;
        check(&self.reply)
    }
}

impl Copy<'_> {
    /// Copies all of it.
    pub(crate) fn run(&self) -> Result<Copied> {
        let begun = Instant::now();
        let todo = Mutex::new(self.ranges()?);
        let results = thread::scope(|scope| {
            let threads: Vec<_> = (0..PARALLEL).map(|_| scope.spawn(|| self.work(&todo))).collect();
            threads.into_iter().map(thread::ScopedJoinHandle::join).collect::<Vec<_>>()
        });
        let mut all = Copied { took: begun.elapsed(), ..Copied::default() };
        for result in results {
            let copied = result.map_err(|_| anyhow!("a thread of the copy panicked"))??;
            all.documents += copied.documents;
            all.bytes += copied.bytes;
        }
        Ok(all)
    }

    fn ranges(&self) -> Result<VecDeque<Range>> {
        let body = rawdoc! {
            "aggregate": self.source,
            "pipeline": [
                { "$sample": { "size": RANGES * SAMPLES } }, { "$project": { "_id": 1 } },
                { "$sort": { "_id": 1 } },
            ],
            "cursor": { "batchSize": RANGES * SAMPLES }, "$db": self.database,
        };
        let mut link = Link::connect(self.from)?;
        let batch = link.ask(&body, None)?.get_document("cursor")?.get_array("firstBatch")?;
        let samples = batch.into_iter().filter_map(|sample| id(sample.ok()?.as_document()?));
        let step = usize::try_from(SAMPLES)?;
        let mut cuts: Vec<RawBson> = samples.skip(step).step_by(step).collect();
        cuts.dedup_by(|a, b| a == b);
        let lows = std::iter::once(None).chain(cuts.iter().cloned().map(Some));
        let highs = cuts.iter().cloned().map(Some).chain(std::iter::once(None));
        Ok(lows.zip(highs).collect())
    }

    fn work(&self, todo: &Mutex<VecDeque<Range>>) -> Result<Copied> {
        let (mut from, mut to) = (Link::connect(self.from)?, Link::connect(self.to)?);
        let mut copied = Copied::default();
        loop {
            let next = todo.lock().pop_front();
            let Some(range) = next else { return Ok(copied) };
            self.copy(&mut from, &mut to, &range, &mut copied)?;
        }
    }

    fn copy(&self, from: &mut Link, to: &mut Link, range: &Range, copied: &mut Copied) -> Result<()> {
        let mut body = rawdoc! { "find": self.source, "hint": { "_id": 1 }, "batchSize": BATCH };
        for (name, bound) in [(cstr!("min"), &range.0), (cstr!("max"), &range.1)] {
            if let Some(id) = bound {
                let mut document = RawDocumentBuf::new();
                document.append(cstr!("_id"), id.clone());
                body.append(name, document);
            }
        }
        body.append(cstr!("$db"), self.database);
        let mut batch = "firstBatch";
        loop {
            let reply = from.ask(&body, None)?.get_document("cursor")?;
            let (count, documents) = concatenated(reply.get_array(batch)?)?;
            let cursor = reply.get_i64("id")?;
            if count > 0 {
                let insert = rawdoc! {
                    "insert": self.target, "ordered": false, "writeConcern": { "w": "majority" },
                    "$db": self.database,
                };
                to.ask(&insert, Some(("documents", &documents))).context("inserting")?;
            }
            copied.documents += count;
            copied.bytes += documents.len() as u64;
            if cursor == 0 {
                return Ok(());
            }
            batch = "nextBatch";
            body = rawdoc! {
                "getMore": cursor, "collection": self.source, "batchSize": BATCH, "$db": self.database,
            };
        }
    }
}

fn id(document: &RawDocument) -> Option<RawBson> {
    document.get("_id").ok().flatten().map(RawBson::from)
}

/// The documents of a batch, back to back.
fn concatenated(batch: &RawArray) -> Result<(u64, Vec<u8>)> {
    let mut documents = Vec::with_capacity(batch.as_bytes().len());
    let mut count = 0;
    for item in batch {
        let RawBsonRef::Document(document) = item? else { anyhow::bail!("a batch without documents") };
        documents.extend_from_slice(document.as_bytes());
        count += 1;
    }
    Ok((count, documents))
}
