//! The cluster layer against real servers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bson::{RawBsonRef, RawDocumentBuf, rawdoc};
use reshard::cluster::command::{Commands, Reply, Request, SendError, Target};
use reshard::cluster::{Cluster, Pools, ReadMode, ReadPreference, Role, Selection, Settings, TopologyKind};
use reshard::shutdown::Tasks;
use reshard_testbed::{ReplicaSet, Standalone};

const LIMIT: Duration = Duration::from_secs(20);

async fn connect(uri: &str) -> Result<(Arc<Cluster>, Arc<Pools>, Tasks)> {
    let tasks = Tasks::default();
    let cluster = Cluster::connect(Settings::parse(uri).await?.app_name("reshard-test"), &tasks).await?;
    let pools = cluster.pools(16);
    Ok((cluster, pools, tasks))
}

async fn run(pools: &Pools, database: &str, body: RawDocumentBuf) -> Result<Reply> {
    let reply = pools.run(Request::new(database, body).within(LIMIT)).await?;
    match reply.error() {
        Some(error) => Err(error.into()),
        None => Ok(reply),
    }
}

fn insert(id: i64) -> RawDocumentBuf {
    rawdoc! { "insert": "c", "documents": [{ "_id": id }], "writeConcern": { "w": "majority" } }
}

async fn count(pools: &Pools) -> Result<i32> {
    // With a query, because the number without one may be wrong after a crash.
    let body =
        rawdoc! { "count": "c", "query": { "_id": { "$gte": 0 } }, "readConcern": { "level": "majority" } };
    let reply = run(pools, "d", body).await?;
    Ok(reply.body.get_i32("n")?)
}

fn not_sent(result: Result<Reply, SendError>) -> Result<String> {
    match result {
        Err(SendError::NotSent(why)) => Ok(why),
        other => bail!("expected NotSent: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_run_and_cluster_time_is_kept() -> Result<()> {
    let set = ReplicaSet::builder("x").start().await?;
    let (cluster, pools, _tasks) = connect(&set.uri()).await?;
    let document = rawdoc! { "_id": 1 };
    let request = Request::new("d", rawdoc! { "insert": "c" }).sequence("documents", document.into_bytes());
    let reply = pools.run(request).await?;
    ensure!(reply.error().is_none() && reply.body.get_i32("n")? == 1, "{reply:?}");
    let time = reply.operation_time.context("operationTime")?;
    ensure!(reply.body.get("$clusterTime")?.is_none() && reply.body.get("operationTime")?.is_none());
    let gossip = pools.times().latest().context("$clusterTime")?;
    ensure!(gossip.get_timestamp("clusterTime")? >= time);
    // The server accepts what it gave, for a read after the write.
    let body = rawdoc! { "count": "c", "readConcern": { "afterClusterTime": time } };
    ensure!(run(&pools, "d", body).await?.body.get_i32("n")? == 1);
    // One after the other needs one connection.
    ensure!(pools.stats()[0].1.created == 1, "{:?}", pools.stats());
    let own = rawdoc! {
        "aggregate": 1,
        "pipeline": [{ "$currentOp": {} }, { "$match": { "appName": "reshard-test", "active": true } }],
        "cursor": {},
    };
    let found = run(&pools, "admin", own).await?.body;
    ensure!(found.get_document("cursor")?.get_array("firstBatch")?.into_iter().count() >= 1, "{found:?}");
    // A reply larger than any buffer there is before.
    let large = rawdoc! { "insert": "large", "documents": [{ "text": "x".repeat(15_000_000) }] };
    run(&pools, "d", large).await?;
    let found = run(&pools, "d", rawdoc! { "find": "large" }).await?.body;
    ensure!(found.as_bytes().len() > 15_000_000);
    let topology = cluster.topology();
    ensure!(topology.kind == TopologyKind::ReplicaSet { set_name: "x".to_owned() });
    ensure!(topology.primary().is_some_and(|server| server.rtt.is_some()));
    ensure!(topology.session_timeout_minutes() == Some(30));
    Ok(())
}

/// Whether a write is done for good; a duplicate is what an earlier try with an unknown outcome left.
fn is_durable(reply: &Reply) -> bool {
    let mut errors = reply.body.get_array("writeErrors").into_iter().flatten().flatten();
    let is_duplicate = |error: RawBsonRef<'_>| {
        error.as_document().is_some_and(|e| e.get_i32("code").is_ok_and(|code| code == 11000))
    };
    reply.error().is_none()
        && reply.body.get_document("writeConcernError").is_err()
        && errors.all(is_duplicate)
}

/// Writes from 64 users until told to stop; each repeats a write until it is surely done.
/// Returns how many documents there must be and the longest time between two successes of one user.
async fn load(pools: Arc<Pools>, stop: Arc<AtomicBool>) -> Result<(i32, Duration)> {
    let users = (0..64_i64).map(|user| {
        let (pools, stop) = (pools.clone(), stop.clone());
        tokio::spawn(async move {
            let (mut done, mut last, mut longest) = (0, Instant::now(), Duration::ZERO);
            while !stop.load(Ordering::Relaxed) {
                let request = Request::new("d", insert(user * 1_000_000 + i64::from(done))).within(LIMIT);
                match pools.run(request).await {
                    Ok(reply) if is_durable(&reply) => {
                        done += 1;
                        longest = longest.max(last.elapsed());
                        last = Instant::now();
                    }
                    Ok(_) | Err(_) => {}
                }
            }
            (done, longest)
        })
    });
    let mut sum = (0, Duration::ZERO);
    for user in users.collect::<Vec<_>>() {
        let (done, longest) = user.await?;
        sum = (sum.0 + done, sum.1.max(longest));
    }
    Ok(sum)
}

/// Waits until the load has written some more.
async fn more(pools: &Arc<Pools>) -> Result<()> {
    let from = count(pools).await?;
    reshard_testbed::wait_for("the load to go on", LIMIT, || async { Ok(count(pools).await? >= from + 200) })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn many_users_survive_changes_of_the_primary() -> Result<()> {
    let set = ReplicaSet::builder("x").nodes(3).start().await?;
    let (cluster, pools, _tasks) = connect(&set.uri()).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn(load(pools.clone(), stop.clone()));
    more(&pools).await?;
    set.stepdown().await?;
    more(&pools).await?;
    let killed = set.primary().await?;
    set.node(killed).kill9().await?;
    set.primary().await?;
    more(&pools).await?;
    set.node(killed).start().await?;
    set.all_members_ready().await?;
    more(&pools).await?;
    stop.store(true, Ordering::Relaxed);
    let (written, longest) = load.await??;
    println!("{written} written, longest gap {longest:?}, {:?}", pools.stats());
    ensure!(written > 100 && longest < LIMIT);
    ensure!(count(&pools).await? == written);
    for (server, stats) in pools.stats() {
        ensure!(stats.in_use == 0 && stats.idle <= 16, "{server}: {stats:?}");
    }
    // The restarted one is found again.
    let address = set.node(killed).address();
    cluster.wait_for(&Selection::Server(address.into()), LIMIT).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_primary_holds_nobody_longer_than_its_limit() -> Result<()> {
    let set = ReplicaSet::builder("x").nodes(3).start().await?;
    let (cluster, pools, _tasks) = connect(&set.uri()).await?;
    run(&pools, "d", insert(1)).await?;
    let hung = set.primary().await?;
    set.node(hung).pause().await?;
    let began = Instant::now();
    let limit = Duration::from_millis(700);
    let result = pools.run(Request::new("d", insert(2)).within(limit)).await;
    ensure!(matches!(result, Err(SendError::Unknown(_))), "{result:?}");
    ensure!(began.elapsed() < LIMIT, "its own limit is what ends it");
    // The connection with the late answer must not be used again.
    ensure!(pools.stats().iter().all(|(_, stats)| stats.idle == 0 && stats.in_use == 0));
    let another = || async {
        let primary = cluster.wait_for(&Selection::Primary, LIMIT).await?;
        anyhow::Ok(*primary != *set.node(hung).address())
    };
    reshard_testbed::wait_for("another primary", LIMIT, another)
        .await
        .with_context(|| cluster.topology().summary())?;
    println!("new primary after {:?}", began.elapsed());
    // Without majority: the other member may be waiting for the hung one to send it the oplog.
    // It must be said: from 5.0 on, a write that says nothing waits for the majority.
    let unconfirmed =
        |id: i32| rawdoc! { "insert": "c", "documents": [{ "_id": id }], "writeConcern": { "w": 1 } };
    run(&pools, "d", unconfirmed(3)).await?;
    set.node(hung).resume().await?;
    run(&pools, "d", unconfirmed(4)).await?;
    Ok(())
}

/// Without a limit of its own an operation would wait for a hung server for ever.
#[tokio::test(flavor = "multi_thread")]
async fn operations_on_a_hung_server_are_ended() -> Result<()> {
    let set = ReplicaSet::builder("x").start().await?;
    let uri = format!("{}&connectTimeoutMS=1000&heartbeatFrequencyMS=1000", set.uri());
    let (_, pools, _tasks) = connect(&uri).await?;
    run(&pools, "d", insert(1)).await?;
    set.node(0).pause().await?;
    let began = Instant::now();
    let result = pools.run(Request::new("d", insert(2)).within(Duration::from_secs(60))).await;
    println!("ended after {:?}: {result:?}", began.elapsed());
    ensure!(matches!(result, Err(SendError::Unknown(_))) && began.elapsed() < Duration::from_secs(30));
    let began = Instant::now();
    not_sent(pools.run(Request::new("d", insert(3)).within(Duration::from_secs(2))).await)?;
    ensure!(began.elapsed() < Duration::from_secs(20));
    set.node(0).resume().await?;
    run(&pools, "d", insert(4)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn login() -> Result<()> {
    let set = ReplicaSet::builder("x").auth("anna", "s:e/c@ret,=").start().await?;
    for mechanism in ["", "&authMechanism=SCRAM-SHA-256", "&authMechanism=SCRAM-SHA-1"] {
        let (_, pools, _tasks) = connect(&format!("{}{mechanism}", set.uri())).await?;
        run(&pools, "d", rawdoc! { "count": "c" }).await?;
    }
    let (_, pools, _tasks) = connect(&set.uri().replace("anna", "otto")).await?;
    let began = Instant::now();
    let why = not_sent(pools.run(Request::new("d", rawdoc! { "count": "c" })).await)?;
    ensure!(why.contains("login at") && why.contains("18") && began.elapsed() < LIMIT, "{why}");
    // Without a login the server answers, with an error.
    let (_, pools, _tasks) = connect(&format!("mongodb://{}/", set.node(0).address())).await?;
    let reply = pools.run(Request::new("d", rawdoc! { "count": "c" })).await?;
    ensure!(reply.error().is_some_and(|error| error.code == 13), "{reply:?}");
    // A second connection does not pay for the key again.
    let (_, pools, _tasks) = connect(&set.uri()).await?;
    let mut taken = Vec::new();
    for _ in 0..2 {
        let began = Instant::now();
        taken.push(pools.checkout(&Selection::Primary, LIMIT).await?);
        println!("checkout with login took {:?}", began.elapsed());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn encryption() -> Result<()> {
    let set = ReplicaSet::builder("x").auth("anna", "secret").tls(true).start().await?;
    let uri = set.uri();
    let (_, pools, _tasks) = connect(&uri).await?;
    for id in 0..20 {
        run(&pools, "d", insert(id)).await?;
    }
    ensure!(count(&pools).await? == 20);
    ensure!(pools.stats()[0].1.created == 1, "{:?}", pools.stats());
    let large = rawdoc! { "insert": "large", "documents": [{ "text": "x".repeat(5_000_000) }] };
    run(&pools, "d", large).await?;
    ensure!(run(&pools, "d", rawdoc! { "find": "large" }).await?.body.as_bytes().len() > 5_000_000);
    let without_ca = uri.split("&tlsCAFile").next().unwrap_or_default().to_owned();
    let (_, pools, _tasks) = connect(&without_ca).await?;
    let request = Request::new("d", rawdoc! { "count": "c" }).within(Duration::from_secs(2));
    let why = not_sent(pools.run(request).await)?;
    ensure!(why.contains("certificate"), "{why}");
    let (_, pools, _tasks) = connect(&format!("{without_ca}&tlsAllowInvalidCertificates=true")).await?;
    ensure!(count(&pools).await? == 20);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_may_be_down_at_the_start() -> Result<()> {
    let set = ReplicaSet::builder("x").start().await?;
    set.stop_all().await?;
    let (_, pools, _tasks) = connect(&set.uri()).await?;
    let limit = Duration::from_millis(300);
    let began = Instant::now();
    let why = not_sent(pools.run(Request::new("d", insert(1)).within(limit)).await)?;
    ensure!(why.contains("refused") && began.elapsed() < limit * 3, "{why}");
    let patient = pools.clone();
    let waiting = tokio::spawn(async move { run(&patient, "d", insert(1)).await });
    set.start_all().await?;
    let up = Instant::now();
    waiting.await??;
    println!("served {:?} after the primary was seen", up.elapsed());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn direct_connections_aliases_and_secondaries() -> Result<()> {
    let set = ReplicaSet::builder("x").nodes(3).start().await?;
    let primary = set.primary().await?;
    let secondary = set.node((primary + 1) % 3);
    let (cluster, pools, _tasks) = connect(&secondary.uri()).await?;
    ensure!(*cluster.wait_for(&Selection::Primary, LIMIT).await? == *secondary.address());
    ensure!(cluster.topology().servers.len() == 1);
    let reply = pools.run(Request::new("d", insert(1))).await?;
    ensure!(reply.error().is_some_and(|error| error.code == 10107), "{reply:?}");
    // A seed under another name leads to the members under their own names.
    let alias = secondary.address().replace("127.0.0.1", "localhost");
    let (cluster, pools, _tasks) = connect(&format!("mongodb://{alias}/?replicaSet=x")).await?;
    run(&pools, "d", insert(2)).await?;
    let mut found: Vec<_> = cluster.topology().servers.iter().map(|s| s.address.to_string()).collect();
    let mut expected: Vec<_> = set.nodes().iter().map(|node| node.address().to_owned()).collect();
    found.sort();
    expected.sort();
    ensure!(found == expected, "{found:?}");
    let preference = ReadPreference {
        mode: ReadMode::Secondary,
        tag_sets: Vec::new(),
        max_staleness: Some(Duration::from_secs(90)),
    };
    for _ in 0..4 {
        let pooled = pools.checkout(&Selection::ReadPreference(preference.clone()), LIMIT).await?;
        ensure!(**pooled.server() != *set.node(primary).address());
    }
    // A cursor's server, and one that is no member.
    let target = Target::Server(secondary.address().into());
    let reply = pools.run(Request::new("admin", rawdoc! { "ping": 1 }).to(target)).await?;
    ensure!(*reply.server == *secondary.address());
    let began = Instant::now();
    let target = Target::Server("127.0.0.1:1".into());
    not_sent(pools.run(Request::new("admin", rawdoc! { "ping": 1 }).to(target)).await)?;
    ensure!(began.elapsed() < Duration::from_secs(5));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standalone_is_reported_as_one() -> Result<()> {
    let server = Standalone::start().await?;
    let (cluster, pools, _tasks) = connect(&server.uri()).await?;
    run(&pools, "d", rawdoc! { "count": "c" }).await?;
    ensure!(cluster.topology().kind == TopologyKind::Standalone);
    ensure!(cluster.topology().servers[0].role == Role::Standalone);
    Ok(())
}

/// One shard per thread with a reactor of its own, all on one cluster.
#[tokio::test(flavor = "multi_thread")]
async fn shards_on_runtimes_of_their_own() -> Result<()> {
    let set = ReplicaSet::builder("x").start().await?;
    let (cluster, _, _tasks) = connect(&set.uri()).await?;
    let done = Arc::new(AtomicU32::new(0));
    let shards: Vec<_> = (0..2)
        .map(|_| {
            let (pools, done) = (cluster.pools(4), done.clone());
            std::thread::spawn(move || -> Result<()> {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    for _ in 0..500 {
                        run(&pools, "admin", rawdoc! { "ping": 1 }).await?;
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    ensure!(pools.stats()[0].1.created == 1);
                    Ok(())
                })
            })
        })
        .collect();
    for shard in shards {
        tokio::task::spawn_blocking(move || shard.join()).await?.expect("no panic")?;
    }
    ensure!(done.load(Ordering::Relaxed) == 1000);
    cluster.close();
    Ok(())
}
