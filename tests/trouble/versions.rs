//! Clusters of different versions.

use anyhow::{Result, ensure};
use bson::doc;
use reshard::migration::control::{Basis, Control as _, Verify};
use reshard_loadtest::Profile;
use reshard_testbed::{ReplicaSet, Version};

use crate::support::proof::{DOCUMENTS, no_errors};
use crate::support::raw_load::RawLoad;
use crate::support::trial::Trial;
use crate::support::{Operator, me, proxy, uri};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_an_older_version() -> Result<()> {
    let (old, new) = tokio::try_join!(
        ReplicaSet::builder("version-old").version(Version::V5_0).start(),
        ReplicaSet::builder("version-new").version(Version::V6_0).start()
    )?;
    up_back_and_up(Trial::start(old, new, Profile::Keyed, DOCUMENTS).await?).await
}

/// Transactions and a unique index, between two versions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_an_older_version_moving_in_one_step() -> Result<()> {
    let (old, new) = tokio::try_join!(
        ReplicaSet::builder("version-step-old").version(Version::V5_0).start(),
        ReplicaSet::builder("version-step-new").version(Version::V6_0).start()
    )?;
    let trial = Trial::start(old, new, Profile::Unique, 20_000).await?;
    trial.operator.until_synced().await?;
    trial.all_to_new().await?;
    trial.work(200).await?;
    trial.back().await?;
    trial.all_to_new().await?;
    trial.complete().await?;
    trial.holds_on_new(no_errors).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_a_much_older_version() -> Result<()> {
    let (old, new) = tokio::try_join!(
        ReplicaSet::builder("version-4-old").version(Version::V4_4).start(),
        ReplicaSet::builder("version-4-new").version(Version::V6_0).start()
    )?;
    up_back_and_up(Trial::start(old, new, Profile::Keyed, 20_000).await?).await
}

/// Hashes of the documents of `shop.c` on a cluster whose members any client may ask.
async fn hash(set: &ReplicaSet) -> Result<String> {
    let hashes = set.node(0).run("shop", doc! { "dbHash": 1, "collections": ["c"] }).await?;
    Ok(hashes.get_document("collections")?.get_str("c")?.to_owned())
}

/// From the oldest version that change streams of a cluster and all that they need can be had of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_the_oldest_version() -> Result<()> {
    let (old, new) = tokio::try_join!(
        ReplicaSet::builder("version-42-old").version(Version::V4_2).start(),
        ReplicaSet::builder("version-42-new").version(Version::V6_0).start()
    )?;
    let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
    let operator = Operator::of(&proxy, "m");
    let load = RawLoad::start(&uri(&proxy), 4, 5000).await?;
    operator.create(&["shop.c"]).await?;
    operator.start().await?;
    load.work(50).await?;
    operator.until_synced().await?;
    let digest = Verify { compare: Basis::Digest, ..Verify::default() };
    let refused = operator.engine.verify(&me(), "m", digest).await;
    ensure!(refused.as_ref().is_err_and(|why| why.code == "no-digests"), "{refused:?}");
    operator.reads(100).await?;
    operator.writes(50).await?;
    load.work(50).await?;
    operator.until_synced().await?;
    operator.rollback().await?;
    load.work(50).await?;
    operator.until_synced().await?;
    operator.reads(100).await?;
    operator.writes(100).await?;
    load.work(50).await?;
    load.holds().await?;
    operator.until_level().await?;
    operator.found_none_past_the_proxy().await?;
    ensure!(hash(&old).await? == hash(&new).await?, "both sides are not equal");
    operator.complete().await?;
    proxy.shutdown().await;
    Ok(())
}

async fn up_back_and_up(trial: Trial) -> Result<()> {
    trial.operator.until_synced().await?;
    trial.operator.reads(100).await?;
    trial.operator.writes(50).await?;
    trial.work(200).await?;
    trial.back().await?;
    trial.all_to_new().await?;
    trial.complete().await?;
    trial.holds_on_new(no_errors).await
}
