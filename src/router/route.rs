//! Which cluster an operation goes to.

use crate::model::side::Side;

use super::operation::Operation;

/// Chooses the cluster of operations that no cursor and no open transaction has bound to one.
pub trait Route: Send + Sync {
    /// The cluster for `operation`. Called once per operation, also for the first statement of a transaction.
    fn side(&self, operation: &Operation<'_>) -> Side;
}

/// No migration: everything goes to the old cluster.
#[derive(Debug, Clone, Copy, Default)]
pub struct AlwaysOld;

impl Route for AlwaysOld {
    fn side(&self, _operation: &Operation<'_>) -> Side {
        Side::Old
    }
}
