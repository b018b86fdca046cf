//! What is looked at where a cluster is sharded.

use std::time::Duration;

use bson::rawdoc;

use super::findings::Findings;
use crate::cluster::command::{Commands, Request, SharedCluster};
use crate::converge::read::ask;
use crate::converge::shards;
use crate::migration::prepare::Wanted;
use crate::migration::sharding::{chosen_primary, key_of, primary_of, zones_of};
use crate::model::namespace::Namespace;
use crate::model::side::PerSide;
use crate::policy::catalog::Collection;
use crate::policy::shard_key::ShardKey;
use crate::policy::zones::{Zone, problems};
use crate::state::records::first_batch;

/// Looking for an `_id` that two shards hold reads a whole index.
const LONG: Duration = Duration::from_secs(600);
const EXAMPLES: i64 = 5;

/// Looks at one collection as far as shards are concerned.
pub(super) async fn look(
    clusters: &PerSide<SharedCluster>,
    sharded: PerSide<bool>,
    source: Option<&Collection>,
    asked: &Wanted,
    findings: &mut Findings,
) {
    let (namespace, wanted) = (&asked.namespace, asked.shard_key.as_ref());
    let of = namespace.as_str();
    if sharded.old {
        look_for_duplicates(&*clusters.old, namespace, findings).await;
    }
    if wanted.is_some() && !sharded.new {
        let message = "a shard_key is given, and new is not a sharded cluster";
        return findings.refuse(
            "not-sharded",
            of,
            message,
            "leave shard_key out, or give the URI of a sharded cluster as new",
        );
    }
    if !sharded.new {
        return;
    }
    let found = match key_of(&*clusters.new, namespace).await {
        Ok(found) => found,
        Err(why) => return findings.not_checked(&format!("how {namespace} is sharded on new"), why),
    };
    match (wanted, &found) {
        (Some(wanted), Some(found)) if wanted != found => {
            let message =
                format!("it is sharded by {} on new, and shard_key is {}", found.pattern(), wanted.pattern());
            findings.refuse(
                "shard-key-differs",
                of,
                message,
                "drop it on new, or give the key that it has there",
            );
        }
        (None, None) => {
            look_at_primary(&*clusters.new, namespace, findings).await;
        }
        _ => {}
    }
    if let (Some(key), false) = (wanted, asked.zones.is_empty()) {
        look_at_zones(&*clusters.new, namespace, key, &asked.zones, findings).await;
    }
    if let (Some(key), Some(source)) = (wanted.or(found.as_ref()), source) {
        look_at_key(key, source, namespace, findings);
    }
}

fn look_at_key(key: &ShardKey, source: &Collection, namespace: &Namespace, findings: &mut Findings) {
    let of = namespace.as_str();
    let fits = |spec: &bson::Document| spec.get_document("key").is_ok_and(|fields| key.allows_unique(fields));
    let unique = source.indexes.iter().filter(|index| index.is_unique() && !index.is_implied());
    for index in unique.filter(|index| !fits(&index.spec)) {
        let message = format!(
            "unique index {} does not begin with the shard key {}: a sharded collection cannot have it",
            index.name(),
            key.pattern()
        );
        findings.refuse(
            "unique-index-and-shard-key",
            of,
            message,
            "choose another shard key, or drop the index",
        );
    }
    if !key.is_id() {
        let message = format!(
            "on new, MongoDB refuses upserts and findAndModify that do not name the whole shard key {}, and \
             updates and deletes of one document that name neither it nor the _id",
            key.pattern()
        );
        findings.info("needs-shard-key", of, message, "let applications name it before writes move");
    }
}

/// Two documents with one `_id`, on two shards: nothing could tell them apart later.
async fn look_for_duplicates(old: &dyn Commands, namespace: &Namespace, findings: &mut Findings) {
    let of = namespace.as_str();
    match key_of(old, namespace).await {
        Ok(Some(key)) if !key.is_id() => {}
        Ok(_) => return,
        Err(why) => return findings.not_checked(&format!("how {namespace} is sharded on old"), why),
    }
    let body = rawdoc! {
        "aggregate": namespace.collection(),
        "pipeline": [
            { "$group": { "_id": "$_id", "n": { "$sum": 1 } } },
            { "$match": { "n": { "$gt": 1 } } },
            { "$limit": EXAMPLES },
        ],
        "cursor": {}, "allowDiskUse": true,
    };
    let found = match ask(old, Request::new(namespace.database(), body).within(LONG)).await {
        Ok(reply) => first_batch(&reply.body),
        Err(why) => Err(why),
    };
    match found {
        Ok(found) if found.is_empty() => {}
        Ok(found) => {
            let ids: Vec<String> =
                found.iter().filter_map(|one| Some(format!("{:?}", one.get("_id").ok()??))).collect();
            let message = format!("several shards of old hold documents with one _id, as {}", ids.join(", "));
            let remedy = "give all but one of each another _id, or delete them";
            findings.refuse("duplicate-ids", of, message, remedy);
        }
        Err(why) => {
            findings.not_checked(&format!("whether two documents of {namespace} have one _id"), why);
        }
    }
}

/// Says on which shard of new a collection without a shard key will lie.
async fn look_at_primary(new: &dyn Commands, namespace: &Namespace, findings: &mut Findings) {
    let database = namespace.database();
    let on = match (primary_of(new, database).await, chosen_primary(new, database).await) {
        (Ok(Some(shard)), _) => format!("{shard}, which is the primary shard of database {database}"),
        (Ok(None), Ok(Some(shard))) => {
            format!("{shard}, which has the least data: database {database} is not on new yet")
        }
        (Err(why), _) | (_, Err(why)) => {
            findings.not_checked(&format!("the primary shard of database {database} on new"), why);
            return;
        }
        (Ok(None), Ok(None)) => "its primary shard".to_owned(),
    };
    let message = format!("no shard_key is given: it will lie on one shard of new, {on}");
    findings.limit(
        "target-not-sharded",
        namespace.as_str(),
        message,
        "give a shard_key, if it is to be spread",
    );
}

/// Refuses zones that new could not have, each reason by itself.
async fn look_at_zones(
    new: &dyn Commands,
    namespace: &Namespace,
    key: &ShardKey,
    zones: &[Zone],
    findings: &mut Findings,
) {
    let known = async {
        let (there, _) = zones_of(new, namespace).await?;
        Ok::<_, String>((shards::names(new).await?, there))
    };
    match known.await {
        Ok((shards, there)) => {
            for problem in problems(key, zones, &shards, &there) {
                findings.refuse("zones", namespace.as_str(), problem, "correct zones and create it anew");
            }
        }
        Err(why) => findings.refuse(
            "zones",
            namespace.as_str(),
            format!("new cannot tell about its zones: {why}"),
            "see to the error and look again",
        ),
    }
}
