//! Many clients on few connections, and clients that leave in the middle.

mod raw;
mod support;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bson::{Document, RawDocumentBuf, doc, rawdoc};
use futures::TryStreamExt as _;
use mongodb::Client;
use raw::{ask_as, reply_within};
use reshard::app::{Builder, Proxy};
use reshard::wire::op_msg::build;
use reshard::{cluster, listener};
use reshard_testbed::{ReplicaSet, wait_for};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::process::Server;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Barrier;

const CLIENTS: i32 = 2_000;
const ROUNDS: i32 = 5;
const CONNECTIONS: usize = 64;
/// Both ends of all clients are in this process.
const FILES: u64 = 5_000;
/// They cost this process and the proxy one each.
const IDLE_CLIENTS: i32 = 5_000;
const FILES_OF_IDLE_CLIENTS: u64 = 6_000;
/// In the proxy, for each of them.
const MOST_BYTES: u64 = 12 * 1024;
const LONG: Duration = Duration::from_secs(120);
const APPLICATION: &str = "crowd";

async fn start(connections: u32, workers: usize) -> Result<(ReplicaSet, Proxy)> {
    start_with(connections, workers, None).await
}

async fn start_with(
    connections: u32,
    workers: usize,
    admin: Option<SocketAddr>,
) -> Result<(ReplicaSet, Proxy)> {
    let set = ReplicaSet::builder("rs0").start().await?;
    let mut old = cluster::Settings::parse(&set.uri()).await?;
    old.max_pool_size = connections;
    let mut listener = listener::Settings::new(SocketAddr::from(([127, 0, 0, 1], 0)));
    listener.workers = NonZeroUsize::new(workers).context("no workers")?;
    let mut builder = Builder::new(old, listener);
    if let Some(admin) = admin {
        builder = builder.with_admin(admin);
    }
    let proxy = builder.start().await?;
    let mut first = TcpStream::connect(proxy.address()).await?;
    // The first answer comes once the cluster is known.
    ask_as(&mut first, 1, &rawdoc! { "ping": 1, "$db": "admin" }, LONG).await?;
    Ok((set, proxy))
}

fn may_open(files: u64) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(u64::MAX);
    ensure!(
        hard >= files,
        "{files} open files are needed, and the hard limit is {hard}: raise it (ulimit -Hn)"
    );
    if limit.current.is_some_and(|soft| soft < files) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(files), maximum: limit.maximum })?;
    }
    Ok(())
}

/// Connections of the proxy at the server that run a command of an application. Those of the control plane, however
/// many a slow machine makes it open, never ask for anything in the application's database.
async fn at_the_server(direct: &Client) -> Result<usize> {
    let all = doc! { "$currentOp": { "allUsers": true, "idleConnections": true } };
    let ours = doc! { "$match": {
        "appName": { "$regex": "^reshard/" }, "connectionId": { "$exists": true }, "command.$db": "crowd",
    } };
    let found: Vec<Document> = direct.database("admin").aggregate([all, ours]).await?.try_collect().await?;
    Ok(found.len())
}

/// Writes documents of its own, and reads each of them back.
async fn be_busy(mut stream: TcpStream, client: i32, together: Arc<Barrier>) -> Result<()> {
    together.wait().await;
    for round in 0..ROUNDS {
        let id = client * ROUNDS + round;
        let text = format!("{client}-{round}");
        let document = rawdoc! { "_id": id, "text": text.clone() };
        let insert = rawdoc! { "insert": "c", "documents": [document], "$db": "crowd" };
        let inserted = ask_as(&mut stream, 2 * id + 1, &insert, LONG).await?;
        ensure!(inserted.get_i32("n").ok() == Some(1) && !inserted.contains_key("writeErrors"), "{inserted}");
        let find = rawdoc! { "find": "c", "filter": { "_id": id }, "$db": "crowd" };
        let found = ask_as(&mut stream, 2 * id + 2, &find, LONG).await?;
        let batch = found.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
        let expected = vec![doc! { "_id": id, "text": text }.into()];
        ensure!(batch.ok() == Some(&expected), "client {client}: {found}");
    }
    Ok(())
}

/// The most that was seen while the clients were busy.
#[derive(Debug, Default)]
struct Most {
    opened: u64,
    waiting: usize,
    at_the_server: usize,
}

async fn look(proxy: &Proxy, direct: &Client, done: &AtomicBool) -> Result<Most> {
    let mut most = Most::default();
    while !done.load(Ordering::Relaxed) {
        for stats in proxy.shared().census.count().values() {
            most.opened = most.opened.max(stats.created);
            most.waiting = most.waiting.max(stats.waiting);
        }
        most.at_the_server = most.at_the_server.max(at_the_server(direct).await?);
    }
    Ok(most)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_busy_clients_run_on_64_connections() -> Result<()> {
    may_open(FILES)?;
    let admin = SocketAddr::from(([127, 0, 0, 1], 0));
    let (set, proxy) = start_with(u32::try_from(CONNECTIONS)?, 2, Some(admin)).await?;
    let direct = set.client().await?;
    let together = Arc::new(Barrier::new(usize::try_from(CLIENTS)?));
    let mut clients = Vec::new();
    for client in 0..CLIENTS {
        let stream = TcpStream::connect(proxy.address()).await?;
        clients.push(tokio::spawn(be_busy(stream, client, Arc::clone(&together))));
    }
    let done = AtomicBool::new(false);
    let all = async {
        let ends = futures::future::join_all(clients).await;
        done.store(true, Ordering::Relaxed);
        ends.into_iter().try_for_each(|end| end?)
    };
    let (all, most) = tokio::join!(all, look(&proxy, &direct, &done));
    all?;
    let most = most?;
    // None broke, so as many as were ever opened are open.
    ensure!(most.opened <= u64::try_from(CONNECTIONS)?, "{most:?}");
    ensure!((1..=CONNECTIONS).contains(&most.at_the_server), "{most:?}");
    ensure!(most.waiting > CONNECTIONS, "they were not busy at the same time: {most:?}");
    let written = direct.database("crowd").collection::<Document>("c").count_documents(doc! {}).await?;
    ensure!(written == u64::try_from(CLIENTS * ROUNDS)?, "{written} documents");
    // Those who waited are counted, all of them and by how long. Other proxies of this process may add to that.
    let address = proxy.admin_address().context("an admin API")?;
    let waited = measured(address, "reshard_pool_wait_seconds_count{cluster=\"old\"}").await?;
    let all = measured(address, "reshard_pool_wait_seconds_bucket{cluster=\"old\",le=\"+Inf\"}").await?;
    ensure!(waited > CONNECTIONS as f64 && all >= waited, "{waited} waited, {all} in the histogram");
    Ok(())
}

/// A figure of `/metrics`.
async fn measured(admin: SocketAddr, name: &str) -> Result<f64> {
    let mut stream = TcpStream::connect(admin).await?;
    let ask = format!("GET /metrics HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n");
    stream.write_all(ask.as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    Ok(value.with_context(|| format!("no {name} in {text}"))?.trim().parse()?)
}

/// A read that the server is at for a long time.
fn long_read() -> RawDocumentBuf {
    rawdoc! { "find": "c", "filter": { "$where": "sleep(60000) || true" }, "comment": APPLICATION, "$db": "crowd" }
}

async fn is_at_it(direct: &Client) -> Result<bool> {
    let stages =
        [doc! { "$currentOp": {} }, doc! { "$match": { "command.comment": APPLICATION, "op": "query" } }];
    let found: Vec<Document> = direct.database("admin").aggregate(stages).await?.try_collect().await?;
    Ok(!found.is_empty())
}

/// With one connection for all, whatever a client leaves behind meets the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_a_long_read_leaves_nothing_to_others() -> Result<()> {
    let (set, proxy) = start(1, 1).await?;
    let direct = set.client().await?;
    let documents: Vec<Document> = (0..3).map(|id| doc! { "_id": id }).collect();
    direct.database("crowd").collection("c").insert_many(documents).await?;
    let mut stays = TcpStream::connect(proxy.address()).await?;
    for number in 0..3 {
        let mut leaves = TcpStream::connect(proxy.address()).await?;
        leaves.write_all(&build(1, 0, 0, long_read().as_bytes(), None)).await?;
        wait_for("the read to run", LONG, || is_at_it(&direct)).await?;
        drop(leaves);
        let find = rawdoc! { "find": "c", "filter": { "_id": number }, "$db": "crowd" };
        // Far sooner than the read would have ended.
        let found = ask_as(&mut stays, 10 + number, &find, Duration::from_secs(30)).await?;
        let batch = found.get_document("cursor")?.get_array("firstBatch")?;
        ensure!(*batch == vec![doc! { "_id": number }.into()], "{found}");
        wait_for("the read to end", Duration::from_secs(30), || async { Ok(!is_at_it(&direct).await?) })
            .await?;
    }
    // Those that leave at any other moment: with a request that is cut off, or a reply that nobody reads.
    let find = rawdoc! { "find": "c", "filter": { "_id": 0 }, "$db": "crowd" };
    let message = build(1, 0, 0, find.as_bytes(), None);
    for length in (1..=message.len()).cycle().step_by(7).take(100) {
        let mut leaves = TcpStream::connect(proxy.address()).await?;
        leaves.write_all(&message[..length]).await?;
        drop(leaves);
        let find = rawdoc! { "find": "c", "filter": { "_id": 1 }, "$db": "crowd" };
        let found = ask_as(&mut stays, 100, &find, Duration::from_secs(30)).await?;
        let batch = found.get_document("cursor")?.get_array("firstBatch")?;
        ensure!(*batch == vec![doc! { "_id": 1 }.into()], "{found}");
    }
    Ok(())
}

/// A cursor lives on as long as its server does: a client whose turn comes late is answered late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_waits_for_its_turn() -> Result<()> {
    let (set, proxy) = start(1, 1).await?;
    let direct = set.client().await?;
    let documents: Vec<Document> = (0..3).map(|id| doc! { "_id": id }).collect();
    direct.database("crowd").collection("c").insert_many(documents).await?;
    let (mut slow, mut patient) =
        (TcpStream::connect(proxy.address()).await?, TcpStream::connect(proxy.address()).await?);
    let find = rawdoc! { "find": "c", "batchSize": 1, "$db": "crowd" };
    let found = ask_as(&mut patient, 1, &find, LONG).await?;
    let id = found.get_document("cursor")?.get_i64("id")?;
    // Longer than anybody waits for a server that has gone.
    let sleep = "sleep(1500) || true";
    let find = rawdoc! { "find": "c", "filter": { "$where": sleep }, "comment": APPLICATION, "$db": "crowd" };
    slow.write_all(&build(1, 0, 0, find.as_bytes(), None)).await?;
    wait_for("the read to run", LONG, || is_at_it(&direct)).await?;
    let more = rawdoc! { "getMore": id, "collection": "c", "batchSize": 2, "$db": "crowd" };
    let fetched = ask_as(&mut patient, 2, &more, LONG).await?;
    ensure!(fetched.get_document("cursor")?.get_array("nextBatch")?.len() == 2, "{fetched}");
    Ok(())
}

/// Those who wait for news leave connections to those who have something to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_wait_leave_connections_to_others() -> Result<()> {
    let (set, proxy) = start(4, 1).await?;
    let direct = set.client().await?;
    direct.database("crowd").collection("c").insert_one(doc! { "_id": 0 }).await?;
    let mut streams = Vec::new();
    for _ in 0..8 {
        let mut client = TcpStream::connect(proxy.address()).await?;
        let watch =
            rawdoc! { "aggregate": "c", "pipeline": [{ "$changeStream": {} }], "cursor": {}, "$db": "crowd" };
        let opened = ask_as(&mut client, 1, &watch, LONG).await?;
        let id = opened.get_document("cursor")?.get_i64("id")?;
        let more = rawdoc! { "getMore": id, "collection": "c", "maxTimeMS": 60_000, "$db": "crowd" };
        client.write_all(&build(2, 0, 0, more.as_bytes(), None)).await?;
        streams.push(client);
    }
    let waiting = || async {
        let stages =
            [doc! { "$currentOp": {} }, doc! { "$match": { "command.getMore": { "$exists": true } } }];
        let found: Vec<Document> = direct.database("admin").aggregate(stages).await?.try_collect().await?;
        Ok(found.iter().filter(|one| one.get_str("ns").is_ok_and(|ns| ns == "crowd.c")).count() >= 2)
    };
    wait_for("the streams to wait at the server", LONG, waiting).await?;
    let mut client = TcpStream::connect(proxy.address()).await?;
    let find = rawdoc! { "find": "c", "filter": { "_id": 0 }, "$db": "crowd" };
    let found = ask_as(&mut client, 1, &find, Duration::from_secs(50)).await?;
    ensure!(found.get_document("cursor").is_ok(), "{found}");
    // News reaches those who wait at the server, and then those who wait for a turn.
    direct.database("crowd").collection("c").insert_one(doc! { "_id": 1 }).await?;
    for client in &mut streams {
        let (_, told) = reply_within(client, LONG).await?;
        ensure!(told.get_document("cursor")?.get_array("nextBatch")?.len() == 1, "{told}");
    }
    Ok(())
}

/// Bytes of memory that a process has.
fn memory(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1024)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_idle_clients_cost_little_memory() -> Result<()> {
    may_open(FILES_OF_IDLE_CLIENTS)?;
    let set = ReplicaSet::builder("idle").start().await?;
    let server = Server::start(&set.uri(), None).await?;
    let address: SocketAddr =
        server.uri().trim_start_matches("mongodb://").trim_end_matches('/').parse().context("an address")?;
    let come = async |number: i32| {
        let mut stream = TcpStream::connect(address).await?;
        ask_as(&mut stream, 1, &rawdoc! { "hello": 1, "$db": "admin" }, LONG).await?;
        let find = rawdoc! { "find": "idle", "filter": { "_id": number }, "$db": "test" };
        ask_as(&mut stream, 2, &find, LONG).await?;
        anyhow::Ok(stream)
    };
    // What is made for the first ones is not the price of one more.
    let mut clients = Vec::new();
    for number in 0..100 {
        clients.push(come(number).await?);
    }
    let before = memory(server.pid()?)?;
    for number in 0..IDLE_CLIENTS {
        clients.push(come(number).await?);
    }
    let each = memory(server.pid()?)?.saturating_sub(before) / u64::try_from(IDLE_CLIENTS)?;
    ensure!(each <= MOST_BYTES, "{each} bytes for each idle client");
    println!("{each} bytes for each of {} idle clients", clients.len());
    // They are all there yet.
    for stream in &mut clients {
        ask_as(stream, 3, &rawdoc! { "ping": 1, "$db": "admin" }, LONG).await?;
    }
    Ok(())
}
