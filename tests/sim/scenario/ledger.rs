//! What was written where, by whom, and who was the authority then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bson::RawDocument;
use parking_lot::Mutex;
use reshard::model::side::{PerSide, Side};
use reshard::model::slots::{Slot, SlotSet};
use reshard::state::record::{AUTHORITY, AuthorityRecord, DATABASE};

use super::client::{LATE, NS, SESSION_MARK};
use crate::checks::checker::Violation;
use crate::checks::one_authority::{Acknowledged, Happened, WriteId, check_one_authority};
use crate::executor::Executor;
use crate::mongo::cluster::Cluster;
use crate::mongo::key::Key;
use crate::mongo::log::{Entry, Op};

/// One change of one cluster.
struct Seen {
    at: Duration,
    side: Side,
    app: Arc<str>,
    entry: Entry,
    /// What it says, where it is a record of authority.
    record: Option<Arc<AuthorityRecord>>,
}

/// All changes of both clusters; clones share them.
#[derive(Clone)]
pub(crate) struct Ledger {
    executor: Executor,
    seen: Arc<Mutex<Vec<Seen>>>,
    acknowledged: Arc<Mutex<BTreeMap<WriteId, Acknowledged>>>,
}

impl Ledger {
    /// A ledger of what happens from now on.
    pub(crate) fn open(executor: &Executor, clusters: &PerSide<Cluster>) -> Self {
        let (seen, acknowledged) = Default::default();
        let ledger = Self { executor: executor.clone(), seen, acknowledged };
        for side in Side::BOTH {
            let ledger = ledger.clone();
            clusters.get(side).observe(Arc::new(move |app, _, entry| ledger.note(side, app, entry)));
        }
        ledger
    }

    fn note(&self, side: Side, app: &str, entry: &Entry) {
        let (Op::Put { ns, .. } | Op::Delete { ns, .. }) = &entry.op else { return };
        if moves(ns) || is_authority(ns) {
            let record = whole_record(&entry.op).map(Arc::new);
            let seen = Seen { at: self.executor.now(), side, app: app.into(), entry: entry.clone(), record };
            self.seen.lock().push(seen);
        }
    }

    /// A client was told that its write, which it sent first at `sent`, is done; and whether a majority has it,
    /// and whether each of its statements found a document.
    pub(crate) fn acknowledge(
        &self,
        lsid: &RawDocument,
        number: i64,
        sent: Duration,
        (durable, found_all): (bool, bool),
    ) {
        let told = Acknowledged { sent, shown: self.executor.now(), durable, found_all };
        self.acknowledged.lock().insert((lsid.as_bytes().into(), number), told);
    }

    /// Changes of documents that move, so far.
    pub(crate) fn changes(&self) -> usize {
        self.seen
            .lock()
            .iter()
            .filter(|seen| document(&seen.entry.op).is_some_and(|(ns, _)| moves(ns)))
            .count()
    }

    /// Invariant 6, see [`check_one_authority`].
    ///
    /// # Errors
    /// The first violation.
    pub(crate) fn check_acknowledged(
        &self,
        clusters: &PerSide<Cluster>,
        slot: impl Fn(&Key) -> Slot,
    ) -> Result<(), Violation> {
        let events: Vec<_> = self.lasting(clusters, |seen| {
            let (ns, key) = document(&seen.entry.op)?;
            if is_authority(ns) {
                let record = seen.record.as_ref()?;
                let (slots, taken_back) = (record.owned, Box::new(record.taken_back()));
                return Some((seen.at, Happened::Owns { side: seen.side, slots, taken_back }));
            }
            let of = seen.entry.statement.as_ref().filter(|_| by_client(&seen.entry)).map(|made| &made.of)?;
            let write = (of.session.clone(), of.number);
            Some((seen.at, Happened::Executed { side: seen.side, key: key.clone(), slot: slot(key), write }))
        });
        check_one_authority(&events, &self.acknowledged.lock()).map_err(|(mut violation, key)| {
            violation.text += &key.map_or_else(String::new, |key| self.story(clusters, &key));
            violation
        })
    }

    /// Invariant 12: no write of the product changes a document on the cluster that owns it then, but to bring back what
    /// only new had.
    ///
    /// # Errors
    /// The first violation.
    pub(crate) fn check_mirrored(
        &self,
        clusters: &PerSide<Cluster>,
        slot: impl Fn(&Key) -> Slot,
    ) -> Result<(), Violation> {
        let mut owned = PerSide { old: SlotSet::ALL, new: SlotSet::EMPTY };
        let mut returning = SlotSet::EMPTY;
        let wrong = self.lasting(clusters, |seen| {
            let (ns, key) = document(&seen.entry.op)?;
            if is_authority(ns) {
                if let Some(record) = &seen.record {
                    *owned.get_mut(seen.side) = record.owned;
                    if seen.side == Side::Old {
                        returning = record.taken_back();
                    }
                }
                return None;
            }
            let wrong = !by_client(&seen.entry)
                && !unnumbered_by_client(seen)
                && owned.get(seen.side).contains(slot(key))
                && !returning.contains(slot(key));
            let text =
                || format!("{} changed a document on its authority {} at {:?}", seen.app, seen.side, seen.at);
            wrong.then(|| (text(), key.clone()))
        });
        wrong.into_iter().next().map_or(Ok(()), |(text, key)| {
            let text = text + &self.story(clusters, &key);
            Err(Violation { invariant: 12, text })
        })
    }

    /// What `pick` makes of every change that no failover has undone, in order.
    fn lasting<T>(&self, clusters: &PerSide<Cluster>, pick: impl FnMut(&Seen) -> Option<T>) -> Vec<T> {
        let undone = PerSide::from_fn(|side| {
            let entries = clusters.get(side).rolled_back().into_iter();
            entries.map(|entry| entry.position()).collect::<BTreeSet<_>>()
        });
        let seen = self.seen.lock();
        let lasting = seen.iter().filter(|seen| !undone.get(seen.side).contains(&seen.entry.position()));
        lasting.filter_map(pick).collect()
    }

    /// What the clusters' records said one after the other.
    pub(crate) fn records(&self) -> Vec<(Side, Arc<AuthorityRecord>)> {
        let seen = self.seen.lock();
        seen.iter().filter_map(|seen| Some((seen.side, seen.record.clone()?))).collect()
    }

    /// Who changed documents that move, whether a failover undid it, and how often.
    pub(crate) fn writers(&self, clusters: &PerSide<Cluster>) -> Vec<(&'static str, bool, u64)> {
        let undone = PerSide::from_fn(|side| {
            let entries = clusters.get(side).rolled_back().into_iter();
            entries.map(|entry| entry.position()).collect::<BTreeSet<_>>()
        });
        let mut counts: BTreeMap<(&'static str, bool), u64> = BTreeMap::new();
        for seen in self.seen.lock().iter() {
            if document(&seen.entry.op).is_none_or(|(ns, _)| !moves(ns)) {
                continue;
            }
            let writer = match (&seen.entry.statement, is_the_copys(seen)) {
                (_, true) => "the copy",
                (Some(_), _) if by_client(&seen.entry) => "a client",
                (Some(_), _) => "a mirror write",
                (None, _) => "a client without a number",
            };
            let lost = undone.get(seen.side).contains(&seen.entry.position());
            *counts.entry((writer, lost)).or_default() += 1;
        }
        counts.into_iter().map(|((writer, lost), count)| (writer, lost, count)).collect()
    }

    /// Everything about one key, for a report.
    pub(crate) fn story(&self, clusters: &PerSide<Cluster>, wanted: &Key) -> String {
        let mut text = String::new();
        let mut owned: BTreeMap<Side, SlotSet> = BTreeMap::new();
        let undone = PerSide::from_fn(|side| clusters.get(side).rolled_back());
        for seen in self.seen.lock().iter() {
            let Some((ns, key)) = document(&seen.entry.op) else { continue };
            let lost = undone.get(seen.side).iter().any(|entry| entry.position() == seen.entry.position());
            let lost = if lost { " (undone)" } else { "" };
            if is_authority(ns) {
                if let Some(slots) = seen.record.as_ref().map(|record| record.owned)
                    && owned.insert(seen.side, slots) != Some(slots)
                {
                    text += &format!("\n  {:?} {} owns {} %{lost}", seen.at, seen.side, slots.as_percent());
                }
            } else if key == wanted {
                let what = match &seen.entry.op {
                    Op::Put { document, .. } => bson::Document::try_from(&***document)
                        .map_or_else(|error| error.to_string(), |document| document.to_string()),
                    _ => "deleted".to_owned(),
                };
                let of = seen.entry.statement.as_ref().map(|statement| {
                    let session = &statement.of.session;
                    format!(
                        "{:02x?}:{}",
                        &session[session.len() - 17..session.len() - 13],
                        statement.of.number
                    )
                });
                let of = of.unwrap_or_default();
                text += &format!(
                    "\n  {:?} {} {} [{of}] at {:?}: {what}{lost}",
                    seen.at, seen.side, seen.app, seen.entry.time
                );
            }
        }
        text
    }
}

/// Whether the documents of a namespace move. Those of one `_id` are of one slot, whichever it is.
fn moves(ns: &str) -> bool {
    ns == NS || ns == LATE
}

fn is_authority(ns: &str) -> bool {
    ns.strip_prefix(DATABASE).and_then(|rest| rest.strip_prefix('.')) == Some(AUTHORITY)
}

fn document(op: &Op) -> Option<(&str, &Key)> {
    match op {
        Op::Put { ns, key, .. } | Op::Delete { ns, key, .. } => Some((ns, key)),
        _ => None,
    }
}

fn whole_record(op: &Op) -> Option<AuthorityRecord> {
    let Op::Put { ns, document, .. } = op else { return None };
    is_authority(ns).then(|| bson::deserialize_from_slice(document.as_bytes()).ok()).flatten()
}

/// Whether it is a client's write that servers do not remember: of what the product writes only the copy's inserts have
/// no number, and they have connections of their own.
fn unnumbered_by_client(seen: &Seen) -> bool {
    seen.entry.statement.is_none() && !is_the_copys(seen)
}

fn is_the_copys(seen: &Seen) -> bool {
    seen.app.contains("backfill")
}

/// Whether a client's command made the change.
fn by_client(entry: &Entry) -> bool {
    entry.statement.as_ref().is_some_and(|statement| {
        // `{id: <16 bytes>}`: they stand before the last zero.
        let session = &statement.of.session;
        session.len() >= 17 && session[session.len() - 17] == SESSION_MARK
    })
}
