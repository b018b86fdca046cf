//! What tests do to servers, and access control and TLS.

use std::future::IntoFuture as _;
use std::time::{Duration, Instant};

use anyhow::Result;
use bson::{Document, doc};
use mongodb::{Client, Collection};
use reshard_testbed::{ReplicaSet, wait_for};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);

async fn orders(set: &ReplicaSet) -> Result<Collection<Document>> {
    Ok(set.client().await?.database("shop").collection("orders"))
}

#[tokio::test]
async fn stepdown_changes_the_primary() {
    let set = ReplicaSet::builder("down").nodes(3).start().await.unwrap();
    let mut old = set.primary().await.unwrap();
    // Several times in a row: a node that stepped down is soon eligible again.
    for id in 0..3 {
        let begin = Instant::now();
        set.stepdown().await.unwrap();
        let new = set.primary().await.unwrap();
        eprintln!("stepdown {id} in {:?}: {old} -> {new}", begin.elapsed());
        assert_ne!(new, old);
        orders(&set).await.unwrap().insert_one(doc! {"_id": id}).await.unwrap();
        old = new;
    }
}

#[tokio::test]
async fn stepdown_of_a_single_node_ends_with_a_primary() {
    let set = ReplicaSet::builder("alone").start().await.unwrap();
    let term = |status: &Document| status.get_i64("term").unwrap();
    let before = term(&set.node(0).admin(doc! {"replSetGetStatus": 1}).await.unwrap());
    set.stepdown().await.unwrap();
    let after = term(&set.node(0).admin(doc! {"replSetGetStatus": 1}).await.unwrap());
    assert!(after > before);
    orders(&set).await.unwrap().insert_one(doc! {"_id": 1}).await.unwrap();
}

#[tokio::test]
async fn another_node_takes_over_from_a_killed_primary() {
    let set = ReplicaSet::builder("failover").nodes(3).start().await.unwrap();
    let old = set.primary().await.unwrap();
    let begin = Instant::now();
    set.node(old).kill9().await.unwrap();
    let new = set.primary().await.unwrap();
    eprintln!("failover in {:?}", begin.elapsed());
    assert_ne!(new, old);
    let orders = orders(&set).await.unwrap();
    let written = timeout(2 * PATIENCE, orders.insert_one(doc! {"_id": 1}).into_future()).await;
    written
        .unwrap_or_else(|_| panic!("two of three members acknowledge nothing: {}", set.log_tails()))
        .unwrap();
    set.node(old).start().await.unwrap();
    set.all_members_ready().await.unwrap();
}

#[tokio::test]
async fn a_paused_node_does_not_answer_until_it_is_resumed() {
    let set = ReplicaSet::builder("pause").start().await.unwrap();
    orders(&set).await.unwrap().insert_one(doc! {"_id": 1}).await.unwrap();
    set.pause_all().await.unwrap();
    assert!(set.node(0).pid().is_some());
    assert!(set.node(0).hello().await.is_err());
    set.resume_all().await.unwrap();
    wait_for("an answer", PATIENCE, || async { set.node(0).hello().await.map(|_| true) }).await.unwrap();
    assert_eq!(orders(&set).await.unwrap().count_documents(doc! {}).await.unwrap(), 1);
    // A paused one can be stopped and killed all the same.
    set.pause_all().await.unwrap();
    set.stop_all().await.unwrap();
    assert!(set.node(0).pid().is_none());
}

#[tokio::test]
async fn another_node_takes_over_from_a_paused_primary() {
    let set = ReplicaSet::builder("hung").nodes(3).start().await.unwrap();
    let old = set.primary().await.unwrap();
    set.node(old).pause().await.unwrap();
    let new = set.primary().await.unwrap();
    assert_ne!(new, old);
    set.node(old).resume().await.unwrap();
    set.all_members_ready().await.unwrap();
    assert_ne!(set.primary().await.unwrap(), old);
}

#[tokio::test]
async fn auth_wants_the_password() {
    let set = ReplicaSet::builder("auth").nodes(3).auth("ann", "p@ss/word").start().await.unwrap();
    assert!(set.uri().contains("&authSource=admin"));
    orders(&set).await.unwrap().insert_one(doc! {"_id": 1}).await.unwrap();
    let stranger = Client::with_uri_str(set.uri().replace("ann:p%40ss%2Fword@", "")).await.unwrap();
    let refused =
        stranger.database("shop").collection::<Document>("orders").find_one(doc! {}).await.unwrap_err();
    assert!(refused.to_string().contains("requires authentication"), "{refused}");
    // The user is still there after a restart.
    set.kill9_all().await.unwrap();
    set.start_all().await.unwrap();
    assert_eq!(orders(&set).await.unwrap().count_documents(doc! {}).await.unwrap(), 1);
    set.stepdown().await.unwrap();
}

#[tokio::test]
async fn tls_is_required() {
    let set = ReplicaSet::builder("tls").nodes(3).auth("ann", "secret").tls(true).start().await.unwrap();
    orders(&set).await.unwrap().insert_one(doc! {"_id": 1}).await.unwrap();
    let direct = Client::with_uri_str(set.direct_uri(0)).await.unwrap();
    direct.database("admin").run_command(doc! {"ping": 1}).await.unwrap();
    let plain =
        format!("mongodb://{}/?directConnection=true&serverSelectionTimeoutMS=500", set.node(0).address());
    let plain = Client::with_uri_str(plain).await.unwrap();
    plain.database("admin").run_command(doc! {"ping": 1}).await.unwrap_err();
}

#[tokio::test]
async fn fail_point_on_the_primary() {
    let set = ReplicaSet::builder("point").start().await.unwrap();
    let data = doc! {"failCommands": ["insert"], "errorCode": 42};
    set.fail_point(doc! {"configureFailPoint": "failCommand", "mode": {"times": 1}, "data": data})
        .await
        .unwrap();
    let orders = orders(&set).await.unwrap();
    let error = orders.insert_one(doc! {"_id": 1}).await.unwrap_err();
    assert!(error.to_string().contains("42"), "{error}");
    orders.insert_one(doc! {"_id": 1}).await.unwrap();
}

#[tokio::test]
async fn server_parameters_are_passed_on() {
    let set =
        ReplicaSet::builder("param").param("ttlMonitorSleepSecs", "1").oplog_mb(50).start().await.unwrap();
    let answer = set.node(0).admin(doc! {"getParameter": 1, "ttlMonitorSleepSecs": 1}).await.unwrap();
    assert_eq!(answer.get_i32("ttlMonitorSleepSecs").unwrap(), 1);
}
