//! Whether a user's privileges are enough.

use std::fmt;

use bson::Document;

use crate::model::namespace::{DATABASE, Namespace};
use crate::model::side::Side;

/// What an action is needed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource<'a> {
    /// The cluster as a whole.
    Cluster,
    /// Every database.
    Everywhere,
    /// Every collection of a database.
    Database(&'a str),
    /// One collection.
    Collection(&'a Namespace),
    /// One collection of database `config`.
    InConfig(&'static str),
}

impl fmt::Display for Resource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster => f.write_str("the cluster"),
            Self::Everywhere => f.write_str("every database"),
            Self::Database(name) => write!(f, "database {name}"),
            Self::Collection(namespace) => write!(f, "{namespace}"),
            Self::InConfig(collection) => write!(f, "{CONFIG}.{collection}"),
        }
    }
}

/// Actions of one resource that the product needs or lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actions<'a> {
    /// On what.
    pub resource: Resource<'a>,
    /// Which.
    pub actions: Vec<&'static str>,
}

impl fmt::Display for Actions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.actions.join(", "), self.resource)
    }
}

/// Where a sharded cluster keeps what it knows of itself.
const CONFIG: &str = "config";

const WRITE: [&str; 4] = ["find", "insert", "update", "remove"];
/// `bypassDocumentValidation`: documents may be older than their validator. `collMod`: suspends TTL.
const ALTER: [&str; 5] = ["bypassDocumentValidation", "collMod", "collStats", "listIndexes", "createIndex"];

/// What moves, as far as privileges are concerned.
#[derive(Debug, Clone, Copy, Default)]
pub struct Moving<'a> {
    /// All of it.
    pub namespaces: &'a [Namespace],
    /// What is sharded for it, on new.
    pub to_shard: &'a [Namespace],
    /// Zones are made for it, on new.
    pub zones: bool,
}

/// What the product's user needs on one cluster.
#[must_use]
pub fn needed(side: Side, sharded: bool, moving: Moving<'_>) -> Vec<Actions<'_>> {
    let mut needed = on_any_cluster(side, moving.namespaces);
    if sharded {
        needed.extend(on_a_sharded_cluster(side, moving));
    }
    needed
}

/// The clocks of shards are pushed, barriers are laid out on every shard, and chunks are laid out on new.
fn on_a_sharded_cluster(side: Side, moving: Moving<'_>) -> Vec<Actions<'_>> {
    let lay_out = || vec!["enableSharding", "splitChunk", "moveChunk"];
    let mut needed = vec![
        Actions { resource: Resource::Cluster, actions: vec!["listShards", "appendOplogNote"] },
        Actions { resource: Resource::Database(CONFIG), actions: vec!["find"] },
        Actions { resource: Resource::Database(DATABASE), actions: vec!["enableSharding"] },
    ];
    if side == Side::Old {
        return needed;
    }
    for namespace in moving.namespaces {
        let database = Resource::Database(namespace.database());
        if !needed.iter().any(|known| known.resource == database) {
            needed.push(Actions { resource: database, actions: vec!["enableSharding"] });
        }
    }
    let to_shard = moving.to_shard.iter();
    needed.extend(to_shard.map(|it| Actions { resource: Resource::Collection(it), actions: lay_out() }));
    if moving.zones {
        needed.push(Actions { resource: Resource::InConfig("shards"), actions: vec!["update"] });
        needed.push(Actions { resource: Resource::InConfig("tags"), actions: vec!["update", "remove"] });
    }
    needed
}

fn on_any_cluster(side: Side, namespaces: &[Namespace]) -> Vec<Actions<'_>> {
    let mut needed = vec![
        Actions { resource: Resource::Everywhere, actions: vec!["find", "changeStream"] },
        Actions { resource: Resource::Cluster, actions: vec!["inprog", "killop"] },
        Actions {
            resource: Resource::Database(DATABASE),
            actions: [&WRITE[..], &["createCollection"]].concat(),
        },
    ];
    for namespace in namespaces {
        let mut actions = [&WRITE[..], &ALTER[..]].concat();
        if side == Side::New {
            actions.extend(["createCollection", "dropCollection", "dropIndex"]);
        }
        needed.push(Actions { resource: Resource::Collection(namespace), actions });
        let listing =
            Actions { resource: Resource::Database(namespace.database()), actions: vec!["listCollections"] };
        if !needed.contains(&listing) {
            needed.push(listing);
        }
    }
    needed
}

/// What of `needed` the privileges (as `connectionStatus` lists them) do not give.
#[must_use]
pub fn missing<'a>(needed: Vec<Actions<'a>>, privileges: &[Document]) -> Vec<Actions<'a>> {
    let lacking = needed.into_iter().map(|Actions { resource, actions }| {
        let lacks = |action: &&'static str| !privileges.iter().any(|has| gives(has, resource, action));
        Actions { resource, actions: actions.into_iter().filter(lacks).collect() }
    });
    lacking.filter(|actions| !actions.actions.is_empty()).collect()
}

fn gives(privilege: &Document, wanted: Resource<'_>, action: &str) -> bool {
    let (Ok(resource), Ok(actions)) = (privilege.get_document("resource"), privilege.get_array("actions"))
    else {
        return false;
    };
    let any =
        |given: &bson::Bson| given.as_str().is_some_and(|given| given == action || given == "anyAction");
    covers(resource, wanted) && actions.iter().any(any)
}

fn covers(resource: &Document, wanted: Resource<'_>) -> bool {
    if resource.get_bool("anyResource").ok() == Some(true) {
        return true;
    }
    if resource.get_bool("cluster").ok() == Some(true) {
        return wanted == Resource::Cluster;
    }
    let (Ok(database), Ok(collection)) = (resource.get_str("db"), resource.get_str("collection")) else {
        return false;
    };
    // A privilege on all databases leaves out those that belong to the servers.
    let within = |name: &str| database == name || (database.is_empty() && name != CONFIG);
    let named = |name: &str| collection.is_empty() || collection == name;
    match wanted {
        Resource::Cluster => false,
        Resource::Everywhere => database.is_empty() && collection.is_empty(),
        Resource::Database(name) => within(name) && collection.is_empty(),
        Resource::Collection(namespace) => within(namespace.database()) && named(namespace.collection()),
        Resource::InConfig(name) => within(CONFIG) && named(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::doc;

    #[test]
    fn a_superuser_lacks_nothing() {
        let namespaces = [Namespace::new("shop", "orders")];
        let all = [doc! { "resource": { "anyResource": true }, "actions": ["anyAction"] }];
        let moving = Moving { namespaces: &namespaces, to_shard: &namespaces, zones: true };
        assert_eq!(missing(needed(Side::New, true, moving), &all), []);
    }

    #[test]
    fn what_is_lacking_is_named() {
        let namespaces = [Namespace::new("shop", "orders")];
        let privileges = [
            doc! { "resource": { "db": "", "collection": "" }, "actions": ["find", "listCollections"] },
            doc! { "resource": { "cluster": true }, "actions": ["inprog", "killop"] },
            doc! { "resource": { "db": "reshard", "collection": "" },
            "actions": ["insert", "update", "remove", "createCollection"] },
            doc! { "resource": { "db": "shop", "collection": "orders" },
            "actions": ["insert", "update", "bypassDocumentValidation", "collMod", "collStats", "listIndexes", "createIndex"] },
        ];
        let moving = Moving { namespaces: &namespaces, ..Moving::default() };
        assert_eq!(
            told(needed(Side::Old, false, moving), &privileges),
            ["changeStream on every database", "remove on shop.orders"]
        );
    }

    fn told(needed: Vec<Actions<'_>>, privileges: &[Document]) -> Vec<String> {
        missing(needed, privileges).iter().map(ToString::to_string).collect()
    }

    /// As `connectionStatus` lists them for `readAnyDatabase`, `clusterMonitor`, `hostManager`, and
    /// `readWrite` and `dbAdmin` on `shop` and `reshard`.
    fn without_cluster_manager() -> Vec<Document> {
        let on = |db: &str, actions: &[&str]| {
            let actions: Vec<&str> = actions.to_vec();
            doc! { "resource": { "db": db, "collection": "" }, "actions": actions }
        };
        let all =
            [&WRITE[..], &ALTER[..], &["createCollection", "dropCollection", "dropIndex", "listCollections"]]
                .concat();
        vec![
            on("", &["find", "changeStream", "listCollections"]),
            on("config", &["find", "collStats", "listCollections"]),
            on("shop", &all),
            on("reshard", &all),
            doc! { "resource": { "cluster": true }, "actions": ["inprog", "killop", "listShards", "serverStatus"] },
        ]
    }

    #[test]
    fn what_a_sharded_cluster_needs_besides_is_named() {
        let namespaces = [Namespace::new("shop", "orders"), Namespace::new("shop", "customers")];
        let moving = Moving { namespaces: &namespaces, to_shard: &namespaces[..1], zones: false };
        let mut privileges = without_cluster_manager();
        for side in Side::BOTH {
            assert!(told(needed(side, false, moving), &privileges).is_empty());
        }
        let barriers = ["appendOplogNote on the cluster", "enableSharding on database reshard"];
        assert_eq!(told(needed(Side::Old, true, moving), &privileges), barriers);
        let orders = "enableSharding, splitChunk, moveChunk on shop.orders";
        let zones = ["update on config.shards", "update, remove on config.tags"];
        let with_zones = Moving { zones: true, ..moving };
        let lacking = told(needed(Side::New, true, with_zones), &privileges);
        assert_eq!(
            lacking,
            [&barriers[..], &["enableSharding on database shop", orders], &zones[..]].concat()
        );
        // Without clusterMonitor it may not even look: all databases are not those of the servers.
        privileges.remove(1);
        assert!(
            told(needed(Side::Old, true, moving), &privileges).contains(&"find on database config".into())
        );
        // What clusterManager adds.
        let lay_out = ["enableSharding", "splitChunk", "moveChunk"];
        privileges.extend([
            doc! { "resource": { "db": "", "collection": "" }, "actions": lay_out.to_vec() },
            doc! { "resource": { "db": "config", "collection": "" }, "actions": ["find", "insert", "update", "remove"] },
            doc! { "resource": { "cluster": true }, "actions": ["listShards", "appendOplogNote"] },
        ]);
        assert_eq!(told(needed(Side::New, true, with_zones), &privileges), <[String; 0]>::default());
    }
}
