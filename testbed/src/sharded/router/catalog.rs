//! What the config server knows: shards, databases and routing tables.

use std::collections::BTreeMap;
use std::sync::Arc;

use bson::{Document, doc};

use super::Router;
use super::backend::Backend;
use super::failure::Failure;
use super::table::{Sharding, Table};

/// The name under which the config server is asked like a shard, for its own databases.
pub(super) const CONFIG: &str = "config";

/// Databases of the config server.
pub(super) fn is_internal(database: &str) -> bool {
    matches!(database, "admin" | "config")
}

/// Splits `database.collection`.
pub(super) fn split(namespace: &str) -> Result<(&str, &str), Failure> {
    namespace.split_once('.').ok_or_else(|| {
        Failure::new(73, "InvalidNamespace", format!("Invalid namespace specified '{namespace}'"))
    })
}

fn majority() -> Document {
    doc! {"level": "majority"}
}

impl Router {
    /// All shards, as the config server knows them now.
    pub(super) async fn load_shards(&self) -> Result<BTreeMap<String, Arc<Backend>>, Failure> {
        let found = self.config.all("config", &doc! {"find": "shards", "readConcern": majority()}).await?;
        let mut shards = BTreeMap::new();
        for shard in found {
            let (Ok(name), Ok(host)) = (shard.get_str("_id"), shard.get_str("host")) else { continue };
            let known = self.shards.lock().get(name).cloned();
            let backend = match known.filter(|known| known.connection_string() == host) {
                Some(known) => known,
                None => self.backend(host).await?,
            };
            shards.insert(name.to_owned(), backend);
        }
        let gone = std::mem::replace(&mut *self.shards.lock(), shards.clone());
        for (name, backend) in gone {
            if !shards.contains_key(&name) {
                backend.close();
            }
        }
        Ok(shards)
    }

    async fn backend(&self, connection_string: &str) -> Result<Arc<Backend>, Failure> {
        let backend = Backend::connect(connection_string, self.time.clone(), &self.tasks).await;
        backend.map_err(|error| Failure::bad_value(format!("{connection_string}: {error:#}")))
    }

    /// A shard by name; [`CONFIG`] is the config server.
    pub(super) async fn shard(&self, name: &str) -> Result<Arc<Backend>, Failure> {
        if name == CONFIG {
            return Ok(self.config.clone());
        }
        let known = self.shards.lock().get(name).cloned();
        if let Some(shard) = known {
            return Ok(shard);
        }
        let found = self.load_shards().await?.remove(name);
        found.ok_or_else(|| Failure::new(70, "ShardNotFound", format!("shard {name} does not exist")))
    }

    /// Runs a command on all shards at once; returns the replies, ok or not.
    pub(super) async fn everywhere(
        &self,
        database: &str,
        command: &Document,
    ) -> Result<Vec<(String, Document)>, Failure> {
        let shards = self.load_shards().await?;
        let asked = shards.into_iter().map(|(name, shard)| async move {
            let reply = shard.ask(database, command, super::backend::Repeat::Yes).await?;
            Ok::<_, Failure>((name, reply))
        });
        futures::future::try_join_all(asked).await
    }

    /// The entry of a database; made if `create` and there is none.
    pub(super) async fn database(&self, name: &str, create: bool) -> Result<Document, Failure> {
        if is_internal(name) {
            return Ok(doc! {"_id": name, "primary": CONFIG});
        }
        let find = doc! {"find": "databases", "filter": {"_id": name}, "readConcern": majority()};
        loop {
            if let Some(found) = self.config.all("config", &find).await?.pop() {
                return Ok(found);
            }
            if !create {
                return Err(Failure::not_found(format!("database {name} not found")));
            }
            let command = doc! {"_configsvrCreateDatabase": name, "writeConcern": {"w": "majority"}};
            self.config.command("admin", &command).await?;
        }
    }

    /// The routing table of a collection, from memory or from the config server.
    pub(super) async fn table(
        &self,
        database: &str,
        collection: &str,
        create: bool,
    ) -> Result<Arc<Table>, Failure> {
        let namespace = format!("{database}.{collection}");
        if let Some(table) = self.tables.lock().get(&namespace) {
            return Ok(table.clone());
        }
        let entry = self.database(database, create).await?;
        let sharding = if is_internal(database) { None } else { self.read_sharding(&namespace).await? };
        let table = Arc::new(Table::new(namespace.clone(), &entry, sharding));
        self.tables.lock().insert(namespace, table.clone());
        Ok(table)
    }

    async fn read_sharding(&self, namespace: &str) -> Result<Option<Sharding>, Failure> {
        let find = doc! {"find": "collections", "filter": {"_id": namespace}, "readConcern": majority()};
        for _ in 0..20 {
            let Some(entry) = self.config.all("config", &find).await?.pop() else { return Ok(None) };
            let filter = doc! {"uuid": entry.get("uuid").cloned()};
            let chunks = doc! {"find": "chunks", "filter": filter, "readConcern": majority()};
            let chunks = self.config.all("config", &chunks).await?;
            // The chunks belong to the entry only if it did not change meanwhile.
            let again = self.config.all("config", &find).await?.pop();
            let same = again.is_some_and(|again| {
                ["uuid", "timestamp"].iter().all(|field| again.get(field) == entry.get(field))
            });
            if same && !chunks.is_empty() {
                return Sharding::read(&entry, chunks).map(Some);
            }
        }
        let message = format!("router: the routing table of {namespace} keeps changing");
        Err(Failure::new(13388, "StaleConfig", message))
    }

    /// Forgets a routing table.
    pub(super) fn forget(&self, namespace: &str) {
        self.tables.lock().remove(namespace);
    }

    pub(super) fn forget_all(&self) {
        self.tables.lock().clear();
    }
}
