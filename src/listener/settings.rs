//! Settings of the edge.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use crate::wire::compressed::Compressors;

/// How clients are served.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// How many threads serve clients.
    pub workers: NonZeroUsize,
    /// Most clients at a time; more are turned away.
    pub max_clients: usize,
    /// How long a shutdown waits for operations that run.
    pub drain: Duration,
    /// How messages may be compressed for clients that ask for it.
    pub compressors: Compressors,
}

impl Settings {
    /// The defaults: one worker per core, 50,000 clients, 30 s to drain, all compressors.
    #[must_use]
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            workers: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            max_clients: 50_000,
            drain: Duration::from_secs(30),
            compressors: Compressors::ALL,
        }
    }
}
