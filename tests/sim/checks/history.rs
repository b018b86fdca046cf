//! What clients asked for and what they were told.

use std::sync::Arc;
use std::time::Duration;

use bson::RawBsonRef;
use bson::raw::RawDocumentBuf;
use parking_lot::Mutex;

use crate::executor::Executor;
use crate::mongo::key::{Key, key_of};

/// What a client wants of one document.
#[derive(Debug, Clone)]
pub(crate) enum Action {
    /// The document is this (an insert or a whole replacement); no two of one key may be equal.
    Put(RawDocumentBuf),
    /// There is no such document.
    Delete,
    /// A field of numbers grows by one.
    Increment(&'static str),
    /// An array gets this token, which no other operation uses.
    Push(&'static str, i64),
    /// Reads the document.
    Read,
}

/// What the client knows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Told {
    /// Nothing yet, or never: it may have happened, may happen still, or never.
    Unknown,
    /// It happened, and a majority has it.
    Durable,
    /// It happened; a failover may undo it.
    Accepted,
    /// It did not happen, and never will.
    Refused,
    /// What a read saw.
    Saw(Option<RawDocumentBuf>),
}

/// One operation of a client.
#[derive(Debug, Clone)]
pub(crate) struct Operation {
    /// The namespace.
    pub(crate) ns: &'static str,
    /// The canonical `_id`.
    pub(crate) key: Key,
    /// What was asked for.
    pub(crate) action: Action,
    /// When.
    pub(crate) invoked: Duration,
    /// When the answer came.
    pub(crate) answered: Option<Duration>,
    /// The answer.
    pub(crate) told: Told,
}

impl Operation {
    /// Whether it may have had its effect.
    pub(crate) fn may_have_happened(&self) -> bool {
        self.told != Told::Refused
    }

    /// Whether its effect must not be lost.
    pub(crate) fn is_durable(&self) -> bool {
        self.told == Told::Durable
    }
}

/// All operations of all clients; clones share them.
#[derive(Clone)]
pub(crate) struct History {
    executor: Executor,
    operations: Arc<Mutex<Vec<Operation>>>,
}

impl History {
    /// An empty history on the clock of the world.
    pub(crate) fn new(executor: Executor) -> Self {
        Self { executor, operations: Arc::new(Mutex::new(Vec::new())) }
    }

    /// A client begins; the number is for [`History::answer`].
    pub(crate) fn invoke(&self, ns: &'static str, id: RawBsonRef<'_>, action: Action) -> usize {
        let invoked = self.executor.now();
        let mut operations = self.operations.lock();
        let (key, told) = (key_of(id), Told::Unknown);
        operations.push(Operation { ns, key, action, invoked, answered: None, told });
        operations.len() - 1
    }

    /// A client was answered. An unknown outcome needs no call.
    pub(crate) fn answer(&self, operation: usize, told: Told) {
        let now = self.executor.now();
        let operation = &mut self.operations.lock()[operation];
        operation.answered = (told != Told::Unknown).then_some(now);
        operation.told = told;
    }

    /// All operations so far.
    pub(crate) fn operations(&self) -> Vec<Operation> {
        self.operations.lock().clone()
    }

    /// The operations on one key, as a history of their own.
    pub(crate) fn only(&self, ns: &str, key: &Key) -> Self {
        let all = self.operations.lock();
        let its = all.iter().filter(|operation| operation.ns == ns && operation.key == *key);
        let operations = its.cloned().collect();
        Self { executor: self.executor.clone(), operations: Arc::new(Mutex::new(operations)) }
    }

    /// How many operations were acknowledged by a majority.
    pub(crate) fn durable(&self) -> usize {
        self.operations.lock().iter().filter(|operation| operation.is_durable()).count()
    }
}
