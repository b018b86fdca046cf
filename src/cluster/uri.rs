//! The settings of a cluster, from a MongoDB connection string.

use std::time::Duration;

use super::command::ServerId;

/// How to reach one cluster.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where to begin.
    pub seeds: Vec<ServerId>,
    /// The name the replica set must have.
    pub replica_set: Option<String>,
    /// Talk to the one seed and ignore other members.
    pub direct: bool,
    /// The name that the servers' logs and `$currentOp` show.
    pub app_name: String,
    /// Most connections per server, all pool shards together.
    pub max_pool_size: u32,
    /// How long an operation may wait for a server.
    pub server_selection_timeout: Duration,
    /// Limit for connecting and for the handshake.
    pub connect_timeout: Duration,
}

/// Why a connection string cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum UriError {
    /// It is malformed, or its SRV record cannot be resolved.
    #[error("invalid connection string: {0}")]
    Invalid(String),
    /// It asks for something that is not supported.
    #[error("{option} is not supported: {way_out}")]
    Unsupported {
        /// The option.
        option: String,
        /// What to do instead.
        way_out: &'static str,
    },
}

impl Settings {
    /// Reads a `mongodb://` or `mongodb+srv://` connection string; the latter asks DNS.
    ///
    /// # Errors
    /// [`UriError`], which never shows the password.
    pub async fn parse(_uri: &str) -> Result<Self, UriError> {
        unimplemented!()
    }

    /// With another application name.
    #[must_use]
    pub fn app_name(mut self, name: impl Into<String>) -> Self {
        self.app_name = name.into();
        self
    }
}
