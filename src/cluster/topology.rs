//! What is known about a cluster, from `hello` replies. Pure: no IO, no clock.

use std::time::Duration;

use super::command::ServerId;
use super::hello::Limits;

/// What kind of cluster it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum TopologyKind {
    /// No server answered yet.
    #[default]
    Unknown,
    /// One server without replication.
    Standalone,
    /// A replica set.
    ReplicaSet {
        /// Its name.
        set_name: String,
    },
    /// Routers (mongos) of a sharded cluster.
    Sharded,
}

/// What a server is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Not reachable, or not checked yet.
    Unknown,
    /// A server without replication.
    Standalone,
    /// The writable primary.
    Primary,
    /// A readable secondary.
    Secondary,
    /// Holds no data.
    Arbiter,
    /// A member that takes no operations (hidden, recovering, starting).
    Other,
    /// A router (mongos).
    Router,
}

/// One server.
#[derive(Debug, Clone)]
pub struct Server {
    /// `host:port`, lower case.
    pub address: ServerId,
    /// What it is.
    pub role: Role,
    /// Its replica set tags.
    pub tags: Vec<(String, String)>,
    /// Smoothed round-trip time.
    pub rtt: Option<Duration>,
    /// `lastWrite.lastWriteDate`, milliseconds since the epoch.
    pub last_write_millis: Option<i64>,
    /// Lowest wire version it speaks.
    pub min_wire_version: i32,
    /// Highest wire version it speaks.
    pub max_wire_version: i32,
    /// Its limits.
    pub limits: Limits,
    /// `logicalSessionTimeoutMinutes`; `None` means no sessions.
    pub session_timeout_minutes: Option<i32>,
    /// Why it is [`Role::Unknown`].
    pub error: Option<String>,
}

/// A cluster at one moment.
#[derive(Debug, Clone, Default)]
pub struct Topology {
    /// What kind of cluster it is.
    pub kind: TopologyKind,
    /// Its servers, in no order.
    pub servers: Vec<Server>,
}

impl Topology {
    /// The primary of a replica set.
    #[must_use]
    pub fn primary(&self) -> Option<&Server> {
        self.servers.iter().find(|server| server.role == Role::Primary)
    }

    /// The server with this address.
    #[must_use]
    pub fn server(&self, address: &str) -> Option<&Server> {
        self.servers.iter().find(|server| &*server.address == address)
    }

    /// Wire versions that every known server speaks, as (min, max); `None` while no server is known.
    #[must_use]
    pub fn wire_versions(&self) -> Option<(i32, i32)> {
        unimplemented!()
    }

    /// The smallest limits of the known servers; `None` while no server is known.
    #[must_use]
    pub fn limits(&self) -> Option<Limits> {
        unimplemented!()
    }

    /// The smallest `logicalSessionTimeoutMinutes`; `None` when a data-bearing server has none.
    #[must_use]
    pub fn session_timeout_minutes(&self) -> Option<i32> {
        unimplemented!()
    }
}
