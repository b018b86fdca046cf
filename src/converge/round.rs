//! One round of converging: a look at both sides, and one write.

use std::collections::HashSet;
use std::sync::Arc;

use bson::raw::RawDocumentBuf;
use bson::{Document, RawDocument, Timestamp, rawdoc};

use super::catalog::indexes_of;
use super::converger::{Converger, Order, Report, Stuck, Unavailable, majority};
use super::looks::Look;
use super::mirror::{Mirror, Written};
use super::owners::Group;
use super::read::{Documents, LIMIT, Level, ask, id_of, time_now};
use super::shards::push_clocks;
use crate::cluster::command::{Commands, Request, SharedCluster};
use crate::model::key::Key;
use crate::model::namespace::Namespace;
use crate::model::side::{PerSide, Side};
use crate::policy::converge::{Action, Failure, decide};
use crate::policy::holders::{Holders, holders};
use crate::state::records::first_batch;

/// An array may need the values of so many documents at a time; the others are met at the next try.
const MOST_HOLDERS: i32 = 20;

/// One round over keys of one namespace.
#[derive(Clone, Copy)]
pub(super) struct Round<'a> {
    pub(super) converger: &'a Converger,
    pub(super) clusters: &'a PerSide<SharedCluster>,
    pub(super) namespace: &'a Namespace,
    pub(super) order: &'a Order,
    /// Rounds before this one.
    pub(super) tries: u32,
}

impl Round<'_> {
    /// One look at both sides and one write; returns the keys that need another round.
    pub(super) async fn run(&self, group: Group, report: &mut Report) -> Result<Vec<Key>, Unavailable> {
        let Self { clusters, namespace, order, tries, converger } = *self;
        let mirror_side = group.authority.other();
        let (seen, want) = self.look(&group).await?;
        let (mine, mut again): (Vec<Key>, Vec<Key>) =
            group.keys.iter().cloned().partition(|key| group.owns_all(key, [&seen, &want]));
        let (doubled, keys): (Vec<Key>, Vec<Key>) = mine.into_iter().partition(|key| want.has_several(key));
        report.stuck.extend(doubled.into_iter().map(|key| Stuck {
            key,
            why: format!("{} holds several documents with this _id, on several shards", group.authority),
        }));
        self.show_witness(mirror_side, &keys, &seen, &want).await?;
        let actions = actions(&keys, &seen, &want);
        let concern = if order.durable { majority() } else { order.concern.clone() };
        let mirror = Mirror {
            cluster: &**clusters.get(mirror_side),
            sessions: converger.sessions.get(mirror_side),
            own: &converger.own,
            side: mirror_side,
            namespace,
            concern: &concern,
            guard: converger.safeguards.guard,
            shard_key: group.shard_keys.get(mirror_side).as_ref(),
        };
        let mut inserted = Vec::new();
        for (key, written) in mirror.apply(&actions).await.map_err(Unavailable)? {
            match written {
                Written::Done => {
                    report.wrote += u64::from(differ(&seen, &want, &key));
                }
                Written::Inserted => {
                    report.wrote += 1;
                    inserted.push(key);
                }
                Written::Again => again.push(key),
                Written::Failed(Failure::Unique { key_pattern, .. }) if tries < 10 => {
                    if let Some(wanted) = want.get(&key) {
                        again.extend(self.make_room(&mirror, &key, &group, (&key_pattern, wanted)).await?);
                    }
                    again.push(key);
                }
                Written::Failed(Failure::Unique { key_value, .. }) => {
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
        again.extend(self.not_alone(&group, inserted, &want).await?);
        // Several documents of one key make one key again.
        let mut named = HashSet::new();
        again.retain(|key| named.insert(key.clone()));
        Ok(again)
    }

    /// Of keys that were inserted, those of which the shards now hold anything but that one document.
    async fn not_alone(
        &self,
        group: &Group,
        inserted: Vec<Key>,
        want: &Documents,
    ) -> Result<Vec<Key>, Unavailable> {
        if inserted.is_empty() {
            return Ok(inserted);
        }
        let majority = self.order.durable && self.converger.safeguards.majority_reads;
        let level = if majority { Level::Majority(None) } else { Level::Local };
        let everywhere = self.look_on(group, group.authority.other());
        let found = Look { aims: None, ..everywhere }.read(&inserted, level).await.map_err(Unavailable)?;
        Ok(inserted.into_iter().filter(|key| differ(&found, want, key)).collect())
    }

    /// Lets the witness keep what is about to be overwritten.
    async fn show_witness(
        &self,
        mirror: Side,
        keys: &[Key],
        seen: &Documents,
        want: &Documents,
    ) -> Result<(), Unavailable> {
        let Some(witness) = &self.order.witness else { return Ok(()) };
        let lost: Vec<_> = keys
            .iter()
            .filter(|key| witness.watches(self.namespace, key) && differ(seen, want, key))
            .map(|key| (key.clone(), seen.get(key)))
            .collect();
        if lost.is_empty() {
            return Ok(());
        }
        witness.sees(mirror, self.namespace, lost).await.map_err(Unavailable)
    }

    /// Reads the mirror, and only when its answer is there, the authority.
    async fn look(&self, group: &Group) -> Result<(Documents, Documents), Unavailable> {
        let Self { clusters, order, tries, converger, .. } = *self;
        let majority = order.durable && converger.safeguards.majority_reads;
        let authority = &**clusters.get(group.authority);
        let mirror = &**clusters.get(group.authority.other());
        if !majority {
            return self.look_both(group, Level::Local, Level::Local).await;
        }
        let mut mirror_time = *order.not_before.get(group.authority.other());
        if tries > 0 {
            // The guard failed: the mirror's primary is ahead of its majority. Wait for that.
            mirror_time = mirror_time.max(Some(time_now(mirror).await.map_err(Unavailable)?));
        }
        let authority_time = *order.not_before.get(group.authority);
        let levels = (Level::Majority(mirror_time), Level::Majority(authority_time));
        let (seen, mut want) = self.look_both(group, levels.0, levels.1).await?;
        let differing: Vec<Key> =
            group.keys.iter().filter(|key| differ(&seen, &want, key)).cloned().collect();
        if converger.safeguards.mirror_read_first && !differing.is_empty() {
            // An inline mirror write may be ahead of the authority's majority, which would take the mirror
            // back. What the authority's primary has by now includes whatever the mirror can have.
            let now = time_now(authority)
                .await
                .map_err(Unavailable)?
                .max(authority_time.unwrap_or(Timestamp { time: 0, increment: 0 }));
            let mut fresh = self.read(group, group.authority, &differing, Level::Majority(Some(now))).await?;
            for key in &differing {
                want.replace(key, &mut fresh);
            }
        }
        Ok((seen, want))
    }

    async fn look_both(
        &self,
        group: &Group,
        mirror: Level,
        authority: Level,
    ) -> Result<(Documents, Documents), Unavailable> {
        if self.converger.safeguards.mirror_read_first {
            let seen = self.read(group, group.authority.other(), &group.keys, mirror).await?;
            let want = self.read(group, group.authority, &group.keys, authority).await?;
            Ok((seen, want))
        } else {
            let want = self.read(group, group.authority, &group.keys, authority).await?;
            let seen = self.read(group, group.authority.other(), &group.keys, mirror).await?;
            Ok((seen, want))
        }
    }

    async fn read(
        &self,
        group: &Group,
        side: Side,
        keys: &[Key],
        level: Level,
    ) -> Result<Documents, Unavailable> {
        let is_sharded = group.shard_keys.get(side).is_some();
        if is_sharded && matches!(level, Level::Majority(Some(_))) {
            self.hurry(side).await;
        }
        self.look_on(group, side).read(keys, level).await.map_err(Unavailable)
    }

    /// A shard whose clock is behind the time of a read writes a note of its own, which becomes the majority's
    /// when its journal is flushed next: up to 100 ms later. Notes that ask for the majority are there at once.
    async fn hurry(&self, side: Side) {
        if let Err(why) = push_clocks(&**self.clusters.get(side)).await {
            tracing::debug!(%side, why, "quiet shards take their time");
        }
    }

    fn look_on<'b>(&'b self, group: &'b Group, side: Side) -> Look<'b> {
        Look {
            cluster: &**self.clusters.get(side),
            namespace: self.namespace,
            shard_key: group.shard_keys.get(side).as_ref(),
            // What was believed has not been enough, or must be looked at on all shards now.
            aims: (self.tries == 0).then(|| self.order.aims.get(side)),
            counts: &self.converger.looks,
        }
    }

    /// Another document on the mirror holds a unique value that this key needs. Its own authority state says
    /// what it should hold; a first try writes that, and where the two wait for each other (they swapped
    /// values) later tries remove it from the mirror, to be inserted again after this key. One that should hold
    /// just that stays: then the authority lets both have the value, and this key is the one that cannot be made equal.
    async fn make_room(
        &self,
        mirror: &Mirror<'_>,
        key: &Key,
        group: &Group,
        value: (&RawDocument, &RawDocument),
    ) -> Result<Vec<Key>, Unavailable> {
        let Self { namespace, tries, converger, .. } = *self;
        let mut removed = Vec::new();
        let what: Arc<str> = format!("making room in {namespace}").into();
        for holder in holders_on(mirror.cluster, namespace, value).await.map_err(Unavailable)? {
            let Some(holder_key) = id_of(&holder).filter(|holder| holder != key) else { continue };
            // Where the holder is at home on this cluster, both values count: nothing may be done about it here.
            let Some(_entered) = converger.enter_if_owned(namespace, &holder, group.authority, &what) else {
                continue;
            };
            let keys = [holder_key];
            let want = self.read(group, group.authority, &keys, Level::Majority(None)).await?;
            let [holder_key] = keys;
            let action = decide(Some(&holder), want.get(&holder_key));
            if action == Action::Nothing || !group.owns_all(&holder_key, [&want, &want]) {
                continue;
            }
            if tries == 0 {
                mirror.apply(&[(holder_key, action)]).await.map_err(Unavailable)?;
            } else {
                mirror.remove(&holder_key, &holder).await.map_err(Unavailable)?;
                removed.push(holder_key);
            }
        }
        Ok(removed)
    }
}

/// Documents that may hold, in a unique index with the key `pattern`, a value of `wanted`.
async fn holders_on(
    cluster: &dyn Commands,
    namespace: &Namespace,
    (pattern, wanted): (&RawDocument, &RawDocument),
) -> Result<Vec<RawDocumentBuf>, String> {
    let indexes = indexes_of(cluster, namespace, LIMIT).await.map_err(|error| error.to_string())?;
    let pattern = Document::try_from(pattern).map_err(|error| error.to_string())?;
    let unique = indexes.iter().filter(|index| index.is_unique());
    let mut found = Vec::new();
    for index in unique.filter(|index| index.spec.get_document("key").is_ok_and(|key| *key == pattern)) {
        let Some(Holders { filter, collation }) = holders(&index.spec, wanted) else { continue };
        let body = rawdoc! {
            "find": namespace.collection(), "filter": filter, "collation": collation, "limit": MOST_HOLDERS,
            "singleBatch": true, "readConcern": { "level": "majority" },
        };
        let request = Request::new(namespace.database(), body).within(LIMIT);
        found.extend(first_batch(&ask(cluster, request).await?.body)?);
    }
    Ok(found)
}

/// What to do about each key, in the keys' order.
fn actions<'a>(keys: &[Key], seen: &'a Documents, want: &'a Documents) -> Vec<(Key, Action<'a>)> {
    let mut actions = Vec::with_capacity(keys.len());
    for key in keys {
        let want = want.get(key);
        if !seen.has_several(key) {
            actions.push((key.clone(), decide(seen.get(key), want)));
            continue;
        }
        // One of them may be as it should; the others lie on shards where they should not.
        let mut right =
            seen.copies(key).filter(|copy| Some(copy.as_bytes()) == want.map(RawDocument::as_bytes));
        let keep = right.next().map(RawDocument::as_bytes).map(<[u8]>::as_ptr);
        let wrong = seen.copies(key).filter(|copy| Some(copy.as_bytes().as_ptr()) != keep);
        let in_the_way = keep.is_none() && want.is_some();
        actions.extend(wrong.map(|seen| (key.clone(), Action::Delete { seen, in_the_way })));
    }
    actions
}

/// Whether the sides differ in a key.
fn differ(seen: &Documents, want: &Documents, key: &Key) -> bool {
    let (seen_now, want_now) = (seen.get(key), want.get(key));
    seen.has_several(key) || seen_now.map(RawDocument::as_bytes) != want_now.map(RawDocument::as_bytes)
}
