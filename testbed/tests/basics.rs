//! Starting, stopping and crashing replica sets.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use bson::{Document, doc};
use reshard_testbed::{ReplicaSet, Standalone, Version, wait_for};

async fn count(set: &ReplicaSet) -> Result<u64> {
    let orders = set.client().await?.database("shop").collection::<Document>("orders");
    Ok(orders.count_documents(doc! {}).await?)
}

async fn insert(set: &ReplicaSet, id: i32) -> Result<()> {
    set.client().await?.database("shop").collection("orders").insert_one(doc! {"_id": id}).await?;
    Ok(())
}

fn alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[tokio::test]
async fn one_node_writes_and_reads() {
    let begin = Instant::now();
    let set = ReplicaSet::builder("one").start().await.unwrap();
    eprintln!("one node up in {:?}", begin.elapsed());
    insert(&set, 1).await.unwrap();
    assert_eq!(count(&set).await.unwrap(), 1);
    assert!(set.uri().starts_with("mongodb://127.0.0.1:") && set.uri().ends_with("/?replicaSet=one"));
    assert!(set.node(0).rss_bytes().unwrap() > 10_000_000);
    assert!(set.node(0).cpu_seconds().unwrap() > 0.0);
}

#[tokio::test]
async fn three_nodes_replicate() {
    let begin = Instant::now();
    let set = ReplicaSet::builder("three").nodes(3).start().await.unwrap();
    eprintln!("three nodes up in {:?}", begin.elapsed());
    insert(&set, 1).await.unwrap();
    for index in 0..3 {
        let client = set.node(index).client().await.unwrap();
        wait_for("the document on each node", Duration::from_secs(20), || async {
            let orders = client.database("shop").collection::<Document>("orders");
            Ok(orders.find_one(doc! {"_id": 1}).await?.is_some())
        })
        .await
        .unwrap();
    }
}

#[tokio::test]
async fn data_outlives_kill9_and_stop() {
    let set = ReplicaSet::builder("crash").start().await.unwrap();
    let (uri, pid) = (set.uri(), set.node(0).pid().unwrap());
    insert(&set, 1).await.unwrap();
    set.kill9_all().await.unwrap();
    assert!(set.node(0).pid().is_none() && !alive(pid));
    assert!(set.node(0).hello().await.is_err());
    set.start_all().await.unwrap();
    assert_eq!(count(&set).await.unwrap(), 1);
    let begin = Instant::now();
    set.stop_all().await.unwrap();
    eprintln!("orderly stop in {:?}", begin.elapsed());
    set.start_all().await.unwrap();
    assert_eq!(count(&set).await.unwrap(), 1);
    assert_eq!(set.uri(), uri);
}

#[tokio::test]
async fn processes_and_data_are_gone_after_drop() {
    let set = ReplicaSet::builder("gone").nodes(3).start().await.unwrap();
    let pids: Vec<u32> = set.nodes().iter().filter_map(|node| node.pid()).collect();
    let folder = set.node(0).log_path().parent().unwrap().to_path_buf();
    assert_eq!(pids.len(), 3);
    assert!(pids.iter().all(|pid| alive(*pid)) && folder.exists());
    set.node(1).pause().await.unwrap();
    drop(set);
    assert!(!pids.iter().any(|pid| alive(*pid)));
    assert!(!folder.exists());
}

#[tokio::test]
async fn standalone_is_no_replica_set() {
    let server = Standalone::start().await.unwrap();
    let hello = server.node().hello().await.unwrap();
    assert!(hello.get("setName").is_none());
    assert!(server.uri().ends_with("/?directConnection=true"));
    server
        .client()
        .await
        .unwrap()
        .database("shop")
        .collection("orders")
        .insert_one(doc! {"_id": 1})
        .await
        .unwrap();
}

#[tokio::test]
async fn a_failed_start_shows_the_log() {
    let error = ReplicaSet::builder("wrong").param("noSuchParameter", "1").start().await.unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("noSuchParameter") && text.contains("end of "), "{text}");
}

async fn runs(version: Version, series: &str) -> Result<()> {
    let set = ReplicaSet::builder("older").version(version).start().await?;
    assert!(set.node(0).mongod().version().starts_with(series));
    insert(&set, 1).await?;
    assert_eq!(count(&set).await?, 1);
    Ok(())
}

#[tokio::test]
async fn version_6_0_runs() {
    runs(Version::V6_0, "6.0.").await.unwrap();
}

#[tokio::test]
async fn version_5_0_runs() {
    runs(Version::V5_0, "5.0.").await.unwrap();
}

#[tokio::test]
async fn version_4_4_runs() {
    runs(Version::V4_4, "4.4.").await.unwrap();
}

/// The driver refuses 4.2, so this one is asked by plain commands.
#[tokio::test]
async fn version_4_2_runs() {
    let set = ReplicaSet::builder("oldest").version(Version::V4_2).start().await.unwrap();
    let node = set.node(set.primary().await.unwrap());
    assert!(node.mongod().version().starts_with("4.2."));
    node.run("shop", doc! {"insert": "orders", "documents": [{"_id": 1}]}).await.unwrap();
    let found = node.run("shop", doc! {"count": "orders"}).await.unwrap();
    assert_eq!(found.get_i32("n").unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_share_a_set() {
    let set = std::sync::Arc::new(ReplicaSet::builder("shared").start().await.unwrap());
    let shared = set.clone();
    let restart = tokio::spawn(async move {
        shared.kill9_all().await?;
        shared.start_all().await
    });
    restart.await.unwrap().unwrap();
    insert(&set, 1).await.unwrap();
}
