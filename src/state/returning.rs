//! What a rollback without new leaves behind until new is there again: slots, all that new had or a part of them, that old
//! has taken back by its own record alone.
//!
//! While it stands in old's record, new's record has no word on these slots, whatever it says, and nothing makes either
//! side of them equal to the other: what only new has acknowledged is yet to be brought back.

use bson::{Bson, Document, Timestamp, doc};
use serde::{Deserialize, Serialize};

use super::as_stored::{as_i64, slot_bytes, slots_as_bson};
use super::authority::{Authority, as_long};
use super::record::AuthorityRecord;
use super::records::RecordError;
use crate::model::side::Side;
use crate::model::slots::SlotSet;

/// Version of a record that says so: one that knows nothing of it would undo what only new has.
pub(super) const SCHEMA_RETURNING: i32 = 4;

/// Slots that were taken back without new.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Returning {
    /// Which.
    #[serde(with = "slot_bytes")]
    pub slots: SlotSet,
    /// The epoch that brought it: above whatever new's record can say.
    #[serde(with = "as_i64")]
    pub epoch: u64,
    /// Unix milliseconds.
    pub at: i64,
    /// Old's stream from just before: whatever is written to the slots on old comes after it.
    pub from_old: Document,
    /// Where new's stream had been worked off to: whatever only new has comes after it. Without it nobody can tell.
    pub from_new: Option<Document>,
    /// The same as a time, as far as the process knew it that has taken them back: closer, but no place to begin at.
    pub passed: Option<Timestamp>,
}

/// How far a raise on one record alone can be ahead of the other, and one more.
const ABOVE_ANY: u64 = 2;

impl Returning {
    /// The epoch that no record can have by now, given the newest that is known.
    #[must_use]
    pub const fn epoch_above(known: u64) -> u64 {
        known + ABOVE_ANY
    }

    /// With more slots, taken back later by `more`. Each place to begin at is the earlier one: whatever is looked at in
    /// vain is equal, and what was written on old in between counts as written by the application.
    #[must_use]
    pub fn and(self, more: Self) -> Self {
        Self {
            slots: self.slots.or(&more.slots),
            epoch: more.epoch,
            passed: self.passed.zip(more.passed).map(|(a, b)| a.min(b)),
            ..self
        }
    }

    /// Which of several this is: it stays the same when slots are added.
    #[must_use]
    pub const fn round(&self) -> i64 {
        self.at
    }
}

impl Authority {
    /// On old: takes the slots back, if the record is as it was last seen, no fence is open on it, and nobody but this
    /// process may write: another one has not held its writes, as it knows nothing of this. `false`: it is not so.
    /// `reads_on_new` and `pins` go with it.
    ///
    /// # Errors
    /// [`RecordError`]; it may be done then.
    pub async fn take_back(
        &self,
        returning: &Returning,
        reads_on_new: &SlotSet,
        pins: Bson,
    ) -> Result<bool, RecordError> {
        let known = self.known().ok_or_else(gone)?;
        let owned = known.owned.or(&returning.slots);
        let stored =
            bson::serialize_to_bson(returning).map_err(|error| RecordError::Malformed(error.to_string()))?;
        let mut fields = doc! {
            "owned": slots_as_bson(&owned), "reads_on_new": slots_as_bson(reads_on_new), "pins": pins,
            "returning": stored, "epoch": as_long(returning.epoch), "schema": SCHEMA_RETURNING,
        };
        if owned == SlotSet::ALL {
            // Else new is yet to gain what a committed one gave it, before it gives way.
            fields.insert("fence", Bson::Null);
        }
        let me = format!("holders.{}.expelled", self.holder());
        let query = doc! {
            "epoch": as_long(known.epoch), "fence.state": { "$ne": "open" }, me: false,
            "$expr": { "$eq": [{ "$size": { "$objectToArray": "$holders" } }, 1] },
        };
        Ok(self.change(query, doc! { "$set": fields }).await?.is_some())
    }

    /// On new, whose record says no less than old's: gives up what old has taken back. It may be repeated.
    ///
    /// # Errors
    /// [`RecordError`].
    pub async fn give_way(&self, returning: &Returning) -> Result<(), RecordError> {
        let known = self.refresh().await?.ok_or_else(gone)?;
        if known.epoch < returning.epoch {
            return Err(RecordError::Malformed("the record is behind old's yet".into()));
        }
        if !known.owned.meets(&returning.slots) && known.fence.is_none() {
            return Ok(());
        }
        let owned = known.owned.minus(&returning.slots);
        let update = doc! { "$set": { "owned": slots_as_bson(&owned), "fence": null } };
        self.change(doc! { "epoch": as_long(known.epoch) }, update).await?.map(|_| ()).ok_or_else(meanwhile)
    }

    /// On old: everything is back, and the move counts as one like any other. It may be repeated. Returns the epoch.
    ///
    /// # Errors
    /// [`RecordError`].
    pub async fn end_returning(&self, returning: &Returning) -> Result<u64, RecordError> {
        let known = self.refresh().await?.ok_or_else(gone)?;
        match &known.returning {
            None => return Ok(known.epoch),
            // Slots were added, of which nothing is back.
            Some(now) if now.epoch != returning.epoch => return Err(meanwhile()),
            Some(_) => {}
        }
        let epoch = known.epoch + 1;
        let past = doc! {
            "slots": slots_as_bson(&returning.slots), "former": Side::New.as_str(), "epoch": as_long(epoch),
            "at": returning.at,
        };
        let update = doc! {
            "$set": { "epoch": as_long(epoch), "schema": known.schema_once_returned() },
            "$unset": { "returning": "" },
            "$push": { "moves": { "$each": [past], "$slice": -500 } },
        };
        self.change(doc! { "epoch": as_long(known.epoch) }, update).await?.ok_or_else(meanwhile)?;
        Ok(epoch)
    }
}

impl AuthorityRecord {
    /// What new has no word on any more although its record may say so.
    #[must_use]
    pub fn taken_back(&self) -> SlotSet {
        self.returning.as_ref().map_or(SlotSet::EMPTY, |returning| returning.slots)
    }
}

fn gone() -> RecordError {
    RecordError::Malformed("the record is gone".into())
}

fn meanwhile() -> RecordError {
    RecordError::Malformed("the record changed meanwhile".into())
}
