//! What is known about a cluster, from `hello` replies. Pure: no IO, no clock.
//! Source of the rules: specifications/source/server-discovery-and-monitoring.

use std::time::Duration;

use bson::oid::ObjectId;

use super::command::ServerId;
use super::hello::{HelloReply, Limits, TopologyVersion};

/// Weight of a new round-trip sample against the average so far, in percent.
const RTT_WEIGHT: u32 = 20;
/// From this wire version on (6.0), the election decides before the configuration version.
const ELECTION_FIRST_WIRE_VERSION: i32 = 17;

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

impl Role {
    /// Whether operations can go there.
    #[must_use]
    pub fn takes_operations(self) -> bool {
        matches!(self, Self::Standalone | Self::Primary | Self::Secondary | Self::Router)
    }
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
    /// When the last reply came, in milliseconds on a clock that all servers of the topology share.
    pub updated_millis: i64,
    /// Lowest wire version it speaks.
    pub min_wire_version: i32,
    /// Highest wire version it speaks.
    pub max_wire_version: i32,
    /// Its limits.
    pub limits: Limits,
    /// `logicalSessionTimeoutMinutes`; `None` means no sessions.
    pub session_timeout_minutes: Option<i32>,
    /// The version of its state.
    pub topology_version: Option<TopologyVersion>,
    /// Why it is [`Role::Unknown`].
    pub error: Option<String>,
}

impl Server {
    fn unknown(address: ServerId, error: Option<String>) -> Self {
        Self {
            address,
            role: Role::Unknown,
            tags: Vec::new(),
            rtt: None,
            last_write_millis: None,
            updated_millis: 0,
            min_wire_version: 0,
            max_wire_version: 0,
            limits: Limits::default(),
            session_timeout_minutes: None,
            topology_version: None,
            error,
        }
    }

    fn answered(address: ServerId, hello: &HelloReply, rtt: Option<Duration>, now_millis: i64) -> Self {
        Self {
            address,
            role: hello.role.unwrap_or(Role::Unknown),
            tags: hello.tags.clone(),
            rtt,
            last_write_millis: hello.last_write_millis,
            updated_millis: now_millis,
            min_wire_version: hello.min_wire_version,
            max_wire_version: hello.max_wire_version,
            limits: hello.limits,
            session_timeout_minutes: hello.session_timeout_minutes,
            topology_version: hello.topology_version,
            error: None,
        }
    }
}

/// A cluster at one moment.
#[derive(Debug, Clone, Default)]
pub struct Topology {
    /// What kind of cluster it is.
    pub kind: TopologyKind,
    /// Its servers, in no order.
    pub servers: Vec<Server>,
    /// Only the one seed counts, whatever it says about other members.
    direct: bool,
    /// The highest election and configuration seen from a primary.
    max_election_id: Option<ObjectId>,
    max_set_version: Option<i64>,
}

impl Topology {
    /// Before any server answered. `replica_set` is the name that the set must have, if that is known.
    #[must_use]
    pub fn new(seeds: &[ServerId], replica_set: Option<&str>, direct: bool) -> Self {
        let kind = replica_set
            .map_or(TopologyKind::Unknown, |name| TopologyKind::ReplicaSet { set_name: name.to_owned() });
        let servers = seeds.iter().map(|seed| Server::unknown(seed.clone(), None)).collect();
        Self { kind, servers, direct, max_election_id: None, max_set_version: None }
    }

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

    /// Whether only the one seed counts.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Wire versions that every known server speaks, as (min, max); `None` while no server is known.
    #[must_use]
    pub fn wire_versions(&self) -> Option<(i32, i32)> {
        let min = self.known().map(|server| server.min_wire_version).max()?;
        let max = self.known().map(|server| server.max_wire_version).min()?;
        Some((min, max))
    }

    /// The smallest limits of the known servers; `None` while no server is known.
    #[must_use]
    pub fn limits(&self) -> Option<Limits> {
        self.known().map(|server| server.limits).reduce(|a, b| Limits {
            max_bson_object_size: a.max_bson_object_size.min(b.max_bson_object_size),
            max_message_size: a.max_message_size.min(b.max_message_size),
            max_write_batch_size: a.max_write_batch_size.min(b.max_write_batch_size),
        })
    }

    /// The smallest `logicalSessionTimeoutMinutes`; `None` when a known server has none, or none is known.
    #[must_use]
    pub fn session_timeout_minutes(&self) -> Option<i32> {
        // `None` sorts below every number, which is what it means here.
        self.known().map(|server| server.session_timeout_minutes).min().flatten()
    }

    fn known(&self) -> impl Iterator<Item = &Server> {
        self.servers.iter().filter(|server| server.role.takes_operations())
    }

    /// What each server is, for error messages.
    #[must_use]
    pub fn summary(&self) -> String {
        let describe = |server: &Server| match &server.error {
            Some(error) => format!("{} {:?} ({error})", server.address, server.role),
            None => format!("{} {:?}", server.address, server.role),
        };
        self.servers.iter().map(describe).collect::<Vec<_>>().join(", ")
    }

    /// The topology once nothing is known about `address` any more, for the reason `error`.
    #[must_use]
    pub fn with_failure(&self, address: &str, error: String) -> Self {
        let mut next = self.clone();
        next.set_unknown(address, Some(error));
        next
    }

    /// The topology of a cluster whose servers, all of them, are `servers`.
    #[must_use]
    pub fn with_servers(&self, servers: &[ServerId]) -> Self {
        let mut next = self.clone();
        next.servers.retain(|server| servers.contains(&server.address));
        for server in servers {
            if next.server(server).is_none() {
                next.servers.push(Server::unknown(server.clone(), None));
            }
        }
        next
    }

    /// The topology after `address` answered `hello`. `rtt` is a round-trip sample, if one was taken.
    /// Replies of servers that are not in the topology, and replies older than the last one, change nothing.
    #[must_use]
    pub fn with_reply(
        &self,
        address: &str,
        hello: &HelloReply,
        rtt: Option<Duration>,
        now_millis: i64,
    ) -> Self {
        let mut next = self.clone();
        let Some(at) = next.servers.iter().position(|server| &*server.address == address) else {
            return next;
        };
        let old = &next.servers[at];
        if is_older(hello.topology_version, old.topology_version) {
            return next;
        }
        let rtt = smooth(old.rtt, rtt);
        next.servers[at] = Server::answered(old.address.clone(), hello, rtt, now_millis);
        if let Err(error) = next.adopt_kind(hello) {
            next.set_unknown(address, Some(error));
        } else if !next.direct {
            next.adopt_members(address, hello);
        }
        next
    }

    /// Checks that the reply fits the kind of cluster; an unknown kind becomes the reply's.
    fn adopt_kind(&mut self, hello: &HelloReply) -> Result<(), String> {
        let found = match (hello.role, &hello.set_name) {
            (Some(Role::Router), _) => TopologyKind::Sharded,
            // A member that was not initiated yet, or never: the cluster may still become anything.
            (None | Some(Role::Unknown | Role::Other), None) => return Ok(()),
            (Some(Role::Standalone), _) => TopologyKind::Standalone,
            (_, Some(name)) => TopologyKind::ReplicaSet { set_name: name.clone() },
            (_, None) => return Ok(()),
        };
        if self.kind == found {
            return Ok(());
        }
        if self.kind != TopologyKind::Unknown {
            return Err(format!("it belongs to {}, expected {}", name(&found), name(&self.kind)));
        }
        if found == TopologyKind::Standalone && self.servers.len() > 1 {
            return Err("it is a standalone server, but several servers were given".to_owned());
        }
        self.kind = found;
        Ok(())
    }

    /// Follows what a member of a replica set says about the set.
    fn adopt_members(&mut self, address: &str, hello: &HelloReply) {
        match hello.role {
            Some(Role::Primary) => self.adopt_primary(address, hello),
            Some(Role::Secondary | Role::Arbiter | Role::Other) if hello.set_name.is_some() => {
                if self.primary().is_none() {
                    self.add_members(&hello.members);
                }
                // A seed under another name than the set's configuration: the real name is in the list.
                if hello.me.as_deref().is_some_and(|me| me != address) {
                    self.servers.retain(|server| &*server.address != address);
                }
            }
            _ => {}
        }
    }

    fn adopt_primary(&mut self, address: &str, hello: &HelloReply) {
        if self.is_stale_primary(hello) {
            self.set_unknown(address, Some("a newer primary is known".to_owned()));
            return;
        }
        for server in &mut self.servers {
            if server.role == Role::Primary && &*server.address != address {
                *server = Server::unknown(server.address.clone(), Some(format!("{address} is primary now")));
            }
        }
        self.add_members(&hello.members);
        self.servers.retain(|server| hello.members.iter().any(|member| **member == *server.address));
    }

    /// Whether another primary was elected later. Takes note of the reply's election when not.
    fn is_stale_primary(&mut self, hello: &HelloReply) -> bool {
        if hello.max_wire_version >= ELECTION_FIRST_WIRE_VERSION {
            let seen = (self.max_election_id, self.max_set_version);
            let now = (hello.election_id, hello.set_version);
            if now < seen {
                return true;
            }
            (self.max_election_id, self.max_set_version) = now;
            return false;
        }
        if let (Some(election), Some(version)) = (hello.election_id, hello.set_version) {
            if let (Some(max_election), Some(max_version)) = (self.max_election_id, self.max_set_version)
                && (version, election) < (max_version, max_election)
            {
                return true;
            }
            self.max_election_id = Some(election);
        }
        self.max_set_version = self.max_set_version.max(hello.set_version);
        false
    }

    fn add_members(&mut self, members: &[String]) {
        for member in members {
            if self.server(member).is_none() {
                self.servers.push(Server::unknown(member.as_str().into(), None));
            }
        }
    }

    fn set_unknown(&mut self, address: &str, error: Option<String>) {
        if let Some(server) = self.servers.iter_mut().find(|server| &*server.address == address) {
            *server = Server::unknown(server.address.clone(), error);
        }
    }
}

fn name(kind: &TopologyKind) -> String {
    match kind {
        TopologyKind::Unknown => "an unknown cluster".to_owned(),
        TopologyKind::Standalone => "no cluster (a standalone server)".to_owned(),
        TopologyKind::ReplicaSet { set_name } => format!("the replica set {set_name}"),
        TopologyKind::Sharded => "a sharded cluster".to_owned(),
    }
}

fn is_older(new: Option<TopologyVersion>, old: Option<TopologyVersion>) -> bool {
    matches!((new, old), (Some(new), Some(old)) if new.process == old.process && new.counter < old.counter)
}

fn smooth(average: Option<Duration>, sample: Option<Duration>) -> Option<Duration> {
    match (average, sample) {
        (Some(average), Some(sample)) => Some((sample * RTT_WEIGHT + average * (100 - RTT_WEIGHT)) / 100),
        (average, sample) => sample.or(average),
    }
}

#[cfg(test)]
#[path = "topology_tests.rs"]
mod tests;
