//! Clusters that ask who it is, and look at the signature of each time that they are shown.

#[path = "support/mod.rs"]
mod support;

use anyhow::{Context as _, Result, ensure};
use bson::{Document, doc};
use reshard::model::percent::Percent;
use reshard_loadtest::{Load, Profile};
use reshard_testbed::ReplicaSet;

use support::proof::{load, no_errors, prove, work};
use support::{Operator, proxy, uri};

/// What `docs/operations.md` asks for, between replica sets.
const ROLES: [(&str, &str); 7] = [
    ("readAnyDatabase", "admin"),
    ("clusterMonitor", "admin"),
    ("hostManager", "admin"),
    ("readWrite", "shop"),
    ("dbAdmin", "shop"),
    ("readWrite", "reshard"),
    ("dbAdmin", "reshard"),
];

/// Makes an account on `set` that may do that, and no more: not move its clock either. Its connection string.
async fn account(set: &ReplicaSet) -> Result<String> {
    let roles: Vec<_> = ROLES.iter().map(|(role, db)| doc! { "role": role, "db": db }).collect();
    let admin = set.client().await?.database("admin");
    admin.run_command(doc! { "createUser": "mover", "pwd": "p", "roles": roles }).await?;
    account_on(set)
}

fn account_on(set: &ReplicaSet) -> Result<String> {
    let uri = set.uri();
    let (before, after) = uri.split_once("root:root@").context("an account")?;
    Ok(format!("{before}mover:p@{after}"))
}

/// The time of a cluster, with its signature.
async fn time_of(uri: &str) -> Result<Document> {
    let admin = mongodb::Client::with_uri_str(uri).await?.database("admin");
    Ok(admin.run_command(doc! { "ping": 1 }).await?.get_document("$clusterTime")?.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_with_what_the_documentation_asks_for_moves_everything() -> Result<()> {
    let start = |name| ReplicaSet::builder(name).auth("root", "root").start();
    let (old, new) = tokio::try_join!(start("accounts-old"), start("accounts-new"))?;
    let proxy = proxy(&account(&old).await?, Some(&account(&new).await?)).await?;
    let config = load(uri(&proxy), Profile::Keyed, 5_000);
    let namespace = config.namespace();
    Load::prepare(&config).await?;
    let operator = Operator::of(&proxy, &config.collection);
    let load = Load::start(config).await?;
    operator.create(&[&namespace]).await?;
    operator.start().await?;
    operator.until_synced().await?;
    let least = Percent::of_tenths(1);
    operator.reads(least).await?;
    operator.writes(least).await?;
    work(&load, 200).await?;
    let progress = operator.progress().await?;
    ensure!([progress.reads_percent, progress.writes_percent] == [least; 2], "{progress:?}");
    operator.reads(50).await?;
    work(&load, 200).await?;
    operator.writes(50).await?;
    work(&load, 200).await?;
    operator.reads(100).await?;
    operator.writes(100).await?;
    work(&load, 200).await?;
    // An application that spoke to old itself before brings a time along that new would refuse.
    let application = mongodb::Client::with_uri_str(uri(&proxy)).await?.database("shop");
    let find = doc! { "find": "orders", "limit": 1, "$clusterTime": time_of(&account_on(&old)?).await? };
    application.run_command(find).await?;
    operator.rollback().await?;
    work(&load, 200).await?;
    let outcome = load.stop().await;
    no_errors(&outcome.stats.errors)?;
    operator.until_level().await?;
    operator.found_none_past_the_proxy().await?;
    prove(outcome, &old, &new, &uri(&proxy), &namespace).await?;
    operator.until_synced().await?;
    operator.reads(100).await?;
    operator.writes(100).await?;
    operator.complete().await?;
    ensure!(proxy.shutdown().await);
    Ok(())
}

/// That a time of another cluster would be noticed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_of_another_cluster_is_refused() -> Result<()> {
    let start = |name| ReplicaSet::builder(name).auth("root", "root").start();
    let (one, other) = tokio::try_join!(start("accounts-one"), start("accounts-other"))?;
    let time = time_of(&account(&one).await?).await?;
    let admin = mongodb::Client::with_uri_str(account(&other).await?).await?.database("admin");
    let refused = admin.run_command(doc! { "ping": 1, "$clusterTime": time }).await;
    let why = refused.err().context("it was taken")?.to_string();
    ensure!(["KeyNotFound", "TimeProofMismatch"].iter().any(|name| why.contains(name)), "{why}");
    Ok(())
}

/// Users and roles that applications make while collections move are there when they come to new.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_roles_and_default_concerns_reach_both_clusters_or_neither() -> Result<()> {
    let start = |name| ReplicaSet::builder(name).auth("root", "root").start();
    let (old, new) = tokio::try_join!(start("users-old"), start("users-new"))?;
    let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
    let client = mongodb::Client::with_uri_str(uri(&proxy)).await?;
    let shop = client.database("shop");
    shop.collection("orders").insert_one(doc! { "_id": 1 }).await?;
    // Before a migration they are old's alone.
    let user = |name: &str, role: &str| doc! { "createUser": name, "pwd": "secret", "roles": [role] };
    shop.run_command(user("early", "read")).await?;
    let operator = Operator::of(&proxy, "users");
    operator.create(&["shop.orders"]).await?;
    operator.start().await?;

    shop.run_command(doc! { "createRole": "reader", "privileges": [], "roles": ["read"] }).await?;
    shop.run_command(user("late", "reader")).await?;
    shop.run_command(doc! { "grantRolesToUser": "late", "roles": ["readWrite"] }).await?;
    for set in [&old, &new] {
        let late =
            set.uri().replace("root:root@", "late:secret@").replace("authSource=admin", "authSource=shop");
        ensure!(late.contains("authSource=shop"), "{late}");
        let as_late = mongodb::Client::with_uri_str(late).await?.database("shop");
        as_late.collection("by_late").insert_one(doc! { "_id": 1 }).await?;
    }

    // What old refuses is gone from new again; what is not on new does not keep it on old.
    let again = shop.run_command(user("early", "read")).await;
    ensure!(again.is_err_and(|why| why.to_string().contains("already exists")));
    ensure!(users(&new).await? == ["late"], "{:?}", users(&new).await?);
    shop.run_command(doc! { "dropUser": "early" }).await?;
    ensure!(users(&old).await? == ["late"]);

    // What new refuses, old does not get.
    new.client().await?.database("shop").run_command(doc! { "dropRole": "reader" }).await?;
    let refused =
        shop.run_command(user("other", "reader")).await.err().context("a role that new has not got")?;
    ensure!(refused.to_string().contains("RoleNotFound"), "{refused}");
    ensure!(users(&old).await? == ["late"]);

    let concerns =
        doc! { "setDefaultRWConcern": 1, "defaultWriteConcern": { "w": "majority", "wtimeout": 7 } };
    client.database("admin").run_command(concerns).await?;
    for set in [&old, &new] {
        let admin = set.client().await?.database("admin");
        let default = admin.run_command(doc! { "getDefaultRWConcern": 1 }).await?;
        ensure!(default.get_document("defaultWriteConcern")?.get_i32("wtimeout")? == 7, "{default}");
    }
    proxy.shutdown().await;
    Ok(())
}

/// Users of `shop`.
async fn users(set: &ReplicaSet) -> Result<Vec<String>> {
    let shop = set.client().await?.database("shop");
    let reply = shop.run_command(doc! { "usersInfo": 1 }).await?;
    let users = reply.get_array("users")?.iter().filter_map(|user| user.as_document());
    users.map(|user| Ok(user.get_str("user")?.to_owned())).collect()
}
