//! Applications: sessions, numbers, one retry, as drivers do it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bson::oid::ObjectId;
use bson::raw::RawDocumentBuf;
use bson::{RawArrayBuf, RawBsonRef, RawDocument, rawdoc};
use reshard::cluster::command::ServerError;
use reshard::model::namespace::Namespace;
use reshard::policy::writes::{Verb, WriteCommand};
use reshard::wire::error::{NO_WRITES_PERFORMED, RETRYABLE_WRITE};

use super::ledger::Ledger;
use super::proxy::{Answer, Front};
use crate::checks::history::{Action, History, Told};
use crate::rng::Rng;
use crate::world::World;

/// The namespace that moves.
pub(crate) const NS: &str = "app.c";
/// One that comes into being while it does, where a pattern names both.
pub(crate) const LATE: &str = "app.late";
/// Documents that are written as a whole.
pub(crate) const REGISTERS: i32 = 12;
/// The first of the documents that are counted in.
pub(crate) const COUNTERS: i32 = 100;
/// How many of those.
pub(crate) const COUNTED: i32 = 6;
/// The first byte of every client's session.
pub(crate) const SESSION_MARK: u8 = 0xc1;

/// What a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Deed {
    /// Replaces a register, or makes it.
    Put,
    /// Inserts a register.
    Insert,
    /// Deletes a register.
    Delete,
    /// A step of a counter.
    Step,
    /// The same by `findAndModify`.
    FindAndStep,
    /// A step of two counters in one command.
    Steps,
    /// A step of all counters by a filter; it is never tried again.
    Many,
    /// Reads a register.
    Look,
    /// Replaces a document of a collection that may not be there yet, or makes it.
    PutLate,
    /// Deletes one there.
    DeleteLate,
}

impl Deed {
    /// Whether it is done to counters.
    const fn counts(self) -> bool {
        matches!(self, Self::Step | Self::FindAndStep | Self::Steps | Self::Many)
    }
}

/// One client.
pub(crate) struct Client {
    /// Its world.
    pub(crate) world: World,
    /// Where it finds the proxy.
    pub(crate) front: Front,
    /// Where it tells what it saw.
    pub(crate) history: History,
    /// Where it tells which of its writes were acknowledged.
    pub(crate) ledger: Ledger,
    /// Its choices.
    pub(crate) rng: Rng,
    /// Which client.
    pub(crate) number: u8,
    /// Sessions used up.
    pub(crate) sessions: u8,
    /// The number of the last write of this session.
    pub(crate) txn: i64,
    /// Writes made.
    pub(crate) writes: i64,
    /// It reads too.
    pub(crate) reads: bool,
    /// Told to stop.
    pub(crate) stop: Arc<AtomicBool>,
    /// The longest pause between writes.
    pub(crate) pause: Duration,
    /// How many of 1,000 answers do not reach it.
    pub(crate) broken: u32,
}

impl Client {
    /// Writes until it is told to stop.
    pub(crate) async fn run(mut self) {
        while !self.stop.load(Ordering::Relaxed) {
            let deed = match self.rng.below(if self.reads { 14 } else { 10 }) {
                0..=1 => Deed::Put,
                2 => Deed::Insert,
                3 => Deed::Delete,
                4..=6 => Deed::Step,
                7 => Deed::FindAndStep,
                8..=9 => Deed::Steps,
                _ => Deed::Look,
            };
            let count = if deed.counts() { COUNTED } else { REGISTERS };
            let which = self.rng.below(count as u64) as i32;
            self.perform(deed, which).await;
            let pause = self.rng.between(Duration::ZERO, self.pause);
            self.world.sleep(pause).await;
        }
    }

    /// Does it to the document that is this one among those of its kind.
    pub(super) async fn perform(&mut self, deed: Deed, which: i32) {
        let (register, counter) = (which, COUNTERS + which);
        match deed {
            Deed::Put => self.put(NS, register).await,
            Deed::PutLate => self.put(LATE, register).await,
            Deed::DeleteLate => self.delete(LATE, register).await,
            Deed::Insert => self.insert(register).await,
            Deed::Delete => self.delete(NS, register).await,
            Deed::Step => self.step(counter).await,
            Deed::FindAndStep => self.find_and_step(counter).await,
            Deed::Steps => self.steps(counter).await,
            Deed::Many => self.many().await,
            Deed::Look => {
                let proxy = self.front.proxy().await;
                self.read(&proxy, register).await;
            }
        }
    }

    pub(super) fn session(&self) -> RawDocumentBuf {
        let mut bytes = vec![0; 16];
        bytes[..3].copy_from_slice(&[SESSION_MARK, self.number, self.sessions]);
        rawdoc! { "id": bson::Binary { subtype: bson::spec::BinarySubtype::Uuid, bytes } }
    }

    /// Sends a write, once more if a driver would; `w` is majority in most cases.
    async fn write(&mut self, verb: Verb, body: RawDocumentBuf) -> Told {
        let durable = self.rng.chance(900);
        let write = self.prepare(verb, body, durable);
        let mut may_have_run = false;
        for _ in 0..2 {
            let proxy = self.front.proxy().await;
            let answer = proxy.write(&self.world, Arc::clone(&write.command)).await;
            // The way between client and proxy breaks too.
            let answer = if self.rng.chance(self.broken) { Answer::Lost } else { answer };
            match answer {
                Answer::Reply(body) => match self.hear(&write, &body) {
                    Some(told) => return told,
                    None => may_have_run = true,
                },
                Answer::Error(error) => {
                    may_have_run |= !error.labels.contains(&NO_WRITES_PERFORMED);
                    if !error.labels.contains(&RETRYABLE_WRITE) {
                        break;
                    }
                }
                Answer::Lost => {
                    may_have_run = true;
                    // Mostly at once; an application that stood still comes back much later.
                    let most = if self.rng.chance(700) { 200 } else { 8000 };
                    let pause = self.rng.between(Duration::from_millis(1), Duration::from_millis(most));
                    self.world.sleep(pause).await;
                }
            }
        }
        if self.rng.chance(500) {
            // Drivers throw away sessions that have seen a network error.
            self.sessions = self.sessions.wrapping_add(1);
        }
        if may_have_run { Told::Unknown } else { Told::Refused }
    }

    /// No two are equal.
    pub(super) fn document(&mut self, id: i32) -> RawDocumentBuf {
        self.writes += 1;
        rawdoc! { "_id": id, "by": i32::from(self.number), "number": self.writes }
    }

    async fn put(&mut self, ns: &'static str, id: i32) {
        let document = self.document(id);
        let operation = self.history.invoke(ns, RawBsonRef::Int32(id), Action::Put(document.clone()));
        let body = rawdoc! { "update": collection(ns), "updates": [{ "q": { "_id": id }, "u": document, "upsert": true }] };
        let told = self.write(Verb::Update, body).await;
        self.history.answer(operation, told);
    }

    async fn insert(&mut self, id: i32) {
        let document = self.document(id);
        let operation = self.history.invoke(NS, RawBsonRef::Int32(id), Action::Put(document.clone()));
        let told = self.write(Verb::Insert, rawdoc! { "insert": "c", "documents": [document] }).await;
        self.history.answer(operation, told);
    }

    async fn delete(&mut self, ns: &'static str, id: i32) {
        let operation = self.history.invoke(ns, RawBsonRef::Int32(id), Action::Delete);
        let body = rawdoc! { "delete": collection(ns), "deletes": [{ "q": { "_id": id }, "limit": 1 }] };
        let told = self.write(Verb::Delete, body).await;
        self.history.answer(operation, told);
    }

    pub(super) fn token(&mut self) -> i64 {
        self.writes += 1;
        self.writes * 100 + i64::from(self.number)
    }

    async fn step(&mut self, id: i32) {
        let token = self.token();
        let operations = self.invoke_step(id, token);
        let body = rawdoc! { "update": "c", "updates": [change(id, token)] };
        let told = self.write(Verb::Update, body).await;
        self.answer_all(&operations, &told);
    }

    async fn find_and_step(&mut self, id: i32) {
        let token = self.token();
        let operations = self.invoke_step(id, token);
        let body = rawdoc! {
            "findAndModify": "c", "query": { "_id": id },
            "update": { "$inc": { "n": 1 }, "$push": { "list": token } },
        };
        let told = self.write(Verb::FindAndModify, body).await;
        self.answer_all(&operations, &told);
    }

    /// Two statements, which may belong to two authorities.
    async fn steps(&mut self, first: i32) {
        let second = COUNTERS + (first - COUNTERS + 1) % COUNTED;
        let mut statements = RawArrayBuf::new();
        let mut operations = Vec::new();
        for id in [first, second] {
            let token = self.token();
            operations.extend(self.invoke_step(id, token));
            statements.push(change(id, token));
        }
        let ordered = self.rng.chance(500);
        let body = rawdoc! { "update": "c", "updates": statements, "ordered": ordered };
        let told = self.write(Verb::Update, body).await;
        self.answer_all(&operations, &told);
    }

    /// All counters, whichever they are. Servers do not remember such a write: sent again it would count twice.
    async fn many(&mut self) {
        let token = self.token();
        let mut operations = Vec::new();
        for id in COUNTERS..COUNTERS + COUNTED {
            operations.extend(self.invoke_step(id, token));
        }
        let all = rawdoc! { "_id": { "$gte": COUNTERS, "$lt": COUNTERS + COUNTED } };
        let statement =
            rawdoc! { "q": all, "u": { "$inc": { "n": 1 }, "$push": { "list": token } }, "multi": true };
        let body = rawdoc! {
            "update": "c", "updates": [statement], "lsid": self.session(),
            "writeConcern": { "w": "majority" },
        };
        let command =
            WriteCommand::parse(Namespace::parse(NS).unwrap(), Verb::Update, &body, None, ObjectId::new);
        let proxy = self.front.proxy().await;
        let told = match proxy.write(&self.world, Arc::new(command.unwrap())).await {
            Answer::Reply(body) if told(&body) == Some(true) => Told::Durable,
            Answer::Error(error) if error.labels.contains(&NO_WRITES_PERFORMED) => Told::Refused,
            _ => Told::Unknown,
        };
        self.answer_all(&operations, &told);
    }

    pub(super) fn invoke_step(&self, id: i32, token: i64) -> [usize; 2] {
        let id = RawBsonRef::Int32(id);
        [
            self.history.invoke(NS, id, Action::Increment("n")),
            self.history.invoke(NS, id, Action::Push("list", token)),
        ]
    }

    pub(super) fn answer_all(&self, operations: &[usize], told: &Told) {
        for operation in operations {
            self.history.answer(*operation, told.clone());
        }
    }
}

/// The part of a namespace's name that commands give.
fn collection(ns: &'static str) -> &'static str {
    ns.split_once('.').map_or(ns, |(_, collection)| collection)
}

pub(super) fn change(id: i32, token: i64) -> RawDocumentBuf {
    rawdoc! { "q": { "_id": id }, "u": { "$inc": { "n": 1 }, "$push": { "list": token } } }
}

/// Whether all of a command was done; `None`: worth another try.
pub(super) fn told(body: &RawDocument) -> Option<bool> {
    if ServerError::of(body).is_some() || body.get_array("writeErrors").is_ok() {
        return Some(false);
    }
    body.get_document("writeConcernError").is_err().then_some(true)
}
