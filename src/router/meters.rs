//! Handles of the metrics that every operation touches, registered once.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use crate::model::side::Side;
use crate::policy::classify::Class;
use crate::telemetry::metrics as names;

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A server answered `ok: 1`.
    Ok,
    /// A server answered `ok: 0`.
    Refused,
    /// The proxy answered, because no server did.
    Failed,
}

impl Outcome {
    const NAMES: [&'static str; 3] = ["ok", "refused", "failed"];
}

/// The handles. Create them after the recorder is installed.
pub struct Meters {
    operations: Vec<Counter>,
    seconds: Vec<Histogram>,
    retries: [Counter; 2],
    cursors: [Gauge; 2],
    transactions: [Gauge; 2],
    cursors_forgotten: Counter,
    cursors_taken_up: Counter,
}

impl Default for Meters {
    fn default() -> Self {
        let mut operations = Vec::new();
        for class in Class::ALL {
            for side in Side::BOTH {
                for outcome in Outcome::NAMES {
                    operations.push(counter!(
                        names::OPERATIONS,
                        "class" => class.name(), "cluster" => side.as_str(), "outcome" => outcome
                    ));
                }
            }
        }
        let seconds =
            Class::ALL.iter().map(|class| histogram!(names::OPERATION_SECONDS, "class" => class.name()));
        Self {
            operations,
            seconds: seconds.collect(),
            retries: Side::BOTH.map(|side| counter!(names::RETRIES, "cluster" => side.as_str())),
            cursors: Side::BOTH.map(|side| gauge!(names::CURSORS, "cluster" => side.as_str())),
            transactions: Side::BOTH.map(|side| gauge!(names::TRANSACTIONS, "cluster" => side.as_str())),
            cursors_forgotten: counter!(names::CURSORS_FORGOTTEN),
            cursors_taken_up: counter!(names::CURSORS_TAKEN_UP),
        }
    }
}

impl Meters {
    /// Counts one operation.
    pub fn operation(&self, class: Class, side: Side, outcome: Outcome, took: Duration) {
        let index =
            (class.index() * Side::BOTH.len() + side.index()) * Outcome::NAMES.len() + outcome as usize;
        self.operations[index].increment(1);
        self.seconds[class.index()].record(took.as_secs_f64());
    }

    /// Counts one attempt after the first.
    pub fn retry(&self, side: Side) {
        self.retries[side.index()].increment(1);
    }

    /// Counts one cursor that was found at a server.
    pub fn cursor_taken_up(&self) {
        self.cursors_taken_up.increment(1);
    }

    /// Publishes the size of the tables.
    pub fn tables(&self, side: Side, cursors: usize, transactions: usize) {
        #[expect(clippy::cast_precision_loss, reason = "table sizes are far below 2^53")]
        let (cursors, transactions) = (cursors as f64, transactions as f64);
        self.cursors[side.index()].set(cursors);
        self.transactions[side.index()].set(transactions);
    }

    /// Counts cursors that were forgotten.
    pub fn cursors_forgotten(&self, count: usize) {
        self.cursors_forgotten.increment(count as u64);
    }
}
