//! Converging batches of keys under the epoch guard.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bson::raw::RawDocumentBuf;
use bson::{RawDocument, Timestamp, rawdoc};
use futures::future::{Either, select};
use futures::pin_mut;
use tokio::sync::Notify;

use super::lanes::{Lanes, Taken};
use super::looks::{Aims, Looks};
use super::round::Round;
use super::sessions::Sessions;
use super::witness::Witness;
use crate::clock::SharedClock;
use crate::cluster::command::SharedCluster;
use crate::model::key::Key;
use crate::model::namespace::Namespace;
use crate::model::side::{PerSide, Side};
use crate::model::slots::SlotSet;
use crate::policy::invariants::{Invariant, only_mirror};
use crate::policy::route_key::By;
use crate::policy::safeguards::Safeguards;
use crate::state::inflight::{Inflight, Ticket, Work};
use crate::state::own_writes::OwnWrites;
use crate::state::violations::Violations;

/// Keys looked at together.
pub const BATCH: usize = 200;
/// Failed guards after which the key's lane is taken, to get a turn against the inline path.
const TAKE_LANES_AFTER: u32 = 3;
/// Failed guards after which a key counts as stuck.
const MOST_TRIES: u32 = 200;

/// How a batch is to be converged.
#[derive(Debug, Clone)]
pub struct Order {
    /// Read what the majority has, and write with majority: for the streams.
    pub durable: bool,
    /// Times that the reads must not be older than, each on its cluster's line.
    pub not_before: PerSide<Option<Timestamp>>,
    /// The `writeConcern` of mirror writes when not `durable`.
    pub concern: RawDocumentBuf,
    /// Who wants to see what is about to be overwritten.
    pub witness: Option<Arc<dyn Witness>>,
    /// Where to look first; only for those who are not the guarantee (see [`super::looks`]).
    pub aims: Arc<Aims>,
}

impl Order {
    /// For the streams, the backfill and repair.
    #[must_use]
    pub fn durable(not_before: PerSide<Option<Timestamp>>) -> Self {
        Self { durable: true, not_before, concern: majority(), witness: None, aims: Arc::default() }
    }
}

/// The write concern of what must last.
#[must_use]
pub fn majority() -> RawDocumentBuf {
    rawdoc! { "w": "majority" }
}

/// A key that cannot be made equal now.
#[derive(Debug, Clone, PartialEq)]
pub struct Stuck {
    /// Which.
    pub key: Key,
    /// Why, in words.
    pub why: String,
}

/// What became of a batch.
#[derive(Debug, Default)]
pub struct Report {
    /// Keys whose mirror was changed.
    pub wrote: u64,
    /// Keys to be parked.
    pub stuck: Vec<Stuck>,
}

/// A cluster did not answer; nothing is known of the batch.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(pub String);

/// Makes mirrors equal, for one migration.
pub struct Converger {
    /// The migration's name.
    pub migration: Arc<str>,
    /// Both clusters.
    pub clusters: PerSide<SharedCluster>,
    /// This process's mirror sessions on each.
    pub sessions: PerSide<Arc<Sessions>>,
    /// The register of work under way.
    pub inflight: Arc<Inflight>,
    /// One writer at a time for a key.
    pub lanes: Arc<Lanes>,
    /// What this process writes.
    pub own: Arc<OwnWrites>,
    /// The clock.
    pub clock: SharedClock,
    /// All on, but in the simulator.
    pub safeguards: Safeguards,
    /// Documents made equal so far.
    pub converged: AtomicU64,
    /// Invariants that did not hold.
    pub violations: Arc<Violations>,
    /// Reads by key on sharded collections so far.
    pub looks: Looks,
    /// Ends what is under way, see [`Converger::interrupt`].
    pub interrupt: Notify,
}

impl Converger {
    /// Converges `keys` of `namespace`, each towards the mirror of its slot.
    ///
    /// # Errors
    /// [`Unavailable`] when a cluster did not answer; converging again is harmless.
    pub async fn converge(
        &self,
        namespace: &Namespace,
        keys: Vec<Key>,
        order: &Order,
    ) -> Result<Report, Unavailable> {
        loop {
            let interrupted = self.interrupt.notified();
            pin_mut!(interrupted);
            interrupted.as_mut().enable();
            let work = self.converge_over(&self.clusters, namespace, keys.clone(), order);
            pin_mut!(work);
            if let Either::Right((done, _)) = select(interrupted, work).await {
                return done;
            }
        }
    }

    /// What was begun by [`Self::converge`] begins anew, and so waits wherever converging waits by now: nobody need wait
    /// until a cluster that is away has not answered for long enough. What it had sent is settled like any mirror
    /// write of unknown outcome.
    pub fn interrupt(&self) {
        self.interrupt.notify_waiters();
    }

    /// [`Self::converge`] over the caller's own connections.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn converge_over(
        &self,
        clusters: &PerSide<SharedCluster>,
        namespace: &Namespace,
        keys: Vec<Key>,
        order: &Order,
    ) -> Result<Report, Unavailable> {
        let mut report = Report::default();
        let mut pending = keys;
        let mut tries = 0;
        let what: Arc<str> = format!("converge {namespace}").into();
        while !pending.is_empty() {
            let lanes = self.lanes_if_contended(namespace, &pending, tries).await;
            let ticket = self.enter(namespace, &pending, &what).await;
            let Some(route) = ticket.table.route(namespace.as_str()) else { return Ok(report) };
            let owned = self.by_authority(clusters, namespace, pending, route, order).await?;
            report.stuck.extend(owned.stuck);
            let groups = owned.groups;
            pending = owned.again;
            for group in groups {
                let work = Round { converger: self, clusters, namespace, order, tries };
                let (authority, slots) = (group.authority, group.slots);
                let wrote = report.wrote;
                pending.extend(work.run(group, &mut report).await?);
                if report.wrote > wrote {
                    self.watch_authority(namespace, authority, &slots);
                }
            }
            drop((ticket, lanes));
            tries += 1;
            if tries >= MOST_TRIES {
                report.stuck.extend(
                    pending.drain(..).map(|key| Stuck { key, why: "its guard keeps failing".into() }),
                );
            } else if tries > 2 && !pending.is_empty() {
                self.clock.sleep(Duration::from_millis(u64::from(tries.min(50)))).await;
            }
        }
        self.converged.fetch_add(report.wrote, Ordering::Relaxed);
        Ok(report)
    }

    async fn lanes_if_contended(&self, namespace: &Namespace, keys: &[Key], tries: u32) -> Option<Taken> {
        if tries < TAKE_LANES_AFTER {
            return None;
        }
        Some(self.lanes.take(namespace.as_str(), keys).await)
    }

    /// Enters once no slot of `keys` is sealed by a fence or without an owner.
    async fn enter(&self, namespace: &Namespace, keys: &[Key], what: &Arc<str>) -> Ticket {
        let slots = {
            let table = self.inflight.routing().peek();
            slots_of(table.route(namespace.as_str()).map(|route| route.by(namespace)), keys)
        };
        loop {
            let ticket = self.inflight.enter(&self.migration, slots, Work::Converge, what);
            let route = ticket.table.routes.values().find(|route| route.name == self.migration);
            let blocked = route.is_some_and(|route| {
                (self.safeguards.workers_fenced && route.sealed.meets(&slots))
                    || (self.safeguards.returning_waits && route.returning.meets(&slots))
                    || !slots.minus(&route.settled()).is_empty()
            });
            if !blocked {
                return ticket;
            }
            let version = ticket.table.version;
            drop(ticket);
            self.inflight.routing().changed_since(version).await;
        }
    }

    /// Enters for a document that `authority` has now; `None` where the other cluster has it, or a fence is about
    /// to move it. Nobody waits here: whoever asks is at work on other keys.
    pub(super) fn enter_if_owned(
        &self,
        namespace: &Namespace,
        document: &RawDocument,
        authority: Side,
        what: &Arc<str>,
    ) -> Option<Ticket> {
        let slot = {
            let table = self.inflight.routing().peek();
            table.route(namespace.as_str())?.by(namespace).of_document(document)?
        };
        let slots: SlotSet = std::iter::once(slot).collect();
        let ticket = self.inflight.enter(&self.migration, slots, Work::Converge, what);
        let route = ticket.table.route(namespace.as_str())?;
        let sealed = (self.safeguards.workers_fenced && route.sealed.meets(&slots))
            || (self.safeguards.returning_waits && route.returning.meets(&slots));
        (!sealed && route.authority(slot) == Some(authority)).then_some(ticket)
    }

    /// `authority` must own the slots still whose mirror was written.
    fn watch_authority(&self, namespace: &Namespace, authority: Side, slots: &SlotSet) {
        let table = self.inflight.routing().peek();
        if let Some(route) = table.route(namespace.as_str()) {
            self.violations.watch(Invariant::OnlyMirror, only_mirror(slots, route.owned_by(authority)));
        }
    }
}

/// Slots in which documents of `keys` may lie. Where only the documents tell, it may be any, and whoever works on
/// them waits for every fence.
fn slots_of(by: Option<By<'_>>, keys: &[Key]) -> SlotSet {
    let of = |by: By<'_>| keys.iter().map(|key| by.of_key(key)).collect::<Option<SlotSet>>();
    by.and_then(of).unwrap_or(SlotSet::ALL)
}
