//! Looking again at keys that differed, and repairing the real differences.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_128;

use super::Run;
use crate::converge::converger::{BATCH, Order};
use crate::converge::lanes::MOST_KEYS;
use crate::converge::read::{Documents, Level, read, time_now};
use crate::migration::parked::park;
use crate::model::key::Key;
use crate::model::namespace::Namespace;
use crate::model::side::{PerSide, Side};
use crate::policy::compare::{Between, Content, Difference, Look, Verdict, judge};
use crate::state::table::MigrationRoute;

/// Rounds after which a key counts as unsettled.
const MOST_ROUNDS: u32 = 12;
/// Rounds in a row that must find the same difference.
const CONFIRMATIONS: u32 = 3;
/// How long one round waits for a frontier.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

/// A key as it was at the first look of a round.
struct First {
    key: Key,
    authority: Side,
    epoch: u64,
    look: Look,
}

/// What successive rounds found: the same looks, so many times.
type Confirmed = HashMap<Key, (Look, u32)>;

impl Run<'_> {
    /// Decides about each suspect, and repairs what differs.
    pub(super) async fn settle(&self, namespace: &Namespace, mut keys: Vec<Key>) -> Result<(), String> {
        let mut confirmed = Confirmed::new();
        for round in 0..MOST_ROUNDS {
            if keys.is_empty() {
                return Ok(());
            }
            self.ctx.clock.sleep(PAUSE * round).await;
            keys = self.round(namespace, keys, &mut confirmed).await?;
        }
        self.unsettled.fetch_add(keys.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Two looks with the frontier between them; returns the keys that need another round.
    async fn round(
        &self,
        namespace: &Namespace,
        keys: Vec<Key>,
        confirmed: &mut Confirmed,
    ) -> Result<Vec<Key>, String> {
        let (firsts, mut again) = self.first_look(namespace, keys).await?;
        let passed = self.pass_frontiers(&firsts).await;
        let mut real = Vec::new();
        for chunk in firsts.chunks(MOST_KEYS) {
            for (first, verdict) in self.second_look(namespace, chunk, passed).await? {
                let Verdict::Real(difference) = verdict else {
                    confirmed.remove(&first.key);
                    if verdict == Verdict::Again {
                        again.push(first.key.clone());
                    }
                    continue;
                };
                let entry = confirmed.entry(first.key.clone()).or_insert((first.look, 0));
                *entry = (first.look, if entry.0 == first.look { entry.1 + 1 } else { 1 });
                if entry.1 >= CONFIRMATIONS {
                    real.push((first.key.clone(), difference));
                } else {
                    again.push(first.key.clone());
                }
            }
        }
        self.repair(namespace, real).await?;
        Ok(again)
    }

    /// What both sides have; keys that are equal are left out, and keys without an authority at the moment
    /// come back as they are.
    async fn first_look(
        &self,
        namespace: &Namespace,
        keys: Vec<Key>,
    ) -> Result<(Vec<First>, Vec<Key>), String> {
        let Some(route) = self.ctx.route() else { return Ok((Vec::new(), keys)) };
        let mut owned: PerSide<Vec<Key>> = PerSide::default();
        let mut again = Vec::new();
        for key in keys {
            match Side::BOTH.into_iter().find(|side| belongs(&route, &key, *side)) {
                Some(side) => owned.get_mut(side).push(key),
                None => again.push(key),
            }
        }
        let mut firsts = Vec::new();
        for authority in Side::BOTH {
            for chunk in owned.get(authority).chunks(MOST_KEYS) {
                let looks = self.look(namespace, chunk, authority).await?;
                let looks = chunk.iter().zip(looks).filter(|(_, look)| look.authority != look.mirror);
                firsts.extend(looks.map(|(key, look)| First {
                    key: key.clone(),
                    authority,
                    epoch: route.epoch,
                    look,
                }));
            }
        }
        Ok((firsts, again))
    }

    /// Reads the mirror, then the authority.
    async fn look(&self, namespace: &Namespace, keys: &[Key], authority: Side) -> Result<Vec<Look>, String> {
        let mirror = &**self.ctx.clusters.get(authority.other());
        let mirror = read(mirror, namespace, keys, Level::Majority(None)).await?;
        // The mirror's majority may be ahead of the authority's; what the authority's primary has by now
        // includes whatever the mirror can have.
        let cluster = &**self.ctx.clusters.get(authority);
        let now = time_now(cluster).await?;
        let truth = read(cluster, namespace, keys, Level::Majority(Some(now))).await?;
        let look = |key| Look { authority: content(&truth, key), mirror: content(&mirror, key) };
        Ok(keys.iter().map(look).collect())
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
            let looks = self.look(namespace, &keys, authority).await?;
            let route = self.ctx.route();
            for (first, second) in group.into_iter().zip(looks) {
                let same = |route: &MigrationRoute| {
                    route.epoch == first.epoch && belongs(route, &first.key, authority)
                };
                let between = Between {
                    same_authority: route.as_ref().is_some_and(same),
                    frontier_passed: *passed.get(authority),
                };
                verdicts.push((first, judge(first.look, second, between)));
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
            // Documents that had to make room for others, and cannot come back.
            for key in stays.iter().filter(|key| !chunk.iter().any(|(of, _)| of == *key)) {
                self.tell(namespace, spelled(key), Difference::Missing.as_str(), false);
            }
            park(&self.ctx.parking, &self.ctx.records, namespace, stuck, &*self.ctx.clock).await?;
            failure.map_or(Ok(()), Err)?;
        }
        Ok(())
    }
}

/// Whether `side` is the authority of `key`, and no fence is open on it.
fn belongs(route: &MigrationRoute, key: &Key, side: Side) -> bool {
    route.authority(key.slot()) == Some(side) && !route.held.contains(key.slot())
}

fn content(documents: &Documents, key: &Key) -> Content {
    // Several with one `_id` are never what the other side has.
    documents
        .copies(key)
        .map(|document| xxh3_128(document.as_bytes()))
        .reduce(|all, one| all ^ one.rotate_left(1))
}

/// An `_id` as extended JSON.
fn spelled(key: &Key) -> String {
    // To a text format, BSON values are written as extended JSON.
    let text = bson::Bson::try_from(key.value()).ok().and_then(|id| serde_json::to_string(&id).ok());
    text.unwrap_or_else(|| format!("{key:?}"))
}
