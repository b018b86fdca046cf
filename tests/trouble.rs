//! Clusters that go away or change their primary in every phase, and clusters of different versions.

mod support;

use anyhow::{Result, ensure};
use reshard_loadtest::{Load, Profile};
use reshard_testbed::{ReplicaSet, Version};
use support::process::{Server, but_for_a_verification};
use support::proof::{DOCUMENTS, load, no_errors_but_of_one_death, prove, work};
use support::trial::Trial;
use support::two_sets;

/// New is away for a while, also over a restart of the proxy, for longer than any lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_away_before_it_has_authority_is_not_noticed() -> Result<()> {
    let (old, new) = two_sets("new-away").await?;
    let server = Server::start(&old.uri(), Some(&new.uri())).await?;
    let config = load(server.uri(), Profile::Keyed, DOCUMENTS);
    let workers = config.workers;
    Load::prepare(&config).await?;
    let load = Load::start(config).await?;
    server.create_and_start("orders", "shop.orders").await?;

    new.kill9_all().await?;
    work(&load, 300).await?;
    let (_, progress) = server.get("/v1/migrations/orders/progress").await?;
    ensure!(!but_for_a_verification(&progress), "{progress}");
    new.start_all().await?;
    server.until_free("orders").await?;
    server.percent("orders", "reads", 50).await?;
    work(&load, 200).await?;

    new.kill9_all().await?;
    work(&load, 300).await?;
    server.kill9()?;
    server.restart().await?;
    work(&load, 300).await?;
    let (_, progress) = server.get("/v1/migrations/orders/progress").await?;
    ensure!(progress["can_cut_over"] == false, "{progress}");
    new.start_all().await?;
    server.until_free("orders").await?;
    work(&load, 100).await?;
    let outcome = load.stop().await;
    no_errors_but_of_one_death(&outcome, workers)?;
    server.until_level("orders").await?;
    prove(outcome, &old, &new, &server.uri(), "shop.orders").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stepdowns_of_old_in_every_phase() -> Result<()> {
    let (old, new) = tokio::try_join!(
        ReplicaSet::builder("stepdown-old").nodes(3).start(),
        ReplicaSet::builder("stepdown-new").start()
    )?;
    let trial = Trial::start(old, new, Profile::Keyed, DOCUMENTS).await?;
    let step_down = async || {
        trial.old.stepdown().await?;
        trial.work(100).await
    };
    step_down().await?;
    trial.operator.until_synced().await?;
    step_down().await?;
    trial.operator.until_synced().await?;
    trial.operator.reads(100).await?;
    trial.operator.writes(50).await?;
    step_down().await?;
    trial.operator.until_synced().await?;
    trial.operator.writes(100).await?;
    step_down().await?;
    let held = trial.holds_but_for_errors().await?;
    held.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_an_older_version() -> Result<()> {
    let (old, new) = tokio::try_join!(
        ReplicaSet::builder("version-old").version(Version::V5_0).start(),
        ReplicaSet::builder("version-new").version(Version::V6_0).start()
    )?;
    let trial = Trial::start(old, new, Profile::Keyed, 5_000).await?;
    trial.operator.until_synced().await?;
    trial.operator.reads(100).await?;
    trial.operator.writes(50).await?;
    trial.work(200).await?;
    trial.back().await?;
    trial.all_to_new().await?;
    let held = trial.holds().await?;
    held.proxy.shutdown().await;
    Ok(())
}
