//! Copying what was there before the streams began.
//!
//! Insert-only, by majority reads after the streams' start. A document may change between the read and the
//! insert: keys whose change event was worked off in between are converged once the insert is acknowledged
//! (see `state::recent`); changes whose events come later are converged by the tailer anyway. So nothing is
//! read twice that did not change.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bson::raw::{RawBson, RawBsonRef};
use bson::{RawDocument, Timestamp, rawdoc};
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use tokio::sync::watch;

use super::engine::Settings;
use super::parked::park;
use super::ranges::{self, Range};
use super::scan::{find, max_key};
use super::throttle::Limiter;
use crate::clock::SharedClock;
use crate::cluster::command::{Commands, OnlyIf, Reply, Request, SharedCluster, Target, number};
use crate::converge::converger::{BATCH, Converger, Order};
use crate::converge::read::{ask, cursor_id, id_of, time_now};
use crate::converge::shards;
use crate::model::key::Key;
use crate::model::side::{PerSide, Side};
use crate::policy::converge::{Failure, failure, insert_would_change};
use crate::state::authority::Authority;
use crate::state::own_writes::By;
use crate::state::parking::Parking;
use crate::state::recent::{Load, Reading, Recent};
use crate::state::records::{Records, write_concern_problem};

const RETRY_FULL: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(300);
const STORE_EVERY: Duration = Duration::from_secs(2);
/// Documents of one batch, at most.
pub(super) const BATCH_DOCUMENTS: i32 = 10_000;
/// A batch that is not answered for so long has met a connection that nothing comes through.
const LONGEST_INSERT: Duration = Duration::from_secs(300);

/// Unless set. Between replica sets the servers' processors are the limit; a router has each of many small parts of
/// a batch written on its own, and applications' writes wait among them.
const PARALLEL: usize = 4;
const PARALLEL_TO_ROUTER: usize = 2;

/// How many ranges are copied at once.
///
/// # Errors
/// In words, why `new` does not tell what it is.
pub async fn parallel(settings: &Settings, new: &dyn Commands) -> Result<usize, String> {
    match settings.backfill_parallel {
        Some(set) => Ok(set),
        None if shards::is_sharded(new).await? => Ok(PARALLEL_TO_ROUTER),
        None => Ok(PARALLEL),
    }
}

/// How much has been copied.
#[derive(Debug, Default)]
pub struct Copied {
    /// Documents.
    pub documents: AtomicU64,
    /// Bytes.
    pub bytes: AtomicU64,
}

impl Copied {
    /// Goes on from what ranges have stored.
    pub fn go_on_from(&self, ranges: &[Range]) {
        self.documents.store(ranges.iter().map(|range| range.copied.documents).sum(), Ordering::Relaxed);
        self.bytes.store(ranges.iter().map(|range| range.copied.bytes).sum(), Ordering::Relaxed);
    }

    /// Counts a batch, in its range too.
    fn count(&self, range: &mut Range, cargo: &Cargo) {
        // A range goes on from its last document, which was counted.
        let again =
            cargo.first.as_ref().filter(|(id, _)| range.next.as_ref() == Some(id)).map(|(_, bytes)| *bytes);
        let documents = (cargo.keys.len() + cargo.special.len()) as u64 - u64::from(again.is_some());
        let bytes = cargo.bytes - again.unwrap_or(0);
        range.copied.documents += documents;
        range.copied.bytes += bytes;
        self.documents.fetch_add(documents, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Copies the ranges of one migration.
pub struct Backfill {
    /// Connections of its own to both clusters, so that it can be shown that none is left.
    pub clusters: PerSide<SharedCluster>,
    /// The primitive, for what an insert cannot do.
    pub converger: Arc<Converger>,
    /// What the streams have seen change.
    pub recent: Arc<Recent>,
    /// Where keys go that cannot be made equal.
    pub parking: Arc<Parking>,
    /// Where progress is stored.
    pub records: Arc<Records>,
    /// The clock.
    pub clock: SharedClock,
    /// This process's lease on new: it inserts nothing that it read under an earlier one.
    pub authority: Arc<Authority>,
    /// How fast it may go.
    pub limiter: Arc<Limiter>,
    /// How much has been copied.
    pub copied: Arc<Copied>,
    /// Halted by an operator while true.
    pub paused: watch::Receiver<bool>,
    /// Ranges copied at once.
    pub parallel: usize,
    /// The start of the streams: reads are not older.
    pub start: Timestamp,
}

/// What a scan has begun with.
struct Scan<'a> {
    /// What changes while it goes on.
    reading: Reading<'a>,
    /// The lease of before it. Once that has ended this process may have been taken for dead, and what it has in hand
    /// may have been deleted since, by events that others have worked off.
    under: OnlyIf,
}

/// One batch as read.
#[derive(Default)]
pub(super) struct Cargo {
    pub(super) keys: Vec<Key>,
    documents: Bytes,
    /// Keys of documents that an insert would change.
    pub(super) special: Vec<Key>,
    /// Bytes of all documents.
    bytes: u64,
    /// The first key, with the bytes of its document.
    first: Option<(RawBson, u64)>,
    last: Option<RawBson>,
}

impl Backfill {
    /// Copies every range that is not done. Goes on until all are; trouble with a cluster is waited out.
    pub async fn run(&self, ranges: Vec<Range>) {
        let todo = ranges.into_iter().filter(|range| !range.done);
        stream::iter(todo).for_each_concurrent(self.parallel, |range| self.copy(range)).await;
    }

    async fn copy(&self, mut range: Range) {
        loop {
            drop(self.paused.clone().wait_for(|paused| !paused).await);
            match self.copy_from_next(&mut range).await {
                Ok(()) if range.done => return,
                Ok(()) => {}
                Err(why) => {
                    tracing::warn!(namespace = %range.namespace, range = range.number, why, "the copy waits");
                    // Until an operator has removed what stands in the way, the same batch comes to the same end.
                    let pause = if self.parking.is_full() { RETRY_FULL } else { RETRY };
                    self.clock.sleep(pause).await;
                }
            }
        }
    }

    /// Copies from where the range stands until it is done or paused.
    async fn copy_from_next(&self, range: &mut Range) -> Result<(), String> {
        self.look_ahead(range).await?;
        let source = &self.clusters.old;
        // First remember, then ask for the time, then read after it: no change falls in between.
        let mut scan = self.begin_scan()?;
        let after = time_now(&**source).await?.max(self.start);
        scan.reading.reads_after(after);
        let mut reply = ask(&**source, find(range, after)).await?;
        let mut field = "firstBatch";
        let mut stored_at = self.clock.now();
        loop {
            let cargo = unload(&reply.body, field)?;
            let more = cursor_id(&reply.body);
            // The next batch is read while this one is written.
            let (next, landed) =
                futures::join!(self.get_more(range, more, &reply), self.land(range, &cargo, &scan));
            landed?;
            self.copied.count(range, &cargo);
            range.next = cargo.last.or(range.next.take());
            if more == 0 && range.high.is_none() {
                self.land_max_key(range, &scan, after).await?;
            }
            range.done = more == 0;
            if range.done || self.clock.now() - stored_at >= STORE_EVERY {
                self.store(range).await?;
                stored_at = self.clock.now();
            }
            if range.done {
                return Ok(());
            }
            if *self.paused.borrow() {
                return self.store(range).await;
            }
            reply = next?.ok_or("the copy's cursor is gone")?;
            field = "nextBatch";
        }
    }

    fn begin_scan(&self) -> Result<Scan<'_>, String> {
        let authority = Arc::clone(&self.authority);
        let lease = authority.lease.begin().ok_or("new grants no lease to write")?;
        let under = OnlyIf(Arc::new(move || authority.lease.holds(lease)));
        Ok(Scan { reading: self.recent.reading(), under })
    }

    async fn store(&self, range: &Range) -> Result<(), String> {
        let stored = ranges::store(&self.records, &self.converger.migration, range).await;
        stored.map_err(|error| error.to_string())
    }

    /// A scan with a lower bound leaves out the document whose `_id` is `MaxKey` (measured on 4.4 and 6.0).
    async fn land_max_key(&self, range: &mut Range, scan: &Scan<'_>, after: Timestamp) -> Result<(), String> {
        let reply = ask(&*self.clusters.old, max_key(range, after)).await?;
        let cargo = unload(&reply.body, "firstBatch")?;
        if cargo.last.is_none() {
            return Ok(());
        }
        self.land(range, &cargo, scan).await?;
        self.copied.count(range, &cargo);
        Ok(())
    }

    async fn get_more(&self, range: &Range, cursor: i64, after: &Reply) -> Result<Option<Reply>, String> {
        if cursor == 0 {
            return Ok(None);
        }
        let body = rawdoc! {
            "getMore": cursor, "collection": range.namespace.collection(), "batchSize": BATCH_DOCUMENTS,
        };
        let request = Request::new(range.namespace.database(), body).to(Target::Server(after.server.clone()));
        ask(&*self.clusters.old, request).await.map(Some)
    }

    /// Inserts a batch, and converges what an insert does not settle.
    async fn land(&self, range: &Range, cargo: &Cargo, scan: &Scan<'_>) -> Result<(), String> {
        let bytes = cargo.documents.len() as u64;
        self.limiter.pass(cargo.keys.len() as u64, bytes).await;
        while self.recent.room_for_copied() < cargo.keys.len() {
            // The mirror's tailer is behind; its progress is what this waits for.
            self.clock.sleep(RETRY).await;
        }
        let mut converge = cargo.special.clone();
        if !cargo.keys.is_empty() {
            converge.extend(self.insert(range, cargo, scan.under.clone()).await?);
        }
        if self.converger.safeguards.backfill_second_look {
            converge.extend(
                cargo
                    .keys
                    .iter()
                    .filter(|key| scan.reading.changed(key.fingerprint_in(&range.namespace)))
                    .cloned(),
            );
        }
        self.make_equal(range, &converge).await
    }

    pub(super) async fn make_equal(&self, range: &Range, keys: &[Key]) -> Result<(), String> {
        let order = Order::durable(PerSide::default());
        for keys in keys.chunks(BATCH) {
            let report = self.converger.converge(&range.namespace, keys.to_vec(), &order).await;
            let stuck = report.map_err(|error| error.to_string())?.stuck;
            park(&self.parking, &self.records, &range.namespace, stuck, &*self.clock).await?;
        }
        Ok(())
    }

    /// Inserts what is not there yet; returns the keys that this did not settle.
    async fn insert(&self, range: &Range, cargo: &Cargo, under: OnlyIf) -> Result<Vec<Key>, String> {
        let load =
            self.recent.note_copying(cargo.keys.iter().map(|key| key.fingerprint_in(&range.namespace)));
        let body = rawdoc! {
            "insert": range.namespace.collection(), "ordered": false, "bypassDocumentValidation": true,
            "writeConcern": { "w": "majority" },
        };
        let (OnlyIf(held), clock) = (under, self.clock.clone());
        let until = clock.now() + LONGEST_INSERT;
        let request = Request::new(range.namespace.database(), body)
            .sequence("documents", cargo.documents.clone())
            .only_if(OnlyIf(Arc::new(move || held() && clock.now() < until)));
        // A replica set's events of these inserts are known as such; a router may send them again, later.
        let own = &self.converger.own;
        let writing = own
            .is_router(Side::New)
            .then(|| own.begin(Side::New, &range.namespace, &cargo.keys, By::ConnectionsApart));
        let answer = match ask(&*self.clusters.new, request).await {
            Ok(reply) => match write_concern_problem(&reply.body) {
                None => Ok(reply),
                Some(problem) => Err(problem),
            },
            Err(problem) => Err(problem),
        };
        let reply = match answer {
            Ok(reply) => reply,
            Err(problem) => {
                // Unknown outcome: their events, whenever they come, are converged like anybody's, but nobody
                // else is taken to have caused them. (While they are being copied their inserts are known as such.)
                // Those that have come already are settled by the next attempt, which looks ahead.
                drop(self.converger.own.begin(
                    Side::New,
                    &range.namespace,
                    &cargo.keys,
                    By::ConnectionsApart,
                ));
                for key in &cargo.keys {
                    let _taken_before = self.recent.forget_copying(key.fingerprint_in(&range.namespace));
                }
                return Err(problem);
            }
        };
        if let Some(writing) = writing {
            writing.ended(reply.operation_time);
        }
        Ok(self.unsettled(range, cargo, load, &reply))
    }

    /// Goes through an insert's answer. A duplicate on `_id` means that the document is there already; on any
    /// other index it is missing.
    fn unsettled(&self, range: &Range, cargo: &Cargo, load: Load, reply: &Reply) -> Vec<Key> {
        let mut converge = Vec::new();
        if let Ok(errors) = reply.body.get_array("writeErrors") {
            for error in errors.into_iter().flatten().filter_map(|error| error.as_document()) {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
                let key = number(error, "index").and_then(|index| cargo.keys.get(index as usize));
                let Some(key) = key else { continue };
                let untaken = self.recent.forget_copying(key.fingerprint_in(&range.namespace));
                if !untaken || failure(error) != Failure::Guard {
                    converge.push(key.clone());
                }
            }
        }
        let at = reply.operation_time.unwrap_or(Timestamp { time: u32::MAX, increment: 0 });
        self.recent.note_copied(load, at);
        converge
    }
}

/// Lays the documents of a reply back to back, without parsing more than their `_id`s.
pub(super) fn unload(body: &RawDocument, field: &str) -> Result<Cargo, String> {
    let cursor = body.get_document("cursor").map_err(|error| error.to_string())?;
    let batch = cursor.get_array(field).map_err(|error| error.to_string())?;
    let mut documents = Vec::with_capacity(batch.as_bytes().len());
    let mut cargo = Cargo::default();
    for item in batch {
        let Ok(RawBsonRef::Document(document)) = item else { return Err("a batch without documents".into()) };
        let key = id_of(document).ok_or("a document without a readable _id")?;
        let id = RawBson::from(key.value());
        let bytes = document.as_bytes().len() as u64;
        cargo.first.get_or_insert_with(|| (id.clone(), bytes));
        cargo.last = Some(id);
        cargo.bytes += bytes;
        if insert_would_change(document) {
            cargo.special.push(key);
        } else {
            documents.extend_from_slice(document.as_bytes());
            cargo.keys.push(key);
        }
    }
    cargo.documents = documents.into();
    Ok(cargo)
}
