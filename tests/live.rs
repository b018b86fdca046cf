//! A live migration between real replica sets, under load, proved by the checker.

mod support;

use anyhow::{Result, ensure};
use reshard_loadtest::{Load, Profile};
use support::proof::{load, no_errors, prove, work};
use support::{Operator, proxy, two_sets, uri};

/// As many as a migration has to hold for before anybody trusts it with more.
const DOCUMENTS: usize = 200_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn up_by_percent_back_up_and_complete() -> Result<()> {
    let (old, new) = two_sets("percent").await?;
    let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
    let operator = Operator::of(&proxy, "orders");
    let config = load(uri(&proxy), Profile::Keyed, DOCUMENTS);
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
    no_errors(&outcome)?;
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
    let config = load(uri(&proxy), Profile::Unique, DOCUMENTS);
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
    no_errors(&outcome)?;
    operator.until_level().await?;
    prove(outcome, &old, &new, &uri(&proxy), "shop.customers").await?;
    operator.complete().await?;
    proxy.shutdown().await;
    Ok(())
}
