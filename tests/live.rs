//! A live migration between real replica sets, under load, proved by the checker.

mod support;

use std::time::Duration;

use anyhow::{Result, ensure};
use reshard_loadtest::{Load, LoadConfig, Outcome, Profile, compare};
use reshard_testbed::{ReplicaSet, wait_for};
use support::{LONG, Operator, proxy, two_sets, uri};

fn load(uri: String, profile: Profile, documents: usize) -> LoadConfig {
    LoadConfig {
        uri,
        database: "shop".into(),
        collection: match profile {
            Profile::Keyed => "orders".into(),
            Profile::Unique => "customers".into(),
        },
        profile,
        workers: 6,
        documents,
        document_size: 400,
        ..LoadConfig::default()
    }
}

/// Waits until the load has made so many more operations: that is how long a phase lasts here.
async fn work(load: &Load, operations: u64) -> Result<()> {
    let from = load.snapshot().total.operations;
    wait_for("the load to go on", LONG, || async {
        Ok(load.snapshot().total.operations >= from + operations)
    })
    .await
}

async fn prove(
    outcome: Outcome,
    old: &ReplicaSet,
    new: &ReplicaSet,
    through: &str,
    namespace: &str,
) -> Result<()> {
    ensure!(outcome.stats.errors.first.is_empty(), "the application saw errors: {:?}", outcome.stats.errors);
    let report = outcome.verify(through).await?;
    ensure!(report.is_clean(), "{report}");
    let equal = |comparison: &reshard_loadtest::Comparison| comparison.is_equal();
    let last = std::sync::Mutex::new(None);
    let waited = wait_for("both sides to be equal", Duration::from_secs(60), || async {
        let comparison = compare(&old.uri(), &new.uri(), namespace).await?;
        let is_equal = equal(&comparison);
        *last.lock().unwrap() = Some(comparison.to_string());
        Ok(is_equal)
    })
    .await;
    ensure!(waited.is_ok(), "{namespace}: {:?}", last.into_inner());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn up_by_percent_back_up_and_complete() -> Result<()> {
    let (old, new) = two_sets("percent").await?;
    let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
    let operator = Operator::of(&proxy, "orders");
    let config = load(uri(&proxy), Profile::Keyed, 5_000);
    Load::prepare(&config).await?;
    let load = Load::start(config).await?;
    operator.create(&["shop.orders"]).await?;
    operator.start().await?;
    operator.until_synced().await?;
    for percent in [5, 25, 50, 75, 100] {
        operator.reads(percent).await?;
        work(&load, 300).await?;
    }
    for percent in [5, 50, 100] {
        let moved = operator.writes(percent).await?;
        ensure!(moved.percent == percent);
        work(&load, 300).await?;
    }
    operator.rollback().await?;
    work(&load, 300).await?;
    operator.reads(100).await?;
    for percent in [30, 100] {
        operator.writes(percent).await?;
        work(&load, 300).await?;
    }
    let outcome = load.stop().await;
    operator.until_level().await?;
    prove(outcome, &old, &new, &uri(&proxy), "shop.orders").await?;
    operator.complete().await?;
    proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_one_step_with_a_unique_index_and_transactions() -> Result<()> {
    let (old, new) = two_sets("unique").await?;
    let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
    let operator = Operator::of(&proxy, "customers");
    let config = load(uri(&proxy), Profile::Unique, 5_000);
    Load::prepare(&config).await?;
    let load = Load::start(config).await?;
    operator.create(&["shop.customers"]).await?;
    operator.start().await?;
    operator.until_synced().await?;
    operator.reads(100).await?;
    work(&load, 300).await?;
    let refused = operator.writes(50).await;
    ensure!(
        refused.is_err_and(|why| why.to_string().contains("one step")),
        "a partial percentage must be refused"
    );
    operator.writes(100).await?;
    work(&load, 500).await?;
    operator.rollback().await?;
    work(&load, 300).await?;
    operator.reads(100).await?;
    operator.writes(100).await?;
    work(&load, 300).await?;
    let outcome = load.stop().await;
    operator.until_level().await?;
    prove(outcome, &old, &new, &uri(&proxy), "shop.customers").await?;
    operator.complete().await?;
    proxy.shutdown().await;
    Ok(())
}
