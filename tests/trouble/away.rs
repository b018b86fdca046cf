//! New is away, dead or hanging, in every phase.

use anyhow::{Context as _, Result, ensure};
use bson::doc;
use reshard_loadtest::{ErrorStats, Load, Profile};
use reshard_testbed::{ReplicaSet, wait_for};

use crate::late_streams;
use crate::support::process::{Server, but_for_a_verification};
use crate::support::proof::{
    HALF_AS_MANY, WORKERS, are_equal_at_rest, each_write_counts_once, load, no_errors_but_of_one_death,
    prove, work,
};
use crate::support::trial::Trial;
use crate::support::{LONG, makes_collections_slowly, two_sets};

/// How new is away.
#[derive(Clone, Copy)]
enum Away {
    /// Its processes were killed.
    Dead,
    /// They are stopped: it takes what it is sent, and answers nothing.
    Hanging,
}

impl Away {
    async fn begin(self, new: &ReplicaSet) -> Result<()> {
        match self {
            Self::Dead => new.kill9_all().await,
            Self::Hanging => new.pause_all().await,
        }
    }

    async fn end(self, new: &ReplicaSet) -> Result<()> {
        match self {
            Self::Dead => new.start_all().await,
            Self::Hanging => new.resume_all().await,
        }
    }

    /// New is away for a while; this is said, and the load goes on.
    async fn a_while(self, new: &ReplicaSet, server: &Server, load: &Load) -> Result<()> {
        self.begin(new).await?;
        work(load, 300).await?;
        server.until("orders", "new to be missed", |progress| !but_for_a_verification(progress)).await?;
        self.end(new).await
    }

    /// The same while new decides everything: all that is under way waits for it, for longer than any lease.
    async fn a_while_with_authority(self, new: &ReplicaSet, load: &Load) -> Result<()> {
        self.begin(new).await?;
        wait_for("all to wait for new", LONG, || async {
            let waiting = load.snapshot();
            waiting.outstanding == WORKERS && waiting.oldest_outstanding_ms > 4_000.0
        })
        .await?;
        self.end(new).await
    }
}

/// A proxy between both clusters, and a load that goes on through it.
async fn under_load(old: &ReplicaSet, new: &ReplicaSet) -> Result<(Server, Load)> {
    let server = Server::start(&old.uri(), Some(&new.uri())).await?;
    let config = load(server.uri(), Profile::Keyed, HALF_AS_MANY);
    Load::prepare(&config).await?;
    let load = Load::start(config).await?;
    Ok((server, load))
}

/// New is away in every phase: unnoticed as long as it has no authority, also over a restart of the proxy and for
/// longer than any lease. Later its writes fail, with errors after which drivers try again, and nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_away_in_every_phase() -> Result<()> {
    let (old, new) = two_sets("new-away").await?;
    let (server, load) = under_load(&old, &new).await?;
    server.create_and_start("orders", "shop.orders").await?;

    Away::Dead.a_while(&new, &server, &load).await?;
    server.until("orders", "it to be synced", |progress| progress["phase"] == "synced").await?;
    Away::Hanging.a_while(&new, &server, &load).await?;
    server.until_free("orders").await?;
    Away::Dead.a_while(&new, &server, &load).await?;
    server.until_free("orders").await?;
    server.percent("orders", "reads", 50).await?;
    work(&load, 200).await?;
    Away::Hanging.a_while(&new, &server, &load).await?;
    server.until_free("orders").await?;

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
    no_errors_but_of_one_death(&load.snapshot().errors, WORKERS)?;
    server.percent("orders", "reads", 100).await?;

    server.percent("orders", "writes", 50).await?;
    the_proxy_dies_while_new_is_away_with_authority(&server, &new, &load).await?;
    server.until_free("orders").await?;
    work(&load, 200).await?;
    server.percent("orders", "writes", 100).await?;
    Away::Hanging.a_while_with_authority(&new, &load).await?;
    server.until_free("orders").await?;
    work(&load, 200).await?;
    are_equal_at_rest(&load, server.until_level("orders"), (&old, &new), "shop.orders").await?;
    let complete = serde_json::json!({ "force": true, "reason": "test" });
    server.insist("POST", "/v1/migrations/orders/complete", Some(complete)).await?;
    Away::Dead.a_while_with_authority(&new, &load).await?;
    work(&load, 200).await?;
    let outcome = load.stop().await;
    only_of_a_cluster_away(&outcome.stats.errors)?;
    each_write_counts_once(&outcome, &new.uri()).await
}

/// The proxy is killed while new is away and half of the slots are its own. The successor serves the other half
/// at once, and this half when new is back; nothing is lost of what the one that died had acknowledged.
async fn the_proxy_dies_while_new_is_away_with_authority(
    server: &Server,
    new: &ReplicaSet,
    load: &Load,
) -> Result<()> {
    const GUESTS: i32 = 40;
    new.kill9_all().await?;
    work(load, 5).await?;
    server.kill9()?;
    server.restart().await?;
    let through = format!("{}?maxPoolSize={GUESTS}", server.uri());
    let orders = mongodb::Client::with_uri_str(through).await?.database("shop").collection("orders");
    let mut guests = tokio::task::JoinSet::new();
    for id in 0..GUESTS {
        let orders = orders.clone();
        guests.spawn(async move { orders.insert_one(doc! { "_id": format!("guest-{id}") }).await });
    }
    for _ in 0..5 {
        guests.join_next().await.context("a write to old's half")???;
    }
    ensure!(!guests.is_empty(), "nothing waits for new");
    new.start_all().await?;
    // What waited for too long has failed.
    while let Some(guest) = guests.join_next().await {
        guest?.map_or_else(is_of_a_cluster_away, |_| Ok(()))?;
    }
    orders.delete_many(doc! { "_id": { "$regex": "^guest-" } }).await?;
    Ok(())
}

fn is_of_a_cluster_away(error: mongodb::error::Error) -> Result<()> {
    ensure!(error.contains_label("RetryableWriteError"), "{error}");
    Ok(())
}

/// Such as applications know of a cluster that is away: a broken connection, or the codes of a host that does not answer
/// (`HostUnreachable`) and of a primary that is not there.
fn only_of_a_cluster_away(errors: &ErrorStats) -> Result<()> {
    let known =
        |label: &String| ["Io", "ConnectionPoolCleared", "code 6", "code 91"].contains(&label.as_str());
    ensure!(errors.by_label.keys().all(known), "the application saw errors: {errors:?}");
    Ok(())
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
    set.fail_point(late_streams(late, 15_000)).await
}

/// New goes away while the collection is being made there: the start says so, and may be repeated.
async fn new_away_while_it_prepares(server: &Server, new: &ReplicaSet) -> Result<()> {
    makes_collections_slowly(new, true).await?;
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
    let (server, load) = under_load(&old, &new).await?;
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
    no_errors_but_of_one_death(&outcome.stats.errors, WORKERS)?;
    server.until_level("orders").await?;
    prove(outcome, &old, &new, &server.uri(), "shop.orders").await
}

/// New goes away when everything is on it. What it answered before is there when it comes back, and all of it
/// returns to old.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_away_when_it_decides_everything_loses_nothing() -> Result<()> {
    let (old, new) = two_sets("new-away-all").await?;
    let trial = Trial::start(old, new, Profile::Unique, HALF_AS_MANY).await?;
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
    trial.operator.until_synced().await?;
    trial.all_to_new().await?;
    trial.complete().await?;
    // Alone now, it goes away once more.
    trial.new.kill9_all().await?;
    trial.new.start_all().await?;
    trial.work(200).await?;
    trial.holds_on_new(only_of_a_cluster_away).await
}
