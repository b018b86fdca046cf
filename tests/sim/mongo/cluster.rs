//! A replica set as the world holds it: what schedules do to it, and how its majority advances.

use std::sync::Arc;
use std::time::Duration;

use bson::raw::RawDocumentBuf;
use bson::{RawBsonRef, Timestamp};
use futures::FutureExt;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::key::{Key, document_key, key_of};
use super::log::{Entry, Kind, Op};
use super::state::{Observer, State};
use super::store::{Doc, Ns};
use crate::executor::{Executor, WORLD};
use crate::rng::Rng;

/// How a cluster is built.
#[derive(Debug, Clone)]
pub(crate) struct ClusterOptions {
    /// Its members.
    pub(crate) nodes: u32,
    /// Replies name retried statements (6.0 does, 5.0 does not).
    pub(crate) names_retries: bool,
    /// Writes without a write concern wait for the majority.
    pub(crate) default_majority: bool,
    /// The longest time that the majority is usually behind.
    pub(crate) majority_lag: Duration,
    /// In how many of 1,000 cases it is a hundred times as long.
    pub(crate) slow_majority: u32,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            nodes: 3,
            names_retries: true,
            default_majority: false,
            majority_lag: Duration::from_millis(2),
            slow_majority: 20,
        }
    }
}

/// A replica set; clones share it.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) name: String,
    pub(super) index: usize,
    pub(super) executor: Executor,
    pub(super) state: Mutex<State>,
    /// Something changed: the majority, a term, a killed operation.
    pub(super) changed: Notify,
    options: ClusterOptions,
}

impl Cluster {
    /// An empty replica set.
    pub(crate) fn new(
        name: &str,
        index: usize,
        executor: Executor,
        mut rng: Rng,
        options: ClusterOptions,
    ) -> Self {
        // Clusters do not share a time line: their clocks are far apart.
        let base = 1_700_000_000 + rng.below(2000) as u32;
        let mut state = State::new(name, options.nodes, base, rng, executor.clone());
        state.names_retries = options.names_retries;
        state.default_majority = options.default_majority;
        let inner = Inner {
            name: name.to_owned(),
            index,
            executor,
            state: Mutex::new(state),
            changed: Notify::new(),
            options,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.inner.name
    }

    /// Its number among the clusters of the world.
    pub(crate) fn index(&self) -> usize {
        self.inner.index
    }

    /// Its state, with the clock brought up to date.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        let seconds = self.inner.executor.now().as_secs() as u32;
        let mut state = self.inner.state.lock();
        state.clock.seconds = seconds;
        state
    }

    /// The primary's document under an `_id`.
    pub(crate) fn document(&self, ns: &str, id: RawBsonRef<'_>) -> Option<Doc> {
        self.state().primary.store.document(ns, &key_of(id)).cloned()
    }

    /// The primary's documents of a namespace, in order of `_id`.
    pub(crate) fn documents(&self, ns: &str) -> Vec<(Key, Doc)> {
        let state = self.state();
        let documents = state.primary.store.get(ns).map(|collection| &collection.documents);
        documents.into_iter().flatten().map(|(key, document)| (key.clone(), document.clone())).collect()
    }

    /// Whether the majority has all that the primary has.
    pub(crate) fn settled(&self) -> bool {
        let state = self.inner.state.lock();
        state.primary.tail.is_empty() && state.stale.is_none()
    }

    /// What failovers have undone so far.
    pub(crate) fn rolled_back(&self) -> Vec<Entry> {
        self.inner.state.lock().rolled_back.clone()
    }

    /// Stores documents at once, by the majority too, past all connections.
    pub(crate) fn load(&self, ns: &str, documents: impl IntoIterator<Item = RawDocumentBuf>) {
        self.transaction(documents.into_iter().map(|document| (ns.into(), document)).collect());
        let mut state = self.state();
        let all = state.primary.tail.len();
        state.commit(all);
    }

    /// Loses a document that all members have, and tells nobody: no entry of the log says so.
    pub(crate) fn lose(&self, ns: &str, id: RawBsonRef<'_>) {
        let lost = Op::Delete { ns: ns.into(), key: key_of(id), id: id.into() };
        let mut state = self.state();
        state.primary.store.apply(&lost);
        state.majority.store.apply(&lost);
    }

    /// Stores documents in one transaction: many events at one time.
    pub(crate) fn transaction(&self, documents: Vec<(Ns, RawDocumentBuf)>) {
        let mut state = self.state();
        for (ns, _) in &documents {
            if state.primary.store.get(ns).is_none() {
                let (uuid, time) = (state.rng.next(), state.clock.tick());
                state.primary.append(time, 0, Op::Create { ns: ns.clone(), uuid }, None);
            }
        }
        let time = state.clock.tick();
        for (part, (ns, document)) in documents.into_iter().enumerate() {
            let key = document_key(&document);
            let kind = match state.primary.store.document(&ns, &key) {
                Some(_) => Kind::Replace,
                None => Kind::Insert,
            };
            let op = Op::Put { ns, key, document: Arc::new(document), kind };
            state.primary.append(time, part as u32, op, None);
        }
        drop(state);
        self.schedule_commit();
    }

    /// Stops or resumes the advance of the majority.
    pub(crate) fn hold_commits(&self, held: bool) {
        self.inner.state.lock().commits_held = held;
        if !held {
            self.schedule_commit();
        }
    }

    /// The next member becomes primary; all above the majority is undone.
    pub(crate) fn failover(&self) {
        self.failover_with(0, None);
    }

    /// A failover that keeps the first `kept` entries above the majority. The former primary answers for
    /// `stale` more: local reads, and writes that will be lost.
    pub(crate) fn failover_with(&self, kept: usize, stale: Option<Duration>) {
        let mut state = self.state();
        state.failover(kept, stale.is_some());
        let term = state.stale.as_ref().map(|stale| stale.member.term);
        drop(state);
        if let (Some(term), Some(duration)) = (term, stale) {
            let cluster = self.clone();
            let end = async move {
                cluster.inner.executor.sleep(duration).await;
                cluster.depose(term);
            };
            self.inner.executor.spawn(WORLD, "depose", end.boxed());
        }
        self.inner.changed.notify_waiters();
        self.schedule_commit();
    }

    /// The former primary learns that it is none.
    fn depose(&self, term: u32) {
        let mut state = self.inner.state.lock();
        if state.stale.as_ref().is_some_and(|stale| stale.member.term == term)
            && let Some(mut stale) = state.stale.take()
        {
            state.rolled_back.extend(stale.member.tail.drain(..));
        }
        drop(state);
        self.inner.changed.notify_waiters();
    }

    /// Calls `observer` for every change that a command makes. It runs under the lock of the cluster, which it
    /// must not use.
    pub(crate) fn observe(&self, observer: Observer) {
        self.inner.state.lock().observer = Some(observer);
    }

    /// Forgets the log before `time`.
    pub(crate) fn truncate_log(&self, time: Timestamp) {
        self.state().truncate_log(time);
    }

    /// All sessions expire.
    pub(crate) fn expire_sessions(&self) {
        let mut state = self.state();
        state.primary.sessions.expire();
        state.majority.sessions.expire();
    }

    /// Lets the majority follow after a while, if it is behind.
    pub(super) fn schedule_commit(&self) {
        let mut state = self.inner.state.lock();
        if state.commit_scheduled || state.commits_held || state.primary.tail.is_empty() {
            return;
        }
        state.commit_scheduled = true;
        let options = &self.inner.options;
        let factor = if state.rng.chance(options.slow_majority) { 100 } else { 1 };
        let delay = state.rng.between(Duration::from_micros(50), options.majority_lag) * factor;
        drop(state);
        let cluster = self.clone();
        let advance = async move {
            cluster.inner.executor.sleep(delay).await;
            cluster.advance();
        };
        self.inner.executor.spawn(WORLD, "majority", advance.boxed());
    }

    /// The majority gets some of what it lacks, mostly all.
    fn advance(&self) {
        let mut state = self.inner.state.lock();
        state.commit_scheduled = false;
        let behind = state.primary.tail.len();
        if behind > 0 && !state.commits_held {
            let count = if state.rng.chance(600) { behind } else { 1 + state.rng.index(behind) };
            state.commit(count);
            let time = state.majority.time;
            self.inner.executor.record(u64::from(time.time) << 32 | u64::from(time.increment));
        }
        drop(state);
        self.inner.changed.notify_waiters();
        self.schedule_commit();
    }
}
