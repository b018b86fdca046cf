//! What each cluster stores about the slots it owns.
//!
//! One document for each migration on each cluster. Everything that must change together (the slots, the
//! epoch, the fence, the holders) is in this one document, so that every step of the protocol is one
//! compare-and-set with majority. A cluster's record is the truth about the slots it owns: it is the first to
//! record their loss and the last to record their gain.

use std::collections::{BTreeMap, BTreeSet};

use bson::Timestamp;
use serde::{Deserialize, Serialize};

use super::as_stored::{as_i64, slot_bytes};
use super::pins::StoredPin;
use super::returning::{Returning, SCHEMA_RETURNING};
use super::route::route_keys;
pub use super::route::{newest, route};
use super::switched::Off;
use crate::model::moves::Move;
pub use crate::model::namespace::DATABASE;
use crate::model::phase::Phase;
use crate::model::side::{PerSide, Side};
use crate::model::slots::SlotSet;
use crate::policy::key_ranges::{KeyRange, KeyRanges};
use crate::policy::pins::Pins;
use crate::policy::shard_key::StoredKey;

/// Version of the stored format; a process refuses records of a version it does not know.
pub const SCHEMA: i32 = 1;
/// Version of a record with route keys.
const SCHEMA_WITH_ROUTE_KEYS: i32 = 2;
/// Version of a record with ranges of keys.
const SCHEMA_WITH_RANGES: i32 = 3;
/// Collection of [`AuthorityRecord`]s.
pub const AUTHORITY: &str = "authority";
/// Collection that streams are pushed with.
pub const MARKERS: &str = "markers";

/// One cluster's record of one migration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuthorityRecord {
    /// The migration's name.
    #[serde(rename = "_id")]
    pub name: String,
    /// [`SCHEMA`]; a higher one with route keys or ranges.
    pub schema: i32,
    /// Which cluster this record is about; a swapped URI shows here.
    pub side: Side,
    /// The identities of the clusters that the migration began with.
    pub identities: PerSide<String>,
    /// What the migration moves, for a process that cannot reach the other cluster.
    pub namespaces: Vec<String>,
    /// Patterns that name what may come into being and is part of it then.
    #[serde(default)]
    pub patterns: Vec<String>,
    /// Version of the routing.
    #[serde(with = "as_i64")]
    pub epoch: u64,
    /// Where the migration is in its life.
    pub phase: Phase,
    /// Slots that this cluster owns.
    #[serde(with = "slot_bytes")]
    pub owned: SlotSet,
    /// Slots whose reads new serves.
    #[serde(with = "slot_bytes")]
    pub reads_on_new: SlotSet,
    /// The fence under which slots of this cluster move, or moved last.
    pub fence: Option<Fence>,
    /// Every process that may write for this migration, by id.
    pub holders: BTreeMap<String, Holder>,
    /// Past moves of slots from or to this cluster.
    pub moves: Vec<StoredMove>,
    /// By what the collections are sharded, on both clusters: whoever knows one record knows how to write to
    /// the other.
    #[serde(default)]
    pub shard_keys: PerSide<Vec<StoredShardKey>>,
    /// From what slots are computed, where it is not the `_id`. Fixed from the start on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub route_keys: Vec<StoredRouteKey>,
    /// Ranges of keys that are slots of their own. Fixed from the start on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<KeyRange>,
    /// Keys whose slots percentages leave alone.
    #[serde(default)]
    pub pins: Vec<StoredPin>,
    /// Every read goes to its authority, wherever `reads_on_new` would have it.
    #[serde(default)]
    pub reads_off: bool,
    /// The same for these collections alone.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub reads_off_for: BTreeSet<String>,
    /// On old: what it has taken back without new, until that is there again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub returning: Option<Returning>,
}

/// From what the slots of one collection are computed, as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredRouteKey {
    /// `database.collection`.
    pub namespace: String,
    /// The field.
    pub field: String,
}

/// By what a collection is sharded, as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredShardKey {
    /// `database.collection`.
    pub namespace: String,
    /// Its key.
    pub key: StoredKey,
}

/// The short hold of writes to some slots while their authority changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fence {
    /// Unique.
    pub id: String,
    /// What moves away from this cluster.
    #[serde(with = "slot_bytes")]
    pub slots: SlotSet,
    /// Where to.
    pub to: Side,
    /// The epoch that it was opened at.
    #[serde(with = "as_i64")]
    pub epoch: u64,
    /// Whether it has been decided.
    pub state: FenceState,
    /// The holder that coordinates it.
    pub coordinator: String,
    /// Holders that have finished what they began before.
    pub drained: Vec<String>,
    /// The marker on this cluster, once decided.
    pub marker_from: Option<Timestamp>,
    /// The marker on the other, once decided.
    pub marker_to: Option<Timestamp>,
    /// Unix milliseconds when it was decided.
    pub decided_at: Option<i64>,
}

/// Whether a fence has been decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FenceState {
    /// Writes to the slots wait.
    Open,
    /// The slots belong to the other cluster.
    Committed,
    /// Nothing has changed.
    Aborted,
}

/// A process that may write for a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The epoch it last confirmed.
    #[serde(with = "as_i64")]
    pub epoch: u64,
    /// Rises with every grant; whoever sees it rise knows that the process lives.
    pub beat: i64,
    /// How many mirror sessions it may use; their ids follow from its own.
    pub sessions: i32,
    /// It never gets a grant again.
    pub expelled: bool,
    /// It has stopped in order, and begins nothing any more.
    #[serde(default)]
    pub ended: bool,
}

/// A past move, as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredMove {
    /// What moved.
    #[serde(with = "slot_bytes")]
    pub slots: SlotSet,
    /// Who had it before.
    pub former: Side,
    /// The epoch that the move brought.
    #[serde(with = "as_i64")]
    pub epoch: u64,
    /// Unix milliseconds.
    pub at: i64,
    /// The marker on old.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub marker_old: Option<Timestamp>,
    /// The marker on new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub marker_new: Option<Timestamp>,
}

impl From<&StoredMove> for Move {
    fn from(stored: &StoredMove) -> Self {
        let markers = stored.marker_old.zip(stored.marker_new).map(|(old, new)| PerSide { old, new });
        Self { slots: stored.slots, former: stored.former, epoch: stored.epoch, at: stored.at, markers }
    }
}

impl AuthorityRecord {
    /// The record that `side` begins a migration with: old owns everything.
    #[must_use]
    pub fn begin(name: &str, side: Side, identities: PerSide<String>, namespaces: Vec<String>) -> Self {
        Self {
            name: name.to_owned(),
            schema: SCHEMA,
            side,
            identities,
            namespaces,
            patterns: Vec::new(),
            epoch: 1,
            phase: Phase::Preparing,
            owned: if side == Side::Old { SlotSet::ALL } else { SlotSet::EMPTY },
            reads_on_new: SlotSet::EMPTY,
            fence: None,
            holders: BTreeMap::new(),
            moves: Vec::new(),
            shard_keys: PerSide::default(),
            route_keys: Vec::new(),
            ranges: Vec::new(),
            pins: Vec::new(),
            reads_off: false,
            reads_off_for: BTreeSet::new(),
            returning: None,
        }
    }

    /// With route keys. A version that knows nothing of them would compute other slots: it must not read this.
    #[must_use]
    pub fn routed_by(mut self, route_keys: Vec<StoredRouteKey>) -> Self {
        self.route_keys = route_keys;
        self.schema = self.fitting_schema();
        self
    }

    /// With ranges of keys. What is said of route keys holds for them, too.
    #[must_use]
    pub fn with_ranges(mut self, ranges: Vec<KeyRange>) -> Self {
        self.ranges = ranges;
        self.schema = self.fitting_schema();
        self
    }

    const fn fitting_schema(&self) -> i32 {
        if self.returning.is_some() { SCHEMA_RETURNING } else { self.schema_once_returned() }
    }

    /// The version once nothing is yet to be brought back.
    pub(super) const fn schema_once_returned(&self) -> i32 {
        match (self.ranges.is_empty(), self.route_keys.is_empty()) {
            (false, _) => SCHEMA_WITH_RANGES,
            (true, false) => SCHEMA_WITH_ROUTE_KEYS,
            (true, true) => SCHEMA,
        }
    }

    /// Reads one that is stored on `side`.
    ///
    /// # Errors
    /// In words, why it does not read.
    pub fn read(side: Side, raw: &bson::RawDocument) -> Result<Self, String> {
        bson::deserialize_from_slice(raw.as_bytes())
            .map_err(|error| format!("a record of {side} does not read: {error}"))
    }

    /// Whether `side` is the cluster that this record was stored on, and this process can read it.
    ///
    /// # Errors
    /// In words, what does not fit.
    pub fn check(&self, side: Side, identity: Option<&str>) -> Result<(), String> {
        let all_read =
            route_keys(self).len() == self.route_keys.len() && KeyRanges::new(self.ranges.clone()).is_ok();
        if self.schema != self.fitting_schema() || !all_read {
            return Err(format!("migration {} was stored by another version of reshard", self.name));
        }
        if self.pins().all().len() != self.pins.len() {
            return Err(format!(
                "migration {} pins what this version of reshard takes for no key",
                self.name
            ));
        }
        if self.side != side {
            return Err(format!(
                "the uris of [old] and [new] are swapped: migration {} knows this cluster as {}; exchange [old] uri and \
                 [new] uri",
                self.name, self.side
            ));
        }
        if identity != Some(self.identities.get(side).as_str()) {
            return Err(format!(
                "the {side} cluster is not the one that migration {} began with; give [{side}] the uri of \
                 that one",
                self.name
            ));
        }
        Ok(())
    }

    /// Its pins.
    #[must_use]
    pub fn pins(&self) -> Pins {
        let ranges = self.key_ranges();
        Pins::new(self.pins.iter().filter_map(|pin| pin.read(&ranges)).collect())
    }

    /// Its ranges. What does not read has no part in routing: see [`Self::check`].
    #[must_use]
    pub fn key_ranges(&self) -> KeyRanges {
        KeyRanges::new(self.ranges.clone()).unwrap_or_default()
    }

    /// For what reads go to their authority.
    #[must_use]
    pub fn reads_off(&self) -> Off {
        Off { all: self.reads_off, namespaces: self.reads_off_for.clone() }
    }

    /// The slots that an open fence holds.
    #[must_use]
    pub fn fenced(&self) -> SlotSet {
        match &self.fence {
            Some(fence) if fence.state == FenceState::Open => fence.slots,
            _ => SlotSet::EMPTY,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::namespace::Namespace;
    use crate::policy::route_key::RouteKey;

    /// Whatever new's record says, also of a fence that it was left with.
    #[test]
    fn new_has_no_word_on_what_old_has_taken_back() {
        let record = |side| AuthorityRecord::begin("m", side, PerSide::default(), Vec::new());
        let (mut old, mut new) = (record(Side::Old), record(Side::New));
        let half = SlotSet::percent(50);
        (new.owned, new.epoch, new.reads_on_new) = (half, 5, SlotSet::ALL);
        new.fence = Some(Fence {
            id: "f".into(),
            slots: half,
            to: Side::Old,
            epoch: 5,
            state: FenceState::Open,
            coordinator: "p".into(),
            drained: vec![],
            marker_from: None,
            marker_to: None,
            decided_at: None,
        });
        (old.owned, old.epoch) = (SlotSet::ALL.minus(&half), 5);
        let divided = route(Some(&old), Some(&new)).unwrap();
        assert!(divided.owned_by_new == half && divided.held == half && divided.returning.is_empty());
        old.returning = Some(Returning {
            slots: half,
            epoch: Returning::epoch_above(6),
            at: 0,
            from_old: bson::Document::new(),
            from_new: None,
            passed: None,
        });
        (old.owned, old.epoch) = (SlotSet::ALL, Returning::epoch_above(6));
        let back = route(Some(&old), Some(&new)).unwrap();
        assert_eq!(back.sole_authority(), Some(Side::Old));
        assert!(back.held.is_empty() && back.reads_on_new.is_empty() && !back.ack_both);
        assert_eq!((back.returning, back.taken_back_at), (half, 8));
        // Of a part, the rest is new's as before.
        let quarter = SlotSet::percent(25);
        let part = Returning { slots: quarter, ..old.returning.clone().unwrap() };
        let rest = half.minus(&quarter);
        let known = AuthorityRecord {
            owned: SlotSet::ALL.minus(&rest),
            reads_on_new: rest,
            returning: Some(part.clone()),
            ..old.clone()
        };
        let divided = route(Some(&known), Some(&new)).unwrap();
        assert!(divided.owned_by_new == rest && divided.held == rest && divided.reads_on_new == rest);
        assert!(divided.settled() == SlotSet::ALL && divided.ack_both);
        // More of it later: from the first beginning, at the epoch that brought it.
        let (early, late) = (bson::doc! { "at": 1 }, bson::doc! { "at": 2 });
        let passed = |time| Some(Timestamp { time, increment: 0 });
        let first = Returning { from_new: Some(early.clone()), passed: passed(3), ..part };
        let more = Returning {
            slots: rest,
            epoch: 12,
            at: 5,
            from_old: late.clone(),
            from_new: Some(late),
            passed: passed(4),
        };
        let both = first.clone().and(more.clone());
        assert_eq!((both.slots, both.epoch, both.round(), both.passed), (half, 12, 0, passed(3)));
        assert_eq!((both.from_new, both.from_old), (Some(early), bson::Document::new()));
        assert_eq!(Returning { passed: None, ..first }.and(more).passed, None);
        // A version that knows nothing of it must not read it.
        assert!(old.check(Side::Old, Some("")).is_err());
        old.schema = SCHEMA_RETURNING;
        assert!(old.check(Side::Old, Some("")).is_ok());
    }

    #[test]
    fn stored_form_reads_back() {
        let mut record =
            AuthorityRecord::begin("orders", Side::New, PerSide::default(), vec!["shop.orders".into()]);
        record.owned = SlotSet::percent(25);
        record.fence = Some(Fence {
            id: "f".into(),
            slots: SlotSet::percent(5),
            to: Side::Old,
            epoch: 3,
            state: FenceState::Open,
            coordinator: "p".into(),
            drained: vec![],
            marker_from: None,
            marker_to: Some(Timestamp { time: 1, increment: 2 }),
            decided_at: None,
        });
        let id = bson::oid::ObjectId::new();
        let pin = |key: bson::Bson, to| StoredPin { key: Some(key), range: None, to, since: 5 };
        let range = StoredPin { key: None, range: Some("eu".into()), to: Side::New, since: 5 };
        record.pins =
            vec![pin(7_i64.into(), Side::Old), pin("a".into(), Side::New), range, pin(id.into(), Side::New)];
        let eu = KeyRange { name: "eu".into(), from: Some("eu".into()), to: Some("ev".into()) };
        record = record.with_ranges(vec![eu]);
        let document = bson::serialize_to_document(&record).unwrap();
        let raw = bson::serialize_to_raw_document_buf(&record).unwrap();
        assert_eq!(AuthorityRecord::read(Side::New, &raw).unwrap(), record);
        assert_eq!(super::super::pins::stored_pins(&record.pins()), record.pins);
        assert_eq!(bson::deserialize_from_document::<AuthorityRecord>(document).unwrap(), record);
    }

    #[test]
    fn a_record_with_route_keys_is_not_for_versions_that_do_not_know_them() {
        let begun = || AuthorityRecord::begin("m", Side::Old, PerSide::default(), vec!["d.c".into()]);
        let by = |field: &str| {
            begun().routed_by(vec![StoredRouteKey { namespace: "d.c".into(), field: field.into() }])
        };
        assert_eq!((begun().schema, by("tenant").schema), (1, 2));
        let check = |record: &AuthorityRecord| record.check(Side::Old, Some(""));
        assert!(check(&begun()).is_ok() && check(&by("tenant")).is_ok());
        // Nor what this one cannot read, which would be routed by `_id`.
        assert!(check(&by("a.b")).is_err());
        assert!(check(&AuthorityRecord { schema: 1, ..by("tenant") }).is_err());
        let route = route(Some(&by("tenant")), None).unwrap();
        let namespace = Namespace::new("d", "c");
        assert_eq!(route.by(&namespace).field().map(RouteKey::field), Some("tenant"));
        assert!(route.by(&Namespace::new("d", "other")).field().is_none());
    }

    #[test]
    fn a_record_with_ranges_is_not_for_versions_that_do_not_know_them() {
        let with = |from: bson::Bson| {
            let range = KeyRange { name: "r".into(), from: Some(from), to: None };
            AuthorityRecord::begin("m", Side::Old, PerSide::default(), vec!["d.c".into()])
                .with_ranges(vec![range])
        };
        let check = |record: &AuthorityRecord| record.check(Side::Old, Some(""));
        assert_eq!(with(5.into()).schema, 3);
        assert!(check(&with(5.into())).is_ok() && check(&with(bson::Bson::Null)).is_err());
        assert!(check(&AuthorityRecord { schema: 1, ..with(5.into()) }).is_err());
        let by_tenant = StoredRouteKey { namespace: "d.c".into(), field: "tenant".into() };
        assert_eq!(with(5.into()).routed_by(vec![by_tenant]).schema, 3);
        let route = route(Some(&with(5.into())), None).unwrap();
        let key = crate::policy::canonical::key_of(bson::raw::RawBsonRef::Int32(5)).unwrap();
        let slot = route.by(&Namespace::new("d", "c")).of_key(&key);
        assert!(slot.is_some() && slot == route.key_ranges.named("r"));
    }

    #[test]
    fn a_pin_that_does_not_read_is_not_passed_over() {
        let mut record = AuthorityRecord::begin("m", Side::Old, PerSide::default(), vec![]);
        let unread = |key, range| StoredPin { key, range, to: Side::Old, since: 0 };
        for pin in [unread(Some(bson::Bson::Array(vec![])), None), unread(None, Some("eu".into()))] {
            record.pins = vec![pin];
            assert!(record.check(Side::Old, Some("")).unwrap_err().contains("pins what"));
        }
    }
}
