//! Bringing back what only new has acknowledged, after a rollback without it: the one time that a cluster is written
//! which has the authority itself.

use std::sync::Arc;

use bson::raw::RawDocumentBuf;

use super::converger::{Converger, Order, Report, Stuck, Unavailable};
use super::looks::Look;
use super::owners::{Group, Told};
use super::read::Level;
use super::round::Round;
use super::witness::Witness;
use crate::model::key::Key;
use crate::model::namespace::Namespace;
use crate::model::side::{PerSide, Side};
use crate::model::slots::SlotSet;
use crate::state::inflight::Work;

/// Failed guards after which a key counts as one that cannot be brought back.
const MOST_TRIES: u32 = 20;

impl Converger {
    /// Makes old equal to new for `keys` of `slots`, one chunk at a time. Nobody else writes the keys through this
    /// process meanwhile. `witness` sees each document of old that is about to change, and refuses it where the
    /// application has written it there since.
    ///
    /// # Errors
    /// [`Unavailable`]: a cluster did not answer, or the witness refused; some may have been brought back.
    pub async fn bring_back(
        &self,
        namespace: &Namespace,
        keys: Vec<Key>,
        slots: &SlotSet,
        witness: Arc<dyn Witness>,
    ) -> Result<Report, Unavailable> {
        let mut report = Report::default();
        let _lanes = self.lanes.take(namespace.as_str(), &keys).await;
        let what: Arc<str> = format!("bringing back {namespace}").into();
        let ticket = self.inflight.enter(&self.migration, *slots, Work::Converge, &what);
        let Some(route) = ticket.table.route(namespace.as_str()) else { return Ok(report) };
        let shard_keys = PerSide::from_fn(|side| route.shard_keys.get(side).get(namespace).cloned());
        let told_by = Told::of(route, namespace, *slots).filter(|_| *slots != SlotSet::ALL);
        let order = Order { witness: Some(witness), ..Order::durable(PerSide::default()) };
        let mut pending = keys;
        let mut tries = 0;
        while !pending.is_empty() {
            let group = Group {
                authority: Side::New,
                keys: pending,
                slots: *slots,
                shard_keys: shard_keys.clone(),
                told_by: told_by.clone(),
            };
            let round = Round { converger: self, clusters: &self.clusters, namespace, order: &order, tries };
            pending = round.run(group, &mut report).await?;
            tries += 1;
            if tries >= MOST_TRIES {
                let why = "it keeps changing on old";
                report.stuck.extend(pending.drain(..).map(|key| Stuck { key, why: why.into() }));
            }
        }
        Ok(report)
    }

    /// Of `keys`, those with a document of `slots` on either side: where only the documents tell.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn only_in(
        &self,
        namespace: &Namespace,
        keys: Vec<Key>,
        slots: &SlotSet,
    ) -> Result<Vec<Key>, Unavailable> {
        let table = self.inflight.routing().load();
        let Some(route) = table.route(namespace.as_str()) else { return Ok(keys) };
        if route.by(namespace).field().is_none() || *slots == SlotSet::ALL {
            let mine = |key: &Key| slots.meets(&route.slots_of_key(namespace, key));
            return Ok(keys.into_iter().filter(mine).collect());
        }
        let levels = PerSide::from_fn(|_| Level::Majority(None));
        let owners = self.owners(&self.clusters, namespace, &keys, route, levels).await?;
        let mine = |key: &Key| owners.get(key).is_some_and(|(_, found)| found.meets(slots));
        Ok(keys.into_iter().filter(mine).collect())
    }

    /// What new has of `keys`, each with its document, if there is one.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn on_new(
        &self,
        namespace: &Namespace,
        keys: Vec<Key>,
    ) -> Result<Vec<(Key, Option<RawDocumentBuf>)>, Unavailable> {
        let table = self.inflight.routing().load();
        let shard_key = table.route(namespace.as_str()).and_then(|it| it.shard_keys.new.get(namespace));
        let look =
            Look { cluster: &*self.clusters.new, namespace, shard_key, aims: None, counts: &self.looks };
        let found = look.read(&keys, Level::Majority(None)).await.map_err(Unavailable)?;
        let with = |key: Key| {
            let document = found.get(&key).map(ToOwned::to_owned);
            (key, document)
        };
        Ok(keys.into_iter().map(with).collect())
    }
}
