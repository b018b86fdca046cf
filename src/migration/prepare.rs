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
use super::control::NamespaceSpec;
use super::sharding::shard;
use super::ttl;
use crate::cluster::command::{Commands, Request, SharedCluster};
use crate::model::namespace::Namespace;
use crate::model::side::PerSide;
use crate::policy::catalog::{Collection, comparable_options, creation_options};
use crate::policy::shard_key::{ShardKey, StoredKey};
use crate::state::records::write_concern_problem;

/// How long one command may take; building indexes on an empty collection is quick.
const LIMIT: Duration = Duration::from_secs(30);
const NAMESPACE_EXISTS: i32 = 48;
const NAMESPACE_NOT_FOUND: i32 = 26;
const INDEX_NOT_FOUND: i32 = 27;

/// What is made on new for one collection, and what has to be put back one day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Into how many chunks it is cut there.
    #[serde(default)]
    pub initial_chunks: Option<u32>,
}

/// A collection that is to move, and how it is to lie on new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Which.
    pub namespace: Namespace,
    /// By what it is to be sharded there.
    pub shard_key: Option<ShardKey>,
    /// Into how many chunks it is cut there.
    pub initial_chunks: Option<u32>,
}

impl From<Namespace> for Wanted {
    fn from(namespace: Namespace) -> Self {
        Self { namespace, shard_key: None, initial_chunks: None }
    }
}

impl Wanted {
    /// As an operator asks for it; `None` for what is no namespace.
    #[must_use]
    pub fn of(spec: &NamespaceSpec) -> Option<Self> {
        let namespace = Namespace::parse(&spec.namespace)?;
        Some(Self { namespace, shard_key: spec.shard_key.clone(), initial_chunks: spec.initial_chunks })
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
}

/// Finds out what [`prepare`] has to do. Changes nothing; to be called once, and its answer to be stored
/// before [`prepare`] is called: afterwards the seconds of TTL indexes cannot be found out any more.
///
/// # Errors
/// In words, why a cluster cannot tell.
pub async fn plan(clusters: &PerSide<SharedCluster>, wanted: &[Wanted]) -> Result<Vec<Created>, String> {
    let mut plan = Vec::with_capacity(wanted.len());
    for Wanted { namespace, shard_key, initial_chunks } in wanted {
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
        plan.push(Created {
            namespace: namespace.as_str().to_owned(),
            collection_created: target.is_none(),
            indexes_created: lacking.map(|index| index.name().to_owned()).collect(),
            ttl: ttl.collect::<Result<_, _>>()?,
            shard_key: shard_key.clone().map(StoredKey::from),
            initial_chunks: *initial_chunks,
        });
    }
    Ok(plan)
}

/// Makes on new what the plan says, and suspends TTL on both sides. Harmless to repeat.
///
/// # Errors
/// In words, what a cluster refused or did not answer; what is done stays done.
pub async fn prepare(clusters: &PerSide<SharedCluster>, plan: &[Created]) -> Result<(), String> {
    for created in plan {
        let namespace = created.parsed()?;
        let source = source(clusters, &namespace).await?;
        let target = make(&*clusters.new, &namespace, &source).await?;
        if let Some(key) = &created.shard_key {
            let key = ShardKey::from(key.clone());
            shard(&*clusters.old, &*clusters.new, &namespace, &key, created.initial_chunks).await?;
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
            continue;
        }
        for name in &created.indexes_created {
            let body = rawdoc! { "dropIndexes": collection, "index": name.as_str() };
            gone(change(&**new, database, body).await)
                .map_err(|error| format!("dropping index {name} of {namespace} on new: {error}"))?;
        }
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
