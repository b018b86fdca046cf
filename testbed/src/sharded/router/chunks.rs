//! Chunks: split, moved, merged.

use bson::{Bson, Document, doc};

use super::Router;
use super::catalog::split;
use super::concern::majority;
use super::failure::{Failure, is_ok, truth};
use super::reads::name_in;
use super::table::{Chunk, Sharding};

impl Router {
    pub(super) async fn chunks(&self, name: &str, command: Document) -> Result<Document, Failure> {
        let namespace = name_in(&command, name)?;
        let (database, collection) = split(namespace)?;
        self.forget(namespace);
        let table = self.table(database, collection, false).await?;
        let sharding = table.sharded()?;
        let reply = match name {
            "split" => self.split_chunk(namespace, sharding, &command).await,
            "mergeChunks" => self.merge_chunks(namespace, sharding, &command).await,
            _ => self.move_chunk(namespace, sharding, &command).await,
        };
        self.forget(namespace);
        reply
    }

    async fn move_chunk(
        &self,
        namespace: &str,
        sharding: &Sharding,
        command: &Document,
    ) -> Result<Document, Failure> {
        let chunk = chunk_in(sharding, command)?;
        let to = command.get_str("to").or_else(|_| command.get_str("toShard"));
        let to = to.map_err(|_| Failure::bad_value("the shard to move to is missing"))?;
        let mut range = doc! {
            "_configsvrMoveRange": namespace,
            "toShard": to,
            "min": chunk.min.clone(),
            "max": chunk.max.clone(),
            "epoch": sharding.epoch,
            "collectionTimestamp": sharding.timestamp,
            "waitForDelete": truth(command, "_waitForDelete") || truth(command, "waitForDelete"),
            "writeConcern": majority(),
        };
        for bound in ["min", "max"] {
            if let Ok(own) = command.get_document(bound) {
                range.insert(bound, own.clone());
            }
        }
        self.config.command("admin", &range).await
    }

    async fn split_chunk(
        &self,
        namespace: &str,
        sharding: &Sharding,
        command: &Document,
    ) -> Result<Document, Failure> {
        let chunk = chunk_in(sharding, command)?;
        let shard = self.shard(&chunk.shard).await?;
        let points = match command.get_document("middle") {
            Ok(middle) => vec![Bson::from(middle.clone())],
            Err(_) => {
                let ask = doc! {
                    "splitVector": namespace,
                    "keyPattern": sharding.key.clone(),
                    "min": chunk.min.clone(),
                    "max": chunk.max.clone(),
                    "force": true,
                };
                let reply = shard.command("admin", &ask).await?;
                reply.get_array("splitKeys").cloned().unwrap_or_default()
            }
        };
        if points.is_empty() {
            return Err(Failure::new(72, "InvalidOptions", "cannot split: the chunk has no median"));
        }
        let split = doc! {
            "splitChunk": namespace,
            "from": &chunk.shard,
            "keyPattern": sharding.key.clone(),
            "min": chunk.min.clone(),
            "max": chunk.max.clone(),
            "splitKeys": points,
            "epoch": sharding.epoch,
            "timestamp": sharding.timestamp,
        };
        let reply = shard.ask("admin", &split, super::backend::Repeat::No).await?;
        if is_ok(&reply) { Ok(doc! {"ok": 1.0}) } else { Err(Failure(reply)) }
    }

    async fn merge_chunks(
        &self,
        namespace: &str,
        sharding: &Sharding,
        command: &Document,
    ) -> Result<Document, Failure> {
        let chunk = chunk_in(sharding, command)?;
        let merge = doc! {
            "mergeChunks": namespace,
            "bounds": command.get("bounds").cloned(),
            "epoch": sharding.epoch,
            "timestamp": sharding.timestamp,
        };
        self.shard(&chunk.shard).await?.command("admin", &merge).await?;
        Ok(doc! {"ok": 1.0})
    }
}

/// The chunk that a command names: by a document in it, by a key, or by its bounds.
fn chunk_in<'a>(sharding: &'a Sharding, command: &Document) -> Result<&'a Chunk, Failure> {
    if let Ok(filter) = command.get_document("find") {
        let key = sharding.key_of_filter(filter).ok_or_else(|| {
            Failure::new(61, "ShardKeyNotFound", format!("no shard key found in chunk query {filter}"))
        })?;
        return sharding.chunk_of(&key);
    }
    let bound = command.get_array("bounds").ok().and_then(|bounds| bounds.first()?.as_document());
    let at = ["middle", "min"].iter().find_map(|field| command.get_document(field).ok()).or(bound);
    let at = at.ok_or_else(|| Failure::new(72, "InvalidOptions", "need find, bounds, min or middle"))?;
    let key: Vec<Bson> =
        sharding.key.keys().map(|field| at.get(field).cloned().unwrap_or(Bson::MinKey)).collect();
    sharding.chunk_at(&key)
}
