//! Which server an operation goes to.

use std::time::Duration;

use super::command::{ServerId, Target};

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
