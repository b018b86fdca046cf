//! The shard of a database: what is not sharded lies there.

use bson::{Bson, doc, rawdoc};

use super::{LIMIT, admin, before, in_config};
use crate::cluster::command::{Commands, Request};
use crate::converge::read::ask;
use crate::converge::shards;
use crate::migration::catalog::owned;
use crate::policy::zones::least_loaded;

/// The shard where the collections of `database` lie that are not sharded; `None` where the database is not
/// there yet.
///
/// # Errors
/// In words, why that is not known.
pub async fn primary_of(cluster: &dyn Commands, database: &str) -> Result<Option<String>, String> {
    let found = in_config(cluster, "databases", rawdoc! { "_id": database }).await?;
    Ok(found.first().and_then(|entry| entry.get_str("primary").ok()).map(str::to_owned))
}

/// As [`primary_of`]; of a database that is not there yet, the shard that has the least data.
///
/// # Errors
/// In words, why that is not known.
pub async fn chosen_primary(cluster: &dyn Commands, database: &str) -> Result<Option<String>, String> {
    if let Some(primary) = primary_of(cluster, database).await? {
        return Ok(Some(primary));
    }
    let request = Request::new("admin", rawdoc! { "listDatabases": 1 }).within(LIMIT);
    let listed = owned(&ask(cluster, request).await?.body).map_err(|error| error.to_string())?;
    let mut sizes = Vec::new();
    for database in listed.get_array("databases").into_iter().flatten().filter_map(Bson::as_document) {
        let shards = database.get_document("shards").into_iter().flatten();
        sizes.extend(shards.map(|(shard, size)| (shard.clone(), whole(size))));
    }
    Ok(least_loaded(&shards::names(cluster).await?, &sizes))
}

fn whole(size: &Bson) -> u64 {
    match size {
        Bson::Int32(size) => u64::try_from(*size).unwrap_or(0),
        Bson::Int64(size) => u64::try_from(*size).unwrap_or(0),
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "sizes; saturates")]
        Bson::Double(size) => size.max(0.0) as u64,
        _ => 0,
    }
}

/// Makes a database whose unsharded collections lie on `shard`; one that is there stays as it is.
///
/// # Errors
/// In words, what the cluster refused or did not answer.
pub async fn make_database(new: &dyn Commands, database: &str, shard: &str) -> Result<(), String> {
    if primary_of(new, database).await?.is_some() {
        return Ok(());
    }
    let make = doc! { "enableSharding": database, "primaryShard": shard };
    admin(new, make).await.or_else(before).map_err(|error| format!("database {database} on new: {error}"))
}
