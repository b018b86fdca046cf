//! What a rollback without new leaves behind until new is there again: slots that old has taken back by its own
//! record alone.
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
}

impl Authority {
    /// On old: takes all slots back, if the record is at `from` and no fence is open on it. `false`: it is not.
    ///
    /// # Errors
    /// [`RecordError`]; it may be done then.
    pub async fn take_back(&self, from: u64, returning: &Returning, pins: Bson) -> Result<bool, RecordError> {
        let stored =
            bson::serialize_to_bson(returning).map_err(|error| RecordError::Malformed(error.to_string()))?;
        let update = doc! { "$set": {
            "owned": slots_as_bson(&SlotSet::ALL), "reads_on_new": slots_as_bson(&SlotSet::EMPTY), "pins": pins,
            "fence": null, "returning": stored, "epoch": as_long(returning.epoch), "schema": SCHEMA_RETURNING,
        } };
        let query = doc! { "epoch": as_long(from), "fence.state": { "$ne": "open" } };
        Ok(self.change(query, update).await?.is_some())
    }

    /// On new: gives up what old has taken back. It may be repeated.
    ///
    /// # Errors
    /// [`RecordError`].
    pub async fn give_way(&self, returning: &Returning) -> Result<(), RecordError> {
        let known = self.refresh().await?.ok_or_else(gone)?;
        if !known.owned.meets(&returning.slots) && known.fence.is_none() {
            return Ok(());
        }
        let epoch = known.epoch.max(returning.epoch);
        let owned = known.owned.minus(&returning.slots);
        let update = doc! { "$set": {
            "owned": slots_as_bson(&owned), "reads_on_new": slots_as_bson(&SlotSet::EMPTY), "fence": null,
            "epoch": as_long(epoch),
        } };
        self.change(doc! { "epoch": as_long(known.epoch) }, update).await?.map(|_| ()).ok_or_else(meanwhile)
    }

    /// On old: everything is back, and the move counts as one like any other. It may be repeated. Returns the epoch.
    ///
    /// # Errors
    /// [`RecordError`].
    pub async fn end_returning(&self, returning: &Returning) -> Result<u64, RecordError> {
        let known = self.refresh().await?.ok_or_else(gone)?;
        if known.returning.as_ref().is_none_or(|it| it.epoch != returning.epoch) {
            return Ok(known.epoch);
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
