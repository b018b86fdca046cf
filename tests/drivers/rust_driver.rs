//! An application with the driver for Rust.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bson::oid::ObjectId;
use bson::{Binary, Bson, DateTime, Document, Timestamp, doc, spec::BinarySubtype};
use futures::TryStreamExt as _;
use mongodb::error::{Error, ErrorKind};
use mongodb::options::{ClientOptions, GridFsBucketOptions, IndexOptions, ReturnDocument};
use mongodb::{Client, ClientSession, Collection, IndexModel};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::stage::{Phase, Stage};

const REFUSED: i32 = 115;
const SOON: Duration = Duration::from_secs(20);

/// Checks as an application inside one phase.
pub(crate) async fn run(stage: &Stage, phase: Phase) -> Result<()> {
    let application = App::connect(&stage.uri(), phase, "run").await?;
    if phase == Phase::Plain {
        let unique = IndexOptions::builder().unique(true).build();
        let email = IndexModel::builder().keys(doc! { "email": 1 }).options(unique).build();
        application.accounts.create_index(email).await?;
        for name in ["items", "orders", "stock"] {
            let by_run = IndexModel::builder().keys(doc! { "run": 1 }).build();
            application.collection(name).create_index(by_run).await?;
        }
    }
    application.one_document().await.context("one document")?;
    application.batches().await.context("batches")?;
    application.cursors().await.context("cursors")?;
    application.joins().await.context("joins")?;
    application.sessions().await.context("sessions")?;
    Box::pin(application.broken_connections(stage)).await.context("broken connections")?;
    Box::pin(application.transactions()).await.context("transactions")?;
    application.change_streams().await.context("change streams")?;
    application.indexes().await.context("indexes")?;
    application.large_documents().await.context("large documents")?;
    application.ids_of_all_kinds().await.context("ids of all kinds")?;
    application.collections().await.context("collections")?;
    application.what_was_kept().await.context("what was kept")
}

/// Holds cursors open over a change of phase, and works on meanwhile.
pub(crate) async fn across(
    uri: String,
    before: Phase,
    after: Phase,
    ready: oneshot::Sender<()>,
    changed: oneshot::Receiver<()>,
) -> Result<()> {
    let app = App::connect(&uri, before, after.name()).await?;
    let mut cursors = Vec::new();
    for collection in [&app.items, &app.accounts] {
        collection.insert_many((0..300).map(|n| app.document(&format!("long-{n}"), n))).await?;
        let mut cursor =
            collection.find(doc! { "run": &app.run }).sort(doc! { "n": 1 }).batch_size(11).await?;
        for n in 0..30 {
            ensure!(cursor.try_next().await?.context("no more")?.get_i32("n")? == n);
        }
        cursors.push(cursor);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = (0..3).map(|worker| app.work(worker, Arc::clone(&stop))).collect();
    _ = ready.send(());
    changed.await?;
    // For a while the workers go on in what has come: that time passes is the point.
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::Relaxed);
    for (worker, task) in workers.into_iter().enumerate() {
        let acknowledged = task.await??;
        for collection in [&app.items, &app.accounts] {
            let id = format!("{}-work-{worker}", app.run);
            let stored = collection.find_one_and_delete(doc! { "_id": id }).await?.context("no counter")?;
            ensure!(stored.get_i64("n")? == acknowledged, "{acknowledged} acknowledged, stored {stored}");
        }
    }
    for cursor in cursors {
        let rest: Vec<Document> = cursor.try_collect().await?;
        ensure!(rest.len() == 270 && rest[269].get_i32("n")? == 299, "{} documents", rest.len());
    }
    app.remove(&app.items, 300).await?;
    app.remove(&app.accounts, 300).await
}

struct App {
    client: Client,
    phase: Phase,
    run: String,
    items: Collection<Document>,
    accounts: Collection<Document>,
    feed: Collection<Document>,
}

fn code(error: &Error) -> Option<i32> {
    match &*error.kind {
        ErrorKind::Command(error) => Some(error.code),
        ErrorKind::Write(mongodb::error::WriteFailure::WriteError(error)) => Some(error.code),
        ErrorKind::InsertMany(error) => error.write_errors.as_ref()?.first().map(|error| error.code),
        _ => None,
    }
}

fn refused<T>(result: Result<T, Error>, word: &str) -> Result<()> {
    let error = result.err().context("it was not refused")?;
    ensure!(code(&error) == Some(REFUSED) && error.to_string().contains(word), "{error}");
    Ok(())
}

fn duplicate<T>(result: Result<T, Error>) -> Result<()> {
    let error = result.err().context("no duplicate key error")?;
    ensure!(code(&error) == Some(11000), "{error}");
    Ok(())
}

impl App {
    async fn connect(uri: &str, phase: Phase, what: &str) -> Result<Self> {
        let mut options = ClientOptions::parse(uri).await?;
        options.server_selection_timeout = Some(Duration::from_secs(10));
        let client = Client::with_options(options)?;
        let collection = |name: &str| client.database("app").collection(name);
        let (items, accounts, feed) = (collection("items"), collection("accounts"), collection("feed"));
        Ok(Self { phase, run: format!("rs-{}-{what}", phase.name()), items, accounts, feed, client })
    }

    fn collection(&self, name: &str) -> Collection<Document> {
        self.client.database("app").collection(name)
    }

    fn migrates(&self) -> bool {
        self.phase != Phase::Plain
    }

    fn mixed(&self) -> bool {
        self.phase == Phase::Half
    }

    fn moved(&self) -> bool {
        self.phase == Phase::Moved
    }

    fn id(&self, suffix: &str) -> String {
        format!("{}-{suffix}", self.run)
    }

    fn document(&self, suffix: &str, n: i32) -> Document {
        let id = self.id(suffix);
        doc! { "_id": &id, "email": id, "run": &self.run, "n": n }
    }

    async fn remove(&self, collection: &Collection<Document>, count: u64) -> Result<()> {
        let deleted = collection.delete_many(doc! { "run": &self.run }).await?.deleted_count;
        ensure!(deleted == count, "{deleted} of {count} documents of {}", collection.name());
        Ok(())
    }

    fn work(&self, worker: usize, stop: Arc<AtomicBool>) -> JoinHandle<Result<i64>> {
        let id = self.id(&format!("work-{worker}"));
        let collections = [self.items.clone(), self.accounts.clone()];
        tokio::spawn(async move {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                for collection in &collections {
                    let update = doc! { "$inc": { "n": 1_i64 }, "$set": { "email": &id } };
                    collection.update_one(doc! { "_id": &id }, update).upsert(true).await?;
                    let found = collection.find_one(doc! { "_id": &id }).await?.context("it is gone")?;
                    ensure!(found.get_i64("n")? == number, "{found} after {number}");
                }
            }
            Ok(number)
        })
    }

    async fn one_document(&self) -> Result<()> {
        let items = &self.items;
        let by_id = doc! { "_id": self.id("one") };
        items.insert_one(self.document("one", 1)).await?;
        duplicate(items.insert_one(self.document("one", 1)).await)?;
        let updated = items.update_one(by_id.clone(), doc! { "$inc": { "n": 2 } }).await?;
        ensure!((updated.matched_count, updated.modified_count) == (1, 1));
        let after = items.find_one_and_update(by_id.clone(), doc! { "$inc": { "n": 1 } });
        let after = after.return_document(ReturnDocument::After).await?.context("not found")?;
        ensure!(after.get_i32("n")? == 4, "{after}");
        ensure!(items.replace_one(by_id.clone(), self.document("one", 9)).await?.modified_count == 1);
        ensure!(items.delete_one(by_id.clone()).await?.deleted_count == 1);
        let upserted =
            items.update_one(by_id.clone(), doc! { "$set": { "run": &self.run } }).upsert(true).await?;
        ensure!(upserted.upserted_id == Some(Bson::String(self.id("one"))), "{upserted:?}");
        self.remove(items, 1).await?;
        if self.mixed() {
            let unkeyed = items.update_one(doc! { "run": &self.run }, doc! { "$set": { "n": 1 } }).await;
            refused(unkeyed, "_id")?;
        }
        Ok(())
    }

    async fn batches(&self) -> Result<()> {
        let items = &self.items;
        for (ordered, inserted) in [(true, 2), (false, 3)] {
            let documents = ["a", "b", "b", "c"].map(|suffix| self.document(suffix, 0));
            let error = items.insert_many(documents).ordered(ordered).await.err().context("no error")?;
            let ErrorKind::InsertMany(errors) = &*error.kind else { anyhow::bail!("{error}") };
            let errors = errors.write_errors.as_deref().unwrap_or_default();
            ensure!(errors.len() == 1 && (errors[0].index, errors[0].code) == (2, 11000), "{errors:?}");
            self.remove(items, inserted).await?;
        }
        items.insert_many((0..60).map(|n| self.document(&n.to_string(), n))).await?;
        let some = doc! { "run": &self.run, "n": { "$lt": 40 } };
        let updated = items.update_many(some, doc! { "$inc": { "n": 100 } }).await?;
        ensure!((updated.matched_count, updated.modified_count) == (40, 40), "{updated:?}");
        self.remove(items, 60).await
    }

    async fn cursors(&self) -> Result<()> {
        let items = &self.items;
        let mine = doc! { "run": &self.run };
        items.insert_many((0..500).map(|n| self.document(&n.to_string(), n))).await?;
        let found: Vec<Document> =
            items.find(mine.clone()).sort(doc! { "n": 1 }).batch_size(17).await?.try_collect().await?;
        let numbers: Vec<i32> = found.iter().filter_map(|one| one.get_i32("n").ok()).collect();
        ensure!(numbers == (0..500).collect::<Vec<_>>());
        let stages = [
            doc! { "$match": mine.clone() },
            doc! { "$group": { "_id": { "$mod": ["$n", 50] }, "n": { "$sum": 1 } } },
        ];
        let groups: Vec<Document> = items.aggregate(stages).batch_size(7).await?.try_collect().await?;
        ensure!(groups.len() == 50);
        ensure!(items.count_documents(mine.clone()).await? == 500);
        ensure!(items.estimated_document_count().await? >= 500);
        ensure!(items.distinct("n", mine).await?.len() == 500);
        self.remove(items, 500).await
    }

    async fn joins(&self) -> Result<()> {
        self.items.insert_one(self.document("joined", 1)).await?;
        self.feed.insert_one(self.document("joined", 1)).await?;
        let joined = [
            doc! { "$match": { "_id": self.id("joined") } },
            doc! { "$lookup": { "from": "feed", "localField": "_id", "foreignField": "_id", "as": "feed" } },
        ];
        let answer = self.items.aggregate(joined).await;
        if self.mixed() || self.moved() {
            refused(answer, "move together")?;
        } else {
            let documents: Vec<Document> = answer?.try_collect().await?;
            ensure!(documents[0].get_array("feed")?.len() == 1);
        }
        if self.migrates() {
            refused(self.feed.aggregate([doc! { "$merge": "items" }]).await, "migration")?;
        }
        self.remove(&self.feed, 1).await?;
        self.remove(&self.items, 1).await
    }

    async fn sessions(&self) -> Result<()> {
        let mut session = self.client.start_session().causal_consistency(true).await?;
        for n in 0..25 {
            let id = self.id(&n.to_string());
            self.items.insert_one(self.document(&n.to_string(), n)).session(&mut session).await?;
            let found = self.items.find_one(doc! { "_id": id }).session(&mut session).await?;
            ensure!(found.is_some(), "write {n} was not read");
        }
        self.remove(&self.items, 25).await
    }

    async fn broken_connections(&self, stage: &Stage) -> Result<()> {
        let by_id = doc! { "_id": self.id("retry") };
        // What servers say that step down, shut down or recover, and one that goes away.
        let code = |code: i32| doc! { "errorCode": code, "errorLabels": ["RetryableWriteError"] };
        let ways =
            [doc! { "closeConnection": true }].into_iter().chain([10107, 11600, 11602, 91, 189, 6].map(code));
        for how in ways {
            let broken = async |command: &str| -> Result<()> {
                let mut data = doc! { "failCommands": [command], "namespace": "app.items" };
                data.extend(how.clone());
                for set in [&stage.old, &stage.new] {
                    let point = doc! { "configureFailPoint": "failCommand", "mode": { "times": 1 }, "data": data.clone() };
                    set.fail_point(point).await?;
                }
                Ok(())
            };
            broken("insert").await?;
            self.items.insert_one(self.document("retry", 0)).await?;
            for _ in 0..2 {
                broken("update").await?;
                self.items.update_one(by_id.clone(), doc! { "$inc": { "n": 1 } }).await?;
            }
            broken("find").await?;
            let found = self.items.find_one(by_id.clone()).await?.context("it is gone")?;
            ensure!(found.get_i32("n")? == 2, "{how}: {found}");
            broken("delete").await?;
            ensure!(self.items.delete_one(by_id.clone()).await?.deleted_count == 1, "{how}");
        }
        for set in [&stage.old, &stage.new] {
            set.fail_point(doc! { "configureFailPoint": "failCommand", "mode": "off" }).await?;
        }
        Ok(())
    }

    async fn transactions(&self) -> Result<()> {
        let (accounts, orders) = (&self.accounts, &self.collection("orders"));
        let (a, b) = (doc! { "_id": self.id("a") }, doc! { "email": self.id("b") });
        accounts.insert_many([self.document("a", 100), self.document("b", 0)]).await?;
        duplicate(accounts.insert_one(doc! { "email": self.id("a") }).await)?;
        let mut session = self.client.start_session().await?;
        let order = self.document("order", 1);
        let transfer = async |session: &mut ClientSession| {
            accounts.update_one(a.clone(), doc! { "$inc": { "n": -30 } }).session(&mut *session).await?;
            accounts.update_one(b.clone(), doc! { "$inc": { "n": 30 } }).session(&mut *session).await?;
            orders.insert_one(&order).session(&mut *session).await.map(drop)
        };
        session.start_transaction().and_run2(transfer).await?;
        ensure!(accounts.find_one(b.clone()).await?.context("b")?.get_i32("n")? == 30);
        self.remove(orders, 1).await?;

        session.start_transaction().await?;
        accounts.delete_one(a.clone()).session(&mut session).await?;
        session.abort_transaction().await?;
        ensure!(accounts.find_one(a.clone()).await?.context("a")?.get_i32("n")? == 70);

        for other in [&self.feed, &self.collection("stock")] {
            session.start_transaction().await?;
            accounts.update_one(a.clone(), doc! { "$inc": { "n": 1 } }).session(&mut session).await?;
            let both = other.insert_one(self.document("both", 1)).session(&mut session).await;
            if self.moved() {
                refused(both, "transaction")?;
                session.abort_transaction().await?;
            } else {
                both?;
                session.commit_transaction().await?;
                session.commit_transaction().await?;
            }
            self.remove(other, u64::from(!self.moved())).await?;
        }
        let n = accounts.find_one(a.clone()).await?.context("a")?.get_i32("n")?;
        ensure!(n == if self.moved() { 70 } else { 72 }, "{n}");
        if self.mixed() {
            session.start_transaction().await?;
            let divided = self.items.insert_one(self.document("tx", 1)).session(&mut session).await;
            refused(divided, "transactions")?;
            session.abort_transaction().await?;
        }
        self.remove(accounts, 2).await
    }

    async fn change_streams(&self) -> Result<()> {
        for collection in if self.mixed() { vec![&self.feed] } else { vec![&self.feed, &self.items] } {
            let matching = [doc! { "$match": { "documentKey._id": self.id("watch") } }];
            let mut stream = collection.watch().pipeline(matching).await?;
            collection.insert_one(self.document("watch", 1)).await?;
            let event = tokio::time::timeout(SOON, stream.try_next()).await??.context("the stream ended")?;
            ensure!(event.full_document == Some(self.document("watch", 1)), "{event:?}");
            self.remove(collection, 1).await?;
        }
        Ok(())
    }

    async fn indexes(&self) -> Result<()> {
        for collection in [&self.items, &self.feed] {
            let model = IndexModel::builder().keys(doc! { self.id("field"): 1 }).build();
            let name = collection.create_index(model).await?.index_name;
            ensure!(collection.list_index_names().await?.contains(&name));
            collection.drop_index(&name).await?;
            ensure!(!collection.list_index_names().await?.contains(&name));
        }
        Ok(())
    }

    async fn large_documents(&self) -> Result<()> {
        let mut large = self.document("large", 1);
        large.insert("big", "x".repeat(10_000_000));
        self.items.insert_one(&large).await?;
        let found = self.items.find_one(doc! { "_id": self.id("large") }).await?;
        ensure!(found == Some(large), "the large document");
        self.remove(&self.items, 1).await?;

        let app = self.client.database("app");
        let media = GridFsBucketOptions::builder().bucket_name("media".to_owned()).build();
        for (bucket, migrates) in [(app.gridfs_bucket(None), false), (app.gridfs_bucket(media), true)] {
            let mut upload = bucket.open_upload_stream(self.id("file")).await?;
            let content: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).take(1_000_000).collect();
            futures::io::AsyncWriteExt::write_all(&mut upload, &content).await?;
            futures::io::AsyncWriteExt::close(&mut upload).await?;
            let mut download = bucket.open_download_stream(upload.id().clone()).await?;
            let mut back = Vec::new();
            futures::io::AsyncReadExt::read_to_end(&mut download, &mut back).await?;
            ensure!(back == content, "the file's content");
            if migrates {
                bucket.rename(upload.id().clone(), self.id("renamed")).await?;
                bucket.delete(upload.id().clone()).await?;
            } else {
                bucket.drop().await?;
            }
        }
        Ok(())
    }

    async fn ids_of_all_kinds(&self) -> Result<()> {
        let number = 9_000_000 + self.phase as i32;
        let binary = Binary { subtype: BinarySubtype::Generic, bytes: vec![7; 20] };
        let keys: Vec<Bson> = vec![
            ObjectId::new().into(),
            self.id("text").into(),
            number.into(),
            (i64::from(number) << 30).into(),
            0.375.into(),
            "2.75".parse::<bson::Decimal128>()?.into(),
            binary.into(),
            bson::Uuid::new().into(),
            DateTime::from_millis(i64::from(number)).into(),
            doc! { "run": &self.run }.into(),
            Timestamp { time: 5, increment: 6 }.into(),
            Bson::Null,
            true.into(),
            Bson::MinKey,
            Bson::MaxKey,
        ];
        for key in &keys {
            self.items.insert_one(doc! { "_id": key.clone(), "run": &self.run }).await?;
            let found = self.items.find_one(doc! { "_id": key.clone() }).await?;
            ensure!(found.is_some(), "_id {key} was not found");
        }
        duplicate(self.items.insert_one(doc! { "_id": f64::from(number) }).await)?;
        for key in &keys {
            let deleted = self.items.delete_one(doc! { "_id": key.clone() }).await?.deleted_count;
            ensure!(deleted == 1, "deletions of {key}");
        }
        Ok(())
    }

    async fn collections(&self) -> Result<()> {
        let database = self.client.database("app");
        let other = self.collection(&self.id("other"));
        other.insert_one(doc! { "_id": 1 }).await?;
        let names = database.list_collection_names().await?;
        ensure!(names.contains(&"items".to_owned()) && names.contains(&self.id("other")), "{names:?}");
        other.drop().await?;
        if self.migrates() {
            refused(self.items.drop().await, "migration")?;
            refused(database.drop().await, "migration")?;
        }
        let stats = database.run_command(doc! { "collStats": "accounts" }).await?;
        ensure!(stats.get_str("ns")? == "app.accounts");
        let explain = doc! { "explain": { "find": "accounts", "filter": { "n": 1 } } };
        ensure!(database.run_command(explain).await?.contains_key("queryPlanner"));
        let unknown = database.run_command(doc! { "noSuchCommand": 1 }).await;
        ensure!(unknown.as_ref().err().and_then(code) == Some(59), "{unknown:?}");
        Ok(())
    }

    async fn what_was_kept(&self) -> Result<()> {
        for collection in [&self.items, &self.accounts] {
            for past in Phase::ALL.into_iter().filter(|past| *past < self.phase) {
                for n in 0..20 {
                    let id = format!("rs-kept-{}-{n}", past.name());
                    let kept = collection.find_one(doc! { "_id": &id }).await?.context(id)?;
                    ensure!(kept.get_i32("n")? == 2 * n, "{kept}");
                }
            }
            for n in 0..20 {
                let id = format!("rs-kept-{}-{n}", self.phase.name());
                collection.insert_one(doc! { "_id": &id, "email": &id, "n": n }).await?;
                collection.update_one(doc! { "_id": &id }, doc! { "$inc": { "n": n } }).await?;
            }
        }
        Ok(())
    }
}
