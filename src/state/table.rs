//! The routing table: one immutable snapshot, read with one atomic load.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::switched::Off;
use crate::model::key::Key;
use crate::model::moves::Move;
use crate::model::namespace::Namespace;
use crate::model::pattern::Pattern;
use crate::model::phase::Phase;
use crate::model::side::{PerSide, Side};
use crate::model::slots::{Slot, SlotSet};
use crate::policy::key_ranges::KeyRanges;
use crate::policy::route_key::{By, RouteKey};
use crate::policy::shard_key::ShardKey;

/// How one migration routes its namespaces.
#[derive(Debug, Clone)]
pub struct MigrationRoute {
    /// The migration's name.
    pub name: Arc<str>,
    /// Version of everything below as stored with the clusters.
    pub epoch: u64,
    /// Where it is in its life.
    pub phase: Phase,
    /// Slots that old owns, by its own record.
    pub owned_by_old: SlotSet,
    /// Slots that new owns, by its own record.
    pub owned_by_new: SlotSet,
    /// The cluster whose record this process has not read yet: what it owns is not known.
    pub unread: Option<Side>,
    /// Slots whose reads new serves.
    pub reads_on_new: SlotSet,
    /// For what every read goes to its authority all the same.
    pub reads_off: Arc<Off>,
    /// A fence is open on these: writes to them wait.
    pub held: SlotSet,
    /// A fence is about to commit on these: converging them waits too.
    pub sealed: SlotSet,
    /// Old has taken these back without new: what only new has of them is yet to be brought back, and nothing is
    /// converged.
    pub returning: SlotSet,
    /// The epoch that brought that; 0 without it.
    pub taken_back_at: u64,
    /// Moves that a retried write may have been caught by, oldest first.
    pub moves: Vec<Move>,
    /// Replies wait for the mirror (a read can meet it).
    pub ack_both: bool,
    /// By what each cluster has sharded its collections.
    pub shard_keys: Arc<ShardKeys>,
    /// What may come into being and is part of it then.
    pub patterns: Arc<[Pattern]>,
    /// What slots are computed from, where it is not the `_id`.
    pub route_keys: Arc<RouteKeys>,
    /// Ranges of keys that are slots of their own.
    pub key_ranges: Arc<KeyRanges>,
}

/// Fields from which slots are computed, by namespace.
pub type RouteKeys = HashMap<Namespace, RouteKey>;

/// Shard keys on each cluster, by namespace; collections that are not sharded have none.
pub type ShardKeys = PerSide<HashMap<Namespace, ShardKey>>;

impl MigrationRoute {
    /// One that owns nothing yet.
    #[cfg(test)]
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self {
            name: name.into(),
            epoch: 1,
            phase: Phase::Synced,
            owned_by_old: SlotSet::EMPTY,
            owned_by_new: SlotSet::EMPTY,
            unread: None,
            reads_on_new: SlotSet::EMPTY,
            reads_off: Arc::default(),
            held: SlotSet::EMPTY,
            sealed: SlotSet::EMPTY,
            returning: SlotSet::EMPTY,
            taken_back_at: 0,
            moves: Vec::new(),
            ack_both: false,
            shard_keys: Arc::default(),
            patterns: Arc::default(),
            route_keys: Arc::default(),
            key_ranges: Arc::default(),
        }
    }

    /// What the slots of `namespace` are computed from.
    #[must_use]
    pub fn by(&self, namespace: &Namespace) -> By<'_> {
        let is_any = !self.route_keys.is_empty();
        By::new(is_any.then(|| self.route_keys.get(namespace)).flatten(), &self.key_ranges)
    }

    /// [`Self::by`], by the parts of a name.
    #[must_use]
    pub fn by_name(&self, database: &str, collection: &str) -> By<'_> {
        if self.route_keys.is_empty() {
            return By::new(None, &self.key_ranges);
        }
        self.by(&Namespace::new(database, collection))
    }

    /// The cluster that owns the document of a key; `None` also where only the document could tell.
    #[must_use]
    pub fn authority_of_key(&self, namespace: &Namespace, key: &Key) -> Option<Side> {
        match self.by(namespace).of_key(key) {
            Some(slot) => self.authority(slot),
            None => self.sole_authority(),
        }
    }

    /// Slots in which the document of a key can lie.
    #[must_use]
    pub fn slots_of_key(&self, namespace: &Namespace, key: &Key) -> SlotSet {
        self.by(namespace).of_key(key).map_or(SlotSet::ALL, |slot| std::iter::once(slot).collect())
    }

    /// The cluster that owns `slot`; `None` while the clusters' records disagree.
    #[must_use]
    pub fn authority(&self, slot: Slot) -> Option<Side> {
        match (self.owned_by_old.contains(slot), self.owned_by_new.contains(slot)) {
            (true, false) => Some(Side::Old),
            (false, true) => Some(Side::New),
            _ => None,
        }
    }

    /// The cluster that owns every slot; `None` while authority is mixed or in doubt.
    #[must_use]
    pub fn sole_authority(&self) -> Option<Side> {
        match (self.owned_by_old == SlotSet::ALL, self.owned_by_new == SlotSet::ALL) {
            (true, _) if self.owned_by_new.is_empty() => Some(Side::Old),
            (_, true) if self.owned_by_old.is_empty() => Some(Side::New),
            _ => None,
        }
    }

    /// Slots that exactly one cluster owns, as far as is known. Nobody may work on others: their records
    /// disagree, or one was read before a move and the other after it.
    #[must_use]
    pub fn settled(&self) -> SlotSet {
        let both = self.owned_by_old.and(&self.owned_by_new);
        self.owned_by_old.or(&self.owned_by_new).minus(&both)
    }

    /// Slots whose reads new serves now, in a collection by the parts of its name.
    #[must_use]
    pub fn read_on_new(&self, named: Option<(&str, &str)>) -> SlotSet {
        let off = &self.reads_off;
        let is_named = |(database, collection)| off.is_for(Namespace::new(database, collection).as_str());
        let is_off = off.all || (off.is_for_any() && named.is_some_and(is_named));
        if is_off { self.owned_by_new } else { self.reads_on_new }
    }

    /// The moves after which a late attempt of a write does not count. While what only new has is yet to be brought
    /// back, one that names its document may come late: the document has changed on both then, and what old has stands.
    /// One that does not may meet another document there: to it, that is a move.
    #[must_use]
    pub fn moves_of(&self, names_its_document: bool) -> Cow<'_, [Move]> {
        match self.taken_back().filter(|_| !names_its_document) {
            None => Cow::Borrowed(&self.moves),
            Some(taken_back) => Cow::Owned(self.moves.iter().cloned().chain([taken_back]).collect()),
        }
    }

    /// What old has taken back without new, as the move that it is to a retry: new may have executed it, and the mirror
    /// may have had it since.
    #[must_use]
    pub fn taken_back(&self) -> Option<Move> {
        let (slots, epoch) = (self.returning, self.taken_back_at);
        (!slots.is_empty()).then_some(Move { slots, former: Side::New, epoch, at: 0, markers: None })
    }

    /// Slots of `side`.
    #[must_use]
    pub const fn owned_by(&self, side: Side) -> &SlotSet {
        match side {
            Side::Old => &self.owned_by_old,
            Side::New => &self.owned_by_new,
        }
    }

    /// Whether both say the same about what is stored.
    #[must_use]
    pub fn agrees_with(&self, other: &Self) -> bool {
        let stored = |route: &Self| {
            (
                (route.epoch, route.phase, route.held, Arc::clone(&route.reads_off), route.returning),
                (route.owned_by_old, route.owned_by_new, route.reads_on_new, route.unread),
            )
        };
        stored(self) == stored(other) && self.moves == other.moves
    }

    /// Whether one of its patterns names a collection.
    #[must_use]
    pub fn names(&self, database: &str, collection: &str) -> bool {
        self.patterns.iter().any(|pattern| pattern.names(database, collection))
    }

    /// Writes go to both clusters.
    #[must_use]
    pub const fn mirrors(&self) -> bool {
        self.phase.mirrors()
    }
}

/// All migrations by namespace.
#[derive(Debug, Clone, Default)]
pub struct RoutingTable {
    /// Rises with every publication in this process.
    pub version: u64,
    /// The migration of each namespace that has one.
    pub routes: HashMap<Namespace, Arc<MigrationRoute>>,
    /// Every migration with patterns.
    pub patterned: Vec<Arc<MigrationRoute>>,
}

impl RoutingTable {
    /// Whether anything moves, or has moved, to the other cluster.
    #[must_use]
    pub fn moves_anything(&self) -> bool {
        self.routes.values().chain(&self.patterned).any(|route| route.phase != Phase::Aborted)
    }

    /// The migration that moves `namespace` (`database.collection`), if one does.
    #[must_use]
    pub fn route(&self, namespace: &str) -> Option<&Arc<MigrationRoute>> {
        let known = self.routes.get(namespace);
        if known.is_some() || self.patterned.is_empty() {
            return known;
        }
        // Once it is completed, what its patterns name belongs where it has gone.
        self.by_pattern(namespace).filter(|route| route.phase.is_over())
    }

    /// The migration under way that `namespace` is to become part of as soon as it exists.
    #[must_use]
    pub fn awaiting(&self, namespace: &str) -> Option<&Arc<MigrationRoute>> {
        if self.patterned.is_empty() || self.routes.contains_key(namespace) {
            return None;
        }
        self.by_pattern(namespace).filter(|route| !route.phase.is_over())
    }

    fn by_pattern(&self, namespace: &str) -> Option<&Arc<MigrationRoute>> {
        let (database, collection) = namespace.split_once('.')?;
        self.patterned.iter().find(|route| route.names(database, collection))
    }

    /// Routes `namespaces`, and what its patterns name, by `route`.
    pub fn put(&mut self, namespaces: &[Namespace], route: &Arc<MigrationRoute>) {
        for namespace in namespaces {
            self.routes.insert(namespace.clone(), Arc::clone(route));
        }
        self.patterned.retain(|known| known.name != route.name);
        if !route.patterns.is_empty() {
            self.patterned.push(Arc::clone(route));
        }
    }

    /// Forgets a migration.
    pub fn remove(&mut self, migration: &str) {
        self.routes.retain(|_, route| &*route.name != migration);
        self.patterned.retain(|route| &*route.name != migration);
    }
}

/// Publishes routing tables to everybody in the process.
#[derive(Debug)]
pub struct Routing {
    table: ArcSwap<RoutingTable>,
    version: watch::Sender<u64>,
    /// Older tables that somebody may still go by.
    replaced: Mutex<Vec<Weak<RoutingTable>>>,
}

impl Default for Routing {
    fn default() -> Self {
        Self { table: ArcSwap::default(), version: watch::Sender::new(0), replaced: Mutex::default() }
    }
}

impl Routing {
    /// The table now.
    #[must_use]
    pub fn load(&self) -> Arc<RoutingTable> {
        self.table.load_full()
    }

    /// The table now, for a look that ends at once.
    pub fn peek(&self) -> arc_swap::Guard<Arc<RoutingTable>> {
        self.table.load()
    }

    /// Replaces the table by what `change` makes of it; returns the new version.
    pub fn publish(&self, change: impl FnOnce(&mut RoutingTable)) -> u64 {
        let mut published = 0;
        // The watch's lock makes publications one at a time.
        self.version.send_modify(|version| {
            let mut table = RoutingTable::clone(&self.table.load());
            change(&mut table);
            table.version = *version + 1;
            published = table.version;
            let before = self.table.swap(Arc::new(table));
            let mut replaced = self.replaced.lock();
            replaced.retain(|table| table.strong_count() > 0);
            replaced.push(Arc::downgrade(&before));
            *version = published;
        });
        published
    }

    /// Replaces the route of every namespace in `namespaces`, and of what its patterns name.
    pub fn publish_route(&self, namespaces: &[Namespace], route: &MigrationRoute) -> u64 {
        let route = Arc::new(route.clone());
        self.publish(|table| table.put(namespaces, &route))
    }

    /// Whether somebody still holds an older table: operations that began before a migration was known hold
    /// the table that they went by.
    #[must_use]
    pub fn anybody_goes_by_older(&self) -> bool {
        let mut replaced = self.replaced.lock();
        replaced.retain(|table| table.strong_count() > 0);
        !replaced.is_empty()
    }

    /// Waits until a table newer than `version` is there.
    pub async fn changed_since(&self, version: u64) {
        let mut versions = self.version.subscribe();
        // The sender lives in self, so that waiting cannot fail.
        let _newer = versions.wait_for(|now| *now > version).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::canonical::key_of;

    fn route(phase: Phase) -> Arc<MigrationRoute> {
        Arc::new(MigrationRoute {
            name: "m".into(),
            epoch: 1,
            phase,
            owned_by_old: SlotSet::EMPTY,
            owned_by_new: SlotSet::ALL,
            unread: None,
            reads_on_new: SlotSet::ALL,
            reads_off: Arc::default(),
            held: SlotSet::EMPTY,
            sealed: SlotSet::EMPTY,
            returning: SlotSet::EMPTY,
            taken_back_at: 0,
            moves: Vec::new(),
            ack_both: true,
            shard_keys: Arc::default(),
            patterns: [Pattern::parse("shop.*").unwrap()].into(),
            route_keys: Arc::default(),
            key_ranges: Arc::default(),
        })
    }

    #[test]
    fn what_a_pattern_names_is_awaited_while_it_runs_and_routed_once_it_is_completed() {
        let mut table = RoutingTable::default();
        table.put(&[Namespace::new("shop", "a")], &route(Phase::Synced));
        assert!(table.route("shop.a").is_some() && table.awaiting("shop.a").is_none());
        assert!(table.route("shop.b").is_none() && table.awaiting("shop.b").is_some());
        assert!(table.awaiting("stop.b").is_none() && table.awaiting("shop.system.views").is_none());
        table.put(&[Namespace::new("shop", "a")], &route(Phase::Completed));
        assert_eq!(table.patterned.len(), 1);
        assert!(table.route("shop.b").is_some() && table.awaiting("shop.b").is_none());
        table.remove("m");
        assert!(table.route("shop.a").is_none() && table.route("shop.b").is_none());
    }

    #[test]
    fn where_only_a_document_tells_a_key_may_lie_anywhere() {
        let (tenants, others) = (Namespace::new("shop", "a"), Namespace::new("shop", "b"));
        let tenant = RouteKey::parse("tenant").unwrap();
        let half = SlotSet::percent(50);
        let route = MigrationRoute {
            owned_by_old: SlotSet::ALL.minus(&half),
            owned_by_new: half,
            route_keys: Arc::new([(tenants.clone(), tenant)].into()),
            ..MigrationRoute::named("m")
        };
        let document = bson::rawdoc! { "_id": 1, "tenant": "a" };
        let key = key_of(document.get("_id").unwrap().unwrap()).unwrap();
        // Whatever moves, a parked key of such a collection may be part of it.
        assert_eq!(route.slots_of_key(&tenants, &key), SlotSet::ALL);
        assert_eq!(route.slots_of_key(&others, &key).len(), 1);
        assert_eq!(route.authority_of_key(&tenants, &key), None);
        // 362 and 533, see `slots_are_pinned`.
        assert_eq!(route.authority_of_key(&others, &key), Some(Side::New));
        let sole = MigrationRoute { owned_by_old: SlotSet::ALL, owned_by_new: SlotSet::EMPTY, ..route };
        assert_eq!(sole.authority_of_key(&tenants, &key), Some(Side::Old));
    }

    /// What comes late on new is judged by its document when new is there again.
    #[test]
    fn while_new_is_away_only_a_late_write_that_names_no_document_is_held_against_it() {
        let back = SlotSet::percent(50);
        let route = MigrationRoute { returning: back, taken_back_at: 7, ..MigrationRoute::named("m") };
        assert!(route.moves_of(true).is_empty());
        let moves = route.moves_of(false);
        assert_eq!((moves.len(), moves[0].slots, moves[0].former, moves[0].epoch), (1, back, Side::New, 7));
        assert_eq!(route.taken_back().as_ref(), moves.first());
        assert!(MigrationRoute::named("m").moves_of(false).is_empty());
    }

    #[test]
    fn whoever_went_by_an_older_table_is_known_until_done() {
        let routing = Routing::default();
        let held = routing.load();
        routing.publish(|_| ());
        assert!(routing.anybody_goes_by_older());
        drop(held);
        assert!(!routing.anybody_goes_by_older());
    }
}
