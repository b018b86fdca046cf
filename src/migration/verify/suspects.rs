//! Looking again at keys that differed, and repairing the real differences.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_128;

use super::Run;
use super::tally::Tally;
use crate::converge::converger::{BATCH, Order};
use crate::converge::lanes::MOST_KEYS;
use crate::converge::read::{Documents, Level, read, time_now};
use crate::migration::control::Mismatch;
use crate::migration::parked::park;
use crate::model::key::Key;
use crate::model::namespace::Namespace;
use crate::model::side::{PerSide, Side};
use crate::model::slots::SlotSet;
use crate::policy::compare::{Between, Content, Difference, Look, Verdict, judge};
use crate::policy::fields::differing;
use crate::policy::route_key::Owner;
use crate::state::table::MigrationRoute;

/// Rounds after which a key counts as unsettled.
const MOST_ROUNDS: u32 = 12;
/// Rounds in a row that must find the same difference.
const CONFIRMATIONS: u32 = 3;
/// How long one round waits for a frontier.
const PATIENCE: Duration = Duration::from_secs(10);
/// Paths of fields that are told of one document.
const MOST_PATHS: usize = 20;
const PAUSE: Duration = Duration::from_millis(20);

/// A key as it was at the first look of a round.
struct First {
    key: Key,
    authority: Side,
    epoch: u64,
    look: Look,
}

/// A difference that counts.
struct Real {
    key: Key,
    kind: Difference,
    paths: Vec<String>,
}

/// What successive rounds found.
#[derive(Default)]
struct Confirmed {
    /// The same looks, so many times.
    seen: HashMap<Key, (Look, u32)>,
    /// Made equal once already: if they differ again, that is told and left.
    repaired: HashSet<Key>,
}

impl Confirmed {
    /// How often in a row it looked as it does now.
    fn again(&mut self, first: &First) -> u32 {
        let entry = self.seen.entry(first.key.clone()).or_insert((first.look, 0));
        *entry = (first.look, if entry.0 == first.look { entry.1 + 1 } else { 1 });
        entry.1
    }
}

/// What both sides had at one look.
struct Seen {
    truth: Documents,
    mirror: Documents,
}

impl Seen {
    fn looks(&self, keys: &[Key]) -> Vec<Look> {
        let look = |key| Look { authority: content(&self.truth, key), mirror: content(&self.mirror, key) };
        keys.iter().map(look).collect()
    }

    /// Where the two documents of a key differ.
    fn paths(&self, key: &Key) -> Vec<String> {
        match (self.truth.get(key), self.mirror.get(key)) {
            (Some(truth), Some(mirror)) => {
                differing(truth, mirror, MOST_PATHS).into_iter().map(|field| field.path).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// Looks again at keys of one collection.
pub(super) struct Looking<'a> {
    pub(super) run: &'a Run<'a>,
    pub(super) namespace: &'a Namespace,
    /// What was counted.
    pub(super) tally: Mutex<Tally>,
}

impl Looking<'_> {
    /// Decides about each suspect, and repairs what differs.
    pub(super) async fn settle(&self, mut keys: Vec<Key>) -> Result<(), String> {
        let mut confirmed = Confirmed::default();
        for round in 0..MOST_ROUNDS {
            if keys.is_empty() {
                return Ok(());
            }
            self.run.ctx.clock.sleep(PAUSE * round).await;
            keys = self.round(keys, &mut confirmed).await?;
        }
        self.run.unsettled.fetch_add(keys.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Two looks with the frontier between them; returns the keys that need another round.
    async fn round(&self, keys: Vec<Key>, confirmed: &mut Confirmed) -> Result<Vec<Key>, String> {
        let (firsts, mut again) = self.first_look(keys).await?;
        let passed = self.pass_frontiers(&firsts).await;
        let mut real = Vec::new();
        for chunk in firsts.chunks(MOST_KEYS) {
            for (first, verdict, paths) in self.second_look(chunk, passed).await? {
                let Verdict::Real(kind) = verdict else {
                    confirmed.seen.remove(&first.key);
                    if verdict == Verdict::Again {
                        again.push(first.key.clone());
                    }
                    continue;
                };
                if confirmed.again(first) >= CONFIRMATIONS {
                    real.push(Real { key: first.key.clone(), kind, paths });
                } else {
                    again.push(first.key.clone());
                }
            }
        }
        again.extend(self.repair(real, confirmed).await?);
        Ok(again)
    }

    /// What both sides have; keys that are equal are left out, and keys without an authority at the moment
    /// come back as they are.
    async fn first_look(&self, keys: Vec<Key>) -> Result<(Vec<First>, Vec<Key>), String> {
        let Some(route) = self.run.ctx.route() else { return Ok((Vec::new(), keys)) };
        let mut owned: PerSide<Vec<Key>> = PerSide::default();
        let mut again = Vec::new();
        for chunk in keys.chunks(BATCH) {
            let authorities = self.authorities(&route, chunk).await?;
            for (key, authority) in chunk.iter().cloned().zip(authorities) {
                match authority {
                    Some(side) => owned.get_mut(side).push(key),
                    None => again.push(key),
                }
            }
        }
        let mut firsts = Vec::new();
        for authority in Side::BOTH {
            for chunk in owned.get(authority).chunks(MOST_KEYS) {
                let looks = self.look(chunk, authority).await?.looks(chunk);
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

    /// Whose each key is, as long as no fence is open on it.
    async fn authorities(&self, route: &MigrationRoute, keys: &[Key]) -> Result<Vec<Option<Side>>, String> {
        let (namespace, ctx) = (self.namespace, self.run.ctx);
        if route.by(namespace).field().is_none() || route.sole_authority().is_some() {
            let authority = |key| {
                let held = route.held.meets(&route.slots_of_key(namespace, key));
                route.authority_of_key(namespace, key).filter(|_| !held)
            };
            return Ok(keys.iter().map(authority).collect());
        }
        let level = PerSide::from_fn(|_| Level::Majority(None));
        let owners = ctx.converger.owners(&ctx.clusters, namespace, keys, route, level).await;
        let owners = owners.map_err(|error| error.to_string())?;
        let authority = |key| match owners.get(key)? {
            (_, slots) if route.held.meets(slots) => None,
            // Neither has it any more, which any look will show.
            (Owner::Nobody, _) => Some(Side::Old),
            (Owner::One(side), _) => Some(*side),
            (Owner::Unknown | Owner::Several, _) => None,
        };
        Ok(keys.iter().map(authority).collect())
    }

    /// Reads the mirror, then the authority.
    async fn look(&self, keys: &[Key], authority: Side) -> Result<Seen, String> {
        let namespace = self.namespace;
        let mirror = &**self.run.ctx.clusters.get(authority.other());
        let mirror = read(mirror, namespace, keys, Level::Majority(None)).await?;
        // The mirror's majority may be ahead of the authority's; what the authority's primary has by now
        // includes whatever the mirror can have.
        let cluster = &**self.run.ctx.clusters.get(authority);
        let now = time_now(cluster).await?;
        let truth = read(cluster, namespace, keys, Level::Majority(Some(now))).await?;
        Ok(Seen { truth, mirror })
    }

    /// Waits until everything that the first looks can have seen is worked off; for each authority whether
    /// that came true.
    async fn pass_frontiers(&self, firsts: &[First]) -> PerSide<bool> {
        let mut passed = PerSide::default();
        for side in Side::BOTH {
            if firsts.iter().any(|first| first.authority == side) {
                // A marker's time is not below that of anything that was read before it was written.
                *passed.get_mut(side) = match self.run.ctx.mark(side, PATIENCE).await {
                    Ok(time) => {
                        self.run.ctx.frontiers.get(side).wait_past(time, &*self.run.ctx.clock, PATIENCE).await
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
        firsts: &'a [First],
        passed: PerSide<bool>,
    ) -> Result<Vec<(&'a First, Verdict, Vec<String>)>, String> {
        let all: Vec<Key> = firsts.iter().map(|first| first.key.clone()).collect();
        let _lanes = self.run.ctx.converger.lanes.take(self.namespace.as_str(), &all).await;
        let (mut verdicts, namespace) = (Vec::with_capacity(firsts.len()), self.namespace);
        for authority in Side::BOTH {
            let group: Vec<&First> = firsts.iter().filter(|first| first.authority == authority).collect();
            if group.is_empty() {
                continue;
            }
            let keys: Vec<Key> = group.iter().map(|first| first.key.clone()).collect();
            let seen = self.look(&keys, authority).await?;
            let route = self.run.ctx.route();
            for (first, second) in group.into_iter().zip(seen.looks(&keys)) {
                let same = |route: &MigrationRoute| {
                    route.epoch == first.epoch && belongs(route, namespace, &first.key, &seen, authority)
                };
                let between = Between {
                    same_authority: route.as_ref().is_some_and(same),
                    frontier_passed: *passed.get(authority),
                };
                let verdict = judge(first.look, second, between);
                let is_content = verdict == Verdict::Real(Difference::Content);
                let paths = if is_content { seen.paths(&first.key) } else { Vec::new() };
                verdicts.push((first, verdict, paths));
            }
        }
        Ok(verdicts)
    }

    /// Makes equal what differs, if that is asked for; keys that were made equal come back, to be looked at
    /// once more.
    async fn repair(&self, real: Vec<Real>, confirmed: &mut Confirmed) -> Result<Vec<Key>, String> {
        let order = Order::durable(PerSide::default());
        let repairs = self.run.asked.repair && !self.run.only_tells.is_for(self.namespace);
        let (real, others): (Vec<Real>, Vec<Real>) =
            real.into_iter().partition(|real| repairs && !confirmed.repaired.contains(&real.key));
        for real in others {
            self.tell(spelled(&real.key), real.kind, real.paths, false);
        }
        for chunk in real.chunks(BATCH) {
            let keys = chunk.iter().map(|real| real.key.clone()).collect();
            let report = self.run.ctx.converger.converge(self.namespace, keys, &order).await;
            let (stuck, failure) = match report {
                Ok(report) => (report.stuck, None),
                Err(unavailable) => (Vec::new(), Some(unavailable.to_string())),
            };
            let stays: HashSet<Key> = stuck.iter().map(|stuck| stuck.key.clone()).collect();
            for Real { key, kind, paths } in chunk {
                let is_repaired = failure.is_none() && !stays.contains(key);
                self.tell(spelled(key), *kind, paths.clone(), is_repaired);
                if is_repaired {
                    confirmed.repaired.insert(key.clone());
                }
            }
            // Documents that had to make room for others, and cannot come back.
            for key in stays.iter().filter(|key| !chunk.iter().any(|real| real.key == **key)) {
                self.tell(spelled(key), Difference::Missing, Vec::new(), false);
            }
            let ctx = self.run.ctx;
            park(&ctx.parking, &ctx.records, self.namespace, stuck, &*ctx.clock).await?;
            failure.map_or(Ok(()), Err)?;
        }
        let keys = real.into_iter().map(|real| real.key);
        Ok(keys.filter(|key| confirmed.repaired.contains(key)).collect())
    }

    fn tell(&self, key: String, kind: Difference, paths: Vec<String>, repaired: bool) {
        let mismatch = Mismatch {
            namespace: self.namespace.as_str().to_owned(),
            key,
            kind: kind.as_str().to_owned(),
            paths,
            repaired,
            at: self.run.ctx.clock.wall_millis(),
        };
        self.run.tell(&self.tally, mismatch);
    }
}

/// Whether `side` is the authority of `key`, of which this was seen, and no fence is open on it.
fn belongs(route: &MigrationRoute, namespace: &Namespace, key: &Key, seen: &Seen, side: Side) -> bool {
    let by = route.by(namespace);
    let slots: SlotSet = match by.of_key(key) {
        Some(slot) => std::iter::once(slot).collect(),
        None => {
            let copies = seen.truth.copies(key).chain(seen.mirror.copies(key));
            copies.filter_map(|document| by.of_document(document)).collect()
        }
    };
    let foreign = slots.minus(route.owned_by(side)).or(&slots.and(route.owned_by(side.other())));
    foreign.is_empty() && !route.held.meets(&slots)
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
