//! Changes of a shard key that move a document to another shard: mongos makes a transaction of them, and so
//! does this.

use bson::spec::BinarySubtype;
use bson::{Binary, Bson, Document, RawDocument, RawDocumentBuf, doc};
use bytes::BytesMut;

use super::Router;
use super::backend::Repeat;
use super::concern::majority;
use super::failure::{Failure, STALE, code_of, is_ok, truth, whole};
use super::forward::Asked;
use super::raw;
use super::table::Table;
use super::versioned::{Versioned, pause};

const ATTEMPTS: u32 = 20;
/// `WouldChangeOwningShard`.
const WOULD_CHANGE_SHARD: i32 = 283;
/// `WriteConflict`, `NoSuchTransaction`: the transaction may be run again.
const TRANSIENT: [i32; 2] = [112, 251];

/// How the change of one document's key went.
#[derive(Debug)]
pub(super) enum Moved {
    /// The shard that had it could do it alone; this is its reply.
    Stayed(RawDocumentBuf),
    /// It was moved, or inserted where there was none.
    Done { before: Document, after: Document, inserted: bool },
    /// An error of a write, with nothing changed.
    Failed(Document),
}

/// What a shard says when a document would have to leave it.
struct Leaving {
    before: Document,
    after: Document,
    inserted: bool,
}

/// The transaction that moves one document.
struct Transaction<'a> {
    router: &'a Router,
    database: &'a str,
    session: Document,
    shards: Vec<String>,
}

impl Router {
    /// What an update that changes a shard key is answered with in the end. Nothing if it is not for the
    /// router to do.
    pub(super) async fn change_of_key(&self, asked: Asked<'_>) -> Result<Option<BytesMut>, Failure> {
        let body = raw::command(asked.message, asked.parts)?;
        let updates = body.get_array("updates").map_err(|error| Failure::bad_value(error.to_string()))?;
        let mut updates = updates.into_iter();
        let (Some(Ok(update)), None) = (updates.next(), updates.next()) else {
            let message = "Document shard key value updates that cause the doc to move shards must be sent with \
                           write batch of size 1";
            return Err(Failure::new(72, "InvalidOptions", message));
        };
        let Some(update) = update.as_document() else { return Ok(None) };
        let (database, collection) = (asked.database(), asked.collection());
        let plain = raw::without(&body, &["lsid", "txnNumber", "stmtId", "stmtIds", "ordered"])?;
        let query = raw::document(update, "q")?;
        let answer = match self.move_document(database, collection, &plain, &query).await? {
            None => return Ok(None),
            Some(Moved::Stayed(stayed)) => raw::reply(&stayed)?,
            Some(Moved::Failed(error)) => {
                let error: Document = doc! {"index": 0}.into_iter().chain(error).collect();
                RawDocumentBuf::try_from(&doc! {"n": 0, "nModified": 0, "writeErrors": [error], "ok": 1.0})?
            }
            Some(Moved::Done { after, inserted, .. }) => {
                let mut answer = doc! {"n": 1, "nModified": i32::from(!inserted)};
                if inserted {
                    answer.insert("upserted", vec![doc! {"index": 0, "_id": after.get("_id").cloned()}]);
                }
                answer.insert("ok", 1.0);
                RawDocumentBuf::try_from(&answer)?
            }
        };
        Ok(Some(self.message(answer, asked.parts)))
    }

    /// Runs an update or a findAndModify of one document on the shard that owns it, and moves the document if
    /// the shard says that it would have to go. Nothing if the filter does not tell the shard.
    pub(super) async fn move_document(
        &self,
        database: &str,
        collection: &str,
        command: &RawDocument,
        query: &Document,
    ) -> Result<Option<Moved>, Failure> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let table = self.table(database, collection, false).await?;
            let Some(key) = table.sharded()?.key_of_filter(query) else { return Ok(None) };
            let _one_at_a_time = self.moves.lock().await;
            let id = Binary { subtype: BinarySubtype::Uuid, bytes: uuid::Uuid::new_v4().as_bytes().to_vec() };
            let session = doc! {"id": id};
            let first = doc! {"lsid": session.clone(), "txnNumber": 1_i64};
            let body = self.with_write_concern(&raw::with(command, &first)?)?;
            let update = Versioned { database, collection, body: &body, create: false, repeat: Repeat::Yes };
            let pick = |table: &Table| Ok(vec![table.sharded()?.chunk_of(&key)?.shard.clone()]);
            let (table, mut replies) = self.versioned(update, pick).await?;
            let Some((_, reply)) = replies.pop() else { return Ok(None) };
            let Some(error) = error_of(&Document::try_from(&*reply)?) else {
                return Ok(Some(Moved::Stayed(reply)));
            };
            let Some(leaving) = Leaving::read(&error) else { return Ok(Some(Moved::Failed(plain(error)))) };
            let transaction = Transaction { router: self, database, session, shards: Vec::new() };
            match transaction.run(&table, collection, &leaving).await? {
                None => {
                    let Leaving { before, after, inserted } = leaving;
                    return Ok(Some(Moved::Done { before, after, inserted }));
                }
                Some(failed) if attempt >= ATTEMPTS || !is_transient(&failed) => {
                    return Ok(Some(Moved::Failed(plain(error_of(&failed).unwrap_or_default()))));
                }
                Some(_) => {
                    self.forget(&table.namespace);
                    pause(attempt).await;
                }
            }
        }
    }
}

impl Leaving {
    fn read(error: &Document) -> Option<Self> {
        if code_of(error) != WOULD_CHANGE_SHARD {
            return None;
        }
        let info =
            if error.contains_key("postImage") { error } else { error.get_document("errInfo").ok()? };
        Some(Self {
            before: info.get_document("preImage").cloned().unwrap_or_default(),
            after: info.get_document("postImage").ok()?.clone(),
            inserted: truth(info, "shouldUpsert"),
        })
    }
}

impl Transaction<'_> {
    /// Deletes the document on its shard and inserts it on the other. Returns the reply that says no, if one
    /// does; then everything is undone.
    async fn run(
        mut self,
        table: &Table,
        collection: &str,
        leaving: &Leaving,
    ) -> Result<Option<Document>, Failure> {
        let refused = self.statements(table, collection, leaving).await?;
        let refused = match refused {
            Some(refused) => Some(refused),
            None => self.commit().await?.err(),
        };
        if refused.is_some() {
            for shard in &self.shards {
                let abort = doc! {"abortTransaction": 1}.into_iter().chain(self.fields());
                let backend = self.router.shard(shard).await?;
                // A shard that has nothing of it any more says no.
                let _ = backend.ask("admin", &abort.collect(), Repeat::No).await;
            }
        }
        Ok(refused)
    }

    async fn statements(
        &mut self,
        table: &Table,
        collection: &str,
        leaving: &Leaving,
    ) -> Result<Option<Document>, Failure> {
        let sharding = table.sharded()?;
        let to = sharding.chunk_of(&sharding.key_of_document(&leaving.after))?.shard.clone();
        if !leaving.inserted {
            let key = sharding.key_of_document(&leaving.before);
            let from = sharding.chunk_of(&key)?.shard.clone();
            let id = doc! {"_id": leaving.before.get("_id").cloned()};
            let filter: Document = id.into_iter().chain(key).collect();
            let delete = doc! {"delete": collection, "deletes": [{"q": filter, "limit": 1}]};
            let reply = self.statement(table, from, delete).await?;
            if error_of(&reply).is_some() || whole(&reply, "n") != Some(1) {
                return Ok(Some(reply));
            }
        }
        let insert = doc! {"insert": collection, "documents": [leaving.after.clone()]};
        let reply = self.statement(table, to, insert).await?;
        Ok(error_of(&reply).is_some().then_some(reply))
    }

    async fn statement(
        &mut self,
        table: &Table,
        shard: String,
        command: Document,
    ) -> Result<Document, Failure> {
        let mut command: Document =
            command.into_iter().chain(table.version(&shard)).chain(self.fields()).collect();
        if !self.shards.contains(&shard) {
            if self.shards.is_empty() {
                command.insert("coordinator", true);
            }
            command.insert("startTransaction", true);
            command.insert("readConcern", doc! {"level": "local"});
            self.shards.push(shard.clone());
        }
        self.router.shard(&shard).await?.ask(self.database, &command, Repeat::No).await
    }

    async fn commit(&self) -> Result<Result<(), Document>, Failure> {
        let Some(coordinator) = self.shards.first() else { return Ok(Ok(())) };
        let mut commit = doc! {"commitTransaction": 1};
        if self.shards.len() > 1 {
            let participants: Vec<Document> = self.shards.iter().map(|id| doc! {"shardId": id}).collect();
            commit = doc! {"coordinateCommitTransaction": 1, "participants": participants};
        }
        commit.extend(self.fields());
        commit.insert("writeConcern", majority());
        let reply = self.router.shard(coordinator).await?.ask("admin", &commit, Repeat::Yes).await?;
        Ok(if is_ok(&reply) { Ok(()) } else { Err(reply) })
    }

    fn fields(&self) -> Document {
        doc! {"lsid": self.session.clone(), "txnNumber": 2_i64, "autocommit": false}
    }
}

/// The error of a reply or of its first write.
fn error_of(reply: &Document) -> Option<Document> {
    if !is_ok(reply) {
        return Some(reply.clone());
    }
    let first = reply.get_array("writeErrors").ok()?.first()?;
    first.as_document().cloned()
}

fn is_transient(reply: &Document) -> bool {
    let labels = reply.get_array("errorLabels").ok();
    let labelled = labels.is_some_and(|labels| labels.contains(&Bson::from("TransientTransactionError")));
    let code = error_of(reply).map(|error| code_of(&error));
    // A delete that found nothing: somebody else changed the document.
    labelled || code.is_none_or(|code| STALE.contains(&code) || TRANSIENT.contains(&code))
}

/// What of an error a client gets.
fn plain(error: Document) -> Document {
    let kept = ["code", "codeName", "errmsg", "keyPattern", "keyValue"];
    error.into_iter().filter(|(key, _)| kept.contains(&key.as_str())).collect()
}
