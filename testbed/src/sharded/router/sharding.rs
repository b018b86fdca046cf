//! How collections are sharded: what clients ask of a router becomes commands of the config server.

use bson::{Document, doc};

use super::Router;
use super::backend::Repeat;
use super::catalog::split;
use super::concern::majority;
use super::failure::{Failure, truth};
use super::reads::name_in;

/// Commands that the config server has under another name and with the same fields.
const OF_CONFIG: [(&str, &str); 12] = [
    ("abortReshardCollection", "_configsvrAbortReshardCollection"),
    ("addShard", "_configsvrAddShard"),
    ("addShardToZone", "_configsvrAddShardToZone"),
    ("balancerCollectionStatus", "_configsvrBalancerCollectionStatus"),
    ("balancerStart", "_configsvrBalancerStart"),
    ("balancerStatus", "_configsvrBalancerStatus"),
    ("balancerStop", "_configsvrBalancerStop"),
    ("cleanupReshardCollection", "_configsvrCleanupReshardCollection"),
    ("commitReshardCollection", "_configsvrCommitReshardCollection"),
    ("removeShard", "_configsvrRemoveShard"),
    ("removeShardFromZone", "_configsvrRemoveShardFromZone"),
    ("updateZoneKeyRange", "_configsvrUpdateZoneKeyRange"),
];

/// Commands that go to the config server as they are.
const TO_CONFIG: [&str; 12] = [
    "createRole",
    "createUser",
    "dropRole",
    "dropUser",
    "getDefaultRWConcern",
    "grantRolesToUser",
    "revokeRolesFromUser",
    "setDefaultRWConcern",
    "setFeatureCompatibilityVersion",
    "updateRole",
    "updateUser",
    "usersInfo",
];

/// Fields of drivers that the config server does not want.
const OF_SESSIONS: [&str; 2] = ["lsid", "txnNumber"];

impl Router {
    pub(super) async fn sharding(&self, name: &str, command: Document) -> Result<Document, Failure> {
        match name {
            _ if TO_CONFIG.contains(&name) => {
                let kept = command.into_iter().filter(|(key, _)| !OF_SESSIONS.contains(&key.as_str()));
                let reply = self.config.ask("admin", &kept.collect(), Repeat::Yes).await?;
                self.load_write_concern().await?;
                Ok(reply)
            }
            "enableSharding" | "enablesharding" => self.enable(name_in(&command, name)?, &command).await,
            "shardCollection" | "shardcollection" => {
                self.shard_collection(name_in(&command, name)?, &command).await
            }
            "reshardCollection" => self.reshard(name_in(&command, name)?, &command).await,
            "refineCollectionShardKey" => {
                let namespace = name_in(&command, name)?;
                let (database, collection) = split(namespace)?;
                let refine = doc! {
                    "_shardsvrRefineCollectionShardKey": collection,
                    "newShardKey": command.get("key").cloned(),
                    "writeConcern": majority(),
                };
                let reply = self.on_primary(database, database, &refine, false).await;
                self.forget(namespace);
                reply
            }
            "movePrimary" | "moveprimary" => self.move_primary(name_in(&command, name)?, &command).await,
            _ => match OF_CONFIG.iter().find(|(own, _)| *own == name) {
                Some((own, theirs)) => self.config_command(own, theirs, command).await,
                None => Err(Failure::new(59, "CommandNotFound", format!("no such command: '{name}'"))),
            },
        }
    }

    async fn config_command(&self, own: &str, theirs: &str, command: Document) -> Result<Document, Failure> {
        let kept = command.into_iter().filter(|(key, _)| !OF_SESSIONS.contains(&key.as_str()));
        let mut renamed: Document =
            kept.map(|(key, value)| (if key == own { theirs.to_owned() } else { key }, value)).collect();
        if !own.starts_with("balancer") {
            renamed.insert("writeConcern", majority());
        }
        let reply = self.config.ask("admin", &renamed, Repeat::Yes).await?;
        if matches!(own, "addShard" | "removeShard") {
            self.load_shards().await?;
        }
        if own.ends_with("ReshardCollection") {
            self.forget_all();
        }
        Ok(reply)
    }

    async fn enable(&self, database: &str, command: &Document) -> Result<Document, Failure> {
        let mut create = doc! {"_configsvrCreateDatabase": database, "writeConcern": majority()};
        if let Ok(shard) = command.get_str("primaryShard") {
            create.insert("primaryShardId", shard);
        }
        self.config.command("admin", &create).await?;
        Ok(doc! {"ok": 1.0})
    }

    async fn shard_collection(&self, namespace: &str, command: &Document) -> Result<Document, Failure> {
        let (database, collection) = split(namespace)?;
        let mut create = doc! {
            "_shardsvrCreateCollection": collection,
            "shardKey": command.get("key").cloned(),
            "unique": truth(command, "unique"),
            "writeConcern": majority(),
        };
        for field in ["numInitialChunks", "presplitHashedZones", "collation", "timeseries"] {
            if let Some(value) = command.get(field) {
                create.insert(field, value.clone());
            }
        }
        let reply = self.on_primary(database, database, &create, true).await;
        self.forget(namespace);
        reply?;
        Ok(doc! {"collectionsharded": namespace, "ok": 1.0})
    }

    async fn reshard(&self, namespace: &str, command: &Document) -> Result<Document, Failure> {
        let (database, _) = split(namespace)?;
        let mut reshard = doc! {"_shardsvrReshardCollection": namespace, "writeConcern": majority()};
        for field in ["key", "unique", "collation", "zones", "numInitialChunks", "_presetReshardedChunks"] {
            if let Some(value) = command.get(field) {
                reshard.insert(field, value.clone());
            }
        }
        let reply = self.on_primary(database, "admin", &reshard, false).await;
        self.forget(namespace);
        reply
    }

    async fn move_primary(&self, database: &str, command: &Document) -> Result<Document, Failure> {
        let to = name_in(command, "to")?;
        let shards = self.load_shards().await?;
        let name = shards.iter().find(|(name, shard)| *name == to || shard.connection_string() == to);
        let (name, _) = name.ok_or_else(|| Failure::new(70, "ShardNotFound", format!("no shard {to}")))?;
        let to = doc! {"_shardsvrMovePrimary": database, "to": name, "writeConcern": majority()};
        let reply = self.on_primary(database, "admin", &to, false).await;
        self.forget_all();
        reply
    }
}
