//! What only sharded clusters need: telling that it is one, and moving the clocks of its shards.

use bson::{RawDocument, rawdoc};

use super::read::ask;
use crate::cluster::command::{Commands, Request};

/// Whether a router of a sharded cluster answers.
///
/// # Errors
/// In words, why there is no answer.
pub async fn is_sharded(cluster: &dyn Commands) -> Result<bool, String> {
    // The old name: all versions know it.
    let reply = ask(cluster, Request::new("admin", rawdoc! { "isMaster": 1 })).await?;
    Ok(reply.body.get_str("msg").ok() == Some("isdbgrid"))
}

/// The names of the shards.
///
/// # Errors
/// In words, why there is no answer.
pub async fn names(cluster: &dyn Commands) -> Result<Vec<String>, String> {
    let reply = ask(cluster, Request::new("admin", rawdoc! { "listShards": 1 })).await?;
    let shards = reply.body.get_array("shards").map_err(|error| error.to_string())?;
    let name = |shard: &RawDocument| shard.get_str("_id").ok().map(str::to_owned);
    Ok(shards.into_iter().flatten().filter_map(|shard| name(shard.as_document()?)).collect())
}

/// Moves the clock of every shard on. A change stream of the whole cluster is as far as its quietest shard,
/// and a shard without writes moves its clock every 10 s only.
///
/// # Errors
/// In words, why a shard's clock may stand where it stood.
pub async fn push_clocks(cluster: &dyn Commands) -> Result<(), String> {
    // By majority: what streams show is what the majority has.
    let note = rawdoc! {
        "appendOplogNote": 1, "data": { "reshard": "clock" }, "writeConcern": { "w": "majority" },
    };
    ask(cluster, Request::new("admin", note)).await.map(|_| ())
}
