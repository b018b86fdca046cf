//! What schedules met: faults by the moment that they fell in, and branches of the protocol.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bson::RawBson;
use parking_lot::Mutex;
use reshard::model::phase::Phase;
use reshard::model::side::{PerSide, Side};
use reshard::model::slots::SlotSet;
use reshard::state::record::{AuthorityRecord, FenceState};

use crate::checks::history::{History, Told};
use crate::mongo::cluster::Cluster;
use crate::scenario::ledger::Ledger;
use crate::scenario::operator::{Calls, MIGRATION};
use crate::scenario::proxy::{Front, phase};

/// Counts by name; clones share them.
#[derive(Clone, Default)]
pub(super) struct Coverage(Arc<Mutex<BTreeMap<String, u64>>>);

impl Coverage {
    /// One more.
    pub(super) fn add(&self, what: impl Into<String>) {
        self.add_many(what, 1);
    }

    fn add_many(&self, what: impl Into<String>, count: u64) {
        if count > 0 {
            *self.0.lock().entry(what.into()).or_default() += count;
        }
    }

    /// Adds those of another.
    pub(super) fn merge(&self, other: &Self) {
        for (what, count) in other.0.lock().iter() {
            self.add_many(what.clone(), *count);
        }
    }

    /// Which of `wanted` nothing was counted of.
    pub(super) fn missing(&self, wanted: &[&'static str]) -> Vec<&'static str> {
        let counts = self.0.lock();
        wanted.iter().copied().filter(|what| !counts.keys().any(|known| known.starts_with(what))).collect()
    }

    /// What the clusters' records and documents went through.
    pub(super) fn count_changes(&self, ledger: &Ledger, clusters: &PerSide<Cluster>) {
        let mut before: PerSide<Option<Arc<AuthorityRecord>>> = PerSide::default();
        for (side, record) in ledger.records() {
            let known = before.get_mut(side);
            let fence = |record: &AuthorityRecord| record.fence.as_ref().map(|it| (it.id.clone(), it.state));
            if let Some(now) = record.fence.as_ref()
                && known.as_deref().and_then(fence) != fence(&record)
            {
                let way = if now.to == Side::New { "up" } else { "down" };
                let state = match now.state {
                    FenceState::Open => "opened",
                    FenceState::Committed => "committed",
                    FenceState::Aborted => "aborted",
                };
                self.add(format!("branch: a fence {state} on the way {way}"));
            }
            let holders = |record: &AuthorityRecord| record.holders.len();
            if known.as_deref().map_or(0, holders) > holders(&record) {
                self.add("branch: a dead holder forgotten");
            }
            let parts = |record: &AuthorityRecord| record.namespaces.len();
            if known.as_ref().is_some_and(|before| parts(before) < parts(&record)) {
                self.add("branch: a collection that came into being is part of it");
            }
            *known = Some(record);
        }
        for (writer, undone, count) in ledger.writers(clusters) {
            let lost = if undone { ", undone by a failover" } else { "" };
            self.add_many(format!("branch: written by {writer}{lost}"), count);
        }
    }

    /// What clients were told.
    pub(super) fn count_told(&self, history: &History) {
        for operation in history.operations() {
            self.add(match operation.told {
                Told::Unknown => "told: nothing",
                Told::Durable => "told: done",
                Told::Accepted => "told: done, not by a majority",
                Told::Refused => "told: refused",
                Told::Saw(_) => "told: a document",
            });
        }
    }

    /// What the data plane of all proxies counted.
    pub(super) fn count_proxies(&self, front: &Front) {
        for active in front.actives() {
            let counters = &active.counters;
            for (what, counter) in [
                ("branch: a mirror write left to the streams", &counters.mirror_failures),
                ("branch: a write without a key", &counters.unkeyed_writes),
                ("branch: a retry answered by the former authority", &counters.overtaken_retries),
            ] {
                self.add_many(what, counter.load(Ordering::Relaxed));
            }
        }
        self.add_many("branch: a read on a mirror", front.mirror_reads());
    }

    /// What became of the operator's calls.
    pub(super) fn count_calls(&self, calls: &Calls) {
        self.add_many("moves", u64::from(calls.moves));
        if let Some(why) = &calls.given_up {
            self.add(format!("given up: {}", why.split(':').next().unwrap_or_default()));
        }
    }
}

impl Display for Coverage {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.lock().iter().try_for_each(|(what, count)| writeln!(f, "  {count:>9}  {what}"))
    }
}

/// Where the migration is, in words.
pub(super) fn moment(clusters: &PerSide<Cluster>) -> &'static str {
    let id = RawBson::from(MIGRATION);
    let record = |side| {
        let document = clusters.get(side).document("reshard.authority", id.as_raw_bson_ref());
        document.and_then(|raw| bson::deserialize_from_slice::<AuthorityRecord>(raw.as_bytes()).ok())
    };
    let (Some(old), Some(new)) = (record(Side::Old), record(Side::New)) else { return "before the start" };
    let open = |record: &AuthorityRecord| !record.fenced().is_empty();
    if open(&old) || open(&new) || old.owned.or(&new.owned) != SlotSet::ALL {
        return "in the middle of a move";
    }
    if new.owned.is_empty() && old.reads_on_new.is_empty() {
        let is_synced = phase(clusters) == Some(Phase::Synced);
        return if is_synced { "synced" } else { "while history is copied" };
    }
    match (new.owned.is_empty(), old.owned.is_empty()) {
        (true, _) => "reads on new",
        (_, true) => "all on new",
        _ => "divided",
    }
}
