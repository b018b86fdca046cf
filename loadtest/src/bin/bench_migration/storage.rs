//! How much more the servers hold while a shard key changes than before.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context, Result};
use bson::{Bson, Document, doc};
use futures::future::try_join_all;
use mongodb::Client;
use parking_lot::Mutex;
use reshard_testbed::{Node, ReplicaSet, ShardedCluster};

const LOOK: Duration = Duration::from_millis(200);
/// Not looked at: the oplog, which has its room whoever writes.
const OPLOG: &str = "local";

/// The shards of one or more clusters.
pub(crate) struct Storage {
    shards: Vec<Client>,
}

impl Storage {
    pub(crate) async fn of(clusters: &[&ShardedCluster]) -> Result<Self> {
        let nodes = clusters.iter().flat_map(|cluster| cluster.shards()).flat_map(ReplicaSet::nodes);
        Ok(Self { shards: try_join_all(nodes.map(Node::client)).await? })
    }

    /// Runs `work`, and says by how many bytes what the shards hold grew at most meanwhile.
    pub(crate) async fn growth_while<T>(&self, work: impl Future<Output = Result<T>>) -> Result<(T, u64)> {
        let before = self.bytes().await?;
        let peak = Mutex::new(before);
        let watching = async {
            loop {
                self.look(&peak).await?;
                tokio::time::sleep(LOOK).await;
            }
        };
        let done = tokio::select! {
            biased;
            done = work => done?,
            failed = watching => return failed,
        };
        self.look(&peak).await?;
        let peak = *peak.lock();
        Ok((done, peak.saturating_sub(before)))
    }

    async fn look(&self, peak: &Mutex<u64>) -> Result<()> {
        let bytes = self.bytes().await?;
        let mut peak = peak.lock();
        *peak = bytes.max(*peak);
        Ok(())
    }

    /// Documents as they are, and indexes, in all databases but `local`. Files would tell less: they follow at
    /// checkpoints only, and their logs are laid out in advance.
    async fn bytes(&self) -> Result<u64> {
        Ok(try_join_all(self.shards.iter().map(held)).await?.into_iter().sum())
    }
}

async fn held(shard: &Client) -> Result<u64> {
    let mut sum = 0;
    for name in shard.list_database_names().await.context("the databases of a shard")? {
        if name != OPLOG {
            let stats = shard.database(&name).run_command(doc! { "dbStats": 1 }).await;
            sum += total(&stats.with_context(|| format!("dbStats of {name}"))?);
        }
    }
    Ok(sum)
}

fn total(stats: &Document) -> u64 {
    ["dataSize", "indexSize"].into_iter().map(|field| whole(stats.get(field))).sum()
}

/// Servers send numbers as whatever type they fit.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "sizes")]
pub(crate) fn whole(number: Option<&Bson>) -> u64 {
    match number {
        Some(Bson::Int32(number)) => u64::try_from(*number).unwrap_or(0),
        Some(Bson::Int64(number)) => u64::try_from(*number).unwrap_or(0),
        Some(Bson::Double(number)) => number.max(0.0) as u64,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_and_indexes_count_in_whatever_type_they_come() {
        assert_eq!(total(&doc! { "dataSize": 1_000.0, "storageSize": 7, "indexSize": 20_i64 }), 1_020);
        assert_eq!(total(&doc! { "dataSize": 3 }), 3);
    }
}
