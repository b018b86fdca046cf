//! A live migration between real replica sets, under load, proved by the checker.

mod support;

use anyhow::{Result, ensure};
use reshard_loadtest::Profile;
use support::proof::DOCUMENTS;
use support::trial::Trial;
use support::two_sets;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn up_by_percent_back_up_and_complete() -> Result<()> {
    let (old, new) = two_sets("percent").await?;
    let trial = Trial::start(old, new, Profile::Keyed, DOCUMENTS).await?;
    trial.operator.until_synced().await?;
    for percent in [5, 25, 50, 75, 100] {
        trial.operator.reads(percent).await?;
        trial.work(300).await?;
    }
    for percent in [5, 50, 100] {
        let moved = trial.operator.writes(percent).await?;
        ensure!(moved.percent == percent);
        trial.work(300).await?;
    }
    trial.back().await?;
    trial.operator.reads(100).await?;
    for percent in [30, 100] {
        trial.operator.writes(percent).await?;
        trial.work(300).await?;
    }
    let held = trial.holds().await?;
    held.operator.complete().await?;
    held.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_one_step_with_a_unique_index_and_transactions() -> Result<()> {
    let (old, new) = two_sets("unique").await?;
    let trial = Trial::start(old, new, Profile::Unique, DOCUMENTS).await?;
    trial.operator.until_synced().await?;
    trial.operator.reads(100).await?;
    trial.work(300).await?;
    let refused = trial.operator.writes(50).await;
    ensure!(
        refused.is_err_and(|why| why.to_string().contains("one step")),
        "a partial percentage must be refused"
    );
    trial.all_to_new().await?;
    trial.work(300).await?;
    trial.back().await?;
    trial.all_to_new().await?;
    let held = trial.holds().await?;
    held.operator.complete().await?;
    held.proxy.shutdown().await;
    Ok(())
}
