//! Making the collections on new like those on old, and taking that back.
//!
//! In two steps, so that a crash in between loses nothing: [`plan`] only looks, its answer is stored, and
//! [`prepare`] does what was stored, as often as it is called. The plan holds what cannot be found out later:
//! what was on new before, and the seconds of TTL indexes, which are suspended while both sides are written.

use std::time::Duration;

use bson::raw::{RawDocumentBuf, cstr};
use bson::{Document, RawDocument, rawdoc};
use serde::{Deserialize, Serialize};

use super::catalog::{Unanswered, describe, question};
use super::control::{NamespaceSpec, Placement};
use super::sharding::{Added, Layout, chosen_primary, make_database, shard, take_zones_back, zones_of};
use super::ttl;
use crate::cluster::command::{Commands, Request, SharedCluster};
use crate::converge::shards;
use crate::model::namespace::Namespace;
use crate::model::side::PerSide;
use crate::policy::catalog::{Collection, comparable_options, creation_options};
use crate::policy::route_key::RouteKey;
use crate::policy::shard_key::{ShardKey, StoredKey};
use crate::policy::zones::{StoredZone, Zone};
use crate::state::records::write_concern_problem;

/// How long one command may take; building indexes on an empty collection is quick.
const LIMIT: Duration = Duration::from_secs(30);
const NAMESPACE_EXISTS: i32 = 48;
const NAMESPACE_NOT_FOUND: i32 = 26;
const INDEX_NOT_FOUND: i32 = 27;

/// What is made on new for one collection, and what has to be put back one day.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Created {
    /// `database.collection`.
    pub namespace: String,
    /// It was not on new before.
    pub collection_created: bool,
    /// Indexes that were not on new before, by name, where the collection was.
    pub indexes_created: Vec<String>,
    /// TTL indexes by name, each with its seconds.
    pub ttl: Vec<(String, i64)>,
    /// By what it is to be sharded on new.
    #[serde(default)]
    pub shard_key: Option<StoredKey>,
    /// By which field it is divided, if not by `_id`.
    #[serde(default)]
    pub route_key: Option<String>,
    /// Into how many chunks it is cut there.
    #[serde(default)]
    pub initial_chunks: Option<u32>,
    /// Which parts belong on which shards.
    #[serde(default)]
    pub zones: Vec<StoredZone>,
    /// Shards that were not in one of its zones before, each with the zone.
    #[serde(default)]
    pub zones_joined: Vec<(String, String)>,
    /// Those of its zones that it had not before.
    #[serde(default)]
    pub ranges_made: Vec<StoredZone>,
    /// The shard of its database on new, where new is sharded: without a shard key it lies there.
    #[serde(default)]
    pub primary_shard: Option<String>,
}

/// A collection that is to move, and how it is to lie on new.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// Which.
    pub namespace: Namespace,
    /// By what it is to be sharded there.
    pub shard_key: Option<ShardKey>,
    /// By which field it is divided, if not by `_id`.
    pub route_key: Option<RouteKey>,
    /// Into how many chunks it is cut there.
    pub initial_chunks: Option<u32>,
    /// Which parts belong on which shards.
    pub zones: Vec<Zone>,
}

impl From<Namespace> for Wanted {
    fn from(namespace: Namespace) -> Self {
        Self { namespace, shard_key: None, route_key: None, initial_chunks: None, zones: Vec::new() }
    }
}

impl Wanted {
    /// As an operator asks for it, by its name or by a pattern.
    #[must_use]
    pub fn with(namespace: Namespace, spec: &NamespaceSpec) -> Self {
        let NamespaceSpec { shard_key, initial_chunks, zones, .. } = spec.clone();
        let route_key = spec.route_key.as_ref().and_then(|field| RouteKey::parse(field).ok());
        Self { namespace, shard_key, route_key, initial_chunks, zones }
    }
}

impl Created {
    /// The namespace, parsed.
    ///
    /// # Errors
    /// In words, when a stored one does not read.
    pub fn parsed(&self) -> Result<Namespace, String> {
        Namespace::parse(&self.namespace).ok_or_else(|| format!("{:?} is no namespace", self.namespace))
    }

    /// The same, where it was planned before and that may have been done in part: what is there by now is
    /// not what was there before, and TTL indexes may be suspended.
    #[must_use]
    pub fn after(mut self, before: Option<Self>) -> Self {
        let Some(before) = before else { return self };
        self.collection_created |= before.collection_created;
        self.indexes_created.extend(before.indexes_created);
        self.indexes_created.dedup();
        self.zones_joined.extend(before.zones_joined);
        self.ranges_made.extend(before.ranges_made);
        for (name, seconds) in &mut self.ttl {
            let known = before.ttl.iter().find(|(of, _)| of == name);
            *seconds = known.map_or(*seconds, |(_, seconds)| *seconds);
        }
        self
    }

    /// Where it lies on new.
    #[must_use]
    pub fn placement(&self) -> Placement {
        Placement {
            namespace: self.namespace.clone(),
            shard_key: self.shard_key.clone().map(ShardKey::from),
            route_key: self.route_key.clone(),
            primary_shard: self.primary_shard.clone(),
        }
    }
}

/// Finds out what [`prepare`] has to do. Changes nothing; to be called once, and its answer to be stored
/// before [`prepare`] is called: afterwards the seconds of TTL indexes cannot be found out any more.
///
/// # Errors
/// In words, why a cluster cannot tell.
pub async fn plan(clusters: &PerSide<SharedCluster>, wanted: &[Wanted]) -> Result<Vec<Created>, String> {
    let mut plan = Vec::with_capacity(wanted.len());
    let sharded = shards::is_sharded(&*clusters.new).await?;
    for Wanted { namespace, shard_key, route_key, initial_chunks, zones } in wanted {
        let source = source(clusters, namespace).await?;
        let target = on(&*clusters.new, namespace).await?;
        let ttl = source.indexes.iter().filter(|index| index.is_ttl());
        let ttl = ttl.map(|index| match index.ttl() {
            Some(seconds) => Ok((index.name().to_owned(), seconds)),
            None => Err(format!("TTL index {} of {namespace} has no number of seconds", index.name())),
        });
        let known =
            |name: &str| target.as_ref().is_some_and(|it| it.indexes.iter().any(|of| of.name() == name));
        let lacking = source.indexes.iter().filter(|index| !index.is_implied() && !known(index.name()));
        let primary_shard = match sharded {
            true => chosen_primary(&*clusters.new, namespace.database()).await?,
            false => None,
        };
        let (ranges_made, zones_joined) = lacking_zones(&*clusters.new, namespace, zones).await?;
        plan.push(Created {
            namespace: namespace.as_str().to_owned(),
            collection_created: target.is_none(),
            indexes_created: lacking.map(|index| index.name().to_owned()).collect(),
            ttl: ttl.collect::<Result<_, _>>()?,
            shard_key: shard_key.clone().map(StoredKey::from),
            route_key: route_key.as_ref().map(|key| key.field().to_owned()),
            initial_chunks: *initial_chunks,
            zones: zones.iter().cloned().map(StoredZone::from).collect(),
            zones_joined,
            ranges_made,
            primary_shard,
        });
    }
    Ok(plan)
}

/// What of `zones` is not on new yet: ranges, and shards in zones.
async fn lacking_zones(
    new: &dyn Commands,
    namespace: &Namespace,
    zones: &[Zone],
) -> Result<(Vec<StoredZone>, Vec<(String, String)>), String> {
    if zones.is_empty() {
        return Ok(Default::default());
    }
    let (ranges, members) = zones_of(new, namespace).await?;
    let ranges = zones.iter().filter(|zone| !ranges.iter().any(|range| range.same_range(zone)));
    let pairs =
        zones.iter().flat_map(|zone| zone.shards.iter().map(|shard| (shard.clone(), zone.zone.clone())));
    let mut joined: Vec<(String, String)> = pairs.filter(|pair| !members.contains(pair)).collect();
    joined.dedup();
    Ok((ranges.cloned().map(StoredZone::from).collect(), joined))
}

/// Makes on new what the plan says, and suspends TTL on both sides. Harmless to repeat.
///
/// # Errors
/// In words, what a cluster refused or did not answer; what is done stays done.
pub async fn prepare(clusters: &PerSide<SharedCluster>, plan: &[Created]) -> Result<(), String> {
    for created in plan {
        let namespace = created.parsed()?;
        let source = source(clusters, &namespace).await?;
        if let Some(primary) = &created.primary_shard {
            make_database(&*clusters.new, namespace.database(), primary).await?;
        }
        let target = make(&*clusters.new, &namespace, &source).await?;
        if let Some(key) = &created.shard_key {
            let key = ShardKey::from(key.clone());
            let zones: Vec<Zone> = created.zones.iter().cloned().map(Zone::from).collect();
            let layout = Layout { key: &key, chunks: created.initial_chunks, zones: &zones };
            shard(&*clusters.old, &*clusters.new, &namespace, layout).await?;
        }
        make_indexes(&*clusters.new, &namespace, &source, &target).await?;
        ttl::suspend(&*clusters.new, &namespace, &created.ttl).await?;
        ttl::suspend(&*clusters.old, &namespace, &created.ttl).await?;
    }
    Ok(())
}

async fn on(cluster: &dyn Commands, namespace: &Namespace) -> Result<Option<Collection>, String> {
    describe(cluster, namespace, LIMIT).await.map_err(|error| format!("{namespace}: {error}"))
}

async fn source(clusters: &PerSide<SharedCluster>, namespace: &Namespace) -> Result<Collection, String> {
    on(&*clusters.old, namespace).await?.ok_or_else(|| format!("{namespace} does not exist on old"))
}

/// Makes the collection if it is not there; returns what is there then.
async fn make(
    cluster: &dyn Commands,
    namespace: &Namespace,
    source: &Collection,
) -> Result<Collection, String> {
    if on(cluster, namespace).await?.is_none() {
        let mut body = rawdoc! { "create": namespace.collection() };
        append_all(&mut body, &creation_options(&source.options))?;
        match change(cluster, namespace.database(), body).await {
            // Its answer may have been lost, or another process was faster.
            Err(error) if error.code == Some(NAMESPACE_EXISTS) => {}
            other => other.map_err(|error| format!("creating {namespace} on new: {error}"))?,
        }
    }
    let target = on(cluster, namespace).await?;
    let target = target.ok_or_else(|| format!("{namespace} was dropped on new while it was made"))?;
    let options = |collection: &Collection| comparable_options(&creation_options(&collection.options));
    if target.kind != source.kind || options(&target) != options(source) {
        return Err(format!("{namespace} exists on new with other options than on old"));
    }
    Ok(target)
}

async fn make_indexes(
    cluster: &dyn Commands,
    namespace: &Namespace,
    source: &Collection,
    target: &Collection,
) -> Result<(), String> {
    let mut indexes = bson::raw::RawArrayBuf::new();
    let mut any = false;
    for index in source.indexes.iter().filter(|index| !index.is_implied()) {
        match target.indexes.iter().find(|there| there.name() == index.name()) {
            Some(there) if there.same_as(index) => {}
            Some(_) => {
                return Err(format!("index {} of {namespace} is not the same on new", index.name()));
            }
            None => {
                indexes.push(raw(&index.creation())?);
                any = true;
            }
        }
    }
    if !any {
        return Ok(());
    }
    let body = rawdoc! { "createIndexes": namespace.collection(), "indexes": indexes };
    let made = change(cluster, namespace.database(), body).await;
    made.map_err(|error| format!("indexes of {namespace} on new: {error}"))
}

/// Takes back what [`prepare`] made on new, documents included. What was there before stays.
/// Harmless to repeat.
///
/// # Errors
/// In words, what new refused or did not answer.
pub async fn drop_created(new: &SharedCluster, created: &[Created]) -> Result<(), String> {
    for created in created {
        let namespace = created.parsed()?;
        let (database, collection) = (namespace.database(), namespace.collection());
        if created.collection_created {
            gone(change(&**new, database, rawdoc! { "drop": collection }).await)
                .map_err(|error| format!("dropping {namespace} on new: {error}"))?;
        } else {
            for name in &created.indexes_created {
                let body = rawdoc! { "dropIndexes": collection, "index": name.as_str() };
                gone(change(&**new, database, body).await)
                    .map_err(|error| format!("dropping index {name} of {namespace} on new: {error}"))?;
            }
        }
        // A collection that is gone has taken its ranges along.
        let ranges: Vec<Zone> = match created.collection_created {
            true => Vec::new(),
            false => created.ranges_made.iter().cloned().map(Zone::from).collect(),
        };
        let added = Added { members: &created.zones_joined, ranges: &ranges };
        take_zones_back(&**new, &namespace, added).await?;
    }
    Ok(())
}

/// Puts the seconds of TTL indexes back on one cluster. Indexes and collections that are gone are no error.
/// Harmless to repeat.
///
/// # Errors
/// In words, what the cluster refused or did not answer.
pub async fn restore_ttl(cluster: &SharedCluster, saved: &[Created]) -> Result<(), String> {
    for created in saved.iter().filter(|created| !created.ttl.is_empty()) {
        let namespace = created.parsed()?;
        let Some(there) = on(&**cluster, &namespace).await? else { continue };
        // Seconds are noted before an index gets them; one that never did stays as it is.
        let has_ttl = |name: &str| there.indexes.iter().any(|index| index.name() == name && index.is_ttl());
        let suspended: Vec<_> = created.ttl.iter().filter(|(name, _)| has_ttl(name)).cloned().collect();
        ttl::set(&**cluster, &namespace, &suspended).await?;
    }
    Ok(())
}

/// A command that changes the catalogue, with majority.
pub(super) async fn change(
    cluster: &dyn Commands,
    database: &str,
    mut body: RawDocumentBuf,
) -> Result<(), Unanswered> {
    body.append(cstr!("writeConcern"), rawdoc! { "w": "majority" });
    let reply = question(cluster, Request::new(database, body).within(LIMIT)).await?;
    write_concern_problem(&reply.body).map_or(Ok(()), |problem| Err(Unanswered::malformed(problem)))
}

/// What is gone already is as good as dropped.
pub(super) fn gone(result: Result<(), Unanswered>) -> Result<(), Unanswered> {
    match result {
        Err(error) if matches!(error.code, Some(NAMESPACE_NOT_FOUND | INDEX_NOT_FOUND)) => Ok(()),
        other => other,
    }
}

fn raw(document: &Document) -> Result<RawDocumentBuf, String> {
    RawDocumentBuf::try_from(document).map_err(|error| error.to_string())
}

fn append_all(body: &mut RawDocumentBuf, fields: &Document) -> Result<(), String> {
    let fields = raw(fields)?;
    let fields: &RawDocument = &fields;
    for field in fields {
        let (name, value) = field.map_err(|error| error.to_string())?;
        body.append(name, value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn created(collection_created: bool, ttl: i64) -> Created {
        Created {
            namespace: "shop.c".into(),
            collection_created,
            indexes_created: Vec::new(),
            ttl: vec![("t_1".into(), ttl)],
            shard_key: None,
            route_key: None,
            initial_chunks: None,
            zones: Vec::new(),
            zones_joined: Vec::new(),
            ranges_made: Vec::new(),
            primary_shard: None,
        }
    }

    #[test]
    fn what_was_begun_before_is_taken_back_and_put_back_as_it_was() {
        // Made, and its TTL suspended, before the process died; then planned again.
        let again = created(false, crate::policy::catalog::SUSPENDED).after(Some(created(true, 60)));
        assert_eq!(again, created(true, 60));
        assert_eq!(created(false, 60).after(None), created(false, 60));
    }
}
