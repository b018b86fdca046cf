//! Retryable writes: which statements of a session have been executed, and their first results.

use std::collections::BTreeMap;
use std::sync::Arc;

use bson::RawBson;
use bson::RawDocument;

use super::error::{Failure, Outcome, TRANSACTION_TOO_OLD};
use super::store::Doc;

/// A session: the bytes of its `lsid`.
pub(crate) type SessionId = Arc<[u8]>;

/// The `lsid` and `txnNumber` of a retryable write.
#[derive(Debug, Clone)]
pub(crate) struct Retryable {
    /// The session.
    pub(crate) session: SessionId,
    /// Its number.
    pub(crate) number: i64,
}

impl Retryable {
    /// Reads them from a command, `None` if it is not retryable.
    pub(crate) fn of(body: &RawDocument) -> Outcome<Option<Self>> {
        let Some(number) = body.get("txnNumber")? else { return Ok(None) };
        let number = number.as_i64().or_else(|| number.as_i32().map(i64::from));
        let lsid = body.get_document("lsid").map_err(|_| Failure::new(72, "txnNumber needs an lsid"))?;
        let number = number.ok_or_else(|| Failure::new(14, "txnNumber must be a long"))?;
        Ok(Some(Self { session: lsid.as_bytes().into(), number }))
    }
}

/// What the first execution of a statement answered.
#[derive(Debug, Clone)]
pub(crate) struct Executed {
    /// `n`.
    pub(crate) n: i32,
    /// `nModified`.
    pub(crate) modified: i32,
    /// The `_id` that an upsert made.
    pub(crate) upserted: Option<RawBson>,
    /// The `value` of a findAndModify.
    pub(crate) value: Option<Doc>,
}

/// A statement that has been executed.
#[derive(Debug, Clone)]
pub(crate) struct Statement {
    /// Its session and number.
    pub(crate) of: Retryable,
    /// Its place in the command.
    pub(crate) id: i32,
    /// Its result.
    pub(crate) result: Executed,
}

#[derive(Debug, Clone, Default)]
struct Session {
    number: i64,
    executed: BTreeMap<i32, Arc<Statement>>,
}

impl Session {
    fn enter(&mut self, number: i64) {
        if number > self.number {
            self.number = number;
            self.executed.clear();
        }
    }
}

/// The sessions of a member.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sessions(BTreeMap<SessionId, Session>);

impl Sessions {
    /// Begins or continues a number.
    ///
    /// # Errors
    /// The session has seen a higher one.
    pub(crate) fn begin(&mut self, retryable: &Retryable) -> Outcome<()> {
        let session = self
            .0
            .entry(retryable.session.clone())
            .or_insert_with(|| Session { number: i64::MIN, executed: BTreeMap::new() });
        if retryable.number < session.number {
            let message = format!(
                "Retryable write with txnNumber {} is prohibited on session because a newer retryable write \
                 with txnNumber {} has already started on this session",
                retryable.number, session.number
            );
            return Err(Failure::new(TRANSACTION_TOO_OLD, message));
        }
        session.enter(retryable.number);
        Ok(())
    }

    /// The statement, if it has been executed.
    pub(crate) fn executed(&self, retryable: &Retryable, id: i32) -> Option<Arc<Statement>> {
        let session = self.0.get(&retryable.session)?;
        if session.number != retryable.number {
            return None;
        }
        session.executed.get(&id).cloned()
    }

    /// Remembers an executed statement.
    pub(crate) fn remember(&mut self, statement: &Arc<Statement>) {
        let session = self.0.entry(statement.of.session.clone()).or_default();
        session.enter(statement.of.number);
        session.executed.insert(statement.id, statement.clone());
    }

    /// Forgets everything older than the present (sessions expire after 30 minutes on servers).
    pub(crate) fn expire(&mut self) {
        self.0.clear();
    }
}
