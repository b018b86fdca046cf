//! Starting, stopping and crashing replica sets.

use std::path::Path;
use std::time::{Duration, Instant};

use bson::{Document, doc};
use reshard_testbed::{ReplicaSet, Standalone, Version, wait_for};

async fn count(set: &ReplicaSet) -> u64 {
    let client = set.client().await.unwrap();
    client.database("shop").collection::<Document>("orders").count_documents(doc! {}).await.unwrap()
}

async fn insert(set: &ReplicaSet, id: i32) {
    let client = set.client().await.unwrap();
    client.database("shop").collection("orders").insert_one(doc! {"_id": id}).await.unwrap();
}

fn alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[tokio::test]
async fn one_node_writes_and_reads() {
    let begin = Instant::now();
    let set = ReplicaSet::builder("one").start().await.unwrap();
    eprintln!("one node up in {:?}", begin.elapsed());
    insert(&set, 1).await;
    assert_eq!(count(&set).await, 1);
    assert!(set.uri().starts_with("mongodb://127.0.0.1:") && set.uri().ends_with("/?replicaSet=one"));
    assert!(set.node(0).rss_bytes().unwrap() > 10_000_000);
    assert!(set.node(0).cpu_seconds().unwrap() > 0.0);
}

#[tokio::test]
async fn three_nodes_replicate() {
    let begin = Instant::now();
    let set = ReplicaSet::builder("three").nodes(3).start().await.unwrap();
    eprintln!("three nodes up in {:?}", begin.elapsed());
    insert(&set, 1).await;
    for index in 0..3 {
        let client = set.node(index).client().await.unwrap();
        wait_for("the document on each node", Duration::from_secs(20), || async {
            let found =
                client.database("shop").collection::<Document>("orders").find_one(doc! {"_id": 1}).await;
            found.map(|document| document.is_some())
        })
        .await
        .unwrap();
    }
}

#[tokio::test]
async fn data_outlives_kill9_and_stop() {
    let set = ReplicaSet::builder("crash").start().await.unwrap();
    let (uri, pid) = (set.uri(), set.node(0).pid().unwrap());
    insert(&set, 1).await;
    set.kill9_all().await.unwrap();
    assert!(set.node(0).pid().is_none() && !alive(pid));
    assert!(set.node(0).hello().await.is_err());
    set.start_all().await.unwrap();
    assert_eq!(count(&set).await, 1);
    let begin = Instant::now();
    set.stop_all().await.unwrap();
    eprintln!("orderly stop in {:?}", begin.elapsed());
    set.start_all().await.unwrap();
    assert_eq!(count(&set).await, 1);
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

async fn runs(version: Version, series: &str) {
    let set = ReplicaSet::builder("older").version(version).start().await.unwrap();
    assert!(set.node(0).mongod().version().starts_with(series));
    insert(&set, 1).await;
    assert_eq!(count(&set).await, 1);
}

#[tokio::test]
async fn version_6_0_runs() {
    runs(Version::V6_0, "6.0.").await;
}

#[tokio::test]
async fn version_5_0_runs() {
    runs(Version::V5_0, "5.0.").await;
}

#[tokio::test]
async fn version_4_4_runs() {
    runs(Version::V4_4, "4.4.").await;
}

#[tokio::test]
async fn version_4_2_runs() {
    runs(Version::V4_2, "4.2.").await;
}
