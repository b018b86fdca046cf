//! The same by a migration to a second cluster, the load on the proxy.

use std::time::Duration;

use anyhow::{Context, Result};
use reshard_loadtest::Load;
use serde_json::json;

use crate::api::Api;
use crate::child::{self, Proxy};
use crate::moves::{Step, until_free};
use crate::sharded::{Ground, Plan, SWITCHING, cluster, fill};
use crate::sharded_report::{Figures, Way};
use crate::{NAMESPACE, backfill, usage};

const MIGRATION: &str = "another-key";

/// Two clusters, and the proxy between them.
pub(crate) async fn run(plan: &Plan) -> Result<Figures> {
    child::program()?;
    let (old, new) = tokio::try_join!(cluster(), cluster())?;
    fill(plan, &old).await?;
    let folder = tempfile::Builder::new().prefix("reshard-bench-").tempdir()?;
    let mut proxy = Proxy::start(folder.path(), &old.uri(), Some(&new.uri())).await?;
    let pid = proxy.pid().context("the proxy has ended")?;
    let ground = Ground { way: Way::Reshard, clusters: &[&old, &new], uri: &proxy.uri };
    let cpu = || usage::ticks(pid).map(|time| time.as_secs_f64());
    let figures = ground.measure(plan, cpu, async |load| change(&proxy.api, load).await).await;
    if figures.is_err() {
        eprintln!("The last lines of reshard's log:\n{}", proxy.log_tail());
    }
    proxy.end().await;
    figures
}

/// From the request for a migration until new decides about every write.
async fn change(api: &Api, load: &Load) -> Result<Duration> {
    let key = json!({ "customer_id": 1, "order_id": 1 });
    let copied = backfill::run(api, MIGRATION, NAMESPACE, key).await?;
    load.set_phase(SWITCHING);
    for step in [Step::Reads(100), Step::Writes(100)] {
        until_free(api, MIGRATION).await?;
        step.make(api, MIGRATION).await?;
    }
    Ok(copied.took)
}
