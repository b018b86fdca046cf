//! Whose the events of a stream are, and what is kept of those that are nobody's here.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bson::{RawDocument, Timestamp};
use parking_lot::Mutex;

use super::log::{Log, shown};
use super::view::BypassWrite;
use crate::clock::SharedClock;
use crate::converge::active::Registry;
use crate::converge::witness::Witness;
use crate::model::key::Key;
use crate::model::namespace::Namespace;
use crate::model::side::{PerSide, Side};
use crate::policy::bypass::image;
use crate::state::authority::Authority;
use crate::state::own_writes::{OwnWrites, Verdict};
use crate::state::process_writes::Transaction;
use crate::state::records::Records;

/// A change, as a stream tells it.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    /// Where.
    pub namespace: &'a Namespace,
    /// Which document.
    pub key: &'a Key,
    /// `insert`, `update`, `replace` or `delete`.
    pub kind: &'a str,
    /// When, on the cluster's time line.
    pub time: Timestamp,
    /// In which transaction, if in any.
    pub transaction: Option<Transaction>,
}

/// Tells this process's own changes from others'.
pub struct Examiner {
    /// What this process writes to the migration's collections.
    pub own: Arc<OwnWrites>,
    /// With what it writes beside.
    pub registry: Arc<Registry>,
    /// Where the others' are recorded.
    pub log: Arc<Log>,
    /// Where that is stored.
    pub records: Arc<Records>,
    /// Which processes may write.
    pub authorities: PerSide<Arc<Authority>>,
    /// The clock.
    pub clock: SharedClock,
}

impl Examiner {
    /// Records those of a batch's changes on `side` that went past the proxy. Who is returned keeps what of
    /// them is about to be undone.
    ///
    /// # Errors
    /// In words, why they could not be recorded.
    pub async fn examine(
        &self,
        side: Side,
        changes: &[Change<'_>],
    ) -> Result<Option<Arc<dyn Witness>>, String> {
        let verdicts = self.own.judge(side, changes.iter().map(|one| (one.namespace, one.key, one.time)));
        let (mut past, mut unjudged) = (Vec::new(), 0);
        for (change, verdict) in changes.iter().zip(verdicts) {
            match self.with_the_process(change, verdict) {
                Verdict::Own => {}
                Verdict::Unknown => unjudged += 1,
                Verdict::Foreign => past.push(*change),
            }
        }
        if !past.is_empty() && self.anybody_else_may_write().await? {
            unjudged += past.len() as u64;
            past.clear();
        }
        self.log.count_unjudged(unjudged);
        if past.is_empty() {
            return Ok(None);
        }
        let at = self.clock.wall_millis();
        let writes = past.iter().map(|change| found(side, change, at)).collect();
        let listed = self.log.record(&self.records, writes).await.map_err(|error| error.to_string())?;
        tracing::warn!(%side, count = past.len(), "writes went past the proxy");
        Ok(Some(Arc::new(Keeper {
            log: Arc::clone(&self.log),
            records: Arc::clone(&self.records),
            side,
            watched: Mutex::new(newest_of_each(&past, listed)),
        })))
    }

    /// What only the process knows: its transactions, and writes that are not followed.
    fn with_the_process(&self, change: &Change<'_>, verdict: Verdict) -> Verdict {
        if verdict == Verdict::Own {
            return verdict;
        }
        let process = &self.registry.process;
        let of_transaction = change.transaction.map(|transaction| process.is_own(&transaction, change.time));
        match of_transaction {
            Some(Some(true)) => Verdict::Own,
            Some(None) => Verdict::Unknown,
            _ if process.may_be_stray(change.namespace.as_str(), self.clock.now()) => Verdict::Unknown,
            _ => verdict,
        }
    }

    /// Whether another process has joined, by what the records say now: it is about to take over.
    async fn anybody_else_may_write(&self) -> Result<bool, String> {
        for side in Side::BOTH {
            let authority = self.authorities.get(side);
            let record = authority.refresh().await.map_err(|error| format!("{side}: {error}"))?;
            let is_other = |holder: &String| holder != authority.holder();
            if record.is_none_or(|record| record.holders.keys().any(is_other)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn found(side: Side, change: &Change<'_>, at: i64) -> BypassWrite {
    BypassWrite {
        number: 0,
        at,
        cluster_time: format!("{}.{}", change.time.time, change.time.increment),
        side: side.as_str().to_owned(),
        namespace: change.namespace.as_str().to_owned(),
        key: shown(change.key),
        kind: change.kind.to_owned(),
        undone: false,
        image: None,
        image_truncated: false,
    }
}

/// The last write listed of each document: what is overwritten is what that one left.
fn newest_of_each(past: &[Change<'_>], listed: Vec<BypassWrite>) -> BTreeMap<(Namespace, Key), BypassWrite> {
    let mut newest = BTreeMap::new();
    for write in listed {
        let change = past
            .iter()
            .find(|change| write.namespace == change.namespace.as_str() && write.key == shown(change.key));
        if let Some(change) = change {
            newest.insert((change.namespace.clone(), change.key.clone()), write);
        }
    }
    newest
}

/// Keeps what is about to be undone, before it is.
struct Keeper {
    log: Arc<Log>,
    records: Arc<Records>,
    side: Side,
    watched: Mutex<BTreeMap<(Namespace, Key), BypassWrite>>,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").field("side", &self.side).finish_non_exhaustive()
    }
}

#[async_trait]
impl Witness for Keeper {
    fn watches(&self, namespace: &Namespace, key: &Key) -> bool {
        self.watched.lock().contains_key(&(namespace.clone(), key.clone()))
    }

    async fn sees(
        &self,
        side: Side,
        namespace: &Namespace,
        lost: Vec<(Key, Option<&RawDocument>)>,
    ) -> Result<(), String> {
        if side != self.side {
            // The authority is where it was written: it is followed, not undone.
            return Ok(());
        }
        let undone: Vec<BypassWrite> = {
            let mut watched = self.watched.lock();
            let mut undone = Vec::new();
            for (key, document) in lost {
                let Some(write) = watched.get_mut(&(namespace.clone(), key)) else { continue };
                let (image, truncated) =
                    document.map(image).map_or((None, false), |(text, cut)| (Some(text), cut));
                (write.undone, write.image, write.image_truncated) = (true, image, truncated);
                undone.push(write.clone());
            }
            undone
        };
        self.log.store(&self.records, &undone).await.map_err(|error| error.to_string())
    }
}
