//! The durable record of writes that went past the proxy: a tally of all, and the newest one by one.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};

use bson::{Bson, Document, RawDocumentBuf, doc, rawdoc};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::view::{Acknowledged, BypassWrite, Page};
use crate::policy::bypass::{Example, Tally};
use crate::state::record::DATABASE;
use crate::state::records::{RecordError, Records, first_batch};

const TALLIES: &str = "bypass";
const WRITES: &str = "bypass_writes";
/// Listed one by one.
const MOST_KEPT: i64 = 1000;
/// Of those found at once so many are listed one by one.
pub(super) const MOST_OF_A_BURST: usize = 100;
/// How often what is too old is removed.
const REMOVE_EVERY: i64 = 100;
const MOST_RACES: u32 = 10;
const DUPLICATE_KEY: i32 = 11000;
const PAGE: u16 = 100;
/// As many as a stream may show again after it was opened anew.
const MOST_SHOWN_AGAIN: usize = 50_000;

/// What is stored of one migration.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) tally: Tally,
    pub(super) acknowledged: Option<Acknowledged>,
}

/// The record of one migration.
#[derive(Debug)]
pub struct Log {
    migration: String,
    /// `None` until it has been read.
    kept: Mutex<Option<Kept>>,
    /// Those recorded lately, so that one that is shown again is not counted again.
    lately: Mutex<Lately>,
    /// One change at a time.
    changing: tokio::sync::Mutex<()>,
    pub(super) unjudged: AtomicU64,
}

#[derive(Debug, Default)]
struct Lately {
    /// With the number under which it is listed; 0 where it is only counted.
    known: HashMap<String, i64>,
    order: VecDeque<String>,
}

fn malformed(error: impl std::fmt::Display) -> RecordError {
    RecordError::Malformed(error.to_string())
}

/// What makes a write this one and no other.
fn identity(write: &BypassWrite) -> String {
    format!("{} {} {} {}", write.side, write.cluster_time, write.namespace, write.key)
}

impl Log {
    /// That of `migration`, not read yet.
    #[must_use]
    pub fn new(migration: &str) -> Self {
        Self {
            migration: migration.to_owned(),
            kept: Mutex::default(),
            lately: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            unjudged: AtomicU64::new(0),
        }
    }

    /// Reads what is stored.
    ///
    /// # Errors
    /// [`RecordError`].
    pub async fn load(&self, records: &Records) -> Result<(), RecordError> {
        let (kept, _) = self.stored(records).await?;
        *self.kept.lock() = Some(kept);
        Ok(())
    }

    async fn stored(&self, records: &Records) -> Result<(Kept, Option<i64>), RecordError> {
        let found = records.find(DATABASE, TALLIES, rawdoc! { "_id": &*self.migration }, 1).await?;
        let Some(raw) = found.first() else { return Ok((Kept::default(), None)) };
        let kept = bson::deserialize_from_slice(raw.as_bytes()).map_err(malformed)?;
        Ok((kept, raw.get_i64("version").ok()))
    }

    /// What is counted; `None` until it has been read.
    pub(super) fn kept(&self) -> Option<Kept> {
        self.kept.lock().clone()
    }

    /// Writes of which nobody can tell whose they are.
    pub fn count_unjudged(&self, count: u64) {
        self.unjudged.fetch_add(count, Ordering::Relaxed);
    }

    /// Changes what is counted, in one step whatever a process that died may have sent.
    pub(super) async fn change<T>(
        &self,
        records: &Records,
        mut change: impl FnMut(&mut Kept) -> T,
    ) -> Result<T, RecordError> {
        for _ in 0..MOST_RACES {
            let (mut kept, version) = self.stored(records).await?;
            let made = change(&mut kept);
            let mut fields = bson::serialize_to_document(&kept).map_err(malformed)?;
            fields.insert("version", version.unwrap_or(0) + 1);
            let query = doc! { "_id": &self.migration, "version": version };
            let stored =
                records.change(DATABASE, TALLIES, query, doc! { "$set": fields }, version.is_none()).await;
            match stored {
                Ok(Some(_)) => {
                    *self.kept.lock() = Some(kept);
                    return Ok(made);
                }
                Ok(None) => {}
                Err(RecordError::Refused(error)) if error.code == DUPLICATE_KEY => {}
                Err(error) => return Err(error),
            }
        }
        Err(RecordError::Unavailable("another process changes it all the time".into()))
    }

    /// Records those of `writes`, in order, that are not recorded yet. Returns what of all of them is listed one
    /// by one, with its numbers.
    ///
    /// # Errors
    /// [`RecordError`]; recording them again is harmless.
    pub async fn record(
        &self,
        records: &Records,
        writes: Vec<BypassWrite>,
    ) -> Result<Vec<BypassWrite>, RecordError> {
        let _one = self.changing.lock().await;
        let (mut known, mut new) = self.part(writes);
        if new.is_empty() {
            return Ok(known);
        }
        let before = self.stored(records).await?.0.tally.total;
        for (number, write) in (before + 1..).zip(&mut new) {
            write.number = number;
        }
        let listed = new.split_off(new.len().saturating_sub(MOST_OF_A_BURST));
        // The list first: what the tally does not count yet is overwritten by the next.
        self.store(records, &listed).await?;
        self.change(records, |kept| {
            for write in new.iter().chain(&listed) {
                let latest =
                    Example { at: write.at, namespace: write.namespace.clone(), key: write.key.clone() };
                kept.tally.note(write.side == "old", 1, latest);
            }
        })
        .await?;
        self.remember(
            new.iter().map(|write| (write, 0)).chain(listed.iter().map(|write| (write, write.number))),
        );
        let last = listed.last().map_or(0, |write| write.number);
        if last / REMOVE_EVERY > before / REMOVE_EVERY {
            let old = rawdoc! { "migration": &*self.migration, "number": { "$lte": last - MOST_KEPT } };
            records.remove(DATABASE, WRITES, old).await?;
        }
        known.extend(listed);
        Ok(known)
    }

    /// Those that are recorded, as far as they are listed, and those that are not.
    fn part(&self, writes: Vec<BypassWrite>) -> (Vec<BypassWrite>, Vec<BypassWrite>) {
        let lately = self.lately.lock();
        let (mut known, mut new) = (Vec::new(), Vec::new());
        for write in writes {
            match lately.known.get(&identity(&write)) {
                Some(0) => {}
                Some(number) => known.push(BypassWrite { number: *number, ..write }),
                None => new.push(write),
            }
        }
        (known, new)
    }

    fn remember<'a>(&self, writes: impl Iterator<Item = (&'a BypassWrite, i64)>) {
        let mut lately = self.lately.lock();
        for (write, number) in writes {
            let identity = identity(write);
            if lately.known.insert(identity.clone(), number).is_none() {
                lately.order.push_back(identity);
            }
        }
        while lately.order.len() > MOST_SHOWN_AGAIN {
            if let Some(oldest) = lately.order.pop_front() {
                lately.known.remove(&oldest);
            }
        }
    }

    /// Stores writes under their numbers, in place of what is there.
    pub(super) async fn store(&self, records: &Records, writes: &[BypassWrite]) -> Result<(), RecordError> {
        let mut statements = Vec::new();
        for write in writes {
            let mut fields: Document = bson::serialize_to_document(write).map_err(malformed)?;
            fields.insert("migration", &self.migration);
            let id = format!("{}/{}", self.migration, write.number);
            let statement = doc! { "q": { "_id": id }, "u": { "$set": fields }, "upsert": true };
            let statement = RawDocumentBuf::try_from(&statement).map_err(malformed)?;
            statements.extend_from_slice(statement.as_bytes());
        }
        let reply =
            records.write(DATABASE, rawdoc! { "update": WRITES }, Some(("updates", statements))).await?;
        match reply.body.get_array("writeErrors") {
            Ok(errors) => Err(RecordError::Unavailable(format!("not all is stored: {errors:?}"))),
            Err(_) => Ok(()),
        }
    }

    /// A part of the list, newest first, and where the next one begins.
    ///
    /// # Errors
    /// [`RecordError`].
    pub async fn list(
        &self,
        records: &Records,
        page: Page,
    ) -> Result<(Vec<BypassWrite>, Option<i64>), RecordError> {
        let total = self.stored(records).await?.0.tally.total;
        let before = page.before.unwrap_or(i64::MAX).min(total + 1);
        let limit = i32::from(page.limit.unwrap_or(PAGE));
        let body = rawdoc! {
            "find": WRITES,
            "filter": { "migration": &*self.migration, "number": { "$lt": before, "$gt": total - MOST_KEPT } },
            "sort": { "number": -1 }, "limit": limit, "batchSize": limit + 1,
            "readConcern": { "level": "majority" },
        };
        let reply = records.read(DATABASE, body).await?;
        let found = first_batch(&reply.body).map_err(RecordError::Malformed)?;
        let writes: Vec<BypassWrite> = found
            .iter()
            .map(|raw| bson::deserialize_from_slice(raw.as_bytes()).map_err(malformed))
            .collect::<Result<_, _>>()?;
        let is_full = writes.len() == usize::try_from(limit).unwrap_or(0);
        let next = writes.last().map(|write| write.number).filter(|_| is_full);
        Ok((writes, next))
    }
}

/// An `_id` as extended JSON.
pub(in crate::migration) fn shown(key: &crate::model::key::Key) -> String {
    Bson::try_from(bson::raw::RawBson::from(key.value()))
        .map_or_else(|_| format!("{key:?}"), |id| id.into_canonical_extjson().to_string())
}
