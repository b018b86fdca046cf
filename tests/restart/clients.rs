//! Clients that are connected over a restart: they find what they left.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, ensure};
use bson::{Document, RawDocument, RawDocumentBuf, doc, rawdoc};
use futures::TryStreamExt as _;
use futures::future::try_join_all;
use mongodb::Client;
use reshard::wire::op_msg::{EXHAUST_ALLOWED, OpMsg, build};
use reshard_testbed::{ReplicaSet, Version};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::raw::{ask_as, read};
use crate::restart_in_place;
use crate::support::process::Server;
use crate::support::{LONG, two_sets};

fn ping() -> RawDocumentBuf {
    rawdoc! { "ping": 1, "$db": "admin" }
}

async fn connect(server: &Server) -> Result<TcpStream> {
    Ok(TcpStream::connect(("127.0.0.1", server.listen)).await?)
}

/// The next message that comes unasked: its flags and what it says.
async fn next(stream: &mut TcpStream) -> Result<(u32, Document)> {
    let (_, bytes) = tokio::time::timeout(LONG, read(stream)).await??;
    let parts = OpMsg::parse(&bytes)?;
    Ok((parts.flags, Document::try_from(RawDocument::from_bytes(&bytes[parts.body])?)?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_goes_on_where_it_was() -> Result<()> {
    let set = ReplicaSet::builder("restart-kept").start().await?;
    let server = Server::start(&set.uri(), None).await?;
    let hello = |more: Document| -> Result<RawDocumentBuf> {
        let mut hello = doc! { "hello": 1, "compression": ["zlib"], "$db": "admin" };
        hello.extend(more);
        Ok(RawDocumentBuf::try_from(&hello)?)
    };
    // One at rest, one that has sent half of a message, one that is told when something changes.
    let (mut rests, mut halfway, mut watches) =
        (connect(&server).await?, connect(&server).await?, connect(&server).await?);
    let said = doc! { "client": { "driver": { "name": "d", "version": "1" }, "os": { "type": "Linux" } } };
    let first = ask_as(&mut rests, 1, &hello(said.clone())?, LONG).await?;
    let insert = rawdoc! { "insert": "c", "documents": [{ "_id": 1 }], "$db": "shop" };
    let insert = build(2, 0, 0, insert.as_bytes(), None);
    halfway.write_all(&insert[..30]).await?;
    let version = first.get_document("topologyVersion")?.clone();
    let waits = hello(doc! { "topologyVersion": &version, "maxAwaitTimeMS": 300_000 })?;
    watches.write_all(&build(3, 0, EXHAUST_ALLOWED, waits.as_bytes(), None)).await?;

    restart_in_place(&server).await?;

    ask_as(&mut rests, 4, &ping(), LONG).await?;
    let again = ask_as(&mut rests, 5, &hello(doc! {})?, LONG).await?;
    ensure!(again.get_i32("connectionId")? == first.get_i32("connectionId")?, "{again}");
    ensure!(ask_as(&mut rests, 6, &hello(said)?, LONG).await?.get_i32("code")? == 186, "it was forgotten");
    halfway.write_all(&insert[30..]).await?;
    let (_, inserted) = next(&mut halfway).await?;
    ensure!(inserted.get_i32("n").ok() == Some(1), "{inserted}");
    let (flags, told) = next(&mut watches).await?;
    ensure!(flags == 2 && *told.get_document("topologyVersion")? != version, "{told}");
    // A client that comes now has another number than those who were there.
    let newcomer = ask_as(&mut connect(&server).await?, 7, &hello(doc! {})?, LONG).await?;
    let numbers = [&first, &told].map(|hello| hello.get_i32("connectionId").ok());
    ensure!(!numbers.contains(&newcomer.get_i32("connectionId").ok()), "{newcomer}");
    Ok(())
}

/// What no driver repeats: busy readers of cursors, each reply of which brings two documents.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cursors_in_use_do_not_notice_it() -> Result<()> {
    const DOCUMENTS: usize = 40;
    let (old, new) = two_sets("restart-readers").await?;
    let server = Server::start(&old.uri(), Some(&new.uri())).await?;
    // More readers than connections: a driver that gave up its connections would fail those that wait for one.
    let client = Client::with_uri_str(format!("{}?maxPoolSize=3", server.uri())).await?;
    let c = client.database("shop").collection::<Document>("c");
    c.insert_many((0..DOCUMENTS).map(|id| doc! { "_id": i64::try_from(id).unwrap_or(0) })).await?;
    server.create_and_start("m", "shop.c").await?;
    server.until_free("m").await?;
    server.percent("m", "reads", 50).await?;
    let done = AtomicBool::new(false);
    let reader = async || {
        let mut times = 0_u32;
        while !done.load(Ordering::Relaxed) {
            let all: Vec<Document> = c.find(doc! {}).batch_size(2).await?.try_collect().await?;
            ensure!(all.len() == DOCUMENTS, "{} after {times} times", all.len());
            times += 1;
        }
        ensure!(times > 0, "nothing was read");
        Ok(())
    };
    let restarts = async {
        for _ in 0..8 {
            restart_in_place(&server).await?;
        }
        done.store(true, Ordering::Relaxed);
        Ok(())
    };
    let readers = try_join_all((0..12).map(|_| reader()));
    tokio::try_join!(restarts, readers).with_context(|| server.tail())?;
    Ok(())
}

/// Behind a balancer what is open belongs to the connection; a user stays logged in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cursors_of_a_connection_and_its_user_are_kept() -> Result<()> {
    let set = ReplicaSet::builder("restart-user").auth("ann", "secret").start().await?;
    let server = Server::prepare(&set.uri(), None)?;
    let pods = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    server.reconfigure(|text| {
        let listener =
            format!("[listeners.pods]\naddress = \"{pods}\"\nface = \"load-balanced\"\nlogin = true\n");
        format!("{text}{listener}")
    })?;
    server.restart().await?;
    let uri = format!("mongodb://ann:secret@{pods}/?loadBalanced=true&maxPoolSize=1&authSource=admin");
    let client = Client::with_uri_str(uri).await?;
    let c = client.database("shop").collection::<Document>("c");
    c.insert_many((0..10).map(|id| doc! { "_id": id })).await?;
    let mut cursor = c.find(doc! {}).batch_size(2).await?;
    ensure!(cursor.advance().await?, "nothing");
    restart_in_place(&server).await?;
    let mut left = 0;
    while cursor.advance().await? {
        left += 1;
    }
    ensure!(left == 9, "{left} documents");
    let status = client.database("admin").run_command(doc! { "connectionStatus": 1 }).await?;
    let users = status.get_document("authInfo")?.get_array("authenticatedUsers")?;
    ensure!(users.len() == 1 && format!("{users:?}").contains("ann"), "{status}");
    Ok(())
}

/// Who came in without a login must not stay where one is needed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_door_that_has_changed_is_passed_again() -> Result<()> {
    let set = ReplicaSet::builder("restart-door").auth("ann", "secret").start().await?;
    let server = Server::start(&set.uri(), None).await?;
    let mut client = connect(&server).await?;
    ask_as(&mut client, 1, &ping(), LONG).await?;
    server.reconfigure(|text| text.replacen("[old]", "login = true\n[old]", 1))?;
    restart_in_place(&server).await?;
    ensure!(tokio::time::timeout(LONG, client.read(&mut [0])).await?? == 0, "it is not closed");
    Ok(())
}

/// A driver goes by what each connection was told when it was opened.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_told_of_more_than_there_is_now_is_closed() -> Result<()> {
    let older = ReplicaSet::builder("restart-new").version(Version::V4_4).start();
    let (old, new) =
        tokio::try_join!(ReplicaSet::builder("restart-old").version(Version::V6_0).start(), older)?;
    let server = Server::start(&old.uri(), None).await?;
    let hello = rawdoc! { "hello": 1, "$db": "admin" };
    let mut client = connect(&server).await?;
    let told = ask_as(&mut client, 1, &hello, LONG).await?.get_i32("maxWireVersion")?;
    restart_in_place(&server).await?;
    ensure!(ask_as(&mut client, 2, &hello, LONG).await?.get_i32("maxWireVersion")? == told);
    server.reconfigure(|text| format!("{text}[new]\nuri = \"{}\"\n", new.uri()))?;
    restart_in_place(&server).await?;
    ensure!(tokio::time::timeout(LONG, client.read(&mut [0])).await?? == 0, "it is not closed");
    let now = ask_as(&mut connect(&server).await?, 1, &hello, LONG).await?.get_i32("maxWireVersion")?;
    ensure!(now < told, "{now} as well as {told}");
    Ok(())
}

/// The program in between can tell more, and tells this one nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_told_of_less_stays_over_restarts() -> Result<()> {
    let older = ReplicaSet::builder("restart-less").version(Version::V4_4).start();
    let (old, new) =
        tokio::try_join!(ReplicaSet::builder("restart-more").version(Version::V6_0).start(), older)?;
    let server = Server::start(&old.uri(), Some(&new.uri())).await?;
    let hello = rawdoc! { "hello": 1, "$db": "admin" };
    let mut client = connect(&server).await?;
    let told = ask_as(&mut client, 1, &hello, LONG).await?.get_i32("maxWireVersion")?;
    let both =
        server.reconfigure(|text| text.replacen(&format!("[new]\nuri = \"{}\"\n", new.uri()), "", 1))?;
    restart_in_place(&server).await?;
    let more = ask_as(&mut connect(&server).await?, 1, &hello, LONG).await?.get_i32("maxWireVersion")?;
    ensure!(more > told, "{more} and {told}");
    server.reconfigure(|_| both)?;
    restart_in_place(&server).await?;
    ensure!(ask_as(&mut client, 2, &hello, LONG).await?.get_i32("maxWireVersion")? == told);
    Ok(())
}

/// A program that does not know of them is given no clients: they would never hear of anybody again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_cannot_go_on_with_clients_gets_none() -> Result<()> {
    let set = ReplicaSet::builder("restart-older").start().await?;
    let server = Server::prepare(&set.uri(), None)?;
    let folder = tempfile::tempdir()?;
    let older = folder.path().join("reshard");
    // Written by a process of its own: a file that this one has open for writing cannot be run.
    let program = env!("CARGO_BIN_EXE_reshard");
    let script = format!("#!/bin/sh\nunset RESHARD_TAKES_OVER\nexec {program} \"$@\"\n");
    ensure!(
        Command::new("sh")
            .args(["-c", "printf %s \"$1\" > \"$0\""])
            .arg(&older)
            .arg(script)
            .status()?
            .success()
    );
    std::fs::set_permissions(&older, std::fs::Permissions::from_mode(0o755))?;
    let mut manager = Command::new("python3");
    // As a shell would start it, under the name of the file.
    manager
        .args(["-c", "import os, sys; os.execv(sys.argv[1], [sys.argv[2], *sys.argv[3:]])", program])
        .arg(&older);
    server.spawn_by(manager)?;
    server.until_ready().await?;
    let mut client = connect(&server).await?;
    ask_as(&mut client, 1, &ping(), LONG).await?;
    restart_in_place(&server).await?;
    ensure!(tokio::time::timeout(LONG, client.read(&mut [0])).await?? == 0, "it is not closed");
    ask_as(&mut connect(&server).await?, 1, &ping(), LONG).await?;
    Ok(())
}
