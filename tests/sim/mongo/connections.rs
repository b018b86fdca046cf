//! Who is connected, and which operations are running: what `$currentOp` shows and `killOp` ends.

use std::collections::BTreeMap;
use std::sync::Arc;

use bson::raw::RawDocumentBuf;
use bson::rawdoc;

use crate::executor::{Executor, ProcessId};

/// One running command.
pub(crate) struct Operation {
    /// The `appName` of its connection.
    pub(crate) app: Arc<str>,
    /// The name of the command.
    pub(crate) command: String,
    /// `killOp` was called on it.
    pub(crate) killed: bool,
}

#[derive(Default)]
struct Connection {
    /// The processes that connected under this name.
    processes: Vec<ProcessId>,
    /// Commands that were sent and have not ended.
    under_way: u32,
}

/// The connections of a cluster.
pub(crate) struct Connections {
    executor: Executor,
    by_app: BTreeMap<Arc<str>, Connection>,
    operations: BTreeMap<i32, Operation>,
    last: i32,
}

impl Connections {
    /// No connections; `executor` knows which processes are alive.
    pub(crate) fn new(executor: Executor) -> Self {
        Self { executor, by_app: BTreeMap::new(), operations: BTreeMap::new(), last: 0 }
    }

    /// A process connects. Its connections go when it is dead and nothing of it is under way.
    pub(crate) fn open(&mut self, app: &Arc<str>, process: ProcessId) {
        self.by_app.entry(app.clone()).or_default().processes.push(process);
    }

    /// A process closes its connections of a name. They are gone once nothing of them is under way.
    pub(crate) fn close(&mut self, app: &str, process: ProcessId) {
        if let Some(connection) = self.by_app.get_mut(app) {
            connection.processes.retain(|open| *open != process);
        }
    }

    /// A command is on its way.
    pub(crate) fn sent(&mut self, app: &Arc<str>) {
        match self.by_app.get_mut(app) {
            Some(connection) => connection.under_way += 1,
            None => self.by_app.entry(app.clone()).or_default().under_way = 1,
        }
    }

    /// A command has ended, or will never arrive.
    pub(crate) fn ended(&mut self, app: &str) {
        if let Some(connection) = self.by_app.get_mut(app) {
            connection.under_way = connection.under_way.saturating_sub(1);
        }
    }

    /// Whether somebody is connected under a name.
    fn is_open(&self, connection: &Connection) -> bool {
        let alive = |process: &ProcessId| !self.executor.crashed(*process);
        connection.under_way > 0 || connection.processes.iter().any(alive)
    }

    /// A command begins to run.
    pub(crate) fn begin(&mut self, app: &Arc<str>, command: &str) -> i32 {
        self.last += 1;
        let operation = Operation { app: app.clone(), command: command.to_owned(), killed: false };
        self.operations.insert(self.last, operation);
        self.last
    }

    /// A command has run.
    pub(crate) fn finish(&mut self, id: i32) {
        self.operations.remove(&id);
    }

    /// Whether `killOp` was called on a running command.
    pub(crate) fn killed(&self, id: i32) -> bool {
        self.operations.get(&id).is_some_and(|operation| operation.killed)
    }

    /// Ends a running command at its next look.
    pub(crate) fn kill(&mut self, id: i32) {
        if let Some(operation) = self.operations.get_mut(&id) {
            operation.killed = true;
        }
    }

    /// The documents of `$currentOp` with idle connections.
    pub(crate) fn describe(&self) -> Vec<RawDocumentBuf> {
        let running = self.operations.iter().map(|(id, operation)| {
            rawdoc! {
                "type": "op", "active": true, "opid": *id, "appName": &*operation.app,
                "command": { "name": operation.command.as_str() },
            }
        });
        let open = self.by_app.iter().filter(|(_, connection)| self.is_open(connection));
        let idle = open.map(|(app, _)| rawdoc! { "type": "op", "active": false, "appName": &**app });
        running.chain(idle).collect()
    }
}
