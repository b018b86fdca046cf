//! Writes of a client that are made once and sent as often as wanted.

use std::sync::Arc;
use std::time::Duration;

use bson::oid::ObjectId;
use bson::raw::{RawDocumentBuf, cstr};
use bson::{RawBsonRef, RawDocument, rawdoc};
use reshard::model::namespace::Namespace;
use reshard::policy::writes::{Verb, WriteCommand};

use super::client::{Client, NS, change, told};
use super::proxy::{Answer, Proxy, Reading};
use crate::checks::history::{Action, Told};

/// A write with its session and number.
pub(crate) struct Write {
    /// The command.
    pub(crate) command: Arc<WriteCommand>,
    /// Its session.
    pub(crate) session: RawDocumentBuf,
    /// Its number.
    pub(crate) number: i64,
    durable: bool,
    sent: Duration,
    /// What it is in the history, for those who do not answer there themselves.
    operations: Vec<usize>,
}

impl Client {
    /// The next write of its session.
    pub(crate) fn prepare(&mut self, verb: Verb, mut body: RawDocumentBuf, durable: bool) -> Write {
        let w = if durable {
            rawdoc! { "w": "majority" }
        } else {
            rawdoc! { "w": 1 }
        };
        body.append(cstr!("writeConcern"), w);
        self.prepare_as_it_is(verb, body, durable)
    }

    /// The same without a write concern; `durable`: its servers wait for a majority then.
    fn prepare_as_it_is(&mut self, verb: Verb, mut body: RawDocumentBuf, durable: bool) -> Write {
        self.txn += 1;
        let session = self.session();
        body.append(cstr!("lsid"), session.clone());
        body.append(cstr!("txnNumber"), self.txn);
        let collection = body.iter().next().and_then(Result::ok).and_then(|(_, value)| value.as_str());
        let ns = Namespace::new("app", collection.unwrap());
        let command = Arc::new(WriteCommand::parse(ns, verb, &body, None, ObjectId::new).unwrap());
        Write {
            command,
            session,
            number: self.txn,
            durable,
            sent: self.world.executor().now(),
            operations: Vec::new(),
        }
    }

    /// What a reply tells of a write; `None`: worth another try.
    pub(crate) fn hear(&self, write: &Write, body: &RawDocument) -> Option<Told> {
        if !told(body)? {
            return Some(Told::Unknown);
        }
        // What matched nothing, a server does not remember: a copy of it that comes late may match then.
        let found_all =
            body.get_i32("n").is_ok_and(|n| usize::try_from(n) == Ok(write.command.statements.len()));
        self.ledger.acknowledge(&write.session, write.number, write.sent, (write.durable, found_all));
        Some(if write.durable { Told::Durable } else { Told::Accepted })
    }

    /// A step of document `id`.
    pub(crate) fn prepare_step(&mut self, id: i32) -> Write {
        let token = self.token();
        let operations = self.invoke_step(id, token).to_vec();
        let body = rawdoc! { "update": "c", "updates": [change(id, token)] };
        Write { operations, ..self.prepare(Verb::Update, body, true) }
    }

    /// A replacement of document `id`, or an insertion.
    pub(crate) fn prepare_put(&mut self, id: i32, insert: bool) -> Write {
        let document = self.document(id);
        let operation = self.history.invoke(NS, RawBsonRef::Int32(id), Action::Put(document.clone()));
        let (verb, body) = if insert {
            (Verb::Insert, rawdoc! { "insert": "c", "documents": [document] })
        } else {
            let update = rawdoc! { "q": { "_id": id }, "u": document, "upsert": true };
            (Verb::Update, rawdoc! { "update": "c", "updates": [update] })
        };
        Write { operations: vec![operation], ..self.prepare(verb, body, true) }
    }

    /// A replacement of document `id` without a write concern.
    pub(crate) fn prepare_put_unconcerned(&mut self, id: i32) -> Write {
        let document = self.document(id);
        let operation = self.history.invoke(NS, RawBsonRef::Int32(id), Action::Put(document.clone()));
        let body = rawdoc! { "update": "c", "updates": [{ "q": { "_id": id }, "u": document }] };
        Write { operations: vec![operation], ..self.prepare_as_it_is(Verb::Update, body, true) }
    }

    /// A deletion of document `id`.
    pub(crate) fn prepare_delete(&mut self, id: i32) -> Write {
        let operation = self.history.invoke(NS, RawBsonRef::Int32(id), Action::Delete);
        let body = rawdoc! { "delete": "c", "deletes": [{ "q": { "_id": id }, "limit": 1 }] };
        Write { operations: vec![operation], ..self.prepare(Verb::Delete, body, true) }
    }

    /// One attempt through `proxy`; tells the history what it hears, and returns whether it was acknowledged.
    pub(crate) async fn attempt(&self, proxy: &Arc<Proxy>, write: &Write) -> bool {
        let answer = Arc::clone(proxy).write(&self.world, Arc::clone(&write.command)).await;
        let told = match &answer {
            Answer::Reply(body) => self.hear(write, body),
            Answer::Error(_) | Answer::Lost => None,
        };
        if let Some(told) = &told {
            self.answer_all(&write.operations, told);
        }
        told == Some(Told::Durable)
    }

    /// An attempt that nothing stands in the way of.
    ///
    /// # Errors
    /// It was not acknowledged.
    pub(crate) async fn succeed(&self, proxy: &Arc<Proxy>, write: &Write) -> Result<(), String> {
        let done = self.attempt(proxy, write).await;
        done.then_some(()).ok_or_else(|| "a write was not acknowledged".to_owned())
    }

    /// A read of document `id` through `proxy`.
    pub(crate) async fn read(&self, proxy: &Arc<Proxy>, id: i32) {
        self.read_as(proxy, id, Reading::KEYED).await;
    }

    /// The same in another way.
    pub(crate) async fn read_as(&self, proxy: &Arc<Proxy>, id: i32, how: Reading) {
        let operation = self.history.invoke(NS, RawBsonRef::Int32(id), Action::Read);
        if let Some(found) = Arc::clone(proxy).read(id, how).await {
            self.history.answer(operation, Told::Saw(found));
        }
    }
}
