//! One MongoDB cluster: topology, pools, and the seam behind which the simulator puts its own.
pub mod command;
mod connection;
mod connector;
pub mod gossip;
pub mod handle;
pub mod hello;
pub mod login;
mod member;
mod monitor;
pub mod pem;
mod pool;
pub mod pooled;
pub mod pools;
mod run;
pub mod scram;
pub mod selection;
mod stream;
mod tls;
pub mod topology;
pub mod uri;

pub use gossip::Gossip;
pub use handle::{Cluster, ClusterError};
pub use pooled::Pooled;
pub use pools::{PoolStats, Pools};
pub use selection::{ReadMode, ReadPreference, Selection};
pub use topology::{Role, Server, Topology, TopologyKind};
pub use uri::Settings;
