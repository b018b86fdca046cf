//! Following one cluster's change stream: every key it names is converged.
//!
//! Two tailers run from the first mirror write to completion, one for each cluster. The authority's events are
//! the guarantee that every acknowledged write reaches the mirror; the mirror's catch whatever lands there
//! late or past the proxy.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bson::Timestamp;
use bson::raw::RawDocumentBuf;
use futures::stream::{self, TryStreamExt};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::bypass::{Change, Examiner};
use super::parked::park;
use super::scope::Scope;
use super::stream::{Batch, ChangeStream, Event, StreamError};
use crate::clock::{SharedClock, timeout};
use crate::cluster::command::SharedCluster;
use crate::converge::converger::{BATCH, Converger, Order};
use crate::converge::shards;
use crate::model::key::Key;
use crate::model::namespace::Namespace;
use crate::model::side::{PerSide, Side};
use crate::policy::invariants::{self, Invariant};
use crate::state::checkpoint;
use crate::state::frontier::Frontier;
use crate::state::newcomers::Newcomers;
use crate::state::own_writes::{By, OwnWrites, Verdict};
use crate::state::parking::{MOST, Parking};
use crate::state::recent::Recent;
use crate::state::records::Records;

/// Batches of keys converged at once.
const PARALLEL: usize = 4;
/// How long a quiet stream waits for an event; also how often its position is refreshed.
const PATIENCE: Duration = Duration::from_millis(250);
/// A router waits for its quiet shards to give up waiting, even if all the others have something to tell.
const PATIENCE_WITH_SHARDS: Duration = Duration::from_millis(50);
/// The same while somebody waits for the position.
const IMPATIENCE: Duration = Duration::from_millis(5);
/// Changes that come within this time are looked at together: it costs hardly more than to look at one.
const GATHER: Duration = Duration::from_millis(100);
/// How often the clocks of a sharded cluster's shards are moved on while nobody waits.
const PUSH_EVERY: Duration = Duration::from_millis(500);
/// How often a checkpoint is stored.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(200);
/// How often a collection that cannot become part of the migration is looked at again.
const RETRY_NEWCOMER: Duration = Duration::from_secs(2);

/// What a tailer tells about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Health {
    /// Not started.
    #[default]
    Idle,
    /// Following.
    Following,
    /// A cluster does not answer; it goes on trying.
    Waiting(String),
    /// It has missed changes. An operator's `resume` compares everything and begins anew.
    CutOff(String),
    /// It cannot go on. An operator's `resume` compares everything and begins anew, where that can help.
    Failed(String),
}

/// Follows the stream of one cluster for one migration.
pub struct Tailer {
    /// Whose stream.
    pub side: Side,
    /// That cluster.
    pub cluster: SharedCluster,
    /// What the migration moves.
    pub scope: Arc<Scope>,
    /// Where to tell of a collection that its patterns name and it does not know yet.
    pub newcomers: Arc<Newcomers>,
    /// The primitive.
    pub converger: Arc<Converger>,
    /// Where to tell how far it is.
    pub frontier: Arc<Frontier>,
    /// What the backfill needs to know.
    pub recent: Arc<Recent>,
    /// Who tells this process's changes from others'.
    pub examiner: Arc<Examiner>,
    /// Where keys go that cannot be made equal.
    pub parking: Arc<Parking>,
    /// Where checkpoints are stored.
    pub records: Arc<Records>,
    /// The clock.
    pub clock: SharedClock,
    /// Halted by an operator while true.
    pub paused: watch::Receiver<bool>,
    /// What it tells about itself.
    pub health: Arc<Mutex<Health>>,
    /// Rises when an operator has given a stream that was cut off a new beginning.
    pub begun_anew: watch::Receiver<u64>,
}

impl Tailer {
    /// Follows from the stored checkpoint until something needs an operator.
    pub async fn run(mut self) {
        loop {
            // A sender that is gone ends the migration's tasks anyway.
            drop(self.paused.wait_for(|paused| !paused).await);
            match self.follow().await {
                Ok(()) => self.frontier.forget(),
                Err(StreamError::Broken(why)) => {
                    self.say(Health::Waiting(why));
                    self.clock.sleep(RETRY).await;
                }
                Err(error @ StreamError::CutOff(_)) => {
                    self.frontier.forget();
                    self.begun_anew.mark_unchanged();
                    self.say(Health::CutOff(error.to_string()));
                    if self.begun_anew.changed().await.is_err() {
                        return;
                    }
                }
                Err(StreamError::Lost(why)) => {
                    self.frontier.forget();
                    return self.say(Health::Failed(why));
                }
            }
        }
    }

    fn say(&self, health: Health) {
        let mut said = self.health.lock();
        if *said != health {
            tracing::info!(side = %self.side, ?health, "stream");
            *said = health;
        }
    }

    /// Follows until paused.
    async fn follow(&self) -> Result<(), StreamError> {
        let broken = |error: crate::state::records::RecordError| StreamError::Broken(error.to_string());
        let migration = &self.converger.migration;
        let token = checkpoint::load(&self.records, migration, self.side).await.map_err(broken)?;
        let token = token.ok_or_else(|| StreamError::CutOff("no checkpoint was stored".into()))?;
        let (mut stream, mut batch) = ChangeStream::open(&self.cluster, &self.scope, Some(&token)).await?;
        let mut stored_at = self.clock.now();
        let mut done = token.clone();
        let mut stored = token;
        let mut pushed = self.is_sharded().await?.then_some(self.clock.now());
        loop {
            let heard_at = self.clock.now();
            if !self.converger.safeguards.checkpoint_after_done {
                self.store(&batch.token, &done).await;
            }
            self.work_off(&batch).await?;
            done.clone_from(&batch.token);
            self.say(Health::Following);
            self.frontier.count(batch.changes());
            self.frontier.advance(batch.position, batch.heard, self.clock.now());
            self.examiner.own.passed(self.side, batch.position);
            if self.side == Side::New {
                self.recent.mirror_passed(batch.position);
            }
            if self.clock.now() - stored_at >= CHECKPOINT_EVERY && stored != batch.token {
                self.store(&batch.token, &done).await;
                stored_at = self.clock.now();
                stored.clone_from(&batch.token);
            }
            if *self.paused.borrow() {
                stream.close().await;
                return Ok(());
            }
            if batch.changes() < BATCH as u64 {
                self.gather(heard_at + GATHER).await;
            }
            let awaited = self.frontier.is_awaited();
            if let Some(pushed) = pushed.as_mut()
                && (awaited || self.clock.now() - *pushed >= PUSH_EVERY)
            {
                self.push().await;
                *pushed = self.clock.now();
            }
            let patience = match pushed {
                _ if awaited => IMPATIENCE,
                Some(_) => PATIENCE_WITH_SHARDS,
                None => PATIENCE,
            };
            batch = stream.next(patience).await?;
        }
    }

    /// Lets changes come together until `at`, unless somebody waits for them.
    async fn gather(&self, at: Duration) {
        let left = at.saturating_sub(self.clock.now());
        if !left.is_zero() {
            let _nobody_waited = timeout(&*self.clock, left, self.frontier.until_awaited()).await;
        }
    }

    async fn is_sharded(&self) -> Result<bool, StreamError> {
        shards::is_sharded(&*self.cluster).await.map_err(StreamError::Broken)
    }

    /// Without this the stream of a sharded cluster stands where its quietest shard stands.
    async fn push(&self) {
        if let Err(why) = shards::push_clocks(&*self.cluster).await {
            tracing::debug!(side = %self.side, why, "the clocks of quiet shards are left to the shards");
        }
    }

    /// Stores `token`; everything up to `done` is worked off.
    async fn store(&self, token: &RawDocumentBuf, done: &RawDocumentBuf) {
        self.converger.violations.watch(Invariant::Checkpoint, invariants::checkpoint(done, token));
        let (migration, at) = (&self.converger.migration, self.clock.wall_millis());
        if let Err(error) = checkpoint::store(&self.records, migration, self.side, token, at).await {
            // A restart repeats more than it had to; nothing is skipped.
            tracing::warn!(side = %self.side, %error, "a checkpoint could not be stored");
        }
    }

    /// Makes every key that the batch names equal, or parks it.
    async fn work_off(&self, batch: &Batch) -> Result<(), StreamError> {
        let mut keys: BTreeMap<Namespace, BTreeSet<Key>> = BTreeMap::new();
        let mut newest = Timestamp { time: 0, increment: 0 };
        let mut changes = Vec::new();
        for event in &batch.events {
            match event {
                Event::Marker => {}
                Event::Structural { kind, namespace } if self.is_no_loss(kind, namespace) => {}
                Event::Structural { kind, namespace } => {
                    return Err(StreamError::Lost(format!("{kind} of {namespace} on {}", self.side)));
                }
                Event::Unreadable(what) => {
                    return Err(StreamError::Lost(format!("an event without a readable key: {what}")));
                }
                Event::Change { namespace, key, insert, kind, transaction, time } => {
                    newest = newest.max(*time);
                    self.converger.lanes.touch(namespace.as_str(), key);
                    if self.is_accounted_for(namespace, key, *insert, *time) {
                        continue;
                    }
                    let transaction = *transaction;
                    changes.push(Change { namespace, key, kind, transaction, time: *time });
                    keys.entry(namespace.clone()).or_default().insert(key.clone());
                }
            }
        }
        for namespace in keys.keys().filter(|it| !self.scope.contains(it)).cloned().collect::<Vec<_>>() {
            if !self.admit(&namespace).await? {
                keys.remove(&namespace);
            }
        }
        let mut not_before = PerSide::default();
        *not_before.get_mut(self.side) = Some(newest);
        let witness = self.examiner.examine(self.side, &changes).await.map_err(StreamError::Broken)?;
        let order = Order { witness, ..Order::durable(not_before) };
        let chunks = keys.into_iter().flat_map(|(namespace, keys)| {
            let keys: Vec<Key> = keys.into_iter().collect();
            let chunks: Vec<_> = keys.chunks(BATCH).map(<[Key]>::to_vec).collect();
            chunks.into_iter().map(move |chunk| (namespace.clone(), chunk))
        });
        stream::iter(chunks.map(Ok::<_, StreamError>))
            .try_for_each_concurrent(PARALLEL, |(namespace, keys)| self.equalise(namespace, keys, &order))
            .await
    }

    /// The end of a collection that is not part of the migration.
    fn is_no_loss(&self, kind: &str, namespace: &str) -> bool {
        kind == "drop"
            && Namespace::parse(namespace)
                .is_some_and(|it| self.scope.awaits(&it) && !self.scope.contains(&it))
    }

    /// A collection that came into being past the proxy becomes part of the migration. One that cannot is in
    /// the way, for everybody to see, until it is gone: `false`.
    async fn admit(&self, namespace: &Namespace) -> Result<bool, StreamError> {
        loop {
            match self.newcomers.ask(namespace.clone(), false).await {
                Ok(part) => return Ok(part),
                Err(why) => {
                    tracing::warn!(%namespace, %why, "made past the proxy");
                    self.say(Health::Waiting(format!(
                        "{namespace} was made past the proxy, and cannot become part of the migration: {why}"
                    )));
                }
            }
            self.clock.sleep(RETRY_NEWCOMER).await;
            if *self.paused.borrow() {
                return Err(StreamError::Broken("paused".into()));
            }
        }
    }

    /// Whether the backfill takes care of an event; tells it of changes that it must know of.
    fn is_accounted_for(&self, namespace: &Namespace, key: &Key, insert: bool, time: Timestamp) -> bool {
        let fingerprint = key.fingerprint_in(namespace);
        match self.side {
            Side::Old => {
                self.recent.note_change(fingerprint, time);
                false
            }
            Side::New if !self.converger.safeguards.mirror_stream => true,
            Side::New => {
                insert && is_the_copys(&self.recent, &self.examiner.own, (namespace, key, time), fingerprint)
            }
        }
    }

    /// Converges until both clusters have answered.
    async fn equalise(&self, namespace: Namespace, keys: Vec<Key>, order: &Order) -> Result<(), StreamError> {
        let (looked, report) = loop {
            let looked = self.parking.before_look(&namespace, &keys);
            match self.converger.converge(&namespace, keys.clone(), order).await {
                Ok(report) => break (looked, report),
                Err(unavailable) => {
                    self.say(Health::Waiting(unavailable.to_string()));
                    self.clock.sleep(RETRY).await;
                    if *self.paused.borrow() {
                        return Err(StreamError::Broken("paused".into()));
                    }
                }
            }
        };
        let stuck: BTreeSet<&Key> = report.stuck.iter().map(|stuck| &stuck.key).collect();
        let equal = keys.iter().filter(|key| !stuck.contains(key));
        let unparked = self.parking.unpark(&self.records, &namespace, &looked, equal).await;
        unparked.map_err(|error| StreamError::Broken(error.to_string()))?;
        let parked = park(&self.parking, &self.records, &namespace, report.stuck, &*self.clock).await;
        if self.parking.is_full() {
            return Err(StreamError::Lost(format!("more than {MOST} keys cannot be made equal")));
        }
        parked.map_err(StreamError::Broken)
    }
}

/// Whether an insert on new is taken for the copy's. Where a mirror write can have made it, the copy's may be yet to
/// come: a document may have been inserted, and deleted again, while the copy was about to insert what it had read.
/// That one is nobody else's either.
fn is_the_copys(
    recent: &Recent,
    own: &Arc<OwnWrites>,
    event: (&Namespace, &Key, Timestamp),
    fingerprint: u128,
) -> bool {
    let (namespace, key, time) = event;
    let is_taken = recent.take_copied(fingerprint, time);
    // Behind a router the copy's inserts are registered like all others.
    if is_taken && !own.is_router(Side::New) && own.judge(Side::New, [event]) == [Verdict::Own] {
        drop(own.begin(Side::New, namespace, [key], By::ConnectionsApart));
    }
    is_taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::policy::canonical::key_of;
    use bson::raw::RawBsonRef;

    fn at(increment: u32) -> Timestamp {
        Timestamp { time: 1, increment }
    }

    #[test]
    fn the_copys_insert_is_no_strangers_after_a_mirror_writes_was_taken_for_it() {
        let (recent, own) = (Recent::new(10), OwnWrites::new(Arc::new(SystemClock)));
        own.set_router(Side::New, false);
        own.judge_from(Side::New, Some(at(1)));
        let (c, key) = (Namespace::new("shop", "c"), key_of(RawBsonRef::Int32(1)).unwrap());
        let fingerprint = key.fingerprint_in(&c);
        own.begin(Side::New, &c, [&key], By::MirrorSession).ended(Some(at(5)));
        let load = recent.note_copying(std::iter::once(fingerprint));
        recent.note_copied(load, at(9));
        let insert = |time| is_the_copys(&recent, &own, (&c, &key, at(time)), fingerprint);
        let judge = |time| own.judge(Side::New, [(&c, &key, at(time))])[0];
        assert_eq!((judge(5), judge(8)), (Verdict::Own, Verdict::Foreign));
        assert!(insert(5), "the mirror write's");
        assert!(!insert(8), "the copy's is made equal");
        assert_eq!(judge(8), Verdict::Own);
    }
}
