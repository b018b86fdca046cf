//! What clients are told that the clusters can do.

use std::sync::Arc;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::listener::hello::SharedCapabilities;
use crate::migration::engine::Engine;
use crate::model::capabilities::Capabilities;

/// How often the clusters are looked at until both are known.
const LOOK: Duration = Duration::from_millis(50);
/// How long the new cluster may take to say what it can.
const NEW_PATIENCE: Duration = Duration::from_secs(3);

/// Fixes what clients are told: what they were told when the migrations under way began, else what all clusters
/// have in common, as soon as they are known. A new cluster that is away does not keep clients waiting: old alone
/// speaks then.
pub(super) async fn find_capabilities(
    engine: Arc<Engine>,
    clusters: [Option<Arc<Cluster>>; 2],
    capabilities: Arc<SharedCapabilities>,
) {
    // No client is told anything before it is known what may be served.
    engine.until_begun().await;
    if let Some(promised) = engine.promised().await {
        _ = capabilities.set(promised);
        return;
    }
    let begun = tokio::time::Instant::now();
    loop {
        let known = |cluster: &Arc<Cluster>| capabilities_of(cluster);
        let all: Option<Vec<Capabilities>> = clusters.iter().flatten().map(known).collect();
        let late = begun.elapsed() > NEW_PATIENCE;
        let old = || clusters[0].as_ref().and_then(known).map(|alone| vec![alone]);
        let all = all.or_else(|| late.then(old).flatten());
        if let Some(common) = all.and_then(|all| all.into_iter().reduce(Capabilities::and)) {
            if common.min_wire_version > common.max_wire_version {
                tracing::error!("the clusters have no wire version in common");
            }
            _ = capabilities.set(common);
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn capabilities_of(cluster: &Cluster) -> Option<Capabilities> {
    let topology = cluster.topology();
    let (min_wire_version, max_wire_version) = topology.wire_versions()?;
    let limits = topology.limits()?;
    Some(Capabilities {
        min_wire_version,
        max_wire_version,
        max_bson_object_size: limits.max_bson_object_size,
        max_message_size: limits.max_message_size,
        max_write_batch_size: limits.max_write_batch_size,
        session_timeout_minutes: topology.session_timeout_minutes(),
    })
}
