//! Looking again at keys that differed, and repairing the real differences.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_128;

use super::Run;
use crate::converge::converger::{BATCH, Order};
use crate::converge::lanes::MOST_KEYS;
use crate::converge::read::{Documents, Level, read, time_now};
use crate::migration::tailer::park;
use crate::model::key::Key;
use crate::model::namespace::Namespace;
use crate::model::side::{PerSide, Side};
use crate::policy::compare::{Content, Difference, Second, Verdict, judge};

/// Rounds after which a key counts as unsettled.
const MOST_ROUNDS: u32 = 10;
/// How long one round waits for a frontier.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);

/// What the first look at a key showed.
struct First {
    key: Key,
    authority: Side,
    epoch: u64,
    content: Content,
}

impl Run<'_> {
    /// Decides about each suspect, and repairs what differs.
    pub(super) async fn settle(&self, namespace: &Namespace, mut keys: Vec<Key>) -> Result<(), String> {
        for round in 0..MOST_ROUNDS {
            if keys.is_empty() {
                return Ok(());
            }
            if round > 0 {
                self.ctx.clock.sleep(PAUSE * round).await;
            }
            let (firsts, mut again) = self.first_look(namespace, keys).await?;
            let passed = self.pass_frontiers(&firsts).await;
            let mut real = Vec::new();
            for chunk in firsts.chunks(MOST_KEYS) {
                for (first, verdict) in self.second_look(namespace, chunk, passed).await? {
                    match verdict {
                        Verdict::Equal => {}
                        Verdict::Again => again.push(first.key.clone()),
                        Verdict::Real(difference) => real.push((first.key.clone(), difference)),
                    }
                }
            }
            self.repair(namespace, real).await?;
            keys = again;
        }
        self.unsettled.fetch_add(keys.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// What the authority of each key has; keys without one at the moment come back as they are.
    async fn first_look(
        &self,
        namespace: &Namespace,
        keys: Vec<Key>,
    ) -> Result<(Vec<First>, Vec<Key>), String> {
        let Some(route) = self.ctx.route() else { return Ok((Vec::new(), keys)) };
        let mut owned: PerSide<Vec<Key>> = PerSide::default();
        let mut again = Vec::new();
        for key in keys {
            match route.authority(key.slot()).filter(|_| !route.held.contains(key.slot())) {
                Some(side) => owned.get_mut(side).push(key),
                None => again.push(key),
            }
        }
        let mut firsts = Vec::new();
        for authority in Side::BOTH {
            for chunk in owned.get(authority).chunks(MOST_KEYS) {
                let cluster = &**self.ctx.clusters.get(authority);
                let documents = read(cluster, namespace, chunk, Level::Majority(None)).await?;
                firsts.extend(chunk.iter().map(|key| {
                    let content = content(&documents, key);
                    First { key: key.clone(), authority, epoch: route.epoch, content }
                }));
            }
        }
        Ok((firsts, again))
    }

    /// Waits until everything that the first looks can have seen is worked off; for each authority whether
    /// that came true.
    async fn pass_frontiers(&self, firsts: &[First]) -> PerSide<bool> {
        let mut passed = PerSide::default();
        for side in Side::BOTH {
            if firsts.iter().any(|first| first.authority == side) {
                // A marker's time is not below that of anything that was read before it was written.
                *passed.get_mut(side) = match self.ctx.mark(side, PATIENCE).await {
                    Ok(time) => {
                        self.ctx.frontiers.get(side).wait_past(time, &*self.ctx.clock, PATIENCE).await
                    }
                    Err(_) => false,
                };
            }
        }
        passed
    }

    /// Looks at the keys of one chunk again while no command of this process writes them.
    async fn second_look<'a>(
        &self,
        namespace: &Namespace,
        firsts: &'a [First],
        passed: PerSide<bool>,
    ) -> Result<Vec<(&'a First, Verdict)>, String> {
        let all: Vec<Key> = firsts.iter().map(|first| first.key.clone()).collect();
        let _lanes = self.ctx.converger.lanes.take(namespace.as_str(), &all).await;
        let mut verdicts = Vec::with_capacity(firsts.len());
        for authority in Side::BOTH {
            let group: Vec<&First> = firsts.iter().filter(|first| first.authority == authority).collect();
            if group.is_empty() {
                continue;
            }
            let keys: Vec<Key> = group.iter().map(|first| first.key.clone()).collect();
            let mirror = &**self.ctx.clusters.get(authority.other());
            let mirror = read(mirror, namespace, &keys, Level::Majority(None)).await?;
            // The mirror's majority may be ahead of the authority's; what its primary has by now includes
            // whatever the mirror can have.
            let cluster = &**self.ctx.clusters.get(authority);
            let now = time_now(cluster).await?;
            let truth = read(cluster, namespace, &keys, Level::Majority(Some(now))).await?;
            let route = self.ctx.route();
            for first in group {
                let same_authority = route.as_ref().is_some_and(|route| {
                    let slot = first.key.slot();
                    route.epoch == first.epoch
                        && route.authority(slot) == Some(authority)
                        && !route.held.contains(slot)
                });
                let second = Second {
                    authority: content(&truth, &first.key),
                    mirror: content(&mirror, &first.key),
                    same_authority,
                    frontier_passed: *passed.get(authority),
                };
                verdicts.push((first, judge(first.content, second)));
            }
        }
        Ok(verdicts)
    }

    async fn repair(&self, namespace: &Namespace, real: Vec<(Key, Difference)>) -> Result<(), String> {
        let order = Order::durable(PerSide::default());
        for chunk in real.chunks(BATCH) {
            let keys = chunk.iter().map(|(key, _)| key.clone()).collect();
            let report = self.ctx.converger.converge(namespace, keys, &order).await;
            let (stuck, failure) = match report {
                Ok(report) => (report.stuck, None),
                Err(unavailable) => (Vec::new(), Some(unavailable.to_string())),
            };
            let stays: HashSet<Key> = stuck.iter().map(|stuck| stuck.key.clone()).collect();
            for (key, difference) in chunk {
                let repaired = failure.is_none() && !stays.contains(key);
                self.tell(namespace, spelled(key), difference.as_str(), repaired);
            }
            park(&self.ctx.parking, &self.ctx.records, namespace, stuck, &*self.ctx.clock).await?;
            failure.map_or(Ok(()), Err)?;
        }
        Ok(())
    }
}

fn content(documents: &Documents, key: &Key) -> Content {
    documents.get(key).map(|document| xxh3_128(document.as_bytes()))
}

/// An `_id` as extended JSON.
fn spelled(key: &Key) -> String {
    // To a text format, BSON values are written as extended JSON.
    let text = bson::Bson::try_from(key.value()).ok().and_then(|id| serde_json::to_string(&id).ok());
    text.unwrap_or_else(|| format!("{key:?}"))
}
