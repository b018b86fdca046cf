//! One cluster as the process shares it: settings, topology, monitors, gossip.

use std::sync::Arc;
use std::time::Duration;

use crate::shutdown::Tasks;

use super::command::{SendError, ServerId};
use super::gossip::Gossip;
use super::pools::Pools;
use super::selection::Selection;
use super::topology::Topology;
use super::uri::Settings;

/// Why a cluster cannot be used at all.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClusterError {
    /// A TLS file cannot be used.
    #[error("TLS: {0}")]
    Tls(String),
}

/// One cluster. Its monitors run until the tasks are stopped.
#[derive(Debug)]
pub struct Cluster {}

impl Cluster {
    /// Starts to watch the cluster and returns at once; servers may be down.
    ///
    /// # Errors
    /// [`ClusterError`] when the settings cannot work.
    #[expect(clippy::unused_async, reason = "starts tasks; must run on a runtime")]
    pub async fn connect(_settings: Settings, _tasks: &Tasks) -> Result<Arc<Self>, ClusterError> {
        unimplemented!()
    }

    /// What is known about the cluster now.
    #[must_use]
    pub fn topology(&self) -> Arc<Topology> {
        unimplemented!()
    }

    /// A signal that changes with every change of [`Self::topology`].
    #[must_use]
    pub fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        unimplemented!()
    }

    /// Waits up to `limit` for a server that fits.
    ///
    /// # Errors
    /// [`SendError::NotSent`] with what is known about the servers when there is none in time.
    pub async fn wait_for(&self, _selection: &Selection, _limit: Duration) -> Result<ServerId, SendError> {
        unimplemented!()
    }

    /// Pools of connections on the reactor of whoever uses them; `share` is the most per server.
    #[must_use]
    pub fn pools(self: &Arc<Self>, _share: usize) -> Arc<Pools> {
        unimplemented!()
    }

    /// Asks `server` for its state now instead of at the next heartbeat.
    pub fn request_check(&self, _server: &ServerId) {
        unimplemented!()
    }

    /// The cluster's `$clusterTime`.
    #[must_use]
    pub fn gossip(&self) -> &Gossip {
        unimplemented!()
    }

    /// Takes note of an error code in a reply of `server` (of the command or of its `writeConcernError`):
    /// not-primary and shutdown codes make it unknown until it is checked again. Other codes do nothing.
    pub fn note_reply_error(&self, _server: &ServerId, _code: i32) {
        unimplemented!()
    }
}
