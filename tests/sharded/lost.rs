//! A shard of either cluster gets another primary, dies and comes back, and a router goes and comes back, under load.

use std::time::Duration;

use anyhow::{Result, bail};
use reshard_loadtest::{Load, Profile};
use reshard_testbed::ShardedCluster;

use crate::support::proof::{few_errors_of_the_unrepeated, load, prove_between, work};
use crate::support::uri;
use crate::{Cluster, NAMESPACE, Pair, shard_old, shards};

/// Of what was under way at each, so much may break off where it is nothing that drivers repeat.
const BROKEN_OFF: usize = 8;

fn sharded(cluster: &Cluster) -> Result<&ShardedCluster> {
    match cluster {
        Cluster::Sharded(cluster) => Ok(cluster),
        Cluster::Set(_) => bail!("it has no shards"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_and_routers_are_lost_under_load() -> Result<()> {
    let (old, new) = tokio::try_join!(shards(), shards())?;
    shard_old(&old).await?;
    let pair = Pair::between(old, new).await?;
    let through = uri(&pair.proxy);
    let config = load(through.clone(), Profile::Keyed, 5_000);
    Load::prepare(&config).await?;
    let load = Load::start(config).await?;
    pair.begin(bson::doc! { "_id": 1 }).await?;
    let mut losses = 0;
    let mut lose = async |cluster: &Cluster| {
        let cluster = sharded(cluster)?;
        losses += 2;
        let shard = cluster.shard(losses / 2 % 2);
        shard.stepdown().await?;
        work(&load, 100).await?;
        shard.kill9_all().await?;
        shard.start_all().await?;
        work(&load, 100).await?;
        cluster.router().kill().await?;
        // How long nobody routes is what is tested: longer than a driver's one repetition.
        tokio::time::sleep(Duration::from_secs(2)).await;
        cluster.router().restart().await?;
        work(&load, 100).await?;
        pair.operator.until_synced().await
    };
    lose(&pair.old).await?;
    lose(&pair.new).await?;
    pair.operator.reads(100).await?;
    pair.operator.writes(50).await?;
    lose(&pair.old).await?;
    lose(&pair.new).await?;
    pair.operator.writes(100).await?;
    lose(&pair.new).await?;
    let outcome = load.stop().await;
    few_errors_of_the_unrepeated(&outcome.stats.errors, BROKEN_OFF * losses)?;
    pair.operator.until_level().await?;
    prove_between(outcome, &pair.old.uri(), &pair.new.uri(), &through, NAMESPACE).await?;
    pair.proxy.shutdown().await;
    Ok(())
}
