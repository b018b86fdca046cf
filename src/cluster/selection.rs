//! Which server an operation goes to. Pure: no IO, no clock, the caller brings the random number.
//! Source of the rules: specifications/source/server-selection.

use std::time::Duration;

use super::command::{ServerId, Target};
use super::topology::{Role, Server, Topology};

/// Which servers may take an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// The writable primary, or any router of a sharded cluster.
    Primary,
    /// This server and no other (a cursor or a transaction lives there).
    Server(ServerId),
    /// Members of a replica set as a read preference describes them; any router of a sharded cluster.
    ReadPreference(ReadPreference),
}

impl From<&Target> for Selection {
    fn from(target: &Target) -> Self {
        match target {
            Target::Primary => Self::Primary,
            Target::Server(server) => Self::Server(server.clone()),
        }
    }
}

/// The `mode` of a read preference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadMode {
    /// The primary only.
    Primary,
    /// The primary, a secondary while there is none.
    PrimaryPreferred,
    /// Secondaries only.
    Secondary,
    /// Secondaries, the primary while there are none.
    SecondaryPreferred,
    /// The nearest member.
    Nearest,
}

/// A read preference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadPreference {
    /// Which roles may answer.
    pub mode: ReadMode,
    /// Tag sets, tried in order; none at all means any member.
    pub tag_sets: Vec<Vec<(String, String)>>,
    /// How far a secondary may lag behind.
    pub max_staleness: Option<Duration>,
}

/// What selection needs to know beside the topology.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tuning {
    /// How much slower than the nearest server another one may be.
    pub(super) latency_window: Duration,
    /// How often servers are checked; the uncertainty of their staleness.
    pub(super) heartbeat: Duration,
    /// Picks among equals.
    pub(super) random: usize,
}

/// The server for `selection`, `None` while there is none that fits.
pub(super) fn select<'t>(
    topology: &'t Topology,
    selection: &Selection,
    tuning: Tuning,
) -> Option<&'t Server> {
    if let Selection::Server(address) = selection {
        return topology.server(address).filter(|server| server.role != Role::Unknown);
    }
    if topology.is_direct() {
        return topology.servers.iter().find(|server| server.role != Role::Unknown);
    }
    let single =
        topology.primary().or_else(|| topology.servers.iter().find(|server| server.role == Role::Standalone));
    match selection {
        Selection::ReadPreference(preference) if !is_flat(topology) => {
            by_preference(topology, preference, tuning)
        }
        _ if single.is_some() => single,
        _ => nearest(topology, tuning, |server| server.role == Role::Router),
    }
}

/// Whether all servers are alike, so that a read preference says nothing to the choice.
fn is_flat(topology: &Topology) -> bool {
    topology.servers.iter().any(|server| matches!(server.role, Role::Router | Role::Standalone))
}

fn by_preference<'t>(topology: &'t Topology, wanted: &ReadPreference, tuning: Tuning) -> Option<&'t Server> {
    let fresh = |server: &Server| match wanted.max_staleness {
        Some(limit) => staleness(topology, server, tuning.heartbeat).is_none_or(|lag| lag <= limit),
        None => true,
    };
    let secondary =
        || by_tags(topology, wanted, tuning, |server| server.role == Role::Secondary && fresh(server));
    match wanted.mode {
        ReadMode::Primary => topology.primary(),
        ReadMode::PrimaryPreferred => topology.primary().or_else(secondary),
        ReadMode::Secondary => secondary(),
        ReadMode::SecondaryPreferred => secondary().or_else(|| topology.primary()),
        ReadMode::Nearest => by_tags(topology, wanted, tuning, |server| {
            server.role == Role::Primary || (server.role == Role::Secondary && fresh(server))
        }),
    }
}

/// The nearest server of the first tag set that any server fits.
fn by_tags<'t>(
    topology: &'t Topology,
    wanted: &ReadPreference,
    tuning: Tuning,
    fits: impl Fn(&Server) -> bool,
) -> Option<&'t Server> {
    if wanted.tag_sets.is_empty() {
        return nearest(topology, tuning, fits);
    }
    wanted.tag_sets.iter().find_map(|set| {
        nearest(topology, tuning, |server| set.iter().all(|tag| server.tags.contains(tag)) && fits(server))
    })
}

/// One of the servers that fit and are not much slower than the fastest of them.
fn nearest(topology: &Topology, tuning: Tuning, fits: impl Fn(&Server) -> bool) -> Option<&Server> {
    let fitting = || topology.servers.iter().filter(|server| fits(server));
    let limit = fitting().map(rtt).min()? + tuning.latency_window;
    let near = || fitting().filter(|server| rtt(server) <= limit);
    let count = near().count();
    near().nth(tuning.random % count.max(1))
}

fn rtt(server: &Server) -> Duration {
    server.rtt.unwrap_or_default()
}

/// How far `server` may lag behind the primary (or behind the freshest secondary while there is none).
fn staleness(topology: &Topology, server: &Server, heartbeat: Duration) -> Option<Duration> {
    let last_write = server.last_write_millis?;
    let lag = if let Some(primary) = topology.primary() {
        (server.updated_millis - last_write) - (primary.updated_millis - primary.last_write_millis?)
    } else {
        let secondaries = topology.servers.iter().filter(|server| server.role == Role::Secondary);
        secondaries.filter_map(|server| server.last_write_millis).max()? - last_write
    };
    Some(heartbeat + Duration::from_millis(u64::try_from(lag).unwrap_or(0)))
}

#[cfg(test)]
#[path = "selection_tests.rs"]
mod tests;
