//! A restart in place: the program on disk takes over, with the sockets that clients wait at, and with its clients.

#[path = "../raw/mod.rs"]
mod raw;
#[path = "../support/mod.rs"]
mod support;

mod clients;
mod drain;
mod log;
mod signals;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bson::{Document, RawDocument, RawDocumentBuf, doc, rawdoc};
use futures::TryStreamExt as _;
use futures::future::try_join_all;
use mongodb::Client;
use parking_lot::Mutex;
use raw::reply_within;
use reshard::wire::header::Header;
use reshard::wire::op_msg::{OpMsg, build};
use reshard_loadtest::{Load, LoadConfig, Mix, OpKind, Profile};
use reshard_testbed::{ReplicaSet, wait_for};
use rustix::process::Signal;
use support::process::Server;
use support::proof::{load, no_errors, prove, work};
use support::{LONG, two_sets};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Tells the process to restart, and waits until its successor serves.
pub(crate) async fn restart_in_place(server: &Server) -> Result<()> {
    let (pid, times) = (server.pid()?, server.times_logged("serving clients"));
    server.signal(Signal::USR2)?;
    let taken_over = wait_for("the new program to serve", LONG, || async {
        ensure!(!server.has_ended(), "the process has ended");
        Ok(server.times_logged("serving clients") > times)
    })
    .await;
    taken_over.with_context(|| server.tail())?;
    server.until_ready().await?;
    ensure!(server.pid()? == pid && !server.has_ended(), "it is another process");
    Ok(())
}

/// Connects again and again; none is ever refused.
async fn knock(port: u16, done: &AtomicBool) -> Result<u32> {
    let mut times = 0;
    while !done.load(Ordering::Relaxed) {
        drop(TcpStream::connect(("127.0.0.1", port)).await.with_context(|| format!("after {times} times"))?);
        times += 1;
        // As often as makes sense, and not so often that the load gets no turn.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(times)
}

/// The load has what no driver repeats: `updateMany`, `deleteMany`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_restarts_under_load_cost_no_error() -> Result<()> {
    let (old, new) = two_sets("restart").await?;
    let server = Server::start(&old.uri(), Some(&new.uri())).await?;
    let config = load(server.uri(), Profile::Keyed, 5_000);
    Load::prepare(&config).await?;
    let load = Load::start(config).await?;
    server.create_and_start("orders", "shop.orders").await?;
    server.until_free("orders").await?;
    server.percent("orders", "reads", 100).await?;
    server.percent("orders", "writes", 50).await?;
    let done = AtomicBool::new(false);
    let restarts = async {
        let all = async {
            for _ in 0..3 {
                work(&load, 300).await?;
                restart_in_place(&server).await?;
            }
            work(&load, 300).await
        };
        let all = all.await;
        done.store(true, Ordering::Relaxed);
        all
    };
    let (restarts, listen, admin) =
        tokio::join!(restarts, knock(server.listen, &done), knock(server.admin, &done));
    restarts?;
    ensure!(listen? > 0 && admin? > 0, "nobody knocked");
    let outcome = load.stop().await;
    no_errors(&outcome.stats.errors).with_context(|| server.tail())?;
    server.until_level("orders").await?;
    prove(outcome, &old, &new, &server.uri(), "shop.orders").await
}

/// The half of a cursor that is left is read after three restarts and a violent death: drivers do not repeat a `getMore`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_cost_no_cursor_of_which_half_is_read() -> Result<()> {
    const DOCUMENTS: i32 = 100;
    let (old, new) = two_sets("restart-cursors").await?;
    let server = Server::start(&old.uri(), Some(&new.uri())).await?;
    let client = Client::with_uri_str(server.uri()).await?;
    let c = client.database("shop").collection::<Document>("c");
    c.insert_many((0..DOCUMENTS).map(|id| doc! { "_id": id })).await?;
    server.create_and_start("m", "shop.c").await?;
    server.until_free("m").await?;
    server.percent("m", "reads", 50).await?;
    // Each in a session of its own, and thus on either cluster.
    let mut cursors = Vec::new();
    for _ in 0..16 {
        let mut cursor = c.find(doc! {}).sort(doc! { "_id": 1 }).batch_size(7).await?;
        ensure!(cursor.advance().await?, "nothing");
        let first: Document = cursor.deserialize_current()?;
        cursors.push((vec![first], cursor));
    }
    for _ in 0..3 {
        restart_in_place(&server).await?;
        for (found, cursor) in &mut cursors {
            // More than a batch has.
            for _ in 0..8 {
                ensure!(cursor.advance().await?, "nothing");
                found.push(cursor.deserialize_current()?);
            }
        }
    }
    server.kill9()?;
    server.restart().await?;
    // Drivers get to know of it by what they repeat.
    ensure!(c.find_one(doc! { "_id": 1 }).await?.is_some(), "it is gone");
    for (mut found, cursor) in cursors {
        found.extend(cursor.try_collect::<Vec<_>>().await?);
        let ids: Vec<_> = found.iter().filter_map(|found| found.get_i32("_id").ok()).collect();
        ensure!(ids == (0..DOCUMENTS).collect::<Vec<_>>(), "{ids:?}");
    }
    Ok(())
}

/// Whoever runs a transaction again that is told to be run again, as `withTransaction` does, sees no error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_cost_transactions_that_are_run_again_no_error() -> Result<()> {
    let (old, new) = two_sets("restart-transactions").await?;
    let server = Server::start(&old.uri(), Some(&new.uri())).await?;
    let mix = Some(Mix::of(Profile::Unique).with(OpKind::Transaction, 40));
    let config = LoadConfig { mix, ..load(server.uri(), Profile::Unique, 2_000) };
    Load::prepare(&config).await?;
    let load = Load::start(config).await?;
    server.create_and_start("customers", "shop.customers").await?;
    server.until_free("customers").await?;
    for _ in 0..2 {
        work(&load, 200).await?;
        restart_in_place(&server).await?;
    }
    work(&load, 200).await?;
    let outcome = load.stop().await;
    no_errors(&outcome.stats.errors).with_context(|| server.tail())?;
    server.until_level("customers").await?;
    prove(outcome, &old, &new, &server.uri(), "shop.customers").await
}

/// One reply; `None`: the connection was closed, and nothing of one had come.
async fn whole_reply(stream: &mut TcpStream) -> Result<Option<Document>> {
    let mut bytes = Vec::new();
    loop {
        if let Some(header) = Header::parse(&bytes)?.filter(|header| bytes.len() >= header.length) {
            ensure!(bytes.len() == header.length, "more than was asked for");
            let body = OpMsg::parse(&bytes)?.body;
            return Ok(Some(Document::try_from(RawDocument::from_bytes(&bytes[body])?)?));
        }
        match stream.read_buf(&mut bytes).await {
            Ok(read) if read > 0 => {}
            _ if bytes.is_empty() => return Ok(None),
            end => anyhow::bail!("a reply was cut off after {} bytes: {end:?}", bytes.len()),
        }
    }
}

/// Asks one thing after the other until the connection ends; what came of each goes to `took_effect`.
async fn ask_until_the_end(
    port: u16,
    mut next: impl FnMut() -> RawDocumentBuf,
    mut took_effect: impl FnMut(Document) -> Result<()>,
) -> Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    loop {
        let message = build(1, 0, 0, next().as_bytes(), None);
        if stream.write_all(&message).await.is_err() {
            return Ok(());
        }
        match whole_reply(&mut stream).await? {
            Some(reply) => took_effect(reply)?,
            None => return Ok(()),
        }
    }
}

/// Documents of a megabyte: a reply has four of them.
const LARGE: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_under_load_loses_no_write_and_cuts_no_reply_off() -> Result<()> {
    let (old, new) = two_sets("stop").await?;
    let direct = [old.client().await?, new.client().await?].map(|client| client.database("shop"));
    let large = direct[0].collection::<Document>("large");
    large.insert_many((0..4).map(|id| doc! { "_id": id, "x": "x".repeat(LARGE) })).await?;
    direct[0].collection::<Document>("orders").insert_one(doc! { "_id": -1 }).await?;
    let server = Server::start(&old.uri(), Some(&new.uri())).await?;
    server.create_and_start("orders", "shop.orders").await?;
    server.until_free("orders").await?;
    server.percent("orders", "reads", 100).await?;
    server.percent("orders", "writes", 50).await?;
    let (begun, acknowledged) = (AtomicI32::new(0), Mutex::new(BTreeSet::new()));
    let writer = async || {
        let id = Cell::new(0);
        let insert = || {
            id.set(begun.fetch_add(1, Ordering::Relaxed));
            rawdoc! { "insert": "orders", "documents": [{ "_id": id.get() }], "$db": "shop" }
        };
        let acknowledge = |reply: Document| {
            ensure!(reply.get_i32("n").ok() == Some(1) && !reply.contains_key("writeErrors"), "{reply}");
            acknowledged.lock().insert(id.get());
            Ok(())
        };
        ask_until_the_end(server.listen, insert, acknowledge).await
    };
    let reader = async || {
        let find = || rawdoc! { "find": "large", "$db": "shop" };
        let all = |reply: Document| {
            let found = reply.get_document("cursor")?.get_array("firstBatch")?.len();
            ensure!(found == 4, "{found} documents");
            Ok(())
        };
        ask_until_the_end(server.listen, find, all).await
    };
    let stop = async {
        wait_for("the load", LONG, || async { Ok(acknowledged.lock().len() > 300) }).await?;
        server.signal(Signal::TERM)
    };
    let writers = try_join_all((0..8).map(|_| writer()));
    let readers = try_join_all((0..4).map(|_| reader()));
    tokio::try_join!(stop, writers, readers).with_context(|| server.tail())?;
    wait_for("its end", LONG, || async { Ok(server.has_ended()) }).await?;
    ensure!(server.exit_code() == Some(0), "{:?}: {}", server.exit_code(), server.tail());
    let mut found = BTreeSet::new();
    for shop in &direct {
        let mut all = shop.collection::<Document>("orders").find(doc! {}).await?;
        while let Some(document) = all.try_next().await? {
            found.insert(document.get_i32("_id")?);
        }
    }
    let lost: Vec<i32> = acknowledged.lock().difference(&found).copied().collect();
    ensure!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_that_is_wrong_ends_nothing() -> Result<()> {
    let set = ReplicaSet::builder("restart-wrong").start().await?;
    let server = Server::start(&set.uri(), None).await?;
    let c = Client::with_uri_str(server.uri()).await?.database("shop").collection::<Document>("c");
    let good = server.reconfigure(|text| format!("{text}[nonsense]\n"))?;
    server.signal(Signal::USR2)?;
    wait_for("the refusal", LONG, || async { Ok(server.times_logged("not restarted") == 1) })
        .await
        .with_context(|| server.tail())?;
    ensure!(server.tail().lines().any(|line| line.contains("not restarted") && line.contains("nonsense")));
    c.insert_one(doc! { "_id": 1 }).await?;
    ensure!(server.times_logged("serving clients") == 1 && !server.has_ended());
    server.reconfigure(|_| good)?;
    restart_in_place(&server).await?;
    c.insert_one(doc! { "_id": 2 }).await?;
    ensure!(server.times_logged("restarting") == 1);
    // It can still be ended in order.
    server.signal(Signal::TERM)?;
    wait_for("its end", LONG, || async { Ok(server.has_ended()) }).await
}

/// Begins a read that the server is at for so long. No driver, which would give it up when a restart takes long.
async fn slow_read(server: &Server, direct: &Client, milliseconds: u32) -> Result<TcpStream> {
    let slow = format!("sleep({milliseconds}) || true");
    let find = rawdoc! { "find": "c", "filter": { "$where": slow.clone() }, "$db": "shop" };
    let mut stream = TcpStream::connect(("127.0.0.1", server.listen)).await?;
    stream.write_all(&build(1, 0, 0, find.as_bytes(), None)).await?;
    wait_for("the read to run", LONG, || async {
        let stages = [doc! { "$currentOp": {} }, doc! { "$match": { "command.filter.$where": &slow } }];
        let found: Vec<Document> = direct.database("admin").aggregate(stages).await?.try_collect().await?;
        Ok(!found.is_empty())
    })
    .await?;
    Ok(stream)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_may_end_but_does_not_keep_others_waiting() -> Result<()> {
    let set = ReplicaSet::builder("restart-slow").start().await?;
    let server = Server::start(&set.uri(), None).await?;
    let direct = set.client().await?;
    direct.database("shop").collection("c").insert_one(doc! { "_id": 1 }).await?;
    let mut too_long = slow_read(&server, &direct, 300_000).await?;
    let mut short = slow_read(&server, &direct, 2_000).await?;
    let begun = Instant::now();
    restart_in_place(&server).await?;
    // As an ordinary stop it would take 30 s.
    let took = begun.elapsed();
    ensure!(took < Duration::from_secs(25), "others waited for {took:?}");
    let (_, found) = reply_within(&mut short, LONG).await?;
    ensure!(found.get_document("cursor")?.get_array("firstBatch")?.len() == 1, "{found}");
    ensure!(reply_within(&mut too_long, LONG).await.is_err(), "a read of five minutes got an answer");
    Ok(())
}

/// What a service manager does: binds the sockets, and becomes the program, with them at 3 and 4.
const MANAGER: &str = "
import os, socket, sys
listen, admin, program = sys.argv[1], sys.argv[2], sys.argv[3:]
sockets = [socket.create_server(('127.0.0.1', int(port))) for port in (admin, listen)]
high = [os.dup(one.fileno()) for one in sockets]
for number, one in enumerate(high):
    os.dup2(one, 3 + number, inheritable=True)
os.environ.update(LISTEN_FDS='2', LISTEN_PID=str(os.getpid()))
os.execv(program[0], program)
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_of_a_service_manager_are_used_and_kept() -> Result<()> {
    let set = ReplicaSet::builder("restart-sockets").start().await?;
    let server = Server::prepare(&set.uri(), None)?;
    let mut manager = Command::new("python3");
    manager.args(["-c", MANAGER, &server.listen.to_string(), &server.admin.to_string()]);
    manager.arg(env!("CARGO_BIN_EXE_reshard"));
    // Another socket cannot be bound there: what is not used is in the way.
    server.spawn_by(manager)?;
    server.until_ready().await?;
    let c = Client::with_uri_str(server.uri()).await?.database("shop").collection::<Document>("c");
    c.insert_one(doc! { "_id": 1 }).await?;
    restart_in_place(&server).await?;
    c.insert_one(doc! { "_id": 2 }).await?;
    Ok(())
}
