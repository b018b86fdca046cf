//! The plain path against real servers: what a driver does works as if there were no proxy.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bson::{Document, doc};
use futures::future::join_all;
use futures::{StreamExt, TryStreamExt};
use mongodb::event::EventHandler;
use mongodb::event::command::CommandEvent;
use mongodb::options::ClientOptions;
use mongodb::{Client, Collection};
use reshard::app::{Builder, Proxy};
use reshard::{cluster, listener};
use reshard_testbed::{ReplicaSet, wait_for};

async fn start(nodes: usize) -> Result<(ReplicaSet, Proxy, Client)> {
    let set = ReplicaSet::builder("rs0").nodes(nodes).start().await?;
    let proxy = proxy(&set.uri()).await?;
    let client = client(&proxy).await?;
    Ok((set, proxy, client))
}

async fn proxy(uri: &str) -> Result<Proxy> {
    let old = cluster::Settings::parse(uri).await?.app_name("reshard-test");
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let proxy = Builder::new(old, listener::Settings::new(listen)).start().await?;
    Ok(proxy)
}

async fn client(proxy: &Proxy) -> Result<Client> {
    let mut options = ClientOptions::parse(format!("mongodb://{}", proxy.address())).await?;
    options.server_selection_timeout = Some(Duration::from_secs(10));
    Ok(Client::with_options(options)?)
}

fn things(client: &Client) -> Collection<Document> {
    client.database("plain").collection("things")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everyday_operations_work() -> Result<()> {
    let (set, proxy, client) = start(1).await?;
    let things = things(&client);

    things.insert_one(doc! { "_id": 1, "n": 0 }).await?;
    let updated = things.update_one(doc! { "_id": 1 }, doc! { "$inc": { "n": 1 } }).await?;
    ensure!(updated.modified_count == 1);
    let found = things.find_one_and_update(doc! { "_id": 1 }, doc! { "$inc": { "n": 1 } }).await?;
    ensure!(found == Some(doc! { "_id": 1, "n": 1 }));
    ensure!(things.count_documents(doc! {}).await? == 1);
    ensure!(things.delete_one(doc! { "_id": 1 }).await?.deleted_count == 1);
    let duplicate = things.insert_many([doc! { "_id": 2 }, doc! { "_id": 2 }]).await;
    ensure!(duplicate.is_err_and(|error| error.to_string().contains("11000")));

    // Cursors over many batches, and one that is left early.
    things.delete_many(doc! {}).await?;
    things.insert_many((0..2_000).map(|n| doc! { "_id": n })).await?;
    let all: Vec<Document> = things.find(doc! {}).batch_size(7).await?.try_collect().await?;
    ensure!(all.len() == 2_000);
    let mut early = things.find(doc! {}).batch_size(10).await?;
    ensure!(early.next().await.is_some());
    drop(early);
    let stages = [doc! { "$match": { "_id": { "$lt": 1_000 } } }, doc! { "$sort": { "_id": -1 } }];
    let sorted: Vec<Document> = things.aggregate(stages).batch_size(100).await?.try_collect().await?;
    ensure!(sorted.len() == 1_000 && sorted[0] == doc! { "_id": 999 });
    things.aggregate([doc! { "$out": "copy" }]).await?;
    let names = client.database("plain").list_collection_names().await?;
    ensure!(names.contains(&"copy".to_owned()));

    // Documents near the limit, and a message above 16 MB.
    let big = "x".repeat(15_000_000);
    things.insert_many([doc! { "_id": "a", "big": &big }, doc! { "_id": "b", "big": &big }]).await?;
    let back: Vec<Document> = things.find(doc! { "big": { "$exists": true } }).await?.try_collect().await?;
    ensure!(back.len() == 2 && back[1].get_str("big")?.len() == big.len());

    drop(set.client().await?);
    ensure!(proxy.shutdown().await);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drivers_that_compress_are_served() -> Result<()> {
    let (_set, proxy, plain) = start(1).await?;
    let large = |id: i32| doc! { "_id": id, "text": "again and again ".repeat(5000) };
    for (number, compressor) in (0_i32..).zip(["snappy", "zstd", "zlib", "zlib,snappy"]) {
        let uri = format!("mongodb://{}/?compressors={compressor}", proxy.address());
        let client = Client::with_uri_str(uri).await?;
        let ids = number * 100..number * 100 + 100;
        things(&client).insert_many(ids.clone().map(large)).await?;
        let range = doc! { "_id": { "$gte": ids.start, "$lt": ids.end } };
        let found: Vec<_> = things(&client).find(range).batch_size(30).await?.try_collect().await?;
        ensure!(found == ids.map(large).collect::<Vec<_>>(), "{compressor}");
    }
    ensure!(things(&plain).count_documents(doc! {}).await? == 400);
    Ok(())
}

/// What a server has sent and taken in compressed form, as it counts that itself.
async fn compressed_bytes(server: &Client, compressor: &str) -> Result<[i64; 2]> {
    let status = server.database("admin").run_command(doc! { "serverStatus": 1 }).await?;
    let counts = status.get_document("network")?.get_document("compression")?.get_document(compressor)?;
    Ok([
        counts.get_document("compressor")?.get_i64("bytesIn")?,
        counts.get_document("decompressor")?.get_i64("bytesOut")?,
    ])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_to_clusters_are_compressed_where_their_connection_string_says_so() -> Result<()> {
    let set = ReplicaSet::builder("plain-compressed").start().await?;
    let direct = set.client().await?;
    let large = |id: i32| doc! { "_id": id, "text": "again and again ".repeat(5000) };
    for (number, compressor) in (0_i32..).zip(["snappy", "zstd", "zlib"]) {
        let before = compressed_bytes(&direct, compressor).await?;
        let proxy = proxy(&format!("{}&compressors={compressor}", set.uri())).await?;
        let client = client(&proxy).await?;
        let ids = number * 100..number * 100 + 100;
        things(&client).insert_many(ids.clone().map(large)).await?;
        let range = doc! { "_id": { "$gte": ids.start, "$lt": ids.end } };
        let found: Vec<_> = things(&client).find(range).batch_size(30).await?.try_collect().await?;
        ensure!(found == ids.map(large).collect::<Vec<_>>(), "{compressor}");
        let after = compressed_bytes(&direct, compressor).await?;
        ensure!(
            after.iter().zip(before).all(|(after, before)| after - before > 7_000_000),
            "{before:?} {after:?}"
        );
        ensure!(proxy.shutdown().await);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cursors_are_forgotten_when_they_are_dead() -> Result<()> {
    let (_set, proxy, client) = start(1).await?;
    let things = things(&client);
    things.insert_many((0..100).map(|n| doc! { "_id": n })).await?;
    let mut cursor = things.find(doc! {}).batch_size(10).await?;
    ensure!(cursor.next().await.is_some());
    let open = || proxy.shared().cursors.count(reshard::model::side::Side::Old);
    ensure!(open() == 1);
    let rest: Vec<_> = cursor.by_ref().collect().await;
    ensure!(rest.len() == 99 && open() == 0);
    let mut left = things.find(doc! {}).batch_size(10).await?;
    ensure!(left.next().await.is_some() && open() == 1);
    drop(left);
    reshard_testbed::wait_for("the driver's killCursors", Duration::from_secs(5), || async {
        anyhow::Ok(open() == 0)
    })
    .await?;
    let unknown = doc! { "getMore": 4711_i64, "collection": "things" };
    let answer = client.database("plain").run_command(unknown).await;
    ensure!(answer.is_err_and(|error| error.to_string().contains("43")));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_and_causal_sessions_work() -> Result<()> {
    let (_set, _proxy, client) = start(3).await?;
    let things = things(&client);
    things.insert_one(doc! { "_id": 1, "n": 0 }).await?;

    let mut session = client.start_session().await?;
    session.start_transaction().await?;
    things.update_one(doc! { "_id": 1 }, doc! { "$set": { "n": 1 } }).session(&mut session).await?;
    ensure!(things.find_one(doc! { "_id": 1 }).await? == Some(doc! { "_id": 1, "n": 0 }));
    session.commit_transaction().await?;
    // A commit may be repeated.
    session.commit_transaction().await?;
    ensure!(things.find_one(doc! { "_id": 1 }).await? == Some(doc! { "_id": 1, "n": 1 }));

    session.start_transaction().await?;
    things.delete_one(doc! { "_id": 1 }).session(&mut session).await?;
    session.abort_transaction().await?;
    ensure!(things.count_documents(doc! {}).await? == 1);

    // A causal session reads its own write from a secondary.
    let mut causal = client.start_session().causal_consistency(true).await?;
    let secondary = mongodb::options::ReadPreference::Secondary { options: Option::default() };
    let secondary = mongodb::options::SelectionCriteria::ReadPreference(secondary);
    for n in 0..50 {
        things.insert_one(doc! { "_id": format!("causal-{n}") }).session(&mut causal).await?;
        let read = things.find_one(doc! { "_id": format!("causal-{n}") });
        let read = read.selection_criteria(secondary.clone()).session(&mut causal).await?;
        ensure!(read.is_some(), "write {n} was not read");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unacknowledged_writes_arrive_and_change_streams_flow() -> Result<()> {
    let (_set, _proxy, client) = start(1).await?;
    let things = things(&client);
    let mut stream = things.watch().await?;
    let insert = doc! { "insert": "things", "documents": [{ "_id": "quiet" }], "writeConcern": { "w": 0 } };
    client.database("plain").run_command(insert).await?;
    let event = tokio::time::timeout(Duration::from_secs(10), stream.next()).await?;
    let event = event.context("the stream ended")??;
    ensure!(event.document_key == Some(doc! { "_id": "quiet" }));
    // The connection is still in step.
    ensure!(things.count_documents(doc! {}).await? == 1);
    Ok(())
}

/// Counts what a load of retryable reads and writes met.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    done: AtomicU64,
    errors: parking_lot::Mutex<Vec<String>>,
}

async fn load(load: Arc<Load>, things: Collection<Document>, worker: i32) -> Result<i64> {
    let mut acknowledged = 0;
    things.insert_one(doc! { "_id": worker, "n": 0_i64 }).await?;
    while !load.stop.load(Ordering::Relaxed) {
        match things.update_one(doc! { "_id": worker }, doc! { "$inc": { "n": 1_i64 } }).await {
            Ok(_) => acknowledged += 1,
            Err(error) => load.errors.lock().push(format!("update: {error}")),
        }
        if let Err(error) = things.find_one(doc! { "_id": worker }).await {
            load.errors.lock().push(format!("find: {error}"));
        }
        load.done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(acknowledged)
}

/// Waits until the load has gone on for a while.
async fn work(load: &Load) -> Result<()> {
    let from = load.done.load(Ordering::Relaxed);
    let more = || async { load.done.load(Ordering::Relaxed) >= from + 500 };
    reshard_testbed::wait_for("the load to go on", Duration::from_secs(60), more).await
}

async fn under_load<F: Future<Output = Result<()>>>(
    set: &ReplicaSet,
    client: &Client,
    disturb: impl FnOnce() -> F,
) -> Result<()> {
    let things = things(client);
    let state = Arc::new(Load::default());
    let tasks: Vec<_> = (0..8).map(|n| tokio::spawn(load(state.clone(), things.clone(), n))).collect();
    work(&state).await?;
    let before = Instant::now();
    disturb().await?;
    eprintln!("disturbed for {:?}", before.elapsed());
    let goes_on = work(&state).await;
    goes_on.with_context(|| format!("{:?}\n{}", state.errors.lock(), set.log_tails()))?;
    state.stop.store(true, Ordering::Relaxed);
    for (worker, task) in join_all(tasks).await.into_iter().enumerate() {
        let acknowledged = task??;
        let stored = things.find_one(doc! { "_id": i32::try_from(worker)? }).await?.context("no counter")?;
        ensure!(stored.get_i64("n")? == acknowledged, "{acknowledged} acknowledged, stored {stored}");
    }
    let errors = state.errors.lock().clone();
    ensure!(errors.is_empty(), "{} errors, the first: {}", errors.len(), errors[0]);
    eprintln!("{} rounds", state.done.load(Ordering::Relaxed));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_down_costs_no_error_and_repeats_nothing() -> Result<()> {
    let (set, proxy, _) = start(3).await?;
    // The driver could hide the proxy's errors by trying again itself: count what it is told.
    let failures = Arc::new(AtomicU64::new(0));
    let count = failures.clone();
    let mut options = ClientOptions::parse(format!("mongodb://{}", proxy.address())).await?;
    options.command_event_handler = Some(EventHandler::callback(move |event| {
        if matches!(event, CommandEvent::Failed(_)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }));
    let client = Client::with_options(options)?;
    under_load(&set, &client, || set.stepdown()).await?;
    ensure!(failures.load(Ordering::Relaxed) == 0, "the driver saw {failures:?} errors");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_death_of_the_primary_costs_no_error() -> Result<()> {
    let (set, _proxy, client) = start(3).await?;
    let primary = set.primary().await?;
    under_load(&set, &client, || async { set.node(primary).kill9().await }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_ends_when_its_client_leaves() -> Result<()> {
    let (set, proxy, client) = start(1).await?;
    things(&client).insert_one(doc! { "_id": 1 }).await?;
    let leaver = self::client(&proxy).await?;
    let slow = doc! { "$where": "sleep(20000) || true" };
    let read = tokio::spawn(async move { things(&leaver).find_one(slow).await.map(drop) });
    let direct = set.client().await?;
    let running = || async {
        let stages = [doc! { "$currentOp": {} }, doc! { "$match": { "ns": "plain.things", "op": "query" } }];
        let found: Vec<Document> = direct.database("admin").aggregate(stages).await?.try_collect().await?;
        anyhow::Ok(!found.is_empty())
    };
    reshard_testbed::wait_for("the read", Duration::from_secs(5), &running).await?;
    // Aborting the task closes the driver's connection.
    read.abort();
    let gone = || async { anyhow::Ok(!running().await?) };
    reshard_testbed::wait_for("the end of the read", Duration::from_secs(5), gone).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_lets_running_operations_end() -> Result<()> {
    let (set, proxy, client) = start(1).await?;
    let things = things(&client);
    things.insert_one(doc! { "_id": 1 }).await?;
    let slow = things.clone();
    let read = tokio::spawn(async move { slow.find_one(doc! { "$where": "sleep(1500) || true" }).await });
    let direct = set.client().await?;
    let running = || async {
        let stages = [doc! { "$currentOp": {} }, doc! { "$match": { "ns": "plain.things", "op": "query" } }];
        let found: Vec<Document> = direct.database("admin").aggregate(stages).await?.try_collect().await?;
        anyhow::Ok(!found.is_empty())
    };
    reshard_testbed::wait_for("the read", Duration::from_secs(10), running).await?;
    ensure!(proxy.shutdown().await, "the shutdown took longer than the grace");
    ensure!(read.await??.is_some());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logins_are_refused_with_a_clear_text() -> Result<()> {
    let (_set, proxy, _) = start(1).await?;
    let client = Client::with_uri_str(format!("mongodb://user:pw@{}", proxy.address())).await?;
    let error = things(&client).find_one(doc! {}).await.err().context("logged in")?;
    ensure!(format!("{error:?}").contains("nobody logs in at this address"), "{error:?}");
    Ok(())
}

/// Members with tags, as a set over two places has them.
async fn tag(set: &ReplicaSet, places: [&str; 3]) -> Result<()> {
    let admin = set.client().await?.database("admin");
    let mut config = admin.run_command(doc! { "replSetGetConfig": 1 }).await?.get_document("config")?.clone();
    let version = config.get_i32("version")?;
    config.insert("version", version + 1);
    for (member, place) in config.get_array_mut("members")?.iter_mut().zip(places) {
        member.as_document_mut().context("member")?.insert("tags", doc! { "place": place });
    }
    admin.run_command(doc! { "replSetReconfig": config }).await?;
    Ok(())
}

fn port(address: &str) -> String {
    address.rsplit(':').next().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_go_where_their_preference_sends_them() -> Result<()> {
    let (set, proxy, client) = start(3).await?;
    let primary = set.primary().await?;
    let mut places = ["west"; 3];
    places[(primary + 1) % 3] = "east";
    tag(&set, places).await?;
    let admin = client.database("admin");
    // Not by the driver's options: it calls tags by a name that no server knows.
    let answers = async |preference: Document| {
        let asked = admin.run_command(doc! { "serverStatus": 1, "$readPreference": preference });
        // The name is the machine's; the port tells the member.
        anyhow::Ok(port(asked.await?.get_str("host")?))
    };
    let at = |mode: &str, place: &str| doc! { "mode": mode, "tags": [{ "place": place }] };
    let east = port(set.node((primary + 1) % 3).address());
    wait_for("the tags to be known", Duration::from_secs(120), || async {
        let answered = answers(at("secondary", "east")).await;
        ensure!(answered.as_ref().is_ok_and(|host| *host == east), "{answered:?}, wanted {east}");
        Ok(true)
    })
    .await?;
    let west = port(set.node((primary + 2) % 3).address());
    let leader = port(set.node(primary).address());
    for _ in 0..10 {
        ensure!(answers(at("secondary", "east")).await? == east);
        ensure!(answers(at("nearest", "east")).await? == east);
        ensure!(answers(at("secondary", "west")).await? == west);
        // Of the secondaries that may answer none is there: the primary does.
        ensure!(answers(at("secondaryPreferred", "nowhere")).await? == leader);
        ensure!(answers(doc! { "mode": "primary" }).await? == leader);
        let fresh = doc! { "mode": "secondary", "maxStalenessSeconds": 90 };
        ensure!(answers(fresh).await? != leader);
        let either = doc! { "mode": "secondary", "tags": [{ "place": "nowhere" }, { "place": "east" }] };
        ensure!(answers(either).await? == east);
    }
    // Where nobody ever fits, it waits for as long as the client does.
    let asked = doc! { "serverStatus": 1, "$readPreference": at("secondary", "nowhere"), "maxTimeMS": 500 };
    let nobody = admin.run_command(asked).await;
    ensure!(nobody.is_err(), "{nobody:?}");
    proxy.shutdown().await;
    Ok(())
}
