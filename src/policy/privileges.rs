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
}

impl fmt::Display for Resource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster => f.write_str("the cluster"),
            Self::Everywhere => f.write_str("every database"),
            Self::Database(name) => write!(f, "database {name}"),
            Self::Collection(namespace) => write!(f, "{namespace}"),
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

const WRITE: [&str; 4] = ["find", "insert", "update", "remove"];
/// `bypassDocumentValidation`: documents may be older than their validator. `collMod`: suspends TTL.
const ALTER: [&str; 5] = ["bypassDocumentValidation", "collMod", "collStats", "listIndexes", "createIndex"];

/// What the product's user needs on one cluster.
#[must_use]
pub fn needed(side: Side, namespaces: &[Namespace]) -> Vec<Actions<'_>> {
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
    match wanted {
        Resource::Cluster => false,
        Resource::Everywhere => database.is_empty() && collection.is_empty(),
        Resource::Database(name) => (database.is_empty() || database == name) && collection.is_empty(),
        Resource::Collection(namespace) => {
            (database.is_empty() || database == namespace.database())
                && (collection.is_empty() || collection == namespace.collection())
        }
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
        assert_eq!(missing(needed(Side::New, &namespaces), &all), []);
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
        let lacking: Vec<_> =
            missing(needed(Side::Old, &namespaces), &privileges).iter().map(ToString::to_string).collect();
        assert_eq!(lacking, ["changeStream on every database", "remove on shop.orders"]);
    }
}
