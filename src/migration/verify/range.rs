//! Comparing one range of `_id`.

use std::collections::HashMap;

use bson::raw::{RawBson, RawDocumentBuf, cstr};
use bson::{RawDocument, rawdoc};
use xxhash_rust::xxh3::xxh3_128;

use super::Run;
use crate::cluster::command::{Reply, Request, SharedCluster, Target};
use crate::converge::read::{ask, cursor_id, id_of};
use crate::migration::ranges::Range;
use crate::model::key::Key;
use crate::model::side::Side;

/// Suspects held before they are looked at again.
const MOST_SUSPECTS: usize = 10_000;

/// Compares a range: old's documents by key, then new's against them, then what new has not shown.
pub(super) async fn compare(run: &Run<'_>, range: &Range) -> Result<(), String> {
    let mut documents: HashMap<u128, u128> = HashMap::new();
    let mut reader = Reader::open(run, range, Side::Old, false);
    while let Some(reply) = reader.next().await? {
        each(&reply, reader.field, |key, document| {
            documents.insert(key.fingerprint(), xxh3_128(document.as_bytes()));
        })?;
    }
    let compared = documents.len() as u64;
    let mut suspects: Vec<Key> = Vec::new();
    let mut reader = Reader::open(run, range, Side::New, false);
    while let Some(reply) = reader.next().await? {
        each(&reply, reader.field, |key, document| {
            if documents.remove(&key.fingerprint()) != Some(xxh3_128(document.as_bytes())) {
                suspects.push(key);
            }
        })?;
        run.settle_if_many(range, &mut suspects).await?;
    }
    if !documents.is_empty() {
        // New lacks them. Only their hashes were kept, so their keys are read once more.
        let mut reader = Reader::open(run, range, Side::Old, true);
        while let Some(reply) = reader.next().await? {
            each(&reply, reader.field, |key, _| {
                if documents.remove(&key.fingerprint()).is_some() {
                    suspects.push(key);
                }
            })?;
            run.settle_if_many(range, &mut suspects).await?;
        }
    }
    run.settle(&range.namespace, suspects).await?;
    run.state.lock().compared_documents += compared;
    Ok(())
}

impl Run<'_> {
    async fn settle_if_many(&self, range: &Range, suspects: &mut Vec<Key>) -> Result<(), String> {
        if suspects.len() < MOST_SUSPECTS {
            return Ok(());
        }
        self.settle(&range.namespace, std::mem::take(suspects)).await
    }
}

/// Calls `look` with each document of a reply, without copying it.
fn each(reply: &Reply, field: &str, mut look: impl FnMut(Key, &RawDocument)) -> Result<(), String> {
    let cursor = reply.body.get_document("cursor").map_err(|error| error.to_string())?;
    let batch = cursor.get_array(field).map_err(|error| error.to_string())?;
    for item in batch {
        let item = item.map_err(|error| error.to_string())?;
        let document = item.as_document().ok_or("a batch without documents")?;
        let key = id_of(document).ok_or("a document without a readable _id")?;
        look(key, document);
    }
    Ok(())
}

/// Reads a range on one side, batch by batch.
struct Reader<'a> {
    cluster: &'a SharedCluster,
    range: &'a Range,
    next: Option<Request>,
    last: Option<Request>,
    /// Where the documents of the last reply are.
    field: &'static str,
    opened: bool,
}

impl<'a> Reader<'a> {
    fn open(run: &'a Run<'_>, range: &'a Range, side: Side, ids_only: bool) -> Self {
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
        if ids_only {
            body.append(cstr!("projection"), rawdoc! { "_id": 1 });
        }
        let request = |body| Request::new(range.namespace.database(), body);
        // With `min` alone, a server stops short of the one `_id` that is MaxKey; as `min` it is refused.
        let last = (range.high.is_none() && range.low.is_some()).then(|| {
            request(rawdoc! {
                "find": range.namespace.collection(), "filter": { "_id": { "$eq": RawBson::MaxKey } },
                "readConcern": { "level": "majority" },
            })
        });
        let (next, last) = match range.low {
            Some(RawBson::MaxKey) => (last, None),
            _ => (Some(request(body)), last),
        };
        let cluster = run.ctx.clusters.get(side);
        Self { cluster, range, next, last, field: "firstBatch", opened: false }
    }

    /// The next batch; `None` at the end.
    async fn next(&mut self) -> Result<Option<Reply>, String> {
        let Some(request) = self.next.take() else { return Ok(None) };
        let reply = ask(&**self.cluster, request).await?;
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
}
