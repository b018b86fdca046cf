//! Comparing one range of `_id`.

use std::collections::HashMap;

use bson::raw::{RawBson, RawDocumentBuf, cstr};
use bson::{RawDocument, rawdoc};
use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_128;

use super::Run;
use super::checkpoint::Part;
use super::suspects::Looking;
use crate::cluster::command::{Reply, Request, Target};
use crate::converge::read::{ask, cursor_id, id_of};
use crate::migration::control::Basis;
use crate::migration::ranges::Range;
use crate::model::key::Key;
use crate::model::side::Side;

/// Suspects held before they are looked at again.
const MOST_SUSPECTS: usize = 10_000;

/// Compares a range: old's documents by key, then new's against them, then what new has not shown.
pub(super) async fn compare(run: &Run<'_>, part: Part) -> Result<(), String> {
    let range = &part.range;
    let looking = Looking { run, namespace: &range.namespace, tally: Mutex::default() };
    let fields = Fields::of(run.asked.compare);
    let mut documents: HashMap<u128, u128> = HashMap::new();
    let mut reader = Reader::open(run, range, Side::Old, fields);
    while let Some(reply) = reader.next().await? {
        let read = each(&reply, reader.field, |key, document| {
            let hash = fields.hash(document);
            looking.tally.lock().count(Side::Old, hash);
            documents.insert(key.fingerprint(), hash);
        })?;
        reader.slow_down(read, &reply).await;
    }
    let mut suspects: Vec<Key> = Vec::new();
    let mut reader = Reader::open(run, range, Side::New, fields);
    while let Some(reply) = reader.next().await? {
        let read = each(&reply, reader.field, |key, document| {
            let hash = fields.hash(document);
            looking.tally.lock().count(Side::New, hash);
            if documents.remove(&key.fingerprint()) != Some(hash) {
                suspects.push(key);
            }
        })?;
        reader.slow_down(read, &reply).await;
        looking.settle_if_many(&mut suspects).await?;
    }
    if !documents.is_empty() {
        // New lacks them. Only their hashes were kept, so their keys are read once more.
        let mut reader = Reader::open(run, range, Side::Old, Fields::Id);
        while let Some(reply) = reader.next().await? {
            each(&reply, reader.field, |key, _| {
                if documents.remove(&key.fingerprint()).is_some() {
                    suspects.push(key);
                }
            })?;
            looking.settle_if_many(&mut suspects).await?;
        }
    }
    looking.settle(suspects).await?;
    let tally = *looking.tally.lock();
    run.done(&part, tally).await
}

impl Looking<'_> {
    async fn settle_if_many(&self, suspects: &mut Vec<Key>) -> Result<(), String> {
        if suspects.len() < MOST_SUSPECTS {
            return Ok(());
        }
        self.settle(std::mem::take(suspects)).await
    }
}

/// What is read of each document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fields {
    All,
    /// Its `_id`, and a hash that the server makes of all of it.
    Digest,
    Id,
}

impl Fields {
    const fn of(basis: Basis) -> Self {
        match basis {
            Basis::Bytes => Self::All,
            Basis::Digest => Self::Digest,
        }
    }

    fn projection(self) -> Option<RawDocumentBuf> {
        match self {
            Self::All => None,
            Self::Digest => Some(rawdoc! { "_id": 1, "hash": { "$toHashedIndexKey": "$$ROOT" } }),
            Self::Id => Some(rawdoc! { "_id": 1 }),
        }
    }

    /// What stands for the document's content.
    fn hash(self, document: &RawDocument) -> u128 {
        match self {
            Self::Digest => document.get_i64("hash").map_or(0, |hash| u128::from(hash.cast_unsigned())),
            Self::All | Self::Id => xxh3_128(document.as_bytes()),
        }
    }
}

/// Calls `look` with each document of a reply, without copying it; how many there were.
fn each(reply: &Reply, field: &str, mut look: impl FnMut(Key, &RawDocument)) -> Result<u64, String> {
    let cursor = reply.body.get_document("cursor").map_err(|error| error.to_string())?;
    let batch = cursor.get_array(field).map_err(|error| error.to_string())?;
    let mut count = 0;
    for item in batch {
        count += 1;
        let item = item.map_err(|error| error.to_string())?;
        let document = item.as_document().ok_or("a batch without documents")?;
        let key = id_of(document).ok_or("a document without a readable _id")?;
        look(key, document);
    }
    Ok(count)
}

/// Reads a range on one side, batch by batch.
struct Reader<'a> {
    run: &'a Run<'a>,
    side: Side,
    range: &'a Range,
    next: Option<Request>,
    last: Option<Request>,
    /// Where the documents of the last reply are.
    field: &'static str,
    opened: bool,
}

impl<'a> Reader<'a> {
    fn open(run: &'a Run<'a>, range: &'a Range, side: Side, fields: Fields) -> Self {
        let mut body = rawdoc! {
            "find": range.namespace.collection(), "hint": { "_id": 1 }, "batchSize": 10_000,
            "readConcern": { "level": "majority" },
        };
        for (name, bound) in [(cstr!("min"), range.low.as_ref()), (cstr!("max"), range.high.as_ref())] {
            if let Some(id) = bound {
                let mut document = RawDocumentBuf::new();
                document.append(cstr!("_id"), id.as_raw_bson_ref());
                body.append(name, document);
            }
        }
        if let Some(projection) = fields.projection() {
            body.append(cstr!("projection"), projection);
        }
        let request = |body| Request::new(range.namespace.database(), body);
        // With `min` alone, a server stops short of the one `_id` that is MaxKey; as `min` it is refused.
        let last = (range.high.is_none() && range.low.is_some()).then(|| {
            let mut body = rawdoc! {
                "find": range.namespace.collection(), "filter": { "_id": { "$eq": RawBson::MaxKey } },
                "readConcern": { "level": "majority" },
            };
            if let Some(projection) = fields.projection() {
                body.append(cstr!("projection"), projection);
            }
            request(body)
        });
        let (next, last) = match range.low {
            Some(RawBson::MaxKey) => (last, None),
            _ => (Some(request(body)), last),
        };
        Self { run, side, range, next, last, field: "firstBatch", opened: false }
    }

    /// The next batch; `None` at the end.
    async fn next(&mut self) -> Result<Option<Reply>, String> {
        let Some(request) = self.next.take() else { return Ok(None) };
        let reply = ask(&**self.run.ctx.clusters.get(self.side), request).await?;
        self.field = if std::mem::replace(&mut self.opened, true) { "nextBatch" } else { "firstBatch" };
        let cursor = cursor_id(&reply.body);
        if cursor != 0 {
            let body = rawdoc! { "getMore": cursor, "collection": self.range.namespace.collection() };
            let request = Request::new(self.range.namespace.database(), body);
            self.next = Some(request.to(Target::Server(reply.server.clone())));
        } else {
            self.next = self.last.take();
            self.opened = self.next.is_none();
        }
        Ok(Some(reply))
    }

    /// Waits until the limits allow for what was read.
    async fn slow_down(&self, documents: u64, reply: &Reply) {
        self.run.limiters.get(self.side).pass(documents, reply.body.as_bytes().len() as u64).await;
    }
}
