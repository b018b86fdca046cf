//! Zones on new: made before the copy, and taken back when it is given up.

use bson::{Bson, Document, doc, rawdoc};

use super::{admin, in_config};
use crate::cluster::command::Commands;
use crate::migration::catalog::Unanswered;
use crate::model::namespace::Namespace;
use crate::policy::zones::Zone;

/// Says which shards belong to which zone, and what belongs there. Harmless to repeat.
pub(super) async fn make_zones(
    new: &dyn Commands,
    namespace: &Namespace,
    zones: &[Zone],
) -> Result<(), String> {
    if zones.is_empty() {
        return Ok(());
    }
    let refused = |error: Unanswered| format!("zones of {namespace} on new: {error}");
    let (ranges, members) = zones_of(new, namespace).await?;
    for wanted in zones {
        let Zone { zone, min, max, shards } = wanted;
        let known = |shard: &&String| members.iter().any(|(of, name)| of == *shard && name == zone);
        for shard in shards.iter().filter(|shard| !known(shard)) {
            admin(new, doc! { "addShardToZone": shard, "zone": zone }).await.map_err(refused)?;
        }
        if ranges.iter().any(|range| range.same_range(wanted)) {
            continue;
        }
        let range = doc! {
            "updateZoneKeyRange": namespace.as_str(), "min": min.clone(), "max": max.clone(), "zone": zone,
        };
        admin(new, range).await.map_err(refused)?;
    }
    Ok(())
}

/// The zone ranges that a collection has, each without its shards; and which shards are in which zones.
///
/// # Errors
/// In words, why that is not known.
pub async fn zones_of(
    cluster: &dyn Commands,
    namespace: &Namespace,
) -> Result<(Vec<Zone>, Vec<(String, String)>), String> {
    let ranges = in_config(cluster, "tags", rawdoc! { "ns": namespace.as_str() }).await?;
    let range = |range: Document| {
        let bound = |name: &str| range.get_document(name).cloned().unwrap_or_default();
        let zone = range.get_str("tag").unwrap_or_default().to_owned();
        Zone { zone, min: bound("min"), max: bound("max"), shards: Vec::new() }
    };
    let members = in_config(cluster, "shards", rawdoc! {}).await?;
    let members = members.iter().flat_map(|shard| {
        let tags = shard.get_array("tags").into_iter().flatten().filter_map(Bson::as_str);
        let name = shard.get_str("_id").unwrap_or_default();
        tags.map(move |tag| (name.to_owned(), tag.to_owned()))
    });
    Ok((ranges.into_iter().map(range).collect(), members.collect()))
}

/// What was added to `new` for a collection.
#[derive(Debug, Clone, Copy)]
pub struct Added<'a> {
    /// Shards that were not in a zone before, each with the zone.
    pub members: &'a [(String, String)],
    /// Ranges that the collection had not.
    pub ranges: &'a [Zone],
}

/// Takes back what was added. A zone that others have come to use stays.
///
/// # Errors
/// In words, why that is not done.
pub async fn take_zones_back(
    new: &dyn Commands,
    namespace: &Namespace,
    added: Added<'_>,
) -> Result<(), String> {
    for Zone { min, max, .. } in added.ranges {
        let range = doc! {
            "updateZoneKeyRange": namespace.as_str(), "min": min.clone(), "max": max.clone(), "zone": Bson::Null,
        };
        answered(admin(new, range).await)?;
    }
    for (shard, zone) in added.members {
        answered(admin(new, doc! { "removeShardFromZone": shard, "zone": zone }).await)?;
    }
    Ok(())
}

/// A refusal is final; only a lost answer is worth another try.
fn answered(result: Result<(), Unanswered>) -> Result<(), String> {
    match result {
        Err(error) if error.code.is_none() => Err(error.message),
        Err(error) => {
            tracing::info!(%error, "a zone on new stays");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}
