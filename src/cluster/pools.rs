//! The connections of one pool shard: one pool per server, on the reactor of the shard's runtime.

use std::sync::Arc;
use std::time::Duration;

use super::command::{SendError, ServerId};
use super::handle::Cluster;
use super::pooled::Pooled;
use super::selection::Selection;

/// Numbers about the pool of one server, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Connections that somebody uses.
    pub in_use: usize,
    /// Connections that nobody uses.
    pub idle: usize,
    /// Who waits for a connection.
    pub waiting: usize,
    /// Connections opened since the start.
    pub created: u64,
}

/// The pools of one shard.
#[derive(Debug)]
pub struct Pools {}

impl Pools {
    /// The cluster behind.
    #[must_use]
    pub fn cluster(&self) -> &Arc<Cluster> {
        unimplemented!()
    }

    /// A server that fits and a connection to it, within `limit`.
    ///
    /// # Errors
    /// [`SendError::NotSent`] always.
    pub async fn checkout(&self, _selection: &Selection, _limit: Duration) -> Result<Pooled, SendError> {
        unimplemented!()
    }

    /// Numbers per server.
    #[must_use]
    pub fn stats(&self) -> Vec<(ServerId, PoolStats)> {
        unimplemented!()
    }
}
