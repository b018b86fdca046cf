//! A running proxy in the middle of a migration, its hostile clients, and one that works on beside them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context as _, Result, ensure};
use bson::{Document, doc};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use mongodb::Client;
use reshard::wire::compressed::Compressor;
use reshard::wire::header::{Header, OP_MSG};
use reshard::wire::op_msg::build;
use reshard_testbed::{ReplicaSet, wait_for};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::cases::{self, Fate};
use super::exchange::{Answer, PATIENCE, exchange, greet, within};
use super::support::process::Server;
use super::support::{LONG, two_sets, until_equal};
use super::{Dice, corpus, mutate, seed, twist};

/// The collections that migrate: one that hostile messages may do anything to that a server takes (to one, a `limit`
/// that is a document is no limit), and one that none of them names.
const NAMESPACES: [&str; 2] = ["shop.items", "shop.calm"];
/// Each is sent twice.
const FRAMES: usize = 3000;
/// Hostile clients at once.
pub(crate) const AT_ONCE: usize = 16;
/// What it may keep of the same messages when they come once more: 4 kB of each would be more.
const MORE_THE_SECOND_TIME: u64 = 12 << 20;
/// What it may keep after all of it: buffers, pools and what the allocator does not give back; far less than was
/// announced (4.8 GB) or swollen (5.4 GB).
const MORE_MEMORY: u64 = 400 << 20;
/// A proxy in the middle of a migration, writes divided.
pub(crate) struct Field {
    pub(crate) old: ReplicaSet,
    pub(crate) new: ReplicaSet,
    pub(crate) server: Server,
}

impl Field {
    async fn start(name: &str) -> Result<Self> {
        Self::with(name, "").await
    }

    /// With more in its configuration.
    pub(crate) async fn with(name: &str, more: &str) -> Result<Self> {
        let (old, new) = two_sets(name).await?;
        let server = Server::prepare(&old.uri(), Some(&new.uri()))?;
        server.reconfigure(|text| text + more)?;
        server.restart().await?;
        let client = Client::with_uri_str(server.uri()).await?;
        for namespace in ["items", "calm"] {
            client.database("shop").collection(namespace).insert_one(doc! { "_id": 1 }).await?;
        }
        let both = NAMESPACES.map(|namespace| json!({ "namespace": namespace }));
        server.insist("POST", "/v1/migrations", Some(json!({ "name": "m", "namespaces": both }))).await?;
        server.insist("POST", "/v1/migrations/m/start", None).await?;
        server.until_free("m").await?;
        server.percent("m", "reads", 50).await?;
        server.percent("m", "writes", 50).await?;
        Ok(Self { old, new, server })
    }

    /// Sends `bytes`; what came back until the connection was closed, or until a request behind them was answered.
    async fn send(&self, bytes: &[u8]) -> Result<Vec<Answer>> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.server.listen)).await?;
        let ping = bson::rawdoc! { "ping": 1, "$db": "admin" };
        within(async {
            greet(&mut stream).await?;
            exchange(&mut stream, bytes, &ping).await
        })
        .await
        .map(|told| told.replies)
    }

    pub(crate) async fn still_runs(&self) -> Result<()> {
        ensure!(!self.server.has_ended(), "the proxy has ended:\n{}", self.server.tail());
        let log = self.server.log_text();
        let panics: Vec<_> = log.lines().filter(|line| line.contains("panicked")).collect();
        ensure!(panics.is_empty(), "{panics:?}");
        Ok(())
    }

    /// Resident memory, bytes.
    pub(crate) fn memory(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.server.pid()?))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("VmRSS")?;
        let kilobytes: u64 = line.split_whitespace().nth(1).context("VmRSS")?.parse()?;
        Ok(kilobytes << 10)
    }

    /// Nobody is left but the one who works, and memory is where it was.
    pub(crate) async fn all_is_as_before(&self, memory: u64) -> Result<()> {
        let open = || async {
            let (_, metrics) = self.server.text("GET", "/metrics", None).await?;
            let line = metrics.lines().find(|line| line.starts_with("reshard_clients "));
            let open: f64 =
                line.context("reshard_clients")?.rsplit(' ').next().context("a number")?.parse()?;
            Ok(open <= 20.0)
        };
        wait_for("hostile clients to be gone", LONG, open).await?;
        let now = self.memory()?;
        println!("memory: {} MB before, {} MB after", memory >> 20, now >> 20);
        ensure!(now < memory + MORE_MEMORY, "{now} bytes of memory, {memory} before");
        self.still_runs().await
    }
}

/// A client that does its work, in a collection of its own, and looks at every answer.
pub(crate) struct Calm {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    work: tokio::task::JoinHandle<Result<()>>,
}

impl Calm {
    pub(crate) async fn start(field: &Field) -> Result<Self> {
        let client = Client::with_uri_str(field.server.uri()).await?;
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (stopped, count) = (stop.clone(), done.clone());
        let work = tokio::spawn(async move {
            let items = client.database("shop").collection::<Document>("calm");
            for round in 0_i64.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let id = format!("calm-{round}");
                let by_id = doc! { "_id": &id };
                items.insert_one(doc! { "_id": &id, "n": round }).await?;
                let updated = items.update_one(by_id.clone(), doc! { "$inc": { "n": 1 } }).await?;
                ensure!((updated.matched_count, updated.modified_count) == (1, 1), "{id}: {updated:?}");
                let found = items.find_one(by_id.clone()).await?;
                ensure!(found == Some(doc! { "_id": &id, "n": round + 1 }), "{id}: {found:?}");
                if round % 2 == 0 {
                    ensure!(items.delete_one(by_id).await?.deleted_count == 1, "{id}");
                }
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        Ok(Self { stop, done, work })
    }

    /// Lets it end; it has worked, and all was right.
    pub(crate) async fn stop(self) -> Result<()> {
        let done = self.done.load(Ordering::Relaxed);
        wait_for("it to go on", LONG, || async {
            Ok(self.work.is_finished() || self.done.load(Ordering::Relaxed) > done)
        })
        .await?;
        self.stop.store(true, Ordering::Relaxed);
        self.work.await?.context("the client beside was disturbed")?;
        println!("{done} rounds beside");
        Ok(())
    }
}

/// Frames to damage: those of drivers that do no harm to others where they are understood, and some for the
/// collection that migrates.
pub(crate) fn frames() -> Vec<Vec<u8>> {
    let harmless = |name: &str| {
        !["drop", "collMod", "createIndexes", "configureFailPoint"].iter().any(|it| name.contains(it))
    };
    let captured = corpus().into_iter().filter(|(name, _)| harmless(name)).map(|(_, frame)| frame);
    let writes = [
        bson::rawdoc! { "insert": "items", "documents": [{ "_id": "h1", "a": [1, 2] }, { "_id": { "x": 1 } }], "$db": "shop" },
        bson::rawdoc! { "update": "items", "updates": [{ "q": { "_id": "h1" }, "u": { "$inc": { "n": 1 } }, "upsert": true }], "$db": "shop" },
        bson::rawdoc! { "update": "items", "updates": [{ "q": { "n": 5 }, "u": { "$set": { "h": 1 } }, "multi": true }], "$db": "shop" },
        bson::rawdoc! { "delete": "items", "deletes": [{ "q": { "_id": 2.5 }, "limit": 1 }], "ordered": false, "$db": "shop" },
        bson::rawdoc! { "findAndModify": "items", "query": { "_id": "h1" }, "update": [{ "$set": { "p": "$n" } }], "$db": "shop" },
        bson::rawdoc! { "aggregate": "items", "pipeline": [{ "$match": { "_id": 1 } }], "cursor": {}, "$db": "shop" },
    ];
    captured.chain(writes.iter().map(|body| build(3, 0, 0, body.as_bytes(), None))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_clients_disturb_nobody() -> Result<()> {
    let seed = seed();
    let field = Field::start("hostile").await?;
    let calm = Calm::start(&field).await?;
    let memory = field.memory()?;
    let wrong = wrong_in_one_way(&field).await;
    field.still_runs().await?;
    wrong?;
    let mut dice = Dice(seed);
    let frames = frames();
    let one = |number| if number % 2 == 0 { mutate(&mut dice, &frames) } else { twist(&mut dice, &frames) };
    let damaged: Vec<_> = (0..FRAMES).map(one).collect();
    let mut kept = [memory; 2];
    let mut answered = 0;
    for memory in &mut kept {
        answered = send_all(&field, &damaged, seed).await?;
        *memory = field.memory()?;
    }
    println!("memory: {} MB before, {} kB then, {} kB later", memory >> 20, kept[0] >> 10, kept[1] >> 10);
    ensure!(kept[1] < kept[0] + MORE_THE_SECOND_TIME, "{kept:?}");
    println!("{answered} of {FRAMES} were answered");
    // Else the damage would be so large that nothing was looked at.
    ensure!(answered > FRAMES / 4, "{answered} of {FRAMES} were answered");
    calm.stop().await?;
    field.all_is_as_before(memory).await?;
    // What was understood of all that was written to both, and is taken for nobody else's.
    field.server.until_level("m").await?;
    for namespace in NAMESPACES {
        until_equal(&field.old.uri(), &field.new.uri(), namespace).await.context(namespace)?;
    }
    Ok(())
}

/// Sends all of them, some at once; how many were answered.
async fn send_all(field: &Field, all: &[Vec<u8>], seed: u64) -> Result<usize> {
    let sent = stream::iter(all).map(|bytes| async move {
        field.send(bytes).await.with_context(|| format!("RESHARD_SEED={seed}: {bytes:02x?}"))
    });
    let answers: Result<Vec<_>> = sent.buffer_unordered(AT_ONCE).try_collect().await;
    field.still_runs().await?;
    Ok(answers?.iter().filter(|replies| !replies.is_empty()).count())
}

async fn wrong_in_one_way(field: &Field) -> Result<()> {
    let mut found = Vec::new();
    for (name, bytes, fate) in cases::all() {
        let replies = field.send(&bytes).await.with_context(|| name.to_owned())?;
        let as_wanted = match fate {
            Fate::Closed => replies.is_empty(),
            Fate::Answered => replies.len() == 1 && replies[0].ok,
            Fate::AnError => replies.len() == 1 && replies[0].refused,
        };
        if !as_wanted || field.server.has_ended() {
            found.push(format!("{name}: wanted {fate:?}, got {replies:?}"));
        }
    }
    ensure!(found.is_empty(), "{}", found.join("\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_slow_and_swollen_messages_cost_no_memory() -> Result<()> {
    let field = Field::start("swollen").await?;
    let calm = Calm::start(&field).await?;
    let memory = field.memory()?;
    let mut halves = Vec::new();
    let ping = build(1, 0, 0, bson::rawdoc! { "ping": 1, "$db": "admin" }.as_bytes(), None);
    for number in 0..200 {
        let mut stream = TcpStream::connect(("127.0.0.1", field.server.listen)).await?;
        let announced = Header { length: 48_000_000, request_id: 1, response_to: 0, opcode: OP_MSG };
        match number % 2 {
            0 => stream.write_all(&[&announced.encode()[..], &[0; 2000]].concat()).await?,
            _ => stream.write_all(&ping[..ping.len() / 2]).await?,
        }
        halves.push(stream);
    }
    slow_senders(&field, &ping).await?;
    until_no_more_is_kept(&field, memory).await?;
    for (number, mut stream) in halves.into_iter().enumerate() {
        if number % 2 == 1 {
            stream.write_all(&ping[ping.len() / 2..]).await?;
            let mut head = [0; 16];
            tokio::time::timeout(PATIENCE, stream.read_exact(&mut head)).await??;
            ensure!(Header::parse(&head)?.is_some_and(|header| header.response_to == 1));
        }
    }
    calm.stop().await?;
    field.all_is_as_before(memory).await
}

/// The allocator keeps some of what was needed, for each thread; as much as that took at its worst moment, which may
/// come late, but no more with each time.
async fn until_no_more_is_kept(field: &Field, before: u64) -> Result<()> {
    let (mut most, mut calm) = (before, 0);
    for _ in 0..15 {
        swollen(field).await?;
        let now = field.memory()?;
        println!("memory: {} MB before, {} MB now", before >> 20, now >> 20);
        ensure!(now < before + MORE_MEMORY, "{now} bytes of memory, {before} before");
        calm = if now < most + MORE_MEMORY / 20 { calm + 1 } else { 0 };
        most = most.max(now);
        if calm == 3 {
            return Ok(());
        }
    }
    anyhow::bail!("it keeps more and more: {most} bytes of memory, {before} before")
}

/// Messages of 15 MB in a few kilobytes, eight at once.
async fn swollen(field: &Field) -> Result<()> {
    for compressor in Compressor::ALL {
        let bomb = cases::bomb(compressor, 15_000_000);
        let sent = stream::iter(0..24).map(|_| field.send(&bomb)).buffer_unordered(8);
        for answer in sent.try_collect::<Vec<_>>().await? {
            ensure!(answer.len() == 1 && answer[0].ok, "{compressor:?}: {answer:?}");
        }
    }
    Ok(())
}

/// Each sends one byte at a time, all of them at once, and gets its answer.
async fn slow_senders(field: &Field, message: &[u8]) -> Result<()> {
    let mut streams = Vec::new();
    for _ in 0..50 {
        let stream = TcpStream::connect(("127.0.0.1", field.server.listen)).await?;
        stream.set_nodelay(true)?;
        streams.push(stream);
    }
    for byte in message {
        for stream in &mut streams {
            stream.write_all(&[*byte]).await?;
        }
    }
    for mut stream in streams {
        let mut head = [0; 16];
        tokio::time::timeout(PATIENCE, stream.read_exact(&mut head)).await??;
        ensure!(Header::parse(&head)?.is_some_and(|header| header.response_to == 1));
    }
    Ok(())
}
