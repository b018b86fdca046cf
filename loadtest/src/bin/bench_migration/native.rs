//! The built-in way: `reshardCollection`, in place.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bson::doc;
use reshard_loadtest::Load;
use reshard_testbed::ShardedCluster;

use crate::NAMESPACE;
use crate::sharded::{Ground, Plan, SWITCHING, cluster, fill, new_key};
use crate::sharded_report::{Figures, Way};

const LOOK: Duration = Duration::from_millis(20);

/// One cluster, the load on its router.
pub(crate) async fn run(plan: &Plan) -> Result<Figures> {
    let cluster = cluster().await?;
    fill(plan, &cluster).await?;
    let ground = Ground { way: Way::Native, clusters: &[&cluster], uri: &cluster.uri() };
    ground.measure(plan, || Ok(0.0), async |load| change(&cluster, load).await).await
}

async fn change(cluster: &ShardedCluster, load: &Load) -> Result<Duration> {
    let resharding = cluster.reshard_collection(NAMESPACE, new_key());
    tokio::pin!(resharding);
    let copied = tokio::select! {
        biased;
        ended = &mut resharding => {
            ended?;
            bail!("it ended before its copy was seen: take more documents");
        }
        copied = copied(cluster) => copied?,
    };
    load.set_phase(SWITCHING);
    resharding.await?;
    Ok(copied)
}

/// For how long the config server says that the shards clone.
async fn copied(cluster: &ShardedCluster) -> Result<Duration> {
    let mut since = None;
    loop {
        match state(cluster).await?.as_deref() {
            Some("cloning") => _ = since.get_or_insert_with(Instant::now),
            Some("applying" | "blocking-writes" | "committing" | "done") => {
                return Ok(since.context("the copy was not seen: take more documents")?.elapsed());
            }
            Some("aborting") => bail!("reshardCollection is given up"),
            _ => {}
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn state(cluster: &ShardedCluster) -> Result<Option<String>> {
    let find = doc! { "find": "reshardingOperations", "limit": 1 };
    let reply = cluster.config().node(0).run("config", find).await?;
    let found = reply.get_document("cursor")?.get_array("firstBatch")?.first();
    let state = found.and_then(|operation| operation.as_document()).and_then(|one| one.get_str("state").ok());
    Ok(state.map(str::to_owned))
}
