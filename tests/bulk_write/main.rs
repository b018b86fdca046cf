//! `bulkWrite` of a real driver over collections that migrate. No server of the test bed knows the command (8.0
//! does): one stands behind a door that raises the wire version in its greeting, and the proxy divides the command
//! into ones that it knows.

mod door;
mod golden;
#[path = "../raw/mod.rs"]
mod raw;
#[path = "../support/mod.rs"]
mod support;

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use bson::{Document, RawDocument, RawDocumentBuf, doc, rawdoc};
use mongodb::Client;
use mongodb::options::{DeleteOneModel, InsertOneModel, UpdateManyModel, UpdateOneModel, WriteModel};
use reshard::app::Proxy;
use reshard::wire::op_msg::{OpMsg, build};
use reshard_testbed::ReplicaSet;
use support::{LONG, Operator, proxy, two_sets, until_equal, uri};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use door::{Script, door};

struct Bed {
    old: ReplicaSet,
    new: ReplicaSet,
    proxy: Proxy,
    operator: Operator,
    client: Client,
}

const NAMESPACES: [&str; 2] = ["shop.c", "shop.d"];

impl Bed {
    async fn start(name: &str) -> Result<Self> {
        Self::with(name, Arc::default()).await
    }

    /// Where a script has an answer, it is that of old's server.
    async fn with(name: &str, script: Arc<Script>) -> Result<Self> {
        let (old, new) = two_sets(name).await?;
        let to_old = door(old.node(0).address(), script).await?;
        let to_new = door(new.node(0).address(), Arc::default()).await?;
        let proxy = proxy(&to_old, Some(&to_new)).await?;
        let operator = Operator::of(&proxy, "m");
        operator.ready().await?;
        let client = Client::with_uri_str(uri(&proxy)).await?;
        for name in ["c", "d", "e"] {
            client.database("shop").create_collection(name).await?;
        }
        Ok(Self { old, new, proxy, operator, client })
    }

    async fn begin(&self) -> Result<()> {
        self.operator.create(&NAMESPACES).await?;
        self.operator.start().await?;
        self.operator.until_synced().await
    }

    /// A command of the admin database.
    async fn admin(&self, command: &Document) -> Result<Document> {
        support::bed::raw(&self.client.database("admin"), RawDocumentBuf::try_from(command)?).await
    }

    /// The same as it is: a driver would add a session of its own.
    async fn as_it_is(&self, command: &Document) -> Result<Document> {
        Ok(Document::try_from(self.bytes(command).await?.as_ref())?)
    }

    /// The body of the reply as it came.
    async fn bytes(&self, command: &Document) -> Result<RawDocumentBuf> {
        let mut stream = TcpStream::connect(self.proxy.address()).await?;
        let body = RawDocumentBuf::try_from(command)?;
        stream.write_all(&build(1, 0, 0, body.as_bytes(), None)).await?;
        let (_, bytes) = tokio::time::timeout(LONG, raw::read(&mut stream)).await??;
        Ok(RawDocument::from_bytes(&bytes[OpMsg::parse(&bytes)?.body])?.to_owned())
    }

    async fn find(&self, name: &str, id: i32) -> Result<Option<Document>> {
        Ok(self.client.database("shop").collection(name).find_one(doc! { "_id": id }).await?)
    }

    async fn both_are_equal(&self) -> Result<()> {
        self.operator.until_level().await?;
        for namespace in NAMESPACES {
            until_equal(&self.old.uri(), &self.new.uri(), namespace).await?;
        }
        self.operator.found_none_past_the_proxy().await
    }

    fn insert(&self, name: &str, id: i32) -> WriteModel {
        let collection = self.client.database("shop").collection::<Document>(name);
        let model = InsertOneModel::builder().namespace(collection.namespace());
        WriteModel::InsertOne(model.document(doc! { "_id": id, "n": 0 }).build())
    }

    fn update(&self, name: &str, filter: Document, upsert: bool) -> WriteModel {
        let namespace = self.client.database("shop").collection::<Document>(name).namespace();
        let update = doc! { "$inc": { "n": 1 } };
        WriteModel::UpdateOne(
            UpdateOneModel::builder()
                .namespace(namespace)
                .filter(filter)
                .update(update)
                .upsert(upsert)
                .build(),
        )
    }

    fn update_many(&self, name: &str) -> WriteModel {
        let namespace = self.client.database("shop").collection::<Document>(name).namespace();
        let update = doc! { "$set": { "many": true } };
        WriteModel::UpdateMany(
            UpdateManyModel::builder()
                .namespace(namespace)
                .filter(doc! { "n": { "$gte": 0 } })
                .update(update)
                .build(),
        )
    }

    fn delete(&self, name: &str, id: i32) -> WriteModel {
        let namespace = self.client.database("shop").collection::<Document>(name).namespace();
        WriteModel::DeleteOne(
            DeleteOneModel::builder().namespace(namespace).filter(doc! { "_id": id }).build(),
        )
    }

    /// Everything that a driver's own `bulkWrite` can do, with `_id`s from `base` on.
    async fn all_kinds(&self, base: i32) -> Result<()> {
        for ordered in [true, false] {
            let at = |number: i32| base + number + if ordered { 0 } else { 50 };
            let by = |number: i32| doc! { "_id": at(number) };
            let models = [
                self.insert("c", at(0)),
                self.insert("c", at(1)),
                self.insert("d", at(2)),
                self.insert("e", at(3)),
                self.update("c", by(0), false),
                self.update("d", by(2), false),
                self.update("d", by(9), true),
                self.delete("c", at(1)),
                self.delete("e", at(3)),
            ];
            let told = self.client.bulk_write(models).ordered(ordered).verbose_results().await?;
            let counts =
                [told.summary.inserted_count, told.summary.matched_count, told.summary.modified_count];
            ensure!(counts == [4, 2, 2], "{told:?}");
            ensure!((told.summary.upserted_count, told.summary.deleted_count) == (1, 2), "{told:?}");
            ensure!(told.insert_results.len() == 4 && told.delete_results[&7].deleted_count == 1, "{told:?}");
            ensure!(told.update_results[&4].modified_count == 1, "{told:?}");
            ensure!(told.update_results[&6].upserted_id == Some(at(9).into()), "{told:?}");
            let summed = self.client.bulk_write([self.update("c", by(0), false), self.update_many("d")]);
            let summed = summed.ordered(ordered).await?;
            ensure!(summed.matched_count >= 3 && summed.modified_count >= 3, "{summed:?}");
            ensure!(self.find("c", at(0)).await? == Some(doc! { "_id": at(0), "n": 2 }));
            ensure!(self.find("c", at(1)).await?.is_none() && self.find("e", at(3)).await?.is_none());
            // A duplicate in the middle.
            let models = [self.insert("d", at(20)), self.insert("c", at(0)), self.insert("d", at(21))];
            let failed =
                self.client.bulk_write(models).ordered(ordered).await.err().context("a duplicate")?;
            let mongodb::error::ErrorKind::BulkWrite(failed) = *failed.kind else {
                anyhow::bail!("{failed}");
            };
            ensure!(failed.write_errors.len() == 1 && failed.write_errors[&1].code == 11000, "{failed:?}");
            ensure!(self.find("d", at(20)).await?.is_some(), "before the error");
            ensure!(self.find("d", at(21)).await?.is_some() != ordered, "behind the error");
        }
        Ok(())
    }
}

/// The code and the text of a command that failed.
fn refusal(answer: Result<Document>) -> Result<(i32, String)> {
    let error = answer.err().context("it was not refused")?;
    let error = error.downcast::<mongodb::error::Error>()?;
    match *error.kind {
        mongodb::error::ErrorKind::Command(error) => Ok((error.code, error.message)),
        other => anyhow::bail!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bulk_write_of_several_collections_in_every_phase() -> Result<()> {
    let bed = Bed::start("bulk").await?;
    // Nothing migrates: it is the server's to answer, and this one does not know it.
    let plain = bed.client.bulk_write([bed.insert("c", 1)]).await.err().context("an answer of the server")?;
    ensure!(plain.to_string().contains("no such command"), "{plain}");
    bed.begin().await?;
    bed.all_kinds(100).await?;
    bed.both_are_equal().await?;
    bed.operator.reads(50).await?;
    bed.operator.writes(50).await?;
    bed.all_kinds(200).await?;
    // One document without its _id cannot be written now; it fails by itself.
    let unkeyed = [bed.insert("c", 1000), bed.update("c", doc! { "n": 0 }, false), bed.insert("c", 1001)];
    let failed = bed.client.bulk_write(unkeyed).ordered(false).await.err().context("a refusal")?;
    let mongodb::error::ErrorKind::BulkWrite(failed) = *failed.kind else { anyhow::bail!("{failed}") };
    ensure!(failed.write_errors.len() == 1 && failed.write_errors[&1].code == 115, "{failed:?}");
    ensure!(bed.find("c", 1001).await?.is_some());
    bed.both_are_equal().await?;
    bed.operator.reads(100).await?;
    bed.operator.writes(100).await?;
    bed.all_kinds(300).await?;
    bed.both_are_equal().await?;
    bed.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bulk_write_that_is_sent_again_counts_once() -> Result<()> {
    let bed = Bed::start("bulk-again").await?;
    bed.begin().await?;
    let session = doc! { "id": bson::Uuid::new() };
    let inc = |space: i32, id: i32| {
        doc! { "update": space, "filter": { "_id": id }, "updateMods": { "$inc": { "n": 1 } }, "upsert": true, "multi": false }
    };
    let bulk = doc! {
        "bulkWrite": 1, "ops": [inc(0, 1), inc(1, 2), inc(0, 3), inc(0, 4), inc(1, 5)],
        "nsInfo": [{ "ns": "shop.c" }, { "ns": "shop.d" }], "errorsOnly": true, "lsid": session,
        "txnNumber": 5_i64, "$db": "admin",
    };
    let ids = |reply: &Document| reply.get_array("retriedStmtIds").map(Vec::len).unwrap_or(0);
    let first = bed.as_it_is(&bulk).await?;
    ensure!(first.get_i32("nUpserted")? == 5 && ids(&first) == 0, "{first}");
    let again = bed.as_it_is(&bulk).await?;
    ensure!(again.get_i32("nUpserted")? == 5 && ids(&again) == 5, "{again}");
    // Of the next one, the first attempt has not come further than its first operation.
    let mut next = bulk.clone();
    next.insert("txnNumber", 6_i64);
    let mut begun = next.clone();
    begun.insert("ops", vec![inc(0, 1)]);
    bed.as_it_is(&begun).await?;
    // The same after a move: the former authority has the history.
    bed.operator.reads(100).await?;
    bed.operator.writes(50).await?;
    let half = bed.as_it_is(&next).await?;
    ensure!(half.get_i32("nErrors")? == 0 && ids(&half) == 1, "{half}");
    bed.operator.writes(100).await?;
    let moved = bed.as_it_is(&next).await?;
    ensure!(moved.get_i32("nErrors")? == 0 && ids(&moved) == 5, "{moved}");
    for (name, id) in [("c", 1), ("d", 2), ("c", 3), ("c", 4), ("d", 5)] {
        ensure!(bed.find(name, id).await? == Some(doc! { "_id": id, "n": 2 }), "{name} {id}");
    }
    bed.both_are_equal().await?;
    bed.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bulk_write_in_a_transaction_and_one_that_servers_do_not_know() -> Result<()> {
    let bed = Bed::start("bulk-transaction").await?;
    bed.begin().await?;
    for commits in [true, false] {
        let mut session = bed.client.start_session().await?;
        session.start_transaction().await?;
        let id = if commits { 1 } else { 2 };
        let models = [bed.insert("c", id), bed.insert("d", id), bed.update("c", doc! { "_id": id }, false)];
        let done = bed.client.bulk_write(models).session(&mut session).await?;
        ensure!((done.inserted_count, done.modified_count) == (2, 1), "{done:?}");
        ensure!(bed.find("c", id).await?.is_none(), "it is not committed yet");
        if commits {
            session.commit_transaction().await?
        } else {
            session.abort_transaction().await?
        }
        ensure!(
            bed.find("c", id).await?.is_some() == commits && bed.find("d", id).await?.is_some() == commits
        );
    }
    let nonsense =
        doc! { "bulkWrite": 1, "ops": [{ "insert": 7, "document": {} }], "nsInfo": [{ "ns": "shop.c" }] };
    let (code, why) = refusal(bed.admin(&nonsense).await)?;
    ensure!(code == 2 && why.contains("ops entry 0"), "{code} {why}");
    bed.both_are_equal().await?;
    bed.proxy.shutdown().await;
    // Servers as they are: their own answer.
    let proxy = proxy(&bed.old.uri(), Some(&bed.new.uri())).await?;
    let operator = Operator::of(&proxy, "m");
    operator.ready().await?;
    let client = Client::with_uri_str(uri(&proxy)).await?;
    let command = rawdoc! {
        "bulkWrite": 1, "ops": [{ "insert": 0, "document": { "_id": 9 } }], "nsInfo": [{ "ns": "shop.c" }],
    };
    let (code, why) = refusal(support::bed::raw(&client.database("admin"), command).await)?;
    ensure!(code == 59, "{code} {why}");
    proxy.shutdown().await;
    Ok(())
}
