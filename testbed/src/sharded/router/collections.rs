//! Databases and collections: made, changed, dropped, listed.

use bson::{Bson, Document, doc};

use super::Router;
use super::catalog::{CONFIG, is_internal, split};
use super::concern::majority;
use super::failure::{Failure, NAMESPACE_NOT_FOUND, truth, whole};
use super::reads::name_in;

/// `command` with `fields` at its end, where it does not have them.
pub(super) fn with_defaults(mut command: Document, fields: Document) -> Document {
    for (name, value) in fields {
        command.entry(name).or_insert(value);
    }
    command
}

/// `command` under another name.
pub(super) fn renamed(command: Document, from: &str, to: &str) -> Document {
    command.into_iter().map(|(key, value)| (if key == from { to.to_owned() } else { key }, value)).collect()
}

impl Router {
    pub(super) async fn collections(
        &self,
        name: &str,
        database: &str,
        command: Document,
    ) -> Result<Document, Failure> {
        match name {
            "create" => {
                let command = with_defaults(command, doc! {"writeConcern": majority()});
                self.on_primary(database, database, &command, true).await
            }
            "drop" => self.drop(database, &command).await,
            "collMod" => {
                let command = with_defaults(command, doc! {"writeConcern": majority()});
                let command = renamed(command, "collMod", "_shardsvrCollMod");
                self.on_primary(database, database, &command, false).await
            }
            "renameCollection" => self.rename(&command).await,
            "dropDatabase" => self.drop_database(database).await,
            "listCollections" => self.list_collections(database, command).await,
            _ => self.list_databases(command).await,
        }
    }

    async fn drop(&self, database: &str, command: &Document) -> Result<Document, Failure> {
        let collection = name_in(command, "drop")?;
        let drop = doc! {"_shardsvrDropCollection": collection, "writeConcern": majority()};
        let reply = self.on_primary(database, database, &drop, false).await;
        self.forget(&format!("{database}.{collection}"));
        match reply {
            Err(failure) if failure.code() == NAMESPACE_NOT_FOUND => Err(Failure::not_found("ns not found")),
            reply => reply,
        }
    }

    async fn drop_database(&self, database: &str) -> Result<Document, Failure> {
        let drop = doc! {"_shardsvrDropDatabase": 1, "writeConcern": majority()};
        let reply = self.on_primary(database, database, &drop, false).await;
        self.forget_all();
        match reply {
            Err(failure) if failure.code() != NAMESPACE_NOT_FOUND => Err(failure),
            _ => Ok(doc! {"dropped": database, "ok": 1.0}),
        }
    }

    async fn rename(&self, command: &Document) -> Result<Document, Failure> {
        let (database, collection) = split(name_in(command, "renameCollection")?)?;
        let rename = doc! {
            "_shardsvrRenameCollection": collection,
            "to": name_in(command, "to")?,
            "dropTarget": truth(command, "dropTarget"),
            "writeConcern": majority(),
        };
        let reply = self.on_primary(database, database, &rename, false).await;
        self.forget_all();
        reply
    }

    async fn list_collections(&self, database: &str, command: Document) -> Result<Document, Failure> {
        let command = with_defaults(command, doc! {"cursor": {}});
        match self.on_primary(database, database, &command, false).await {
            // The cursor of a shard is of no use to the engine, so all must come at once.
            Ok(reply) => self.complete(database, "$cmd.listCollections", reply).await,
            Err(failure) if failure.code() == NAMESPACE_NOT_FOUND => {
                let namespace = format!("{database}.$cmd.listCollections");
                Ok(doc! {"cursor": {"id": 0_i64, "ns": namespace, "firstBatch": []}, "ok": 1.0})
            }
            Err(failure) => Err(failure),
        }
    }

    /// Fetches the rest of a cursor on the primary shard of a database into its first batch.
    pub(super) async fn complete(
        &self,
        database: &str,
        collection: &str,
        mut reply: Document,
    ) -> Result<Document, Failure> {
        let entry = self.database(database, false).await?;
        let shard = self.shard(entry.get_str("primary").unwrap_or(CONFIG)).await?;
        let cursor = reply.get_document_mut("cursor").map_err(|_| Failure::bad_value("no cursor"))?;
        let mut id = whole(cursor, "id").unwrap_or(0);
        while id != 0 {
            let more = shard.command(database, &doc! {"getMore": id, "collection": collection}).await?;
            let Ok(more) = more.get_document("cursor") else { break };
            id = whole(more, "id").unwrap_or(0);
            if let (Ok(all), Ok(batch)) = (cursor.get_array_mut("firstBatch"), more.get_array("nextBatch")) {
                all.extend(batch.iter().cloned());
            }
        }
        cursor.insert("id", 0_i64);
        Ok(reply)
    }

    async fn list_databases(&self, command: Document) -> Result<Document, Failure> {
        let only_names = truth(&command, "nameOnly");
        let command: Document = command.into_iter().filter(|(key, _)| key != "nameOnly").collect();
        let mut shards = self.load_shards().await?;
        shards.insert(CONFIG.to_owned(), self.config.clone());
        let mut all = std::collections::BTreeMap::<String, Document>::new();
        for (shard, backend) in shards {
            let reply = backend.command("admin", &command).await?;
            let found = reply.get_array("databases").map_or(&[][..], Vec::as_slice);
            for database in found.iter().filter_map(Bson::as_document) {
                let name = database.get_str("name").unwrap_or_default();
                if name == "local" || is_internal(name) != (shard == CONFIG) {
                    continue;
                }
                let entry = all.entry(name.to_owned()).or_insert_with(|| {
                    doc! {"name": name, "sizeOnDisk": 0_i64, "empty": true, "shards": {}}
                });
                let size = whole(database, "sizeOnDisk").unwrap_or(0);
                entry.insert("sizeOnDisk", whole(entry, "sizeOnDisk").unwrap_or(0) + size);
                entry.insert("empty", truth(entry, "empty") && truth(database, "empty"));
                if let Ok(sizes) = entry.get_document_mut("shards") {
                    sizes.insert(&shard, size);
                }
            }
        }
        if only_names {
            let names: Vec<Document> = all.into_keys().map(|name| doc! {"name": name}).collect();
            return Ok(doc! {"databases": names, "ok": 1.0});
        }
        let total: i64 = all.values().filter_map(|entry| whole(entry, "sizeOnDisk")).sum();
        let databases: Vec<Document> = all.into_values().collect();
        Ok(doc! {"databases": databases, "totalSize": total, "totalSizeMb": total >> 20, "ok": 1.0})
    }
}
