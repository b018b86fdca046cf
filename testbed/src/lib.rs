//! Real MongoDB replica sets and sharded clusters on the loopback interface, for tests, demos and load
//! tests.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use reshard_testbed::{ReplicaSet, ShardedCluster};
//!
//! let source = ReplicaSet::builder("rs0").nodes(3).start().await?;
//! let client = source.client().await?;
//! client.database("shop").collection("orders").insert_one(bson::doc! {"_id": 1}).await?;
//! source.stepdown().await?;
//!
//! let target = ShardedCluster::builder().shards(2).start().await?;
//! target.shard_collection("shop.orders", bson::doc! {"_id": "hashed"}).await?;
//! # Ok(()) }
//! ```
//!
//! mongod is looked for in `$RESHARD_MONGOD`, `$MONGOD` and `PATH`, and otherwise fetched once into a
//! cache. Ports are free ones, data lies in memory where there is room, and everything is gone when
//! the value is dropped or the process ends, in whatever way it ends.

mod access;
mod binary;
mod builder;
mod cache;
mod data_dir;
mod fetch;
mod log_tail;
mod ports;
mod process;
mod replica_set;
mod sharded;
mod spawner;
mod standalone;
mod tls;
mod wait;
mod wire;

pub use binary::{Mongod, Version};
pub use builder::ReplicaSetBuilder;
pub use process::Node;
pub use replica_set::ReplicaSet;
pub use sharded::{Router, ShardedCluster, ShardedClusterBuilder};
pub use standalone::Standalone;
pub use tls::TlsFiles;
pub use wait::{Condition, wait_for, wait_for_value};
