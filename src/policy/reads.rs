//! Which cluster a read of a migrating namespace goes to.

use bson::RawDocument;
use bson::raw::RawBsonRef;

use super::route_key::By;
use crate::model::side::Side;
use crate::model::slots::{Slot, SlotSet};

/// What a read asks for, as far as routing goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    /// The slot of the document that it names.
    pub slot: Option<Slot>,
    /// Where unkeyed reads of its session go together.
    pub session: Slot,
    /// Only one authority may answer: linearizable, snapshot, or it joins other collections.
    pub authority_only: bool,
    /// It must see what its session has seen: the authority answers where there is one, and else a cluster
    /// that misses no acknowledged write.
    pub causal: bool,
}

/// What routing knows of the namespace.
#[derive(Debug, Clone, Copy)]
pub struct Ownership {
    /// Slots of old.
    pub old: SlotSet,
    /// Slots of new.
    pub new: SlotSet,
    /// The cluster of which it is not known yet what it owns.
    pub unread: Option<Side>,
    /// Slots whose reads new serves.
    pub reads_on_new: SlotSet,
}

/// Where a read goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// To the authority of everything that it can meet.
    Authority(Side),
    /// To a cluster that is a mirror for `foreign`: only if it is current for them.
    Mirror {
        /// Where to.
        side: Side,
        /// Slots that it can meet there without the cluster being their authority.
        foreign: SlotSet,
        /// Where to go instead when it is not current; `None`: wait.
        otherwise: Option<Side>,
    },
    /// It needs one authority, and there are two.
    Refuse,
}

/// Decides.
#[must_use]
pub fn plan(ask: &Ask, owned: &Ownership) -> Plan {
    // What a cluster that cannot be reached owns is not known: only all of it counts.
    let sole = match (owned.old == SlotSet::ALL, owned.new == SlotSet::ALL) {
        (true, false) if owned.new.is_empty() => Some(Side::Old),
        (false, true) if owned.old.is_empty() => Some(Side::New),
        _ => None,
    };
    match (ask.slot, sole) {
        (Some(slot), _) => keyed(ask, slot, owned),
        (None, Some(authority)) => {
            let wanted = if owned.reads_on_new.contains(ask.session) { Side::New } else { authority };
            one_of(ask, wanted, authority, SlotSet::ALL)
        }
        (None, None) if ask.authority_only => Plan::Refuse,
        (None, None) => {
            let side = if owned.reads_on_new.contains(ask.session) { Side::New } else { Side::Old };
            let foreign = if side == Side::New { owned.old } else { owned.new };
            Plan::Mirror { side, foreign, otherwise: None }
        }
    }
}

fn keyed(ask: &Ask, slot: Slot, owned: &Ownership) -> Plan {
    let wanted = if owned.reads_on_new.contains(slot) { Side::New } else { Side::Old };
    let authority = match (owned.old.contains(slot), owned.new.contains(slot), owned.unread) {
        (true, false, _) => Side::Old,
        (false, true, _) => Side::New,
        // What the other has not got is owned by the one of which nothing is known yet, or is in the middle of a move.
        (false, false, Some(unread)) => unread,
        // In the middle of a move both sides are equal; reads are never paused.
        _ => return Plan::Authority(wanted),
    };
    let wanted = if wanted == Side::Old { authority } else { wanted };
    one_of(ask, wanted, authority, [slot].into_iter().collect())
}

fn one_of(ask: &Ask, wanted: Side, authority: Side, foreign: SlotSet) -> Plan {
    if ask.authority_only || ask.causal || wanted == authority {
        Plan::Authority(authority)
    } else {
        Plan::Mirror { side: wanted, foreign, otherwise: Some(authority) }
    }
}

/// The slot of all that a read can meet, if it names one.
#[must_use]
pub fn slot_of_read(name: &str, body: &RawDocument, by: By<'_>) -> Option<Slot> {
    let simple = !matches!(body.get("collation"), Ok(Some(_)));
    let filter = match name {
        "find" => body.get_document("filter").ok()?,
        "count" | "distinct" => body.get_document("query").ok()?,
        "aggregate" => match body.get_array("pipeline").ok()?.get(0).ok()?? {
            RawBsonRef::Document(stage) => stage.get_document("$match").ok()?,
            _ => return None,
        },
        _ => return None,
    };
    by.of_filter(filter, simple)
}

/// Whether a pipeline reads other collections too.
#[must_use]
pub fn joins(body: &RawDocument) -> bool {
    stages(body).any(|name| matches!(name, "$lookup" | "$graphLookup" | "$unionWith" | "$facet"))
}

/// Whether a pipeline is a change stream.
#[must_use]
pub fn is_change_stream(body: &RawDocument) -> bool {
    stages(body).next() == Some("$changeStream")
}

fn stages(body: &RawDocument) -> impl Iterator<Item = &str> {
    body.get_array("pipeline").into_iter().flatten().flatten().filter_map(|stage| {
        let first = stage.as_document()?.iter().next()?.ok()?;
        Some(first.0.as_str())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(number: u16) -> Slot {
        Slot::from_number(number).unwrap()
    }

    fn owned(writes: u8, reads: u8) -> Ownership {
        let new = SlotSet::percent(writes);
        let reads_on_new = SlotSet::percent(reads);
        Ownership { old: SlotSet::ALL.minus(&new), new, unread: None, reads_on_new }
    }

    fn ask(key: Option<u16>, session: u16) -> Ask {
        Ask { slot: key.map(slot), session: slot(session), authority_only: false, causal: false }
    }

    #[test]
    fn without_percentages_old_answers() {
        for key in [None, Some(5), Some(1000)] {
            assert_eq!(plan(&ask(key, 3), &owned(0, 0)), Plan::Authority(Side::Old));
        }
    }

    #[test]
    fn keyed_reads_go_by_their_slot() {
        let mixed = owned(10, 50);
        assert_eq!(plan(&ask(Some(5), 1000), &mixed), Plan::Authority(Side::New));
        assert!(matches!(
            plan(&ask(Some(300), 0), &mixed),
            Plan::Mirror { side: Side::New, otherwise: Some(Side::Old), .. }
        ));
        assert_eq!(plan(&ask(Some(900), 0), &mixed), Plan::Authority(Side::Old));
    }

    #[test]
    fn unkeyed_reads_while_mixed_name_what_is_foreign() {
        let Plan::Mirror { side, foreign, otherwise } = plan(&ask(None, 900), &owned(10, 50)) else {
            panic!()
        };
        assert_eq!((side, foreign, otherwise), (Side::Old, SlotSet::percent(10), None));
        let strict = Ask { authority_only: true, ..ask(None, 900) };
        assert_eq!(plan(&strict, &owned(10, 50)), Plan::Refuse);
        assert_eq!(plan(&strict, &owned(100, 100)), Plan::Authority(Side::New));
    }

    #[test]
    fn causal_reads_go_to_the_authority_and_are_never_refused() {
        let causal = |key, session| Ask { causal: true, ..ask(key, session) };
        assert_eq!(plan(&causal(Some(300), 0), &owned(10, 50)), Plan::Authority(Side::Old));
        assert_eq!(plan(&causal(None, 0), &owned(0, 50)), Plan::Authority(Side::Old));
        assert!(matches!(plan(&causal(None, 0), &owned(10, 50)), Plan::Mirror { otherwise: None, .. }));
    }

    #[test]
    fn a_cluster_whose_slots_are_not_known_is_not_taken_for_owning_nothing() {
        let mut unknown = owned(100, 100);
        unknown.new = SlotSet::EMPTY;
        let strict = Ask { authority_only: true, ..ask(None, 900) };
        assert_eq!(plan(&strict, &unknown), Plan::Refuse);
    }

    #[test]
    fn what_nobody_is_known_to_own_belongs_to_the_cluster_that_is_not_known() {
        let mut unread = owned(0, 50);
        (unread.old, unread.unread) = (SlotSet::EMPTY, Some(Side::Old));
        assert!(matches!(
            plan(&ask(Some(5), 1000), &unread),
            Plan::Mirror { side: Side::New, otherwise: Some(Side::Old), .. }
        ));
        assert_eq!(plan(&ask(Some(900), 0), &unread), Plan::Authority(Side::Old));
        let mut unread = owned(10, 10);
        (unread.new, unread.unread) = (SlotSet::EMPTY, Some(Side::New));
        assert_eq!(plan(&ask(Some(5), 1000), &unread), Plan::Authority(Side::New));
        assert_eq!(plan(&ask(Some(900), 0), &unread), Plan::Authority(Side::Old));
    }

    #[test]
    fn in_the_middle_of_a_move_reads_go_on() {
        let mut middle = owned(10, 50);
        middle.new = SlotSet::EMPTY;
        assert_eq!(plan(&ask(Some(5), 1000), &middle), Plan::Authority(Side::New));
    }
}
