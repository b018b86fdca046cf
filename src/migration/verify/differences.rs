//! Comparing what collections are: options, indexes, shard keys.

use std::collections::BTreeMap;
use std::time::Duration;

use bson::rawdoc;
use parking_lot::Mutex;

use super::Run;
use super::tally::Tally;
use crate::cluster::command::Request;
use crate::migration::catalog::{describe, question};
use crate::migration::context::Context;
use crate::migration::control::{ControlError, Mismatch, Refusal};
use crate::migration::engine::unavailable;
use crate::migration::sharding::key_of;
use crate::model::namespace::Namespace;
use crate::model::side::Side;
use crate::policy::catalog::{Collection, comparable_options, creation_options};
use crate::policy::shard_key::ShardKey;

const LIMIT: Duration = Duration::from_secs(30);

/// Whether both clusters can make digests.
///
/// # Errors
/// [`Refusal::Conflict`] when one cannot, [`Refusal::Unavailable`] when one does not answer.
pub async fn digests_or_refused(ctx: &Context) -> Result<(), ControlError> {
    let Some(namespace) = ctx.scope.known().into_iter().next() else { return Ok(()) };
    for side in Side::BOTH {
        let body = rawdoc! {
            "find": namespace.collection(), "limit": 1, "singleBatch": true,
            "projection": { "hash": { "$toHashedIndexKey": "$_id" } },
        };
        let request = Request::new(namespace.database(), body).within(LIMIT);
        let Err(error) = question(&**ctx.clusters.get(side), request).await else { continue };
        if error.code.is_none() {
            return Err(unavailable(format!("{side}: {error}")));
        }
        let detail = format!(
            "{side} cannot make digests ($toHashedIndexKey, from 5.0 on: {error}); compare by bytes, a sample if \
             all is too much"
        );
        return Err(ControlError::new(Refusal::Conflict, "no-digests", detail));
    }
    Ok(())
}

impl Run<'_> {
    /// Compares options and indexes, and shard keys with those of the start; indexes that only new has force
    /// nothing on anybody, unless unique.
    pub(super) async fn compare_catalogs(&self, namespace: &Namespace) -> Result<(), String> {
        let on = async |side: Side| {
            let described = describe(&**self.ctx.clusters.get(side), namespace, LIMIT).await;
            let described = described.map_err(|error| format!("{namespace} on {side}: {error}"))?;
            described.ok_or_else(|| format!("{namespace} is not on {side} any more"))
        };
        let (old, new) = (on(Side::Old).await?, on(Side::New).await?);
        let mut found = differences(&old, &new);
        for side in Side::BOTH {
            if let Some(recorded) = self.recorded_key(namespace, side)
                && key_of(&**self.ctx.clusters.get(side), namespace).await?.as_ref() != Some(&recorded)
            {
                found.insert(format!("shard key on {side}"), "shard_key");
            }
        }
        for (key, kind) in found {
            let mismatch = Mismatch {
                namespace: namespace.as_str().to_owned(),
                key,
                kind: kind.to_owned(),
                paths: Vec::new(),
                repaired: false,
                at: self.ctx.clock.wall_millis(),
            };
            self.tell(&Mutex::new(Tally::default()), mismatch);
        }
        Ok(())
    }

    /// By what the collection was sharded when the migration started.
    fn recorded_key(&self, namespace: &Namespace, side: Side) -> Option<ShardKey> {
        let record = self.ctx.authorities.get(side).known()?;
        let of = record.shard_keys.get(side).iter().find(|of| of.namespace == namespace.as_str())?;
        Some(of.key.clone().into())
    }
}

/// Names of options and indexes that differ, with the kind of difference.
fn differences(old: &Collection, new: &Collection) -> BTreeMap<String, &'static str> {
    let mut differences = BTreeMap::new();
    let options = |collection: &Collection| comparable_options(&creation_options(&collection.options));
    let (of_old, of_new) = (options(old), options(new));
    for name in of_old.keys().chain(of_new.keys()).filter(|name| of_old.get(*name) != of_new.get(*name)) {
        differences.insert(name.clone(), "option");
    }
    for index in old.indexes.iter().filter(|index| !index.is_implied()) {
        let twin = new.indexes.iter().find(|twin| twin.name() == index.name());
        if !twin.is_some_and(|twin| twin.same_as(index) && !twin.building) {
            differences.insert(index.name().to_owned(), "index");
        }
    }
    for index in new.indexes.iter().filter(|index| !index.is_implied() && index.is_unique()) {
        if !old.indexes.iter().any(|twin| twin.name() == index.name()) {
            differences.insert(index.name().to_owned(), "index");
        }
    }
    differences
}
