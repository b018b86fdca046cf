//! How a migration is routed: by what the records of both clusters say.

use std::sync::Arc;

use super::record::AuthorityRecord;
use super::table::{MigrationRoute, RouteKeys, ShardKeys};
use crate::model::moves::Move;
use crate::model::namespace::Namespace;
use crate::model::pattern::Pattern;
use crate::model::side::{PerSide, Side};
use crate::model::slots::SlotSet;
use crate::policy::route_key::RouteKey;

/// The record that says more of what both say; old's if they say the same.
#[must_use]
pub fn newest<'a>(
    old: Option<&'a AuthorityRecord>,
    new: Option<&'a AuthorityRecord>,
) -> Option<&'a AuthorityRecord> {
    match (old, new) {
        (Some(old), Some(new)) if new.epoch > old.epoch => Some(new),
        (old, new) => old.or(new),
    }
}

/// What the records of both clusters together say about routing. A cluster that cannot be read owns what the
/// other has not got: nobody may write there without its lease anyway.
#[must_use]
pub fn route(old: Option<&AuthorityRecord>, new: Option<&AuthorityRecord>) -> Option<MigrationRoute> {
    let newest = newest(old, new)?;
    let unread = match (old, new) {
        (Some(_), Some(_)) => None,
        (None, _) => Some(Side::Old),
        (_, None) => Some(Side::New),
    };
    let owned = |record: Option<&AuthorityRecord>| record.map_or(SlotSet::EMPTY, |record| record.owned);
    let returning = old.map_or(SlotSet::EMPTY, AuthorityRecord::taken_back);
    let mut held = SlotSet::EMPTY;
    let mut moves: Vec<Move> = Vec::new();
    for record in [old, new].into_iter().flatten() {
        held = held.or(&record.fenced().minus(&returning));
        for stored in &record.moves {
            let known = Move::from(stored);
            if !moves.contains(&known) {
                moves.push(known);
            }
        }
    }
    moves.sort_by_key(|past| past.epoch);
    let (owned_by_old, owned_by_new) = (owned(old), owned(new).minus(&returning));
    Some(MigrationRoute {
        name: newest.name.as_str().into(),
        epoch: newest.epoch,
        phase: newest.phase,
        ack_both: reads_may_meet_mirrors(&owned_by_new, &newest.reads_on_new),
        owned_by_old,
        owned_by_new,
        unread,
        reads_on_new: newest.reads_on_new,
        reads_off: Arc::new(newest.reads_off()),
        held,
        sealed: SlotSet::EMPTY,
        returning,
        taken_back_at: old.and_then(|old| old.returning.as_ref()).map_or(0, |returning| returning.epoch),
        moves,
        shard_keys: Arc::new(shard_keys(newest)),
        patterns: newest.patterns.iter().filter_map(|text| Pattern::parse(text).ok()).collect(),
        route_keys: Arc::new(route_keys(newest)),
        key_ranges: Arc::new(newest.key_ranges()),
    })
}

/// Whether any read may go to a cluster that is not the authority of all that it reads.
fn reads_may_meet_mirrors(owned_by_new: &SlotSet, reads_on_new: &SlotSet) -> bool {
    let one_authority = owned_by_new.is_empty() || *owned_by_new == SlotSet::ALL;
    !one_authority || owned_by_new != reads_on_new
}

fn shard_keys(record: &AuthorityRecord) -> ShardKeys {
    PerSide::from_fn(|side| {
        let stored = record.shard_keys.get(side).iter();
        stored
            .filter_map(|stored| Some((Namespace::parse(&stored.namespace)?, stored.key.clone().into())))
            .collect()
    })
}

pub(super) fn route_keys(record: &AuthorityRecord) -> RouteKeys {
    let stored = record.route_keys.iter();
    stored
        .filter_map(|stored| {
            Some((Namespace::parse(&stored.namespace)?, RouteKey::parse(&stored.field).ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_wait_for_mirrors_where_a_read_can_meet_one() {
        let (none, some, all) = (SlotSet::EMPTY, SlotSet::percent(10), SlotSet::ALL);
        for (owned, reads) in [(none, none), (all, all)] {
            assert!(!reads_may_meet_mirrors(&owned, &reads));
        }
        for (owned, reads) in [(none, some), (none, all), (some, some), (some, all), (all, some)] {
            assert!(reads_may_meet_mirrors(&owned, &reads));
        }
    }

    #[test]
    fn slots_that_neither_owns_have_no_authority() {
        let mut old = AuthorityRecord::begin("m", Side::Old, PerSide::default(), vec![]);
        let new = AuthorityRecord::begin("m", Side::New, PerSide::default(), vec![]);
        let moved = SlotSet::percent(10);
        old.owned = SlotSet::ALL.minus(&moved);
        let routes = route(Some(&old), Some(&new)).unwrap();
        let slot = crate::model::slots::Slot::from_number(0).unwrap();
        assert_eq!(routes.authority(slot), None);
        assert_eq!(routes.sole_authority(), None);
    }
}
