//! Reading documents by key on a cluster that may be sharded: aimed at the one shard where a document is
//! believed to lie, or asked of all shards.
//!
//! What an aimed read finds is a document of that key; others of the same `_id` on other shards it does not
//! meet. So only the inline path aims, in its first look: the streams' looks, which are the guarantee, ask all
//! shards, as does any look after a failed guard, an insertion or a deletion.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use bson::raw::{RawDocumentBuf, cstr};
use bson::rawdoc;
use futures::future::try_join_all;

use super::read::{Documents, Level, read, read_where};
use crate::cluster::command::Commands;
use crate::model::key::Key;
use crate::model::namespace::Namespace;
use crate::model::side::PerSide;
use crate::policy::shard_key::{Place, ShardKey};

/// More keys than this are asked for together: they lie on most shards anyway.
const MOST_AIMED: usize = 3;

/// Where documents are believed to lie on each cluster, by what the application's write says.
pub type Aims = PerSide<HashMap<Key, Place>>;

/// Reads by key on sharded collections, of all drivers.
#[derive(Debug, Default)]
pub struct Looks {
    /// Aimed at one shard.
    pub targeted: AtomicU64,
    /// Sent to all shards.
    pub broadcast: AtomicU64,
}

/// How to read one collection on one cluster.
pub(super) struct Look<'a> {
    pub(super) cluster: &'a dyn Commands,
    pub(super) namespace: &'a Namespace,
    /// By what the collection is sharded there.
    pub(super) shard_key: Option<&'a ShardKey>,
    /// Where documents are believed to lie there.
    pub(super) aims: Option<&'a HashMap<Key, Place>>,
    pub(super) counts: &'a Looks,
}

impl Look<'_> {
    /// Reads the documents of `keys`.
    ///
    /// # Errors
    /// In words, why there is no answer.
    pub(super) async fn read(&self, keys: &[Key], level: Level) -> Result<Documents, String> {
        let Some(shard_key) = self.shard_key else { return self.read_all(keys, level).await };
        if shard_key.is_id() {
            self.counts.targeted.fetch_add(1, Ordering::Relaxed);
            return self.read_all(keys, level).await;
        }
        let place = |key| self.aims.filter(|_| keys.len() <= MOST_AIMED)?.get(key);
        let (aimed, mut others): (Vec<&Key>, Vec<&Key>) = keys.iter().partition(|key| place(*key).is_some());
        let reads = aimed.iter().filter_map(|key| Some(self.read_at(key, place(*key)?, shard_key, level)));
        let mut documents = Documents::default();
        for found in try_join_all(reads).await? {
            documents.merge(found);
        }
        // It may have moved since.
        others.extend(aimed.into_iter().filter(|key| documents.get(key).is_none()));
        if !others.is_empty() {
            let others: Vec<Key> = others.into_iter().cloned().collect();
            self.counts.broadcast.fetch_add(1, Ordering::Relaxed);
            documents.merge(self.read_all(&others, level).await?);
        }
        Ok(documents)
    }

    async fn read_all(&self, keys: &[Key], level: Level) -> Result<Documents, String> {
        read(self.cluster, self.namespace, keys, level).await
    }

    async fn read_at(
        &self,
        key: &Key,
        place: &Place,
        shard_key: &ShardKey,
        level: Level,
    ) -> Result<Documents, String> {
        self.counts.targeted.fetch_add(1, Ordering::Relaxed);
        let mut equal = RawDocumentBuf::new();
        equal.append(cstr!("$eq"), key.value());
        let mut filter = rawdoc! { "_id": equal };
        shard_key.aim_at(&mut filter, place);
        read_where(self.cluster, self.namespace, filter, level).await
    }
}
