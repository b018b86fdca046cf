//! What a client behind a balancer has open. Its driver keeps cursors and transactions to the connection that
//! they began on, so they are of no use to anybody once it is gone, and are ended.

use std::collections::HashMap;
use std::time::Duration;

use bson::raw::RawArrayBuf;
use bson::{RawDocument, RawDocumentBuf, rawdoc};

use crate::policy::classify::Class;
use crate::router::{Operation, Router};
use crate::wire::error::CURSOR_NOT_FOUND;
use crate::wire::op_msg::build;
use crate::wire::reply::ReplyFields;
use crate::wire::scan::SessionId;

use super::buffers::Buffer;

/// How long ending what a client has left open may take.
const RELEASE: Duration = Duration::from_secs(10);
/// Most cursors of one client that are remembered; servers end the others, idle, by themselves.
const MOST_CURSORS: usize = 10_000;
/// Most transactions of one client, one for each session.
const MOST_TRANSACTIONS: usize = 1_000;

/// Cursors: the id of each, its database and its collection.
pub(super) type OpenCursors = Vec<(i64, String, String)>;
/// Transactions: the number of each and its session.
pub(super) type OpenTransactions = Vec<(i64, RawDocumentBuf)>;

/// The cursors and transactions of one connection.
#[derive(Debug, Default)]
pub(super) struct Belongings {
    /// By id: database and collection.
    cursors: HashMap<i64, (String, String)>,
    transactions: HashMap<SessionId, Transaction>,
}

#[derive(Debug)]
struct Transaction {
    number: i64,
    lsid: RawDocumentBuf,
}

impl Belongings {
    /// Takes note of what is about to be sent.
    pub(super) fn before(&mut self, operation: &Operation<'_>) {
        let command = &operation.command;
        let (Some(session), Some(number)) = (command.session(), command.txn_number) else { return };
        if operation.class == Class::Commit {
            // Its driver may repeat it, on another connection: nothing may come between.
            self.transactions.remove(&session);
        }
        let lsid = command.lsid.and_then(|lsid| RawDocument::from_bytes(lsid.value()).ok());
        if command.start_transaction
            && self.transactions.len() < MOST_TRANSACTIONS
            && let Some(lsid) = lsid
        {
            self.transactions.insert(session, Transaction { number, lsid: lsid.to_owned() });
        }
    }

    /// Takes note of what came of it.
    pub(super) fn after(&mut self, operation: &Operation<'_>, reply: &[u8]) {
        let command = &operation.command;
        let Ok(fields) = ReplyFields::scan(reply) else { return };
        match operation.class {
            Class::Abort if fields.ok => {
                if let Some(session) = command.session() {
                    self.transactions.remove(&session);
                }
            }
            Class::KillCursors => {
                for (id, _) in command.cursor_ids() {
                    self.cursors.remove(&id);
                }
            }
            Class::GetMore => {
                let is_dead = fields.cursor.as_ref().is_some_and(|cursor| cursor.value == 0);
                if is_dead || fields.code == CURSOR_NOT_FOUND.0 {
                    self.cursors.remove(&command.first.as_i64().unwrap_or(0));
                }
            }
            _ => self.opened(&fields, reply),
        }
    }

    fn opened(&mut self, fields: &ReplyFields, reply: &[u8]) {
        let Some(id) = fields.cursor.as_ref().map(|cursor| cursor.value).filter(|id| *id != 0) else {
            return;
        };
        let body = reply.get(fields.body.clone()).and_then(|body| RawDocument::from_bytes(body).ok());
        let namespace = body.and_then(|body| body.get_document("cursor").ok()?.get_str("ns").ok());
        let Some((database, collection)) = namespace.and_then(|namespace| namespace.split_once('.')) else {
            return;
        };
        if self.cursors.len() < MOST_CURSORS {
            self.cursors.insert(id, (database.to_owned(), collection.to_owned()));
        }
    }

    /// All of it.
    pub(super) fn into_parts(self) -> (OpenCursors, OpenTransactions) {
        let cursors = self.cursors.into_iter().map(|(id, (database, collection))| (id, database, collection));
        let transactions = self.transactions.into_values().map(|it| (it.number, it.lsid));
        (cursors.collect(), transactions.collect())
    }

    /// The inverse.
    pub(super) fn from_parts(cursors: OpenCursors, transactions: OpenTransactions) -> Self {
        let cursors = cursors.into_iter().map(|(id, database, collection)| (id, (database, collection)));
        let known = |(number, lsid): (i64, RawDocumentBuf)| {
            let session = lsid.get_binary("id").ok()?.bytes.try_into().ok()?;
            Some((session, Transaction { number, lsid }))
        };
        Self {
            cursors: cursors.collect(),
            transactions: transactions.into_iter().filter_map(known).collect(),
        }
    }

    /// Ends on the servers what `client` has left open.
    pub(super) async fn release(self, router: &Router, client: i32) {
        let ending = async {
            let mut reply = Buffer::take();
            for message in self.farewells() {
                if let Ok(operation) = Operation::parse(&message, u64::from(client.unsigned_abs())) {
                    router.handle(&operation, &mut reply.0).await;
                }
            }
        };
        if tokio::time::timeout(RELEASE, ending).await.is_err() {
            tracing::debug!(client, "left open what a client had left open: the servers do not answer");
        }
    }

    /// The messages that end what is still open.
    fn farewells(self) -> Vec<Vec<u8>> {
        let mut cursors: HashMap<(String, String), RawArrayBuf> = HashMap::new();
        for (id, namespace) in self.cursors {
            cursors.entry(namespace).or_default().push(id);
        }
        let killed = cursors.into_iter().map(|((database, collection), ids)| {
            rawdoc! { "killCursors": collection, "cursors": ids, "$db": database }
        });
        let aborted = self.transactions.into_values().map(|Transaction { number, lsid }| {
            rawdoc! {
                "abortTransaction": 1, "lsid": lsid, "txnNumber": number, "autocommit": false, "$db": "admin",
            }
        });
        aborted.chain(killed).map(|body| build(0, 0, 0, body.as_bytes(), None)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::Document;

    fn happened(belongings: &mut Belongings, body: &RawDocument, reply: &RawDocument) {
        let message = build(1, 0, 0, body.as_bytes(), None);
        let operation = Operation::parse(&message, 0).unwrap();
        belongings.before(&operation);
        belongings.after(&operation, &build(2, 1, 0, reply.as_bytes(), None));
    }

    fn left(belongings: Belongings) -> Vec<Document> {
        let body = |message: Vec<u8>| {
            let operation = Operation::parse(&message, 0).unwrap();
            Document::try_from(RawDocument::from_bytes(&message[operation.parts.body]).unwrap()).unwrap()
        };
        belongings.farewells().into_iter().map(body).collect()
    }

    #[test]
    fn cursors_are_known_until_they_are_exhausted_or_killed() {
        let mut belongings = Belongings::default();
        let batch = |id: i64| rawdoc! { "cursor": { "firstBatch": [], "id": id, "ns": "d.c.x" }, "ok": 1.0 };
        for id in [1, 2, 3, 4, 0] {
            happened(&mut belongings, &rawdoc! { "find": "c.x", "$db": "d" }, &batch(id));
        }
        let more = |id: i64| rawdoc! { "getMore": id, "collection": "c.x", "$db": "d" };
        happened(&mut belongings, &more(1), &batch(1));
        happened(&mut belongings, &more(2), &batch(0));
        happened(&mut belongings, &more(3), &rawdoc! { "ok": 0.0, "code": 43 });
        let kill = rawdoc! { "killCursors": "c.x", "cursors": [4_i64], "$db": "d" };
        happened(&mut belongings, &kill, &rawdoc! { "cursorsKilled": [4_i64], "ok": 1.0 });
        assert_eq!(left(belongings), [bson::doc! { "killCursors": "c.x", "cursors": [1_i64], "$db": "d" }]);
    }

    #[test]
    fn transactions_are_known_until_they_end_and_none_whose_commit_was_sent_is_aborted() {
        let mut belongings = Belongings::default();
        let in_session = |mut body: RawDocumentBuf, session: u8, number: i64| {
            let id = bson::Binary::from(bson::Uuid::from_bytes([session; 16]));
            body.append(bson::cstr!("lsid"), rawdoc! { "id": id });
            body.append(bson::cstr!("txnNumber"), number);
            body.append(bson::cstr!("autocommit"), false);
            body
        };
        let ok = rawdoc! { "ok": 1.0 };
        for session in [1, 2, 3] {
            let first = rawdoc! { "insert": "c", "startTransaction": true, "$db": "d" };
            happened(&mut belongings, &in_session(first, session, 7), &ok);
        }
        let commit = in_session(rawdoc! { "commitTransaction": 1, "$db": "admin" }, 2, 7);
        happened(&mut belongings, &commit, &rawdoc! { "ok": 0.0, "code": 6 });
        let abort = in_session(rawdoc! { "abortTransaction": 1, "$db": "admin" }, 3, 7);
        happened(&mut belongings, &abort, &ok);
        let left = left(belongings);
        assert_eq!(left.len(), 1);
        let id = bson::Binary::from(bson::Uuid::from_bytes([1; 16]));
        let expected = bson::doc! {
            "abortTransaction": 1, "lsid": { "id": id }, "txnNumber": 7_i64, "autocommit": false, "$db": "admin",
        };
        assert_eq!(left[0], expected);
    }
}
