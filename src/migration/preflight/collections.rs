//! What is looked at for each collection that is to move.

use bson::rawdoc;

use super::clusters::Seen;
use super::findings::Findings;
use super::{LIMIT, UNIQUE, is_seen, route_keys, sharding, unique_message};
use crate::cluster::command::{Commands, Request, SharedCluster};
use crate::migration::catalog::{Unanswered, describe, question};
use crate::migration::prepare::Wanted;
use crate::model::namespace::Namespace;
use crate::model::side::{PerSide, Side};
use crate::policy::catalog::{
    Collection, comparable_options, creation_options, has_collation, unique_across,
};
use crate::policy::route_key::RouteKey;
use crate::state::records::first_batch;

const NO_MAJORITY_READS: i32 = 148;

/// Looks at one collection on both clusters.
pub(super) async fn look(
    clusters: &PerSide<SharedCluster>,
    seen: &PerSide<Option<Seen>>,
    wanted: &Wanted,
    findings: &mut Findings,
) {
    let namespace = &wanted.namespace;
    let mut source = None;
    if is_seen(seen, Side::Old) {
        let found = on(Side::Old, &*clusters.old, namespace, findings).await;
        match &found {
            Some(Some(collection)) => look_at_source(collection, wanted, findings),
            // Why it cannot be told is said already.
            None => {}
            Some(None) => findings.refuse(
                "does-not-exist",
                namespace.as_str(),
                "it does not exist on old",
                "correct the name, or create it on old",
            ),
        }
        source = found.flatten();
        if let (Some(_), Some(route_key)) = (&source, &wanted.route_key) {
            route_keys::look(&*clusters.old, namespace, route_key, findings).await;
        }
    }
    if !is_seen(seen, Side::New) {
        return;
    }
    let Some(target) = on(Side::New, &*clusters.new, namespace, findings).await else { return };
    match target {
        Some(target) => look_at_target(&*clusters.new, source.as_ref(), &target, namespace, findings).await,
        None => look_at_absent_target(&*clusters.new, namespace, findings).await,
    }
    let sharded = PerSide::from_fn(|side| seen.get(side).as_ref().is_some_and(|seen| seen.sharded));
    sharding::look(clusters, sharded, source.as_ref(), wanted, findings).await;
}

/// The collection on one side; the outer `None` when it cannot be told.
async fn on(
    side: Side,
    cluster: &dyn Commands,
    namespace: &Namespace,
    findings: &mut Findings,
) -> Option<Option<Collection>> {
    let described = async {
        let collection = describe(cluster, namespace, LIMIT).await?;
        // Reading a view could take long; reading anything else shows whether it can be read by majority.
        if collection.as_ref().is_none_or(|collection| collection.kind != "view") {
            is_empty(cluster, namespace).await?;
        }
        Ok(collection)
    };
    match described.await {
        Ok(collection) => Some(collection),
        Err(error) => {
            say_why(side, &error, namespace, findings);
            None
        }
    }
}

fn say_why(side: Side, error: &Unanswered, namespace: &Namespace, findings: &mut Findings) {
    let of = namespace.as_str();
    if error.code == Some(NO_MAJORITY_READS) {
        let message = format!("{side} runs with enableMajorityReadConcern: false");
        findings.refuse("majority-reads-disabled", "", message, "restart its members without that option");
    } else if error.is_forbidden() {
        let message = format!("the user may not look at it on {side}: {error}");
        let remedy = "give the URI a user with the privileges that the manual lists";
        findings.refuse("missing-privileges", of, message, remedy);
    } else {
        let message = format!("{side} cannot tell about it: {error}");
        findings.refuse("unreadable", of, message, "see to the error and look again");
    }
}

fn refuse_kind(collection: &Collection, side: Side, of: &str, findings: &mut Findings) -> bool {
    let (code, what) = if collection.kind == "view" {
        ("view", "a view")
    } else if collection.kind == "timeseries" {
        ("time-series", "a time-series collection")
    } else if collection.options.get_bool("capped").ok() == Some(true) {
        ("capped", "a capped collection")
    } else if collection.options.contains_key("encryptedFields") {
        ("queryable-encryption", "a collection with queryable encryption")
    } else {
        return false;
    };
    let remedy = match (side, code) {
        (Side::Old, "view") => "leave it out and create the view on new by hand",
        (Side::Old, _) => "leave it out and move it with other means",
        (Side::New, _) => "drop or rename it on new",
    };
    findings.refuse(code, of, format!("it is {what} on {side}"), remedy);
    true
}

fn look_at_source(source: &Collection, wanted: &Wanted, findings: &mut Findings) {
    let of = wanted.namespace.as_str();
    if refuse_kind(source, Side::Old, of, findings) {
        return;
    }
    if has_collation(&source.options) {
        let message = "it has a default collation: two spellings of a string can be one _id there, which this \
                       version does not handle";
        findings.refuse("default-collation", of, message, "leave it out");
    }
    if source.options.contains_key("expireAfterSeconds") {
        let message = "it is clustered and removes documents after a time, which cannot be suspended";
        let remedy = "switch it off: collMod with expireAfterSeconds: 'off'";
        findings.refuse("clustered-ttl", of, message, remedy);
    }
    for index in source.indexes.iter().filter(|index| index.building) {
        let message = format!("index {} is being built on old", index.name());
        findings.refuse("index-build", of, message, "wait until it is built, or drop it");
    }
    let route_key = wanted.route_key.as_ref();
    for index in unique_across(&source.indexes, route_key.map(RouteKey::field)) {
        let remedy = "writes move in one step, from 0 to 100 percent; or drop the index";
        findings.limit(UNIQUE, of, unique_message(index, route_key), remedy);
    }
    for index in source.indexes.iter().filter(|index| index.is_ttl()) {
        if index.ttl().is_some() {
            let message = format!(
                "TTL index {} is suspended on both clusters while the migration runs; the \
                                   product removes documents that are due",
                index.name()
            );
            findings.info("ttl-index", of, message, "none; it is put back at the end");
        } else {
            let message = format!("TTL index {} has an expireAfterSeconds that is no number", index.name());
            findings.refuse("ttl-not-a-number", of, message, "set it with collMod");
        }
    }
}

async fn look_at_target(
    cluster: &dyn Commands,
    source: Option<&Collection>,
    target: &Collection,
    namespace: &Namespace,
    findings: &mut Findings,
) {
    let of = namespace.as_str();
    if refuse_kind(target, Side::New, of, findings) {
        return;
    }
    match is_empty(cluster, namespace).await {
        Ok(true) => {}
        Ok(false) => {
            let message = "it has documents on new already";
            let remedy = "drop it on new, or empty it, if nothing there is needed";
            return findings.refuse("target-not-empty", of, message, remedy);
        }
        Err(error) => return say_why(Side::New, &error, namespace, findings),
    }
    let Some(source) = source else { return };
    let differences = differences(source, target);
    if differences.is_empty() {
        let message = "it exists on new, empty: it is kept, with the indexes it has";
        return findings.info("target-kept", of, message, "none");
    }
    let message = format!("it exists on new, empty, but is not like old's: {}", differences.join("; "));
    let remedy = "drop it on new, so that it is made like old's, or make it so";
    findings.refuse("target-differs", of, message, remedy);
}

/// Where an empty target stands in the way. Indexes that it lacks are made; others that do not force
/// anything on documents are kept (a sharded collection has one on its shard key).
fn differences(source: &Collection, target: &Collection) -> Vec<String> {
    let mut differences = Vec::new();
    let made_from = comparable_options(&creation_options(&source.options));
    let found = comparable_options(&creation_options(&target.options));
    let names = made_from.keys().chain(found.keys().filter(|name| !made_from.contains_key(*name)));
    for name in names.filter(|name| made_from.get(*name) != found.get(*name)) {
        differences.push(format!("option {name}"));
    }
    for index in target.indexes.iter().filter(|index| !index.is_implied()) {
        let twin = source.indexes.iter().find(|of| of.name() == index.name() || of.same_key(index));
        match twin {
            Some(of) if of.same_as(index) => {}
            Some(of) => differences.push(format!("index {} against old's {}", index.name(), of.name())),
            None if index.is_unique() => {
                differences.push(format!("unique index {}, which old has not", index.name()))
            }
            None if index.is_ttl() => {
                differences.push(format!("TTL index {}, which old has not", index.name()))
            }
            None => {}
        }
    }
    differences
}

async fn look_at_absent_target(cluster: &dyn Commands, namespace: &Namespace, findings: &mut Findings) {
    let of = namespace.as_str();
    let body = rawdoc! { "listDatabases": 1, "nameOnly": true };
    let Ok(reply) = question(cluster, Request::new("admin", body).within(LIMIT)).await else { return };
    let Ok(databases) = reply.body.get_array("databases") else { return };
    let names = databases.into_iter().flatten().filter_map(|item| item.as_document()?.get_str("name").ok());
    let database = namespace.database();
    for name in names.filter(|name| *name != database && name.eq_ignore_ascii_case(database)) {
        let message =
            format!("new has a database {name}, and a server takes no two names that differ in case only");
        findings.refuse("database-case", of, message, "drop that database on new");
    }
}

/// Whether a collection has no document; also whether it can be read at all, by majority.
async fn is_empty(cluster: &dyn Commands, namespace: &Namespace) -> Result<bool, Unanswered> {
    for level in ["majority", "local"] {
        let body = rawdoc! {
            "find": namespace.collection(), "limit": 1, "singleBatch": true, "projection": { "_id": 1 },
            "readConcern": { "level": level },
        };
        let reply = question(cluster, Request::new(namespace.database(), body).within(LIMIT)).await?;
        if !first_batch(&reply.body).map_err(Unanswered::malformed)?.is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}
