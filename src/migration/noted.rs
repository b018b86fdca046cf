//! What is noted of a migration as it goes, over restarts too: kinds of writes that force a move in one step, and
//! invariants that did not hold.

use std::sync::atomic::Ordering;

use super::context::Context;
use super::control::NamespaceSpec;
use super::running::Running;
use super::stored::Stored;
use crate::model::side::Side;
use crate::model::slots::SlotSet;
use crate::policy::invariants::{Invariant, one_authority};
use crate::state::record::StoredRouteKey;

/// Why a partial percentage is refused once such writes have been seen.
pub(super) const UNKEYED_SEEN: &str = "writes of single documents that do not name their _id (or their route key) have been seen: a \
                                       retry could choose another document on the other cluster";
/// The same for transactions.
pub(super) const TRANSACTIONS_SEEN: &str =
    "transactions have been seen: one could touch slots of both clusters";

impl Running {
    /// The names and patterns of what it moves.
    pub(super) fn specs(&self) -> Vec<String> {
        self.stored.lock().namespaces.iter().map(|spec| spec.namespace.clone()).collect()
    }

    /// The fields by which some of it is divided.
    pub(super) fn route_keys(&self) -> Vec<StoredRouteKey> {
        let stored = self.stored.lock();
        let route_key = |spec: &NamespaceSpec| {
            Some(StoredRouteKey { namespace: spec.namespace.clone(), field: spec.route_key.clone()? })
        };
        stored.namespaces.iter().filter_map(route_key).collect()
    }

    /// Takes note of what has been seen since; `true`: there is something to be stored.
    pub(super) fn take_note(&self, stored: &mut Stored) -> bool {
        let Some(active) = self.active.lock().clone() else { return false };
        let seen = [
            (&active.counters.unkeyed_retryable, UNKEYED_SEEN),
            (&active.counters.transactions, TRANSACTIONS_SEEN),
        ];
        let before = stored.single_step.len();
        for (count, why) in seen {
            let is_new =
                count.load(Ordering::Relaxed) > 0 && !stored.single_step.iter().any(|known| known == why);
            stored.single_step.extend(is_new.then(|| why.to_owned()));
        }
        let violations = active.converger.violations.list();
        let is_news = stored.violations != violations;
        stored.violations = violations;
        is_news || stored.single_step.len() > before
    }

    /// Why both sides cannot be trusted to be equal: an invariant did not hold, and they were not compared since.
    pub(super) fn distrusted(&self, stored: &Stored) -> Vec<String> {
        let Some(context) = self.parts() else { return Vec::new() };
        let verified = self.unverified(stored).is_none();
        let begun = self.verification_of(stored).and_then(|last| last.started_at).filter(|_| verified);
        context.converger.violations.in_the_way(begun)
    }
}

impl Context {
    /// Looks whether a slot is owned by both records. Of two records that were read at different times one may be
    /// older than a move, so that both are read again before it counts.
    pub(super) async fn watch_records(&self) {
        let taken_back = || self.authorities.old.known().map_or(SlotSet::EMPTY, |record| record.taken_back());
        let owned = |side: Side| {
            let record = self.authorities.get(side).known()?;
            Some(if side == Side::New { record.owned.minus(&taken_back()) } else { record.owned })
        };
        let both = || owned(Side::Old).zip(owned(Side::New));
        let overlap = |(old, new)| one_authority(&old, &new);
        if both().is_none_or(|both| overlap(both).is_ok()) {
            return;
        }
        for side in [Side::Old, Side::New, Side::Old] {
            if !matches!(self.beat(side).await, Ok(true)) {
                return;
            }
        }
        if let Some(both) = both() {
            self.converger.violations.watch(Invariant::OneAuthority, overlap(both));
        }
    }
}
