//! Clusters that go away or change their primary in every phase, and clusters of different versions.

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, ensure};
use bson::doc;
use reshard::migration::control::{Basis, Control as _, Phase, Verify};
use reshard_loadtest::{Load, Profile};
use reshard_testbed::{ReplicaSet, Version, wait_for};
use support::process::{Server, but_for_a_verification};
use support::proof::{
    DOCUMENTS, few_errors_of_the_unrepeated, load, no_errors, no_errors_but_of_one_death, prove, work,
};
use support::raw_load::RawLoad;
use support::trial::Trial;
use support::{LONG, Operator, me, proxy, two_sets, uri};

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

/// An operator takes everything back because new is in trouble, and then new is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_away_after_a_rollback_is_not_noticed() -> Result<()> {
    let (old, new) = two_sets("new-away-back").await?;
    let trial = Trial::start(old, new, Profile::Keyed, 20_000).await?;
    trial.operator.until_synced().await?;
    trial.operator.reads(100).await?;
    trial.operator.writes(50).await?;
    trial.all_to_new().await?;
    trial.operator.rollback().await?;
    trial.new.kill9_all().await?;
    trial.work(1000).await?;
    trial.new.start_all().await?;
    trial.operator.until_synced().await?;
    trial.work(100).await?;
    let held = trial.holds().await?;
    held.proxy.shutdown().await;
    Ok(())
}

/// Whoever follows old's changes hears of them late.
async fn streams_of_old(set: &ReplicaSet, late: bool) -> Result<()> {
    let streams = doc! {
        "failCommands": ["getMore"], "namespace": "admin.$cmd.aggregate",
        "blockConnection": true, "blockTimeMS": 15_000,
    };
    let mode = if late { "alwaysOn" } else { "off" };
    set.fail_point(doc! { "configureFailPoint": "failCommand", "mode": mode, "data": streams }).await
}

/// Making collections and indexes takes long, or no longer does.
async fn slow_preparation(set: &ReplicaSet, slow: bool) -> Result<()> {
    let making = doc! {
        "failCommands": ["create", "createIndexes"], "blockConnection": true, "blockTimeMS": 3000,
    };
    let mode = if slow { "alwaysOn" } else { "off" };
    set.fail_point(doc! { "configureFailPoint": "failCommand", "mode": mode, "data": making }).await
}

/// New goes away while the collection is being made there: the start says so, and may be repeated.
async fn new_away_while_it_prepares(server: &Server, new: &ReplicaSet) -> Result<()> {
    slow_preparation(new, true).await?;
    let spec = serde_json::json!({ "name": "orders", "namespaces": [{ "namespace": "shop.orders" }] });
    server.insist("POST", "/v1/migrations", Some(spec)).await?;
    let starting = server.http("POST", "/v1/migrations/orders/start", None);
    let stopping = async {
        server.until("orders", "it to prepare", |progress| progress["phase"] == "preparing").await?;
        new.kill9_all().await
    };
    let (answer, stopped) = tokio::join!(starting, stopping);
    stopped?;
    let (status, answer) = answer?;
    ensure!(status == 503, "{status} {answer}");
    new.start_all().await?;
    server.insist("POST", "/v1/migrations/orders/start", None).await.map(|_| ())
}

/// New goes away while it is prepared, and again between the end of the copy and the moment when it is level; then
/// so does the proxy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_away_early_is_not_noticed() -> Result<()> {
    let (old, new) = two_sets("new-away-behind").await?;
    let server = Server::start(&old.uri(), Some(&new.uri())).await?;
    let config = load(server.uri(), Profile::Keyed, DOCUMENTS);
    let workers = config.workers;
    Load::prepare(&config).await?;
    let load = Load::start(config).await?;
    new_away_while_it_prepares(&server, &new).await?;
    streams_of_old(&old, true).await?;
    server.until("orders", "the copy to end", |progress| progress["phase"] == "catching_up").await?;

    new.kill9_all().await?;
    work(&load, 300).await?;
    server.kill9()?;
    server.restart().await?;
    work(&load, 300).await?;
    let (_, progress) = server.get("/v1/migrations/orders/progress").await?;
    ensure!(progress["phase"] == "catching_up" && progress["can_cut_over"] == false, "{progress}");
    new.start_all().await?;
    streams_of_old(&old, false).await?;
    server.until_free("orders").await?;
    work(&load, 100).await?;
    let outcome = load.stop().await;
    no_errors_but_of_one_death(&outcome, workers)?;
    server.until_level("orders").await?;
    prove(outcome, &old, &new, &server.uri(), "shop.orders").await
}

/// New goes away when everything is on it. What it answered before is there when it comes back, and all of it
/// returns to old.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_away_when_it_decides_everything_loses_nothing() -> Result<()> {
    let (old, new) = two_sets("new-away-all").await?;
    let trial = Trial::start(old, new, Profile::Unique, DOCUMENTS).await?;
    trial.operator.until_synced().await?;
    trial.all_to_new().await?;
    trial.new.kill9_all().await?;
    // Other collections notice nothing, while writes of this one wait and then fail.
    let other = mongodb::Client::with_uri_str(trial.uri()).await?.database("shop").collection("other");
    for id in 0..20 {
        other.insert_one(doc! { "_id": id }).await?;
    }
    ensure!(!trial.operator.progress().await?.can_cut_over);
    ensure!(trial.operator.rollback().await.is_err(), "nothing can be given back by a cluster that is away");
    trial.new.start_all().await?;
    trial.operator.until_synced().await?;
    trial.work(200).await?;
    trial.back().await?;
    // While it was away its writes failed, and what was under way broke off.
    let held = trial.holds_but_for(|_| Ok(())).await?;
    held.proxy.shutdown().await;
    Ok(())
}

/// New goes away when half of the documents are its own, and then so does the proxy. Writes to that half wait and
/// fail meanwhile; what was acknowledged before is there when it comes back, and all of it returns to old.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_away_when_it_decides_a_part_loses_nothing() -> Result<()> {
    let (old, new) = two_sets("new-away-part").await?;
    let server = Server::start(&old.uri(), Some(&new.uri())).await?;
    let config = load(server.uri(), Profile::Keyed, DOCUMENTS);
    Load::prepare(&config).await?;
    let load = Load::start(config).await?;
    server.create_and_start("orders", "shop.orders").await?;
    server.until_free("orders").await?;
    server.percent("orders", "reads", 50).await?;
    server.percent("orders", "writes", 50).await?;
    work(&load, 200).await?;
    let errors = || load.snapshot().errors.total;
    ensure!(errors() == 0, "{:?}", load.snapshot().errors);
    new.kill9_all().await?;
    wait_for("writes that new decides to fail", LONG, || async { Ok(errors() > 0) }).await?;
    let (_, progress) = server.get("/v1/migrations/orders/progress").await?;
    ensure!(progress["can_cut_over"] == false, "{progress}");
    server.kill9()?;
    server.restart().await?;
    let before = errors();
    wait_for("more of them to fail", LONG, || async { Ok(errors() > before) }).await?;
    new.start_all().await?;
    server.until_free("orders").await?;
    work(&load, 200).await?;
    server.insist("POST", "/v1/migrations/orders/rollback", None).await?;
    work(&load, 100).await?;
    let outcome = load.stop().await;
    server.until_level("orders").await?;
    prove(outcome, &old, &new, &server.uri(), "shop.orders").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stepdowns_of_old_in_every_phase() -> Result<()> {
    stepdowns_of_old("stepdown", Profile::Keyed, &[50, 100]).await
}

/// The same for a collection with a unique index and transactions, whose writes move in one step.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stepdowns_of_old_in_every_phase_moving_in_one_step() -> Result<()> {
    stepdowns_of_old("stepdown-step", Profile::Unique, &[100]).await
}

/// Of what was under way at each, so much may break off where it is nothing that drivers repeat.
const BROKEN_OFF: usize = 6;

async fn stepdowns_of_old(name: &str, profile: Profile, writes: &[u8]) -> Result<()> {
    let (old, new) = (format!("{name}-old"), format!("{name}-new"));
    let (old, new) =
        tokio::try_join!(ReplicaSet::builder(&old).nodes(3).start(), ReplicaSet::builder(&new).start())?;
    let trial = Trial::create(old, new, profile, DOCUMENTS).await?;
    let stepdowns = AtomicUsize::new(0);
    let step_down = async || {
        stepdowns.fetch_add(1, Ordering::Relaxed);
        trial.old.stepdown().await?;
        trial.work(100).await
    };
    start_during(&trial, &step_down).await?;
    step_down().await?;
    trial.operator.until_synced().await?;
    step_down().await?;
    trial.operator.until_synced().await?;
    trial.operator.reads(100).await?;
    step_down().await?;
    for percent in writes {
        move_during(&trial, *percent, &step_down).await?;
        step_down().await?;
    }
    move_during(&trial, 0, &step_down).await?;
    step_down().await?;
    let most = AtomicUsize::new(0);
    let after = async |trial: &Trial| {
        trial.old.stepdown().await?;
        most.store(BROKEN_OFF * stepdowns.load(Ordering::Relaxed), Ordering::Relaxed);
        trial.work(200).await
    };
    // What happens to old after that is nobody's business any more.
    trial
        .completes(after, |outcome| few_errors_of_the_unrepeated(outcome, most.load(Ordering::Relaxed)))
        .await
}

/// Starts it, with `trouble` while it prepares: the start goes through, or may be repeated until it does.
async fn start_during(trial: &Trial, trouble: impl AsyncFn() -> Result<()>) -> Result<()> {
    slow_preparation(&trial.new, true).await?;
    let trouble = async {
        wait_for("it to prepare", LONG, || async {
            Ok(trial.operator.progress().await?.phase == Phase::Preparing)
        })
        .await?;
        trouble().await
    };
    let (first, trouble) = tokio::join!(trial.operator.start(), trouble);
    trouble?;
    slow_preparation(&trial.new, false).await?;
    if let Err(refused) = first {
        println!("started once more after: {refused}");
        wait_for("it to start", LONG, || async { Ok(trial.operator.start().await.is_ok()) }).await?;
    }
    Ok(())
}

/// Moves writes, with `trouble` in the middle of it: the move happens, or is given up and may be repeated.
async fn move_during(trial: &Trial, percent: u8, trouble: impl AsyncFn() -> Result<()>) -> Result<()> {
    trial.operator.until_synced().await?;
    let (moved, trouble) = tokio::join!(trial.operator.writes(percent), trouble());
    trouble?;
    if let Err(refused) = moved {
        println!("moved to {percent} % once more after: {refused}");
        wait_for("writes to move", LONG, || async {
            trial.operator.until_synced().await?;
            Ok(trial.operator.writes(percent).await.is_ok())
        })
        .await?;
    }
    trial.work(100).await
}

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
    let trial = Trial::start(old, new, Profile::Unique, DOCUMENTS).await?;
    trial.operator.until_synced().await?;
    trial.all_to_new().await?;
    trial.work(200).await?;
    trial.back().await?;
    trial.completes(async |_| Ok(()), no_errors).await
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
    trial.completes(async |_| Ok(()), no_errors).await
}
