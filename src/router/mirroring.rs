//! What follows the authority's answer: bringing the mirror up to date at once, where that can be done.
//!
//! It may fail, be late, or be left out, and nothing is lost: the authority's stream makes up for it. What it
//! could not do is marked, so that no read meets a mirror that misses an acknowledged write.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bson::Timestamp;
use bson::raw::{RawDocumentBuf, cstr};
use bson::rawdoc;
use futures::FutureExt;
use tokio::sync::Semaphore;

use super::entry::Entered;
use crate::clock::{SharedClock, timeout};
use crate::cluster::command::{Request, SharedCluster, number};
use crate::converge::active::{Active, Attempt};
use crate::converge::converger::{Order, majority};
use crate::converge::lanes::Taken;
use crate::converge::looks::Aims;
use crate::converge::read::ask;
use crate::model::key::Key;
use crate::model::namespace::Namespace;
use crate::model::side::{PerSide, Side};
use crate::model::slots::SlotSet;
use crate::policy::converge::insert_would_change;
use crate::policy::invariants::{Invariant, not_delayed};
use crate::policy::shard_key::ShardKey;
use crate::policy::statement::Statement;
use crate::policy::writes::Verb;
use crate::shutdown::SharedSpawn;
use crate::state::own_writes::By;
use crate::state::table::MigrationRoute;

/// Mirror writes that may go on behind replies at once, for each worker; beyond it they are left to the stream.
pub const MOST_JOBS: usize = 2000;

/// What an acknowledged write did.
pub struct Effect {
    /// Where.
    pub namespace: Namespace,
    /// The keys that are known.
    pub keys: Vec<Key>,
    /// Those are all of them.
    pub all_known: bool,
    /// Slots that it may have touched.
    pub slots: SlotSet,
    /// When it was acknowledged, on each authority's time line.
    pub times: PerSide<Option<Timestamp>>,
    /// Statements whose effect does not depend on what was there, if the mirror may be told them.
    pub direct: Option<Direct>,
    /// The application's `writeConcern`.
    pub concern: RawDocumentBuf,
    /// Where the documents of the keys lie on sharded clusters, as far as the write says.
    pub aims: Arc<Aims>,
    /// The lanes of the keys; without them the inline path is left out.
    pub lanes: Option<Taken>,
}

/// Statements whose effect does not depend on what was there.
pub struct Direct {
    /// Who is the mirror of them all.
    pub mirror: Side,
    /// What they do.
    pub verb: Verb,
    /// Themselves.
    pub statements: Vec<Statement>,
    /// By what the mirror has sharded the collection.
    pub shard_key: Option<ShardKey>,
}

/// Brings mirrors up to date behind or before replies.
#[derive(Clone)]
pub struct Mirroring {
    /// Starts what goes on behind replies.
    pub spawn: SharedSpawn,
    /// Bounds it.
    pub jobs: Arc<Semaphore>,
    /// The clock.
    pub clock: SharedClock,
}

impl Mirroring {
    /// Follows up on an acknowledged write; returns when its reply may be sent. `waited` is how long it has
    /// been kept waiting for its keys' lanes, which counts too.
    pub async fn follow(
        &self,
        clusters: &PerSide<SharedCluster>,
        entered: Entered,
        effect: Effect,
        waited: Duration,
    ) {
        let Some(active) = entered.active.clone() else { return };
        note_acknowledged(&active, &entered.route, &effect);
        if entered.route.returning.meets(&effect.slots) {
            // Neither side is made equal to the other there until what only new has is back. Reads that can meet new keep
            // off it until then.
            mark(&active, &effect);
            return;
        }
        let begun = self.clock.now();
        let left = active.mirror_timeout.saturating_sub(waited);
        self.bring_up_to_date(clusters, entered, effect, left).await;
        let took = waited + (self.clock.now() - begun);
        let holds = not_delayed(took, active.mirror_timeout);
        active.converger.violations.watch(Invariant::NotDelayed, holds);
    }

    /// Where the reply waits for that, no longer than `left`.
    async fn bring_up_to_date(
        &self,
        clusters: &PerSide<SharedCluster>,
        entered: Entered,
        effect: Effect,
        left: Duration,
    ) {
        let Some(active) = entered.active.clone() else { return };
        if active.leaves_to_streams(&entered.route) {
            return;
        }
        let attempt = self.attempt(&active, &effect);
        if attempt != Attempt::Now {
            // A mirror that is away costs nobody time: reads keep off it until the streams have passed this.
            mark(&active, &effect);
        }
        if attempt == Attempt::Not {
            if !active.inline_off.is_for(&effect.namespace) {
                active.counters.mirror_failures.fetch_add(1, Ordering::Relaxed);
            }
            return;
        }
        let is_trial = attempt == Attempt::Trial;
        let wait = entered.route.ack_both && !is_trial;
        if effect.lanes.is_none() || !effect.all_known {
            if wait {
                self.wait_for_streams(&active, &effect, left).await;
            } else if is_trial {
                let trial = self.clone();
                let limit = active.mirror_timeout;
                let trial = async move { trial.wait_for_streams(&active, &effect, limit).await };
                self.spawn.spawn("mirror", trial.boxed());
            }
            return;
        }
        let mut effect = effect;
        if is_trial {
            // Nor does the next write of these keys wait. Without their lanes, only converging is safe.
            (effect.lanes, effect.direct) = (None, None);
        }
        let Ok(permit) = Arc::clone(&self.jobs).try_acquire_owned() else {
            active.counters.mirror_failures.fetch_add(1, Ordering::Relaxed);
            mark(&active, &effect);
            return;
        };
        let limit = if wait { left } else { active.mirror_timeout };
        let job = Job { clusters: clusters.clone(), active, effect, limit, clock: self.clock.clone() };
        let job = async move {
            job.run().await;
            // Only now may a fence take this write for finished.
            drop((entered, permit));
        };
        if wait {
            job.await;
        } else {
            self.spawn.spawn("mirror", job.boxed());
        }
    }

    fn attempt(&self, active: &Active, effect: &Effect) -> Attempt {
        let now = self.clock.now();
        Side::BOTH
            .into_iter()
            .filter(|authority| effect.times.get(*authority).is_some())
            .map(|authority| active.attempt(&effect.namespace, authority.other(), now))
            .max()
            .unwrap_or(Attempt::Now)
    }

    /// For writes whose keys are not known: until the streams have passed them, or the time is up.
    async fn wait_for_streams(&self, active: &Active, effect: &Effect, limit: Duration) {
        let wait = async |side: Side| {
            let Some(time) = *effect.times.get(side) else { return };
            let passed = active.frontiers.get(side).wait_past(time, &*self.clock, limit).await;
            active.breakers.get(side.other()).note(passed, self.clock.now());
            if !passed {
                active.counters.mirror_failures.fetch_add(1, Ordering::Relaxed);
                active.unreadable.mark(side, &effect.slots, time);
            }
        };
        futures::join!(wait(Side::Old), wait(Side::New));
    }
}

struct Job {
    clusters: PerSide<SharedCluster>,
    active: Arc<Active>,
    effect: Effect,
    limit: Duration,
    clock: SharedClock,
}

impl Job {
    async fn run(&self) {
        let bounded = self.active.converger.safeguards.mirror_bound;
        let limit = if bounded { self.limit } else { Duration::from_secs(3600) };
        let ended = timeout(&*self.clock, limit, self.bring_up_to_date()).await;
        let worked = matches!(ended, Ok(true));
        let now = self.clock.now();
        for authority in Side::BOTH.into_iter().filter(|side| self.effect.times.get(*side).is_some()) {
            let breaker = self.active.breakers.get(authority.other());
            match &ended {
                Ok(_) => breaker.note(worked, now),
                // The next writes would wait for as long.
                Err(_) => breaker.open(now),
            }
        }
        if !worked {
            self.active.counters.mirror_failures.fetch_add(1, Ordering::Relaxed);
            mark(&self.active, &self.effect);
        } else if let Some(time) = self.effect.times.new {
            self.active.unreturned.mirrored(&self.effect.namespace, &self.effect.keys, time);
        }
    }

    async fn bring_up_to_date(&self) -> bool {
        let effect = &self.effect;
        if let Some(direct) = &effect.direct
            && self.tell(direct).await
        {
            return true;
        }
        let concern = effect.concern.clone();
        let aims = Arc::clone(&effect.aims);
        let order = Order { durable: false, concern, aims, ..Order::durable(PerSide::default()) };
        let converger = &self.active.converger;
        let converged =
            converger.converge_over(&self.clusters, &effect.namespace, effect.keys.clone(), &order).await;
        converged.is_ok_and(|report| report.stuck.is_empty())
    }

    /// Repeats on the mirror what the authority has done; `false`: it must be converged.
    async fn tell(&self, direct: &Direct) -> bool {
        let &Direct { mirror, verb, ref statements, .. } = direct;
        let special = |statement: &Statement| verb == Verb::Insert && insert_would_change(&statement.raw);
        if !matches!(verb, Verb::Insert | Verb::Delete) || statements.iter().any(special) {
            return false;
        }
        let Some(array) = verb.array() else { return false };
        let converger = &self.active.converger;
        let Ok(mut session) = converger.sessions.get(mirror).borrow().await else { return false };
        let (namespace, keys) = (&self.effect.namespace, &self.effect.keys);
        let writing = converger.own.begin(mirror, namespace, keys, By::MirrorSession);
        let mut body = RawDocumentBuf::new();
        if verb == Verb::Insert {
            body.append(cstr!("insert"), self.effect.namespace.collection());
            body.append(cstr!("bypassDocumentValidation"), true);
        } else {
            body.append(cstr!("delete"), self.effect.namespace.collection());
        }
        body.append(cstr!("ordered"), false);
        body.append(cstr!("writeConcern"), self.effect.concern.clone());
        session.stamp(&mut body);
        let documents = self.told(direct);
        let request = Request::new(self.effect.namespace.database(), body).sequence(array, documents);
        let Ok(reply) = ask(&**self.clusters.get(mirror), request).await else { return false };
        session.settled();
        writing.ended(reply.operation_time);
        let refused = reply.body.get_array("writeErrors").is_ok()
            || reply.body.get_document("writeConcernError").is_ok();
        !refused && number(&reply.body, "n") == u32::try_from(statements.len()).ok().map(f64::from)
    }

    /// The statements as the mirror gets them, laid back to back: inserts as they are, and deletions of those
    /// documents, whatever else the application asked for.
    fn told(&self, direct: &Direct) -> Vec<u8> {
        let Direct { mirror, verb, statements, shard_key } = direct;
        if *verb == Verb::Insert {
            return statements.iter().flat_map(|statement| statement.raw.as_bytes()).copied().collect();
        }
        let mut deletes = Vec::new();
        for key in statements.iter().filter_map(|statement| statement.key.as_ref()) {
            let mut equal = RawDocumentBuf::new();
            equal.append(cstr!("$eq"), key.value());
            let mut filter = rawdoc! { "_id": equal };
            let place = self.effect.aims.get(*mirror).get(key);
            if let Some((place, shard_key)) = place.zip(shard_key.as_ref()) {
                shard_key.aim_at(&mut filter, place);
            }
            deletes.extend_from_slice(rawdoc! { "q": filter, "limit": 1 }.as_bytes());
        }
        deletes
    }
}

/// The write concern of a mirror write. What an application leaves to its servers is a majority to those of 5.0 and
/// later, and a read of what a majority has must not miss it on the mirror.
pub(super) fn concern(named: Option<&RawDocumentBuf>, active: &Option<Arc<Active>>) -> RawDocumentBuf {
    let unnamed = || match active {
        Some(active) if !active.converger.safeguards.mirror_majority => rawdoc! { "w": 1 },
        _ => majority(),
    };
    named.cloned().unwrap_or_else(unnamed)
}

/// Keeps what a rollback without new would have to name, and during one what old has acknowledged since.
fn note_acknowledged(active: &Active, route: &MigrationRoute, effect: &Effect) {
    let namespace = &effect.namespace;
    if route.returning.meets(&effect.slots) {
        let returning = |key: &&Key| route.slots_of_key(namespace, key).meets(&route.returning);
        active.unreturned.note_written(namespace, effect.keys.iter().filter(returning));
    }
    let only = effect.slots.last().filter(|_| effect.slots.len() == 1);
    let by = route.by(namespace);
    let slot_of = |key: &Key| only.or_else(|| by.of_key(key));
    if !route.key_ranges.is_empty() {
        let layout = route.key_ranges.layout();
        for slot in effect.keys.iter().filter_map(slot_of) {
            let authority = route.authority(slot);
            _ = authority.map(|side| active.range_counts.written(layout, slot, side));
        }
    }
    let Some(time) = effect.times.new else { return };
    let of_new = |key: &&Key| route.authority_of_key(namespace, key) != Some(Side::Old);
    let passed = active.frontiers.new.position().map(|position| position.done);
    let keys = effect.keys.iter().filter(of_new).map(|key| (key, slot_of(key)));
    active.unreturned.note(namespace, keys, effect.all_known, time, passed);
}

fn mark(active: &Active, effect: &Effect) {
    for side in Side::BOTH {
        if let Some(time) = *effect.times.get(side) {
            active.unreadable.mark(side, &effect.slots, time);
        }
    }
}
