//! Whose the documents of keys are.
//!
//! Where slots are computed from `_id`s, the key says it. Where they are computed from a field, a change event does
//! not: it names `_id`s, also of documents that are gone. While two clusters have authority the documents that both
//! have are looked at first; this is but a hint, since they may change at once. What may be written is decided
//! by [`Group::owns`], from the very documents that the guarded write goes by.

use std::collections::HashMap;
use std::sync::Arc;

use bson::RawDocument;

use super::converger::{Converger, Order, Stuck, Unavailable};
use super::looks::Look;
use super::read::{Documents, Level};
use crate::cluster::command::SharedCluster;
use crate::model::key::Key;
use crate::model::namespace::Namespace;
use crate::model::side::{PerSide, Side};
use crate::model::slots::SlotSet;
use crate::policy::key_ranges::KeyRanges;
use crate::policy::route_key::{By, Owner, RouteKey, owner};
use crate::policy::shard_key::ShardKey;
use crate::state::table::MigrationRoute;

/// Keys of one authority.
pub(super) struct Group {
    pub(super) authority: Side,
    pub(super) keys: Vec<Key>,
    /// Slots of theirs.
    pub(super) slots: SlotSet,
    /// By what each cluster has sharded the collection.
    pub(super) shard_keys: PerSide<Option<ShardKey>>,
    /// Where only a document tells its slot: by what, and which slots are the authority's.
    pub(super) told_by: Option<Told>,
}

/// What tells whether a document is the authority's.
#[derive(Clone)]
pub(super) struct Told {
    field: RouteKey,
    ranges: Arc<KeyRanges>,
    /// Those of the authority.
    slots: SlotSet,
}

impl Told {
    /// Where only documents of `namespace` tell their slots: whether they are of `slots`.
    pub(super) fn of(route: &MigrationRoute, namespace: &Namespace, slots: SlotSet) -> Option<Self> {
        let field = route.by(namespace).field()?.clone();
        Some(Self { field, ranges: Arc::clone(&route.key_ranges), slots })
    }

    fn is_of(&self, document: &RawDocument) -> bool {
        let slot = By::new(Some(&self.field), &self.ranges).of_document(document);
        slot.is_some_and(|slot| self.slots.contains(slot))
    }
}

impl Group {
    /// Whether a document is the authority's to change: one that is not must not be touched on its mirror, which
    /// may be that document's authority.
    pub(super) fn owns(&self, document: &RawDocument) -> bool {
        self.told_by.as_ref().is_none_or(|told| told.is_of(document))
    }

    /// Whether all documents of a key are.
    pub(super) fn owns_all(&self, key: &Key, looks: [&Documents; 2]) -> bool {
        self.told_by.is_none()
            || looks.iter().flat_map(|documents| documents.copies(key)).all(|document| self.owns(document))
    }
}

/// Keys, sorted by who owns them.
#[derive(Default)]
pub(super) struct Owned {
    pub(super) groups: Vec<Group>,
    /// Documents of one `_id` that two clusters own.
    pub(super) stuck: Vec<Stuck>,
    /// Whose they are is not known at the moment.
    pub(super) again: Vec<Key>,
}

impl Converger {
    /// Sorts `keys` by who owns them.
    pub(super) async fn by_authority(
        &self,
        clusters: &PerSide<SharedCluster>,
        namespace: &Namespace,
        keys: Vec<Key>,
        route: &MigrationRoute,
        order: &Order,
    ) -> Result<Owned, Unavailable> {
        let by = route.by(namespace);
        let (Some(field), None) = (by.field(), route.sole_authority()) else {
            let groups = Side::BOTH.map(|authority| {
                let owned = |key: &&Key| route.authority_of_key(namespace, key) == Some(authority);
                let keys: Vec<Key> = keys.iter().filter(owned).cloned().collect();
                let slots = keys.iter().map(|key| by.of_key(key)).collect::<Option<SlotSet>>();
                group(namespace, route, authority, keys, slots.unwrap_or(SlotSet::ALL))
            });
            let groups = groups.into_iter().filter(|group| !group.keys.is_empty()).collect();
            return Ok(Owned { groups, ..Owned::default() });
        };
        let durable = order.durable && self.safeguards.majority_reads;
        let level =
            |side: Side| if durable { Level::Majority(*order.not_before.get(side)) } else { Level::Local };
        let owners = self.owners(clusters, namespace, &keys, route, PerSide::from_fn(level)).await?;
        let mut sorted = Owned::default();
        let mut owned: PerSide<(Vec<Key>, SlotSet)> = PerSide::default();
        for key in keys {
            match owners.get(&key) {
                None | Some((Owner::Nobody, _)) => {}
                Some((Owner::One(side), slots)) => {
                    let of_side = owned.get_mut(*side);
                    of_side.0.push(key);
                    of_side.1 = of_side.1.or(slots);
                }
                Some((Owner::Unknown, _)) => sorted.again.push(key),
                Some((Owner::Several, _)) => {
                    let why = format!(
                        "old and new have documents of this _id that differ in {}, the route key, so that each \
                         belongs to another cluster; remove the one that is wrong",
                        field.field()
                    );
                    sorted.stuck.push(Stuck { key, why });
                }
            }
        }
        for authority in Side::BOTH {
            let (keys, slots) = std::mem::take(owned.get_mut(authority));
            if !keys.is_empty() {
                sorted.groups.push(group(namespace, route, authority, keys, slots));
            }
        }
        Ok(sorted)
    }

    /// Whose the documents of `keys` are by what both clusters have, and in which slots they lie.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn owners(
        &self,
        clusters: &PerSide<SharedCluster>,
        namespace: &Namespace,
        keys: &[Key],
        route: &MigrationRoute,
        levels: PerSide<Level>,
    ) -> Result<HashMap<Key, (Owner, SlotSet)>, Unavailable> {
        let read = |side: Side| {
            let shard_key = route.shard_keys.get(side).get(namespace);
            let look = Look {
                cluster: &**clusters.get(side),
                namespace,
                shard_key,
                aims: None,
                counts: &self.looks,
            };
            async move { look.read(keys, *levels.get(side)).await.map_err(Unavailable) }
        };
        let (old, new) = futures::join!(read(Side::Old), read(Side::New));
        let (old, new) = (old?, new?);
        let by = route.by(namespace);
        let of_key = |key: &Key| {
            let slots: Vec<_> = old
                .copies(key)
                .chain(new.copies(key))
                .filter_map(|document| by.of_document(document))
                .collect();
            let owner = owner(slots.iter().map(|slot| route.authority(*slot)));
            (key.clone(), (owner, slots.into_iter().collect()))
        };
        Ok(keys.iter().map(of_key).collect())
    }
}

fn group(
    namespace: &Namespace,
    route: &MigrationRoute,
    authority: Side,
    keys: Vec<Key>,
    slots: SlotSet,
) -> Group {
    let mixed = route.sole_authority().is_none();
    Group {
        authority,
        keys,
        slots,
        shard_keys: PerSide::from_fn(|side| route.shard_keys.get(side).get(namespace).cloned()),
        told_by: Told::of(route, namespace, *route.owned_by(authority)).filter(|_| mixed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::canonical::key_of;
    use bson::raw::RawBsonRef;
    use bson::rawdoc;

    /// What was looked at to sort the keys may be another document by the time of the write.
    #[test]
    fn a_document_of_another_tenant_is_not_touched() {
        let key = key_of(RawBsonRef::Int32(1)).unwrap();
        let tenant = RouteKey::parse("tenant").unwrap();
        let (mine, other) = (rawdoc! { "_id": 1, "tenant": 7 }, rawdoc! { "_id": 1, "tenant": 8 });
        let slots: SlotSet =
            By::new(Some(&tenant), &KeyRanges::none()).of_document(&mine).into_iter().collect();
        let group = |told_by| Group {
            authority: Side::Old,
            keys: vec![key.clone()],
            slots,
            shard_keys: PerSide::default(),
            told_by,
        };
        let documents = |document: &RawDocument| Documents::of([document.to_owned()]);
        let divided = group(Some(Told { field: tenant.clone(), ranges: Arc::default(), slots }));
        let (of_mine, of_other, none) = (documents(&mine), documents(&other), Documents::default());
        assert!(divided.owns_all(&key, [&of_mine, &of_mine]) && divided.owns_all(&key, [&none, &of_mine]));
        assert!(divided.owns_all(&key, [&none, &none]));
        assert!(
            !divided.owns_all(&key, [&of_mine, &of_other]) && !divided.owns_all(&key, [&of_other, &none])
        );
        // With one authority, or by `_id`, it is the key's.
        assert!(group(None).owns_all(&key, [&of_mine, &of_other]));
    }
}
