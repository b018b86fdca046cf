//! Cluster times, and expiry.

use crate::support::bed::{Bed, answer, insert};
use crate::support::{LONG, Operator, me};
use anyhow::{Context as _, Result, ensure};
use bson::spec::BinarySubtype;
use bson::{Timestamp, doc, rawdoc};
use mongodb::ClientSession;
use mongodb::options::SessionOptions;
use reshard::migration::control::Control as _;
use reshard::wire::op_msg::build;
use reshard_testbed::{ReplicaSet, wait_for};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

/// Sets a cluster's clock an hour ahead, as a client that comes from another cluster would.
async fn ahead(set: &ReplicaSet) -> Result<u32> {
    let hello = set.client().await?.database("admin").run_command(doc! { "hello": 1 }).await?;
    let now = hello.get_timestamp("operationTime")?.time;
    let signature = rawdoc! { "hash": bson::Binary { subtype: BinarySubtype::Generic, bytes: vec![0; 20] }, "keyId": 0_i64 };
    let time =
        rawdoc! { "clusterTime": Timestamp { time: now + 3600, increment: 1 }, "signature": signature };
    let mut stream = TcpStream::connect(set.node(0).address()).await?;
    let body = rawdoc! { "ping": 1, "$db": "admin", "$clusterTime": time };
    stream.write_all(&build(1, 0, 0, body.as_bytes(), None)).await?;
    let reply = answer(&mut stream).await?.1;
    ensure!(reply.get_f64("ok")? == 1.0, "{reply}");
    Ok(now)
}

async fn cluster_time(set: &ReplicaSet) -> Result<u32> {
    let hello = set.client().await?.database("admin").run_command(doc! { "hello": 1 }).await?;
    Ok(hello.get_document("$clusterTime")?.get_timestamp("clusterTime")?.time)
}

async fn session(bed: &Bed) -> Result<ClientSession> {
    let options = SessionOptions::builder().causal_consistency(true).build();
    Ok(bed.client.start_session().with_options(options).await?)
}

/// What a session wrote it reads, by key and by filter: one that goes on over the moves, and a new one.
async fn causal(bed: &Bed, lasting: &mut ClientSession, round: &str, by_filter: bool) -> Result<()> {
    let mut fresh = session(bed).await?;
    let c = bed.c();
    for (kind, session) in [("lasting", lasting), ("fresh", &mut fresh)] {
        let round = format!("{round}-{kind}");
        for n in 0..20 {
            let id = format!("{round}-{n}");
            let written = c.insert_one(doc! { "_id": &id, "round": &round }).session(&mut *session).await;
            written.with_context(|| format!("insert {id}"))?;
            let found = c.find_one(doc! { "_id": &id }).session(&mut *session).await;
            ensure!(found.with_context(|| format!("find {id}"))?.is_some(), "{id}");
            if by_filter {
                let count = c.count_documents(doc! { "round": &round }).session(&mut *session).await?;
                ensure!(count == n + 1, "{round}: {count} of {n}");
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_times_stay_with_their_cluster() -> Result<()> {
    let bed = Bed::start("trap-clock").await?;
    let now = ahead(&bed.old).await?;
    ensure!(cluster_time(&bed.old).await? >= now + 3600);
    let mut lasting = session(&bed).await?;
    causal(&bed, &mut lasting, "before", true).await?;
    bed.move_begins().await?;
    causal(&bed, &mut lasting, "dual", true).await?;
    bed.operator.reads(50).await?;
    causal(&bed, &mut lasting, "mirrored", true).await?;
    bed.operator.writes(50).await?;
    causal(&bed, &mut lasting, "half", false).await?;
    bed.operator.reads(100).await?;
    bed.operator.writes(100).await?;
    causal(&bed, &mut lasting, "all", true).await?;
    bed.operator.rollback().await?;
    causal(&bed, &mut lasting, "back", true).await?;
    ensure!(cluster_time(&bed.new).await? < now + 1800, "old's time has reached new");
    bed.equal().await?;
    bed.proxy.shutdown().await;
    Ok(())
}

async fn ttl(set: &ReplicaSet) -> Result<Option<i64>> {
    let indexes = Bed::on(set).await?.run_command(doc! { "listIndexes": "c" }).await?;
    let all = indexes.get_document("cursor")?.get_array("firstBatch")?;
    let ttl = all.iter().filter_map(|index| index.as_document()?.get("expireAfterSeconds").cloned()).next();
    Ok(ttl.and_then(|seconds| seconds.as_i64().or(seconds.as_i32().map(i64::from))))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expiry_is_put_back_by_abort_and_by_complete() -> Result<()> {
    let bed = Bed::start("trap-ttl").await?;
    let index = rawdoc! { "key": { "at": 1 }, "name": "at", "expireAfterSeconds": 3600 };
    bed.raw(rawdoc! { "createIndexes": "c", "indexes": [index] }).await?;
    bed.write(insert([rawdoc! { "_id": 1, "at": bson::DateTime::now() }])).await?;
    let aborted = Operator::of(&bed.proxy, "aborted");
    aborted.create(&["shop.c"]).await?;
    aborted.start().await?;
    aborted.until_synced().await?;
    ensure!(ttl(&bed.old).await? == Some(2_147_483_647) && ttl(&bed.new).await? == Some(2_147_483_647));
    aborted.engine.abort(&me(), "aborted").await?;
    wait_for("expiry to be back", LONG, || async { Ok(ttl(&bed.old).await? == Some(3600)) }).await?;
    wait_for("new to be cleaned up", LONG, || async {
        Ok(Bed::on(&bed.new).await?.list_collection_names().await?.is_empty())
    })
    .await?;
    bed.move_begins().await?;
    bed.operator.reads(100).await?;
    bed.operator.writes(100).await?;
    bed.operator.complete().await?;
    wait_for("expiry to be back on new", LONG, || async { Ok(ttl(&bed.new).await? == Some(3600)) }).await?;
    bed.proxy.shutdown().await;
    Ok(())
}

/// What is kept with the migration for each TTL index.
async fn kept(bed: &Bed) -> Result<String> {
    let migrations = bed.old.client().await?.database("reshard").collection::<bson::Document>("migrations");
    let stored = migrations.find_one(doc! { "_id": "m" }).await?.context("a migration")?;
    let created =
        stored.get_array("created")?.first().and_then(bson::Bson::as_document).context("created")?;
    Ok(bson::Bson::from(created.get_array("ttl")?.clone()).to_string())
}

/// A TTL index that is made, and one that is changed, while a migration runs: suspended on both sides like the
/// others; due documents go from their authority; the seconds are put back in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_to_live_that_is_set_meanwhile_is_suspended_and_put_back() -> Result<()> {
    const SUSPENDED: Option<i64> = Some(2_147_483_647);
    let bed = Bed::start("trap-ttl-meanwhile").await?;
    let due = bson::DateTime::from_millis(bson::DateTime::now().timestamp_millis() - 7_200_000);
    let later = bson::DateTime::from_millis(bson::DateTime::now().timestamp_millis() + 7_200_000);
    let documents = (0..20).map(|id| rawdoc! { "_id": id, "at": if id % 2 == 0 { due } else { later } });
    bed.write(insert(documents)).await?;
    bed.move_begins().await?;
    bed.half().await?;
    let index = |seconds: i32| {
        let plain = rawdoc! { "key": { "a": 1, "b": 1 }, "name": "ab" };
        let expiring = rawdoc! { "key": { "at": 1 }, "name": "at", "expireAfterSeconds": seconds };
        rawdoc! { "createIndexes": "c", "indexes": [plain, expiring] }
    };
    let are_suspended = async || {
        let both = (ttl(&bed.old).await?, ttl(&bed.new).await?);
        ensure!(both == (SUSPENDED, SUSPENDED), "{both:?}");
        anyhow::Ok(())
    };
    bed.raw(index(86_400)).await?;
    are_suspended().await?;
    ensure!(kept(&bed).await? == r#"[["at", 86400]]"#, "{}", kept(&bed).await?);
    // Applications make their indexes at each start: the same one is there, another one is not.
    bed.raw(index(86_400)).await?;
    let alone = rawdoc! { "key": { "at": 1 }, "name": "at", "expireAfterSeconds": 86_400 };
    bed.raw(rawdoc! { "createIndexes": "c", "indexes": [alone.clone()] }).await?;
    let another = rawdoc! { "key": { "at": -1 }, "name": "at", "expireAfterSeconds": 86_400 };
    ensure!(bed.raw(rawdoc! { "createIndexes": "c", "indexes": [another] }).await.is_err());
    ensure!(bed.raw(index(86_401)).await.is_err());

    let change = |index: bson::RawDocumentBuf| rawdoc! { "collMod": "c", "index": index };
    let refused = [
        change(rawdoc! { "name": "ab", "expireAfterSeconds": 5 }),
        change(rawdoc! { "name": "none", "expireAfterSeconds": 5 }),
        change(rawdoc! { "name": "at", "expireAfterSeconds": "soon" }),
        rawdoc! { "collMod": "c", "expireAfterSeconds": 5 },
    ];
    for command in refused {
        ensure!(bed.raw(command.clone()).await.is_err(), "{command:?}");
    }
    ensure!(kept(&bed).await? == r#"[["at", 86400]]"#, "{}", kept(&bed).await?);
    are_suspended().await?;

    bed.raw(change(rawdoc! { "keyPattern": { "at": 1 }, "expireAfterSeconds": 3600 })).await?;
    are_suspended().await?;
    ensure!(kept(&bed).await? == r#"[["at", 3600]]"#, "{}", kept(&bed).await?);
    wait_for("due documents to be removed from both", LONG, || async {
        let on = async |set| {
            anyhow::Ok(Bed::on(set).await?.collection::<bson::Document>("c").count_documents(doc! {}).await?)
        };
        Ok((on(&bed.old).await?, on(&bed.new).await?) == (10, 10))
    })
    .await?;
    bed.equal().await?;
    bed.operator.reads(100).await?;
    bed.operator.writes(100).await?;
    bed.operator.complete().await?;
    wait_for("expiry to be as it was set last", LONG, || async { Ok(ttl(&bed.new).await? == Some(3600)) })
        .await?;
    bed.proxy.shutdown().await;
    Ok(())
}
