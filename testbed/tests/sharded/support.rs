//! What the tests have in common.

use std::time::Duration;

use bson::{Document, doc};
use mongodb::error::{Error, ErrorKind, WriteFailure};
use mongodb::{Client, Collection};
use reshard_testbed::{ShardedCluster, ShardedClusterBuilder};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster with `shop.orders`, sharded by the hash of `order_id`, and a client of it.
pub(crate) struct Shop {
    pub(crate) cluster: ShardedCluster,
    pub(crate) client: Client,
}

impl Shop {
    pub(crate) async fn open() -> Self {
        Self::open_with(|builder| builder).await
    }

    /// The idle shards' clocks move on every second, for tests that wait for that.
    pub(crate) async fn open_quick() -> Self {
        Self::open_with(|builder| builder.noop_seconds(1)).await
    }

    pub(crate) async fn open_with(
        options: impl FnOnce(ShardedClusterBuilder) -> ShardedClusterBuilder,
    ) -> Self {
        let cluster = options(ShardedCluster::builder()).start().await.unwrap();
        let key =
            doc! {"shardCollection": "shop.orders", "key": {"order_id": "hashed"}, "numInitialChunks": 4};
        cluster.admin(key).await.unwrap();
        let client = cluster.client().await.unwrap();
        Self { cluster, client }
    }

    pub(crate) fn orders(&self) -> Collection<Document> {
        self.collection("orders")
    }

    pub(crate) fn collection(&self, name: &str) -> Collection<Document> {
        self.client.database("shop").collection(name)
    }

    /// Runs a command on the database `shop`; errors of single writes are in the reply.
    pub(crate) async fn run(&self, command: Document) -> mongodb::error::Result<Document> {
        self.client.database("shop").run_command(command).await
    }

    pub(crate) async fn admin(&self, command: Document) -> mongodb::error::Result<Document> {
        self.client.database("admin").run_command(command).await
    }

    /// What a shard itself holds of a collection of `shop`.
    pub(crate) async fn on_shard(&self, index: usize, collection: &str) -> Collection<Document> {
        let client = self.cluster.shard(index).client().await.unwrap();
        client.database("shop").collection(collection)
    }

    /// The shards that hold a document.
    pub(crate) async fn owners(&self, collection: &str, id: impl Into<bson::Bson>) -> Vec<usize> {
        let (id, mut owners) = (id.into(), Vec::new());
        for index in 0..self.cluster.shards().len() {
            let found = self.on_shard(index, collection).await.find_one(doc! {"_id": id.clone()}).await;
            if found.unwrap().is_some() {
                owners.push(index);
            }
        }
        owners
    }

    /// Inserts orders `from..to`, with `_id` the same as `order_id`.
    pub(crate) async fn fill(&self, from: i32, to: i32) {
        let order = |id: i32| doc! {"_id": id, "order_id": id, "customer_id": id % 97};
        let orders: Vec<Document> = (from..to).map(order).collect();
        self.orders().insert_many(orders).ordered(false).await.unwrap();
    }

    /// One of the orders `from..to` on each shard.
    pub(crate) async fn one_on_each(&self, from: i32, to: i32) -> (i32, i32) {
        let mut found = [None, None];
        for id in from..to {
            let owners = self.owners("orders", id).await;
            if let [owner] = owners[..] {
                found[owner].get_or_insert(id);
            }
            if let [Some(first), Some(second)] = found {
                return (first, second);
            }
        }
        panic!("all of {from}..{to} are on one shard")
    }
}

/// Code and text of the error of a command or a write; 0 if there is none.
pub(crate) fn error<T>(result: mongodb::error::Result<T>) -> (i32, String) {
    match result {
        Ok(_) => (0, String::new()),
        Err(error) => parts(&error),
    }
}

fn parts(error: &Error) -> (i32, String) {
    match &*error.kind {
        ErrorKind::Command(command) => (command.code, command.message.clone()),
        ErrorKind::Write(WriteFailure::WriteError(write)) => (write.code, write.message.clone()),
        ErrorKind::InsertMany(many) => {
            let first = many.write_errors.iter().flatten().next();
            first.map_or((-1, error.to_string()), |write| (write.code, write.message.clone()))
        }
        _ => (-1, error.to_string()),
    }
}

/// The code of an error.
pub(crate) fn code<T>(result: mongodb::error::Result<T>) -> i32 {
    error(result).0
}
