//! Writes with a number, straight to the shards: these recognise the number when the write comes again,
//! however it was lost. (The engine aborts when it gets one.)

use bson::raw::RawArrayBuf;
use bson::{Bson, Document, RawDocument, RawDocumentBuf, doc};
use bytes::BytesMut;
use futures::future::try_join_all;

use super::Router;
use super::backend::Repeat;
use super::failure::{Failure, NAMESPACE_NOT_FOUND, is_ok, whole};
use super::forward::{ATTEMPTS, Asked};
use super::raw;
use super::seen::Seen;
use super::table::Table;
use super::targets::{Kind, targets};
use super::versioned::{is_stale, pause};

/// Statements that go to the same shards together.
#[derive(Debug)]
struct Batch {
    shards: Vec<String>,
    statements: Vec<usize>,
}

/// A write command that is taken apart.
struct Write<'a> {
    asked: Asked<'a>,
    kind: Kind,
    statements: Vec<&'a RawDocument>,
    ordered: bool,
}

/// What became of a write.
#[derive(Debug)]
pub(super) enum Done {
    /// Nothing yet: one of its statements is for the engine to decide.
    ForEngine,
    /// One shard has answered; its message is in the buffer for replies.
    Passed(Seen),
    /// Several have.
    Merged(RawDocumentBuf),
}

impl Router {
    /// Runs a write with a number.
    pub(super) async fn retryable(
        &self,
        asked: Asked<'_>,
        kind: Kind,
        reply: &mut BytesMut,
    ) -> Result<Done, Failure> {
        let body = asked.body()?;
        let statements = raw::list(asked.message, asked.parts, body, kind.list())?;
        let ordered = !matches!(body.get("ordered")?, Some(value) if value.as_bool() == Some(false));
        let write = Write { asked, kind, statements, ordered };
        for attempt in 1..=ATTEMPTS {
            let table = match self.table(asked.database(), asked.collection(), kind == Kind::Insert).await {
                Err(failure) if failure.code() == NAMESPACE_NOT_FOUND => return Ok(Done::ForEngine),
                table => table?,
            };
            let Some(batches) = write.batches(&table)? else { return Ok(Done::ForEngine) };
            let done = match &batches[..] {
                // The usual case: the whole message goes to one shard as it is.
                [Batch { shards, .. }] if shards.len() == 1 => {
                    self.to_shard(asked, &table, &shards[0], Repeat::Yes, reply).await?.map(Done::Passed)
                }
                batches => Box::pin(self.run_batches(&write, &table, batches)).await?.map(Done::Merged),
            };
            if let Some(done) = done {
                return Ok(done);
            }
            // What was done already is recognised by the shards, also by new owners.
            self.forget(&table.namespace);
            if attempt > 1 {
                pause(attempt).await;
            }
        }
        Ok(Done::ForEngine)
    }

    /// Nothing if a shard says that the table is out of date.
    async fn run_batches(
        &self,
        write: &Write<'_>,
        table: &Table,
        batches: &[Batch],
    ) -> Result<Option<RawDocumentBuf>, Failure> {
        let mut merged = Merged::default();
        // Where the order does not matter, all shards work at once.
        let turns = batches.chunks(if write.ordered { 1 } else { batches.len().max(1) });
        for turn in turns {
            let asked = turn.iter().map(|batch| self.run_batch(write, table, batch));
            for (batch, replies) in turn.iter().zip(try_join_all(asked).await?) {
                for reply in replies {
                    if is_stale(&reply) {
                        return Ok(None);
                    }
                    let reply = Document::try_from(&*reply)?;
                    if !is_ok(&reply) {
                        return Err(Failure(raw::cleaned(reply)));
                    }
                    merged.add(reply, &batch.statements);
                }
            }
            if write.ordered && !merged.errors.is_empty() {
                break;
            }
        }
        Ok(Some(RawDocumentBuf::try_from(&merged.reply(write.kind))?))
    }

    async fn run_batch(
        &self,
        write: &Write<'_>,
        table: &Table,
        batch: &Batch,
    ) -> Result<Vec<RawDocumentBuf>, Failure> {
        let body = self.with_write_concern(&write.part(batch)?)?;
        let asked = batch.shards.iter().map(|shard| async {
            let body = raw::with(&body, &table.version(shard))?;
            self.shard(shard).await?.run(write.asked.database(), body, Repeat::Yes).await
        });
        try_join_all(asked).await
    }
}

impl Write<'_> {
    /// Groups the statements by their shards: neighbours if the order matters, else all.
    fn batches(&self, table: &Table) -> Result<Option<Vec<Batch>>, Failure> {
        let mut batches: Vec<Batch> = Vec::new();
        for (index, statement) in self.statements.iter().enumerate() {
            let Some(shards) = targets(table, self.kind, statement)? else { return Ok(None) };
            let fits = |batch: &&mut Batch| batch.shards == shards;
            let known = match self.ordered {
                true => batches.last_mut().filter(fits),
                false => batches.iter_mut().find(|batch| fits(batch)),
            };
            match known {
                Some(batch) => batch.statements.push(index),
                None => batches.push(Batch { shards, statements: vec![index] }),
            }
        }
        Ok(Some(batches))
    }

    /// The command with the statements of one batch, which keep their numbers.
    fn part(&self, batch: &Batch) -> Result<RawDocumentBuf, Failure> {
        let body = self.asked.body()?;
        let list = self.kind.list();
        let dropped = ["$db", "$clusterTime", "$readPreference", "stmtId", "stmtIds", list];
        let mut part = raw::without(body, &dropped)?;
        let mut statements = RawArrayBuf::new();
        batch.statements.iter().for_each(|index| statements.push(self.statements[*index]));
        part.append(raw::name_of(list)?, statements);
        let numbers = self.numbers(body);
        let numbers: Vec<Bson> = batch.statements.iter().map(|index| Bson::Int32(numbers(*index))).collect();
        raw::with(&part, &doc! {"stmtIds": numbers})
    }

    /// The number of each statement: what the client says, else its place.
    fn numbers(&self, body: &RawDocument) -> impl Fn(usize) -> i32 {
        let first = body.get_i32("stmtId").unwrap_or(0);
        let own: Vec<i32> = body
            .get_array("stmtIds")
            .map(|ids| ids.into_iter().flatten().filter_map(|id| id.as_i32()).collect())
            .unwrap_or_default();
        move |index| own.get(index).copied().unwrap_or(first + i32::try_from(index).unwrap_or(0))
    }
}

/// The replies of several shards as one.
#[derive(Debug, Default)]
struct Merged {
    count: i64,
    modified: i64,
    upserted: Vec<Document>,
    errors: Vec<Document>,
    retried: Vec<Bson>,
    concern: Option<Document>,
}

impl Merged {
    /// `statements` are the places in the whole command.
    fn add(&mut self, mut reply: Document, statements: &[usize]) {
        let place = |entry: &Document| {
            let index = usize::try_from(whole(entry, "index").unwrap_or(0)).unwrap_or(0);
            i32::try_from(statements.get(index).copied().unwrap_or(index)).unwrap_or(0)
        };
        self.count += whole(&reply, "n").unwrap_or(0);
        self.modified += whole(&reply, "nModified").unwrap_or(0);
        for (field, to) in [("upserted", &mut self.upserted), ("writeErrors", &mut self.errors)] {
            let Some(Bson::Array(entries)) = reply.remove(field) else { continue };
            for entry in entries {
                if let Bson::Document(mut entry) = entry {
                    let place = place(&entry);
                    // One error is enough of a statement that went to several shards.
                    let known = to.iter().any(|known| whole(known, "index") == Some(i64::from(place)));
                    if !known {
                        entry.insert("index", place);
                        to.push(entry);
                    }
                }
            }
        }
        if let Some(Bson::Array(retried)) = reply.remove("retriedStmtIds") {
            self.retried.extend(retried);
        }
        if let Some(Bson::Document(concern)) = reply.remove("writeConcernError") {
            self.concern.get_or_insert(concern);
        }
    }

    fn reply(mut self, kind: Kind) -> Document {
        let count = super::reads::shortest;
        let mut reply = doc! {"n": count(self.count)};
        if kind == Kind::Update {
            reply.insert("nModified", count(self.modified));
        }
        self.errors.sort_by_key(|error| error.get_i32("index").unwrap_or(0));
        if !self.upserted.is_empty() {
            reply.insert("upserted", self.upserted);
        }
        if !self.errors.is_empty() {
            reply.insert("writeErrors", self.errors);
        }
        if !self.retried.is_empty() {
            reply.insert("retriedStmtIds", self.retried);
        }
        if let Some(concern) = self.concern {
            reply.insert("writeConcernError", concern);
        }
        reply.insert("ok", 1.0);
        reply
    }
}
