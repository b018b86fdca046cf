//! Changes of routing that move no writes: they raise the epoch on both records, and are in force once the first has it.

use std::sync::Arc;

use bson::{Bson, Document, doc};

use super::context::Context;
use super::control::ControlError;
use super::engine::unavailable;
use crate::model::side::{PerSide, Side};
use crate::model::slots::SlotSet;
use crate::policy::key_ranges::KeyRanges;
use crate::policy::pins::{Pins, Shares};
use crate::state::pins::StoredPin;
use crate::state::record::{AuthorityRecord, newest};

impl Context {
    /// Raises the epoch on both records and sets fields with it.
    ///
    /// # Errors
    /// [`ControlError`]; when only the first record is changed, the change is in force and the second follows.
    pub(super) async fn raise_both(&self, fields: Document) -> Result<(), ControlError> {
        match self.raise_in_force(fields).await? {
            None => Ok(()),
            Some(why) => Err(unavailable(format!("{why}; old has it already; try again"))),
        }
    }

    /// The same. From the moment that old's record is changed the change is in force: why new's has to follow
    /// later is no failure.
    ///
    /// # Errors
    /// [`ControlError`]; it is in force if old's record was changed without an answer.
    pub(super) async fn raise_in_force(&self, fields: Document) -> Result<Option<String>, ControlError> {
        self.level_epochs().await?;
        let from = self.epoch();
        let raised = self.authorities.old.raise(from, fields.clone()).await;
        if !raised.map_err(|error| unavailable(format!("old: {error}")))? {
            return Err(unavailable("another process changed the routing meanwhile; try again".into()));
        }
        let caught_up = self.authorities.new.catch_up(from + 1, fields).await;
        Ok(caught_up.err().map(|error| format!("new: {error}")))
    }

    /// Raises the epoch on old's record alone, which is the newer one then.
    async fn raise_old(&self, fields: Document) -> Result<(), ControlError> {
        let old = |error| unavailable(format!("old: {error}"));
        self.beat(Side::Old).await.map_err(|error| old(error.to_string()))?;
        let from = self.authorities.old.known().map_or(0, |record| record.epoch).max(self.epoch());
        let caught_up = self.authorities.old.catch_up(from + 1, fields).await;
        caught_up.map(|_| ()).map_err(|error| old(error.to_string()))
    }

    /// Brings both records to one epoch, with what the newer one says.
    pub(super) async fn level_epochs(&self) -> Result<(), ControlError> {
        for side in Side::BOTH {
            let alive = self.beat(side).await;
            if !alive.map_err(|error| unavailable(format!("{side}: {error}")))? {
                return Err(unavailable(format!(
                    "this process may not write to {side} any more; restart it"
                )));
            }
        }
        let (Some(old), Some(new)) = (self.authorities.old.known(), self.authorities.new.known()) else {
            return Err(unavailable("the clusters' records are not known".into()));
        };
        if old.epoch == new.epoch {
            return Ok(());
        }
        let (newer, behind) = if old.epoch > new.epoch { (&old, Side::New) } else { (&new, Side::Old) };
        let fields = doc! {
            "phase": newer.phase.as_str(),
            "reads_on_new": slots(&newer.reads_on_new),
            "reads_off": newer.reads_off,
            "reads_off_for": newer.reads_off_for.iter().collect::<Vec<_>>(),
            "pins": pins_as_stored(&newer.pins)?,
            "namespaces": newer.namespaces.clone(),
            "shard_keys": bson::serialize_to_bson(&newer.shard_keys)
                .map_err(|error| unavailable(error.to_string()))?,
        };
        let leveled = self.authorities.get(behind).catch_up(newer.epoch, fields).await;
        leveled.map(|_| ()).map_err(|error| unavailable(format!("{behind}: {error}")))
    }

    /// What is pinned, by the newest record that is known.
    #[must_use]
    pub fn pins(&self) -> Pins {
        let known = PerSide::from_fn(|side| self.authorities.get(side).known());
        newest(known.old.as_ref(), known.new.as_ref()).map(AuthorityRecord::pins).unwrap_or_default()
    }

    /// What percentages are of.
    #[must_use]
    pub fn shares(&self) -> Shares {
        Shares { layout: self.key_ranges().layout(), pinned: self.pins().slots() }
    }

    /// Ranges that are slots of their own.
    #[must_use]
    pub fn key_ranges(&self) -> Arc<KeyRanges> {
        self.route().map(|route| route.key_ranges).unwrap_or_default()
    }

    /// Brings a change that moves no writes into force by old's record; new's follows. `back`: it is part of the way
    /// back to old, which works without new as long as new has no authority.
    ///
    /// # Errors
    /// [`ControlError`]; nothing has changed, unless it says that this is not known.
    pub(super) async fn put_in_force(
        &self,
        fields: Document,
        back: bool,
        is_there: impl Fn(&AuthorityRecord) -> bool,
    ) -> Result<(), ControlError> {
        let alone = back && self.route().is_some_and(|route| route.owned_by_new.is_empty());
        let raised = match self.raise_in_force(fields.clone()).await {
            Err(_) if alone => self.raise_old(fields).await.map(|()| None),
            raised => raised,
        };
        let in_force = match raised {
            Ok(None) => Ok(()),
            Ok(Some(why)) => {
                tracing::warn!(migration = %self.name, why, "in force; the other record follows");
                Ok(())
            }
            Err(error) => self.is_in_force(is_there, error).await,
        };
        self.publish(|_| ());
        in_force
    }

    /// After a failure: old's record may have been changed although no answer came.
    async fn is_in_force(
        &self,
        is_there: impl Fn(&AuthorityRecord) -> bool,
        error: ControlError,
    ) -> Result<(), ControlError> {
        match self.authorities.old.refresh().await {
            Ok(Some(record)) if is_there(&record) => Ok(()),
            Ok(_) => Err(error),
            Err(_) => Err(unavailable(format!(
                "{}; whether the move is in force is known when old answers: see status, or call it again",
                error.detail
            ))),
        }
    }
}

/// Pins as a field of a record.
///
/// # Errors
/// They do not serialize.
pub(super) fn pins_as_stored(pins: &[StoredPin]) -> Result<Bson, ControlError> {
    bson::serialize_to_bson(pins).map_err(|error| unavailable(error.to_string()))
}

/// A slot set as records hold it.
#[must_use]
pub(super) fn slots(slots: &SlotSet) -> Bson {
    Bson::Binary(bson::Binary { subtype: bson::spec::BinarySubtype::Generic, bytes: slots.to_bytes() })
}
