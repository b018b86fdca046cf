//! Settings of the edge.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use crate::wire::compressed::Compressors;

use super::face::Face;
use super::tls::TlsFiles;

/// An address that clients connect to, and what they see there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entrance {
    /// Its name, for logs.
    pub name: String,
    /// Where to listen; port 0 takes a free one.
    pub address: SocketAddr,
    /// How it looks.
    pub face: Face,
    /// Clients must speak TLS.
    pub tls: Option<TlsFiles>,
    /// Clients must log in, as users of old.
    pub login: bool,
}

/// How clients are served.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where to listen; at least one.
    pub entrances: Vec<Entrance>,
    /// How many threads serve clients.
    pub workers: NonZeroUsize,
    /// Most clients at a time, over all entrances; more are turned away.
    pub max_clients: usize,
    /// How long a shutdown waits for operations that run.
    pub drain: Duration,
    /// How long drivers have to leave by themselves, once their `hello` that waits was ended.
    pub farewell: Duration,
    /// How messages may be compressed for clients that ask for it.
    pub compressors: Compressors,
}

impl Settings {
    /// The defaults: one entrance with the face of a router, one worker per core, 50,000 clients, 30 s to
    /// drain, half a second to leave, all compressors.
    #[must_use]
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            entrances: vec![Entrance {
                name: "listen".to_owned(),
                address: listen,
                face: Face::default(),
                tls: None,
                login: false,
            }],
            workers: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            max_clients: 50_000,
            drain: Duration::from_secs(30),
            farewell: Duration::from_millis(500),
            compressors: Compressors::ALL,
        }
    }
}
