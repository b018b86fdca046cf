//! Converging batches of keys under the epoch guard.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bson::raw::RawDocumentBuf;
use bson::{RawDocument, Timestamp, rawdoc};

use super::lanes::{Lanes, Taken};
use super::mirror::{Mirror, Written};
use super::read::{Documents, Level, id_of, read, time_now};
use super::sessions::Sessions;
use crate::clock::SharedClock;
use crate::cluster::command::SharedCluster;
use crate::model::key::Key;
use crate::model::namespace::Namespace;
use crate::model::side::{PerSide, Side};
use crate::model::slots::SlotSet;
use crate::policy::converge::{Failure, decide};
use crate::policy::safeguards::Safeguards;
use crate::state::inflight::{Inflight, Ticket, Work};
use crate::state::records::first_batch;

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
}

impl Order {
    /// For the streams, the backfill and repair.
    #[must_use]
    pub fn durable(not_before: PerSide<Option<Timestamp>>) -> Self {
        Self { durable: true, not_before, concern: majority() }
    }
}

fn majority() -> RawDocumentBuf {
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
    /// The clock.
    pub clock: SharedClock,
    /// All on, but in the simulator.
    pub safeguards: Safeguards,
    /// Documents made equal so far.
    pub converged: AtomicU64,
}

/// Keys of one authority.
struct Group {
    authority: Side,
    keys: Vec<Key>,
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
        let mut report = Report::default();
        let mut pending = keys;
        let mut tries = 0;
        let what: Arc<str> = format!("converge {namespace}").into();
        while !pending.is_empty() {
            let lanes = self.lanes_if_contended(namespace, &pending, tries).await;
            let ticket = self.enter(&pending, &what).await;
            let groups = self.by_authority(namespace, &pending, &ticket);
            if groups.is_empty() {
                return Ok(report);
            }
            pending = Vec::new();
            for group in groups {
                pending.extend(self.round(namespace, group, order, tries, &mut report).await?);
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
    async fn enter(&self, keys: &[Key], what: &Arc<str>) -> Ticket {
        let slots: SlotSet = keys.iter().map(Key::slot).collect();
        loop {
            let ticket = self.inflight.enter(&self.migration, slots, Work::Converge, what);
            let route = ticket.table.routes.values().find(|route| route.name == self.migration);
            let blocked = route.is_some_and(|route| {
                (self.safeguards.workers_fenced && route.sealed.meets(&slots))
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

    /// The keys grouped by who owns them; empty when the migration is over.
    fn by_authority(&self, namespace: &Namespace, keys: &[Key], ticket: &Ticket) -> Vec<Group> {
        let Some(route) = ticket.table.route(namespace.as_str()) else { return Vec::new() };
        Side::BOTH
            .into_iter()
            .map(|authority| {
                let owned = keys.iter().filter(|key| route.authority(key.slot()) == Some(authority));
                Group { authority, keys: owned.cloned().collect() }
            })
            .filter(|group| !group.keys.is_empty())
            .collect()
    }

    /// One look at both sides and one write; returns the keys that need another round.
    async fn round(
        &self,
        namespace: &Namespace,
        group: Group,
        order: &Order,
        tries: u32,
        report: &mut Report,
    ) -> Result<Vec<Key>, Unavailable> {
        let mirror_side = group.authority.other();
        let (seen, want) = self.look(namespace, &group, order, tries).await?;
        let actions: Vec<_> = group
            .keys
            .iter()
            .map(|key| (key.clone(), decide(document(&seen, key), document(&want, key))))
            .collect();
        let concern = if order.durable { majority() } else { order.concern.clone() };
        let mirror = Mirror {
            cluster: &**self.clusters.get(mirror_side),
            sessions: self.sessions.get(mirror_side),
            namespace,
            concern: &concern,
            guard: self.safeguards.guard,
        };
        let mut again = Vec::new();
        for (key, written) in mirror.apply(&actions).await.map_err(Unavailable)? {
            match written {
                Written::Done => {
                    report.wrote += u64::from(
                        document(&seen, &key).map(RawDocument::as_bytes)
                            != document(&want, &key).map(RawDocument::as_bytes),
                    );
                }
                Written::Again => again.push(key),
                Written::Failed(Failure::Unique { key_value }) if tries < 10 => {
                    let removed =
                        self.make_room(namespace, &mirror, &key, group.authority, &key_value, tries).await?;
                    again.push(key);
                    again.extend(removed);
                }
                Written::Failed(Failure::Unique { key_value }) => {
                    report.stuck.push(Stuck {
                        key,
                        why: format!("another document holds {key_value:?} on {mirror_side}"),
                    });
                }
                Written::Failed(Failure::Refused { code, message }) => {
                    report.stuck.push(Stuck {
                        key,
                        why: format!("{mirror_side} refuses it: {message} (code {code})"),
                    });
                }
                Written::Failed(Failure::Guard) => again.push(key),
            }
        }
        Ok(again)
    }

    /// Reads the mirror, and only when its answer is there, the authority.
    async fn look(
        &self,
        namespace: &Namespace,
        group: &Group,
        order: &Order,
        tries: u32,
    ) -> Result<(Documents, Documents), Unavailable> {
        let majority = order.durable && self.safeguards.majority_reads;
        let authority = &**self.clusters.get(group.authority);
        let mirror = &**self.clusters.get(group.authority.other());
        if !majority {
            return self.look_locally(namespace, group).await;
        }
        let mut mirror_time = *order.not_before.get(group.authority.other());
        if tries > 0 {
            // The guard failed: the mirror's primary is ahead of its majority. Wait for that.
            mirror_time = mirror_time.max(Some(time_now(mirror).await.map_err(Unavailable)?));
        }
        let authority_time = *order.not_before.get(group.authority);
        if !self.safeguards.mirror_read_first {
            let want = read(authority, namespace, &group.keys, Level::Majority(authority_time))
                .await
                .map_err(Unavailable)?;
            let seen = read(mirror, namespace, &group.keys, Level::Majority(mirror_time))
                .await
                .map_err(Unavailable)?;
            return Ok((seen, want));
        }
        let seen =
            read(mirror, namespace, &group.keys, Level::Majority(mirror_time)).await.map_err(Unavailable)?;
        let mut want = read(authority, namespace, &group.keys, Level::Majority(authority_time))
            .await
            .map_err(Unavailable)?;
        let differing: Vec<Key> = group
            .keys
            .iter()
            .filter(|key| {
                document(&seen, key).map(RawDocument::as_bytes)
                    != document(&want, key).map(RawDocument::as_bytes)
            })
            .cloned()
            .collect();
        if !differing.is_empty() {
            // An inline mirror write may be ahead of the authority's majority, which would take the mirror
            // back. What the authority's primary has by now includes whatever the mirror can have.
            let now = time_now(authority)
                .await
                .map_err(Unavailable)?
                .max(authority_time.unwrap_or(Timestamp { time: 0, increment: 0 }));
            let fresh = read(authority, namespace, &differing, Level::Majority(Some(now)))
                .await
                .map_err(Unavailable)?;
            for key in &differing {
                want.remove(key);
            }
            want.extend(fresh);
        }
        Ok((seen, want))
    }

    async fn look_locally(
        &self,
        namespace: &Namespace,
        group: &Group,
    ) -> Result<(Documents, Documents), Unavailable> {
        let authority = &**self.clusters.get(group.authority);
        let mirror = &**self.clusters.get(group.authority.other());
        if self.safeguards.mirror_read_first {
            let seen = read(mirror, namespace, &group.keys, Level::Local).await.map_err(Unavailable)?;
            let want = read(authority, namespace, &group.keys, Level::Local).await.map_err(Unavailable)?;
            Ok((seen, want))
        } else {
            let want = read(authority, namespace, &group.keys, Level::Local).await.map_err(Unavailable)?;
            let seen = read(mirror, namespace, &group.keys, Level::Local).await.map_err(Unavailable)?;
            Ok((seen, want))
        }
    }

    /// Another document on the mirror holds a unique value that this key needs. Its own authority state says
    /// what it should hold; a first try writes that, and where the two wait for each other (they swapped
    /// values) later tries remove it from the mirror, to be inserted again after this key.
    async fn make_room(
        &self,
        namespace: &Namespace,
        mirror: &Mirror<'_>,
        key: &Key,
        authority: Side,
        key_value: &RawDocument,
        tries: u32,
    ) -> Result<Vec<Key>, Unavailable> {
        let mut removed = Vec::new();
        let body = rawdoc! {
            "find": namespace.collection(), "filter": key_value.to_owned(), "limit": 2,
            "readConcern": { "level": "majority" },
        };
        let request = crate::cluster::command::Request::new(namespace.database(), body);
        let reply = super::read::ask(mirror.cluster, request).await.map_err(Unavailable)?;
        for holder in first_batch(&reply.body).map_err(Unavailable)? {
            let Some(holder_key) = id_of(&holder).filter(|holder| holder != key) else { continue };
            let keys = [holder_key];
            let want = read(&**self.clusters.get(authority), namespace, &keys, Level::Majority(None))
                .await
                .map_err(Unavailable)?;
            let [holder_key] = keys;
            if tries == 0 {
                let action = decide(Some(&holder), document(&want, &holder_key));
                mirror.apply(&[(holder_key, action)]).await.map_err(Unavailable)?;
            } else {
                mirror.remove(&holder_key, &holder).await.map_err(Unavailable)?;
                removed.push(holder_key);
            }
        }
        Ok(removed)
    }
}

fn document<'a>(documents: &'a Documents, key: &Key) -> Option<&'a RawDocument> {
    documents.get(key).map(|document| &**document)
}
