//! Takes connections and deals them out to the workers in turn.

use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use bson::oid::ObjectId;
use metrics::counter;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::handover::Handed;
use crate::telemetry::metrics as names;

use super::face::Appearance;
use super::fail_points::FailPoints;
use super::kept;
use super::settings::Entrance;
use super::tls;
use super::worker::Workers;

/// Connections that the system keeps ready while none is taken.
const BACKLOG: i32 = 4096;
/// Pause after an accept that failed: the usual reason, too many open files, does not pass at once.
const PAUSE: Duration = Duration::from_millis(20);

/// A bound socket.
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    door: Door,
}

/// How clients come in.
#[derive(Clone)]
pub(super) struct Door {
    /// What they are shown.
    pub(super) appearance: Arc<Appearance>,
    /// The name of this process.
    pub(super) process: ObjectId,
    /// They must speak TLS.
    pub(super) tls: Option<TlsAcceptor>,
    /// They must log in.
    pub(super) login: bool,
    /// What applications have set here for their tests.
    pub(super) fail_points: Arc<FailPoints>,
    /// What tells it from others, for the process after this one.
    pub(super) sign: Arc<str>,
}

impl Door {
    /// An open one.
    pub(super) fn showing(appearance: Appearance, process: ObjectId) -> Self {
        Self {
            appearance: Arc::new(appearance),
            process,
            tls: None,
            login: false,
            fail_points: Arc::default(),
            sign: Arc::default(),
        }
    }
}

/// Binds the sockets of `entrance`, its own first, then those of its secondaries; one that was handed to this
/// process is used instead of a new one. `process` is the name of this process.
/// Must be called on a runtime.
///
/// # Errors
/// When an address cannot be bound, or a file for TLS not be used.
pub fn bind(entrance: &Entrance, process: ObjectId, handed: &mut Handed) -> std::io::Result<Vec<Listener>> {
    let tls = entrance.tls.as_ref().map(tls::acceptor).transpose().map_err(std::io::Error::other)?;
    let secondaries = entrance.face.secondaries().map(|secondary| secondary.address);
    let bind = |address| {
        let named = |error: std::io::Error| {
            std::io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
        };
        match handed.take(address) {
            Some(socket) => Listener::over(socket, process).map_err(named),
            None => Listener::bind(address, process).map_err(named),
        }
    };
    let mut listeners =
        [entrance.address].into_iter().chain(secondaries).map(bind).collect::<std::io::Result<Vec<_>>>()?;
    let bound: Vec<_> = listeners.iter().map(Listener::address).collect();
    for (listener, shown) in listeners.iter_mut().zip(Appearance::of(&entrance.face, process, &bound)) {
        let sign = kept::sign(listener.address, entrance);
        let open = Door::showing(shown, process);
        listener.door = Door { tls: tls.clone(), login: entrance.login, sign, ..open };
    }
    Ok(listeners)
}

impl Listener {
    fn bind(address: SocketAddr, process: ObjectId) -> std::io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Self::over(socket.into(), process)
    }

    fn over(socket: std::net::TcpListener, process: ObjectId) -> std::io::Result<Self> {
        let socket = TcpListener::from_std(socket)?;
        let address = socket.local_addr()?;
        Ok(Self { socket, address, door: Door::showing(Appearance::Router, process) })
    }

    /// Where it listens, with the port that was taken.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn sign(&self) -> &str {
        &self.door.sign
    }

    pub(super) fn door(&self) -> Door {
        self.door.clone()
    }

    /// The socket once more. As long as that is open clients can connect, and wait.
    ///
    /// # Errors
    /// When too many files are open.
    pub fn keep(&self) -> std::io::Result<OwnedFd> {
        self.socket.as_fd().try_clone_to_owned()
    }

    /// Accepts clients until `stop`; turns them away while `max_clients` are there.
    pub async fn accept(self, workers: Arc<Workers>, max_clients: usize, stop: CancellationToken) {
        let refused = counter!(names::CLIENTS_REFUSED);
        let mut turn = 0_usize;
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                accepted = self.socket.accept() => accepted,
            };
            let handed = accepted.and_then(|(stream, _)| {
                stream.set_nodelay(true)?;
                stream.into_std()
            });
            match handed {
                Ok(_) if workers.clients.open() >= max_clients => refused.increment(1),
                Ok(stream) => {
                    workers.hand_over(turn, stream, self.door.clone());
                    turn = turn.wrapping_add(1);
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}
