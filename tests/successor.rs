//! What a process finds that follows another.

mod support;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bson::{Document, RawDocumentBuf, doc, rawdoc};
use mongodb::Client;
use reshard::app::Proxy;
use reshard::cluster::command::{Reply, Request, SharedCluster};
use reshard::cluster::{Cluster, Settings as ClusterSettings};
use reshard::migration::engine::Settings;
use reshard::policy::streams::token_time;
use reshard::shutdown::Tasks;
use reshard::state::records::lsid;
use reshard_testbed::{ReplicaSet, wait_for};
use support::{LONG, Operator, proxy, proxy_with, two_sets, uri};
use uuid::Uuid;

/// A client that sends what it likes.
struct Raw {
    cluster: SharedCluster,
    _tasks: Tasks,
}

impl Raw {
    async fn through(proxy: &Proxy) -> Result<Self> {
        let tasks = Tasks::default();
        let cluster = Cluster::connect(ClusterSettings::parse(&uri(proxy)).await?, &tasks).await?;
        Ok(Self { cluster: cluster.pools(1), _tasks: tasks })
    }
}

/// A transaction, and what the client knows of it.
struct Transaction {
    session: Uuid,
    number: i64,
    token: RawDocumentBuf,
}

impl Transaction {
    fn stamp(&self, body: &mut RawDocumentBuf) {
        body.append(bson::cstr!("lsid"), lsid(self.session));
        body.append(bson::cstr!("txnNumber"), self.number);
        body.append(bson::cstr!("autocommit"), false);
    }

    /// Inserts `id` and adds one to the document 0; not committed yet.
    async fn begin(through: &Raw, id: &str) -> Result<Self> {
        let mut open = Self { session: Uuid::new_v4(), number: 1, token: RawDocumentBuf::new() };
        open.statements(through, id).await?;
        Ok(open)
    }

    /// The same again, as a driver does that was told to.
    async fn again(&mut self, through: &Raw, id: &str) -> Result<()> {
        self.number += 1;
        self.statements(through, id).await
    }

    async fn statements(&mut self, through: &Raw, id: &str) -> Result<()> {
        let mut insert = rawdoc! { "insert": "c", "documents": [{ "_id": id }] };
        self.stamp(&mut insert);
        insert.append(bson::cstr!("startTransaction"), true);
        let reply = through.cluster.run(Request::new("shop", insert)).await?;
        ensure!(reply.error().is_none(), "{reply:?}");
        self.token = reply.body.get_document("recoveryToken").context("a recovery token")?.to_owned();
        let inc = rawdoc! { "q": { "_id": id }, "u": { "$inc": { "n": 1 } } };
        let mut update = rawdoc! { "update": "c", "updates": [inc] };
        self.stamp(&mut update);
        let reply = through.cluster.run(Request::new("shop", update)).await?;
        ensure!(reply.error().is_none(), "{reply:?}");
        Ok(())
    }

    /// One more statement, on a collection that does not migrate.
    async fn elsewhere(&self, through: &Raw) -> Result<()> {
        let mut insert = rawdoc! { "insert": "d", "documents": [{}] };
        self.stamp(&mut insert);
        let reply = through.cluster.run(Request::new("other", insert)).await?;
        ensure!(reply.error().is_none(), "{reply:?}");
        Ok(())
    }

    async fn commit(&self, through: &Raw) -> Result<Reply> {
        self.commit_with(through, Some(&self.token)).await
    }

    async fn commit_with(&self, through: &Raw, token: Option<&RawDocumentBuf>) -> Result<Reply> {
        let mut commit = rawdoc! { "commitTransaction": 1, "writeConcern": { "w": "majority" } };
        self.stamp(&mut commit);
        if let Some(token) = token {
            commit.append(bson::cstr!("recoveryToken"), token.clone());
        }
        Ok(through.cluster.run(Request::new("admin", commit)).await?)
    }
}

fn is_committed(reply: &Reply) -> Result<()> {
    ensure!(reply.error().is_none(), "{reply:?}");
    Ok(())
}

/// Each of `there` was written exactly once, and nothing else.
async fn check(proxy: &Proxy, there: &[&str]) -> Result<()> {
    use futures::TryStreamExt as _;
    let c = Client::with_uri_str(uri(proxy)).await?.database("shop").collection::<Document>("c");
    let found: Vec<Document> = c.find(doc! { "_id": { "$type": "string" } }).await?.try_collect().await?;
    ensure!(found.iter().all(|found| found.get_i32("n").ok() == Some(1)), "{found:?}");
    let mut ids: Vec<_> = found.iter().filter_map(|found| found.get_str("_id").ok()).collect();
    ids.sort_unstable();
    ensure!(ids == there, "{ids:?}");
    Ok(())
}

struct Bed {
    old: ReplicaSet,
    new: ReplicaSet,
    proxy: Proxy,
    operator: Operator,
    raw: Raw,
}

impl Bed {
    async fn start(name: &str) -> Result<Self> {
        let (old, new) = two_sets(name).await?;
        let bed = Self::with(old, new).await?;
        let c = Client::with_uri_str(uri(&bed.proxy)).await?.database("shop").collection::<Document>("c");
        c.insert_one(doc! { "_id": 0 }).await?;
        bed.operator.create(&["shop.c"]).await?;
        bed.operator.start().await?;
        bed.operator.until_synced().await?;
        Ok(bed)
    }

    async fn with(old: ReplicaSet, new: ReplicaSet) -> Result<Self> {
        let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
        let operator = Operator::of(&proxy, "m");
        operator.ready().await?;
        let raw = Raw::through(&proxy).await?;
        Ok(Self { old, new, proxy, operator, raw })
    }

    /// Another process takes over.
    async fn succeeded(self) -> Result<Self> {
        self.proxy.shutdown().await;
        Self::with(self.old, self.new).await
    }

    async fn all_to_new(&self) -> Result<()> {
        self.operator.until_synced().await?;
        self.operator.reads(100).await?;
        self.operator.writes(100).await?;
        Ok(())
    }
}

/// A commit whose answer was lost is answered by another process with what became of it, and one that was not
/// sent yet is executed, once, where its transaction runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_is_answered_by_another_process() -> Result<()> {
    let mut bed = Bed::start("commit-next").await?;
    for (round, there) in [("old", &["old-1", "old-2"][..]), ("new", &["new-1", "new-2", "old-1", "old-2"])] {
        let executed = Transaction::begin(&bed.raw, &format!("{round}-1")).await?;
        let open = Transaction::begin(&bed.raw, &format!("{round}-2")).await?;
        is_committed(&executed.commit(&bed.raw).await?)?;
        bed = bed.succeeded().await?;
        for _ in 0..2 {
            is_committed(&executed.commit(&bed.raw).await?)?;
            is_committed(&open.commit(&bed.raw).await?)?;
        }
        check(&bed.proxy, there).await?;
        // Without a word about its cluster it is not known; a driver must not take that for "run it again".
        bed = bed.succeeded().await?;
        let unknown = executed.commit_with(&bed.raw, None).await?.error().context("an error")?;
        ensure!(unknown.labels.iter().any(|label| label == "UnknownTransactionCommitResult"), "{unknown:?}");
        ensure!(unknown.labels.iter().all(|label| label != "TransientTransactionError"), "{unknown:?}");
        if round == "old" {
            bed.all_to_new().await?;
        }
    }
    bed.operator.until_level().await?;
    bed.proxy.shutdown().await;
    Ok(())
}

/// Between the transaction and its commit the process was followed by another, and the writes have moved.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_a_move_has_overtaken() -> Result<()> {
    let bed = Bed::start("commit-moved").await?;
    let executed = Transaction::begin(&bed.raw, "executed").await?;
    let mut open = Transaction::begin(&bed.raw, "open").await?;
    is_committed(&executed.commit(&bed.raw).await?)?;
    let bed = bed.succeeded().await?;
    // To the servers it is now one of this process, which does not know what it has written before.
    open.elsewhere(&bed.raw).await?;
    bed.all_to_new().await?;
    is_committed(&executed.commit(&bed.raw).await?)?;
    // On old it would be undone. It may be run again: nothing of it has happened.
    let refused = open.commit(&bed.raw).await?.error().context("what is lost must not be acknowledged")?;
    ensure!(refused.labels.iter().any(|label| label == "TransientTransactionError"), "{refused:?}");
    check(&bed.proxy, &["executed"]).await?;
    open.again(&bed.raw, "open").await?;
    is_committed(&open.commit(&bed.raw).await?)?;
    check(&bed.proxy, &["executed", "open"]).await?;
    bed.operator.until_level().await?;
    bed.proxy.shutdown().await;
    Ok(())
}

/// One that stops in order says so: nobody has to wait until its leases are over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_move_soon_after_a_process_that_stopped_in_order() -> Result<()> {
    let (old, new) = two_sets("in-order").await?;
    let settings = || Settings { lease: Duration::from_secs(180), ..support::settings() };
    let first = proxy_with(&old.uri(), Some(&new.uri()), settings()).await?;
    let operator = Operator::of(&first, "m");
    let c = Client::with_uri_str(uri(&first)).await?.database("shop").collection::<Document>("c");
    c.insert_one(doc! { "_id": 0 }).await?;
    operator.create(&["shop.c"]).await?;
    operator.start().await?;
    operator.until_synced().await?;
    operator.reads(100).await?;
    first.shutdown().await;

    let next = proxy_with(&old.uri(), Some(&new.uri()), settings()).await?;
    let operator = Operator::of(&next, "m");
    operator.ready().await?;
    wait_for("the successor to be free to move", Duration::from_secs(90), || async {
        let progress = operator.progress().await?;
        ensure!(progress.can_cut_over, "{:?}", progress.blocked_by);
        Ok(true)
    })
    .await?;
    operator.writes(100).await?;
    next.shutdown().await;
    Ok(())
}

/// Where the stream of old would begin again after a restart.
async fn checkpoint(old: &ReplicaSet) -> Result<bson::Timestamp> {
    let stored = old.client().await?.database("reshard").collection::<RawDocumentBuf>("checkpoints");
    let stored = stored.find_one(doc! { "_id": "m/old" }).await?.context("a checkpoint")?;
    token_time(stored.get_document("token")?).context("a time")
}

/// A checkpoint is not stored before everything below it is done: what new could not take yet is not skipped,
/// whichever process follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_checkpoint_beyond_what_is_done() -> Result<()> {
    let bed = Bed::start("checkpoint").await?;
    let before = checkpoint(&bed.old).await?;
    wait_for("checkpoints to go on by themselves", LONG, || async {
        // Something else than what migrates: a quiet stream gets on, too.
        let other = bed.old.client().await?.database("other").collection("c");
        other.insert_one(doc! {}).await?;
        Ok(checkpoint(&bed.old).await? > before)
    })
    .await?;
    bed.new.pause_all().await?;
    let past = bed.old.client().await?.database("shop");
    let written = past.run_command(doc! { "insert": "c", "documents": [{ "_id": "late", "n": 1 }] }).await?;
    let written = written.get_timestamp("operationTime")?;
    // The passage of time is what is tested: a checkpoint is due every second.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let stored = checkpoint(&bed.old).await?;
    ensure!(stored < written, "a checkpoint at {stored}, and what was written at {written} is not done");
    bed.new.resume_all().await?;
    wait_for("a checkpoint beyond what is done then", LONG, || async {
        Ok(checkpoint(&bed.old).await? >= written)
    })
    .await?;
    let there = bed.new.client().await?.database("shop").collection::<Document>("c");
    ensure!(there.find_one(doc! { "_id": "late" }).await?.is_some());
    bed.proxy.shutdown().await;
    Ok(())
}
