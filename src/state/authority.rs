//! This process's hold on one cluster's record of one migration: its lease, and every compare-and-set.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bson::{Document, doc};
use parking_lot::Mutex;

use super::as_stored::slots_as_bson as slots;
use super::lease::Lease;
use super::record::{AUTHORITY, AuthorityRecord, DATABASE, Fence};
use super::records::{RecordError, Records};
use crate::clock::SharedClock;
use crate::model::side::Side;
use crate::model::slots::SlotSet;

/// The record of one migration on one cluster, as this process knows it.
pub struct Authority {
    /// Which cluster.
    pub side: Side,
    /// The lease to write there.
    pub lease: Lease,
    name: String,
    holder: String,
    sessions: i32,
    records: Arc<Records>,
    clock: SharedClock,
    known: Mutex<Option<AuthorityRecord>>,
    /// Held from before a change until what the record is after it is known: who was answered first is no late news.
    changing: tokio::sync::Mutex<()>,
    /// When the cluster has last answered about it.
    heard: Mutex<Option<Duration>>,
    /// It had the lease once, so that its name was in the record.
    was_granted: AtomicBool,
}

impl Authority {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(
        side: Side,
        name: &str,
        holder: &str,
        sessions: i32,
        records: Arc<Records>,
        clock: SharedClock,
        lease: Lease,
    ) -> Self {
        let (name, holder) = (name.to_owned(), holder.to_owned());
        let was_granted = AtomicBool::new(false);
        let (known, heard) = (Mutex::new(None), Mutex::new(None));
        let changing = tokio::sync::Mutex::default();
        Self { side, lease, name, holder, sessions, records, clock, known, changing, heard, was_granted }
    }

    /// The record as last seen.
    #[must_use]
    pub fn known(&self) -> Option<AuthorityRecord> {
        self.known.lock().clone()
    }

    /// When the cluster has last answered about the record, on the clock of this process.
    #[must_use]
    pub fn heard(&self) -> Option<Duration> {
        *self.heard.lock()
    }

    /// Takes a record that was read elsewhere, unless a newer one is known.
    pub fn learn(&self, record: AuthorityRecord) {
        let mut known = self.known.lock();
        if known.as_ref().is_none_or(|known| known.epoch < record.epoch) {
            *known = Some(record);
        }
    }

    /// The id of this process.
    #[must_use]
    pub fn holder(&self) -> &str {
        &self.holder
    }

    pub(super) async fn change(
        &self,
        mut query: Document,
        update: Document,
    ) -> Result<Option<AuthorityRecord>, RecordError> {
        query.insert("_id", &self.name);
        let _in_order = self.changing.lock().await;
        let found = self.records.change(DATABASE, AUTHORITY, query, update, false).await?;
        let Some(raw) = found else { return Ok(None) };
        let record: AuthorityRecord = bson::deserialize_from_slice(raw.as_bytes())
            .map_err(|error| RecordError::Malformed(error.to_string()))?;
        *self.known.lock() = Some(record.clone());
        *self.heard.lock() = Some(self.clock.now());
        Ok(Some(record))
    }

    /// Makes the record if it is not there.
    ///
    /// # Errors
    /// [`RecordError`].
    pub async fn create(&self, record: &AuthorityRecord) -> Result<(), RecordError> {
        let mut document =
            bson::serialize_to_document(record).map_err(|error| RecordError::Malformed(error.to_string()))?;
        document.remove("_id");
        let update = doc! { "$setOnInsert": document };
        self.records.change(DATABASE, AUTHORITY, doc! { "_id": &self.name }, update, true).await?;
        Ok(())
    }

    /// Asks for the lease, or for more of it. `false`: this process has been expelled, or there is no record.
    ///
    /// Whoever has had the lease and is not in the record any more was taken for dead and forgotten: what it has in
    /// hand is older than what was decided since, and it never gets the lease again either.
    ///
    /// `obey` is called before the lease counts: whoever works under it must go by what the record said
    /// when it was granted, and by nothing older.
    ///
    /// # Errors
    /// [`RecordError`]; the lease runs on until its end.
    pub async fn beat(&self, obey: impl FnOnce() + Send) -> Result<bool, RecordError> {
        let asked = self.clock.now();
        let me = format!("holders.{}", self.holder);
        let epoch = self.known().map_or(0, |record| record.epoch);
        let mut query = doc! { format!("{me}.expelled"): { "$ne": true } };
        if self.was_granted.load(Ordering::Acquire) {
            query.insert(&me, doc! { "$exists": true });
        }
        let update = doc! {
            "$inc": { format!("{me}.beat"): 1_i64 },
            "$set": {
                format!("{me}.epoch"): as_long(epoch), format!("{me}.expelled"): false,
                format!("{me}.sessions"): self.sessions,
            },
        };
        if self.change(query, update).await?.is_some() {
            self.was_granted.store(true, Ordering::Release);
            obey();
            self.lease.granted(asked);
            Ok(true)
        } else {
            self.lease.lost();
            Ok(false)
        }
    }

    /// Opens a fence, if the record is still at the fence's epoch and no other is open.
    ///
    /// # Errors
    /// [`RecordError`]; the fence may be open then.
    pub async fn open_fence(&self, fence: &Fence) -> Result<bool, RecordError> {
        let document =
            bson::serialize_to_bson(fence).map_err(|error| RecordError::Malformed(error.to_string()))?;
        let query = doc! { "epoch": as_long(fence.epoch), "fence.state": { "$ne": "open" } };
        Ok(self.change(query, doc! { "$set": { "fence": document } }).await?.is_some())
    }

    /// Decides an open fence: the slots belong to the other cluster now.
    /// `false`: somebody else decided it before.
    ///
    /// # Errors
    /// [`RecordError`]; it may be decided then.
    pub async fn commit_fence(&self, fence: &Fence, owned: SlotSet) -> Result<bool, RecordError> {
        let epoch = fence.epoch + 1;
        let at = self.clock.wall_millis();
        let update = doc! {
            "$set": {
                "owned": slots(&owned), "epoch": as_long(epoch), "fence.state": "committed",
                "fence.marker_from": fence.marker_from, "fence.marker_to": fence.marker_to, "fence.decided_at": at,
            },
            "$push": { "moves": { "$each": [past_move(fence, self.side, epoch, at)], "$slice": -500 } },
        };
        let query = doc! { "epoch": as_long(fence.epoch), "fence.id": &fence.id, "fence.state": "open" };
        Ok(self.change(query, update).await?.is_some())
    }

    /// Decides an open fence: nothing has changed. `false`: somebody else decided it before.
    ///
    /// # Errors
    /// [`RecordError`]; it may be decided then.
    pub async fn abort_fence(&self, id: &str) -> Result<bool, RecordError> {
        let at = self.clock.wall_millis();
        let update = doc! { "$set": { "fence.state": "aborted", "fence.decided_at": at } };
        Ok(self.change(doc! { "fence.id": id, "fence.state": "open" }, update).await?.is_some())
    }

    /// Records the gain of slots that the other cluster's record has given up, once: a fence that was
    /// finished long ago may be found again, when its slots have moved on.
    ///
    /// # Errors
    /// [`RecordError`].
    pub async fn gain(&self, fence: &Fence) -> Result<(), RecordError> {
        let epoch = fence.epoch + 1;
        let Some(known) = self.refresh().await? else {
            return Err(RecordError::Malformed("the record is gone".into()));
        };
        let former = self.side.other();
        if known.moves.iter().any(|past| past.epoch == epoch && past.former == former) {
            return Ok(());
        }
        let at = self.clock.wall_millis();
        let update = doc! {
            "$set": { "owned": slots(&known.owned.or(&fence.slots)), "epoch": as_long(epoch.max(known.epoch)) },
            "$push": { "moves": { "$each": [past_move(fence, former, epoch, at)], "$slice": -500 } },
        };
        match self.change(doc! { "epoch": as_long(known.epoch) }, update).await? {
            Some(_) => Ok(()),
            None => Err(RecordError::Malformed("the record changed meanwhile".into())),
        }
    }

    /// Raises the epoch from `from` and sets other fields with it. `false`: it was not at `from`.
    ///
    /// # Errors
    /// [`RecordError`]; it may be done then.
    pub async fn raise(&self, from: u64, mut fields: Document) -> Result<bool, RecordError> {
        fields.insert("epoch", as_long(from + 1));
        Ok(self.change(doc! { "epoch": as_long(from) }, doc! { "$set": fields }).await?.is_some())
    }

    /// Sets fields whatever the epoch is, and brings the epoch to at least `epoch`.
    ///
    /// # Errors
    /// [`RecordError`].
    pub async fn catch_up(&self, epoch: u64, fields: Document) -> Result<bool, RecordError> {
        let mut update = doc! { "$max": { "epoch": as_long(epoch) } };
        if !fields.is_empty() {
            update.insert("$set", fields);
        }
        Ok(self.change(doc! { "epoch": { "$lte": as_long(epoch) } }, update).await?.is_some())
    }

    /// This process begins nothing any more: nobody needs to wait until its lease has run out.
    ///
    /// # Errors
    /// [`RecordError`]; it is found out by its silence then.
    pub async fn leave(&self) -> Result<(), RecordError> {
        self.lease.lost();
        let me = format!("holders.{}", self.holder);
        let query = doc! { &me: { "$exists": true } };
        self.change(query, doc! { "$set": { format!("{me}.ended"): true } }).await.map(|_| ())
    }

    /// `holder` never gets the lease again.
    ///
    /// # Errors
    /// [`RecordError`].
    pub async fn expel(&self, holder: &str, beat: i64) -> Result<bool, RecordError> {
        let query = doc! { format!("holders.{holder}.beat"): beat };
        let update = doc! { "$set": { format!("holders.{holder}.expelled"): true } };
        Ok(self.change(query, update).await?.is_some())
    }

    /// An expelled holder can do no more harm: forgets it.
    ///
    /// # Errors
    /// [`RecordError`].
    pub async fn forget(&self, holder: &str) -> Result<(), RecordError> {
        let query = doc! { format!("holders.{holder}.expelled"): true };
        self.change(query, doc! { "$unset": { format!("holders.{holder}"): "" } }).await.map(|_| ())
    }

    /// Reads the record with a write, so that a stale primary cannot answer.
    ///
    /// # Errors
    /// [`RecordError`].
    pub async fn refresh(&self) -> Result<Option<AuthorityRecord>, RecordError> {
        self.change(doc! {}, doc! { "$inc": { "reads": 1_i64 } }).await
    }
}

fn past_move(fence: &Fence, former: Side, epoch: u64, at: i64) -> Document {
    let mut past =
        doc! { "slots": slots(&fence.slots), "former": former.as_str(), "epoch": as_long(epoch), "at": at };
    for (side, marker) in [(former, fence.marker_from), (former.other(), fence.marker_to)] {
        if let Some(marker) = marker {
            past.insert(format!("marker_{side}"), marker);
        }
    }
    past
}

/// An epoch as stored.
#[must_use]
pub fn as_long(epoch: u64) -> i64 {
    i64::try_from(epoch).unwrap_or(i64::MAX)
}
