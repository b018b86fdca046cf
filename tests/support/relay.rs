//! A network between the proxy and one cluster that can be cut, and that can keep what is on its way.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bson::{cstr, rawdoc};
use parking_lot::Mutex;
use reshard_testbed::wait_for;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::LONG;

/// What the network does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It carries.
    Carry,
    /// It keeps what it has, and what comes, until it carries again.
    Stall,
    /// It keeps commands that write to the collection of this name, and carries all else.
    StallWrites(&'static str),
    /// It breaks connections off and lets no others come about.
    Cut,
}

/// The connections of one time, and what happens to them.
#[derive(Clone)]
struct Cable {
    mode: watch::Receiver<Mode>,
    /// Pieces that are kept: messages, unless they are long.
    held: Arc<AtomicU64>,
}

/// Carries bytes from a port of its own to a server.
pub(crate) struct Relay {
    address: String,
    mode: Arc<Mutex<watch::Sender<Mode>>>,
    held: Arc<AtomicU64>,
    /// Connections that stay stalled whatever happens to others.
    stranded: Mutex<Vec<watch::Sender<Mode>>>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Relay {
    pub(crate) async fn to(server: &str) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let mode = Arc::new(Mutex::new(watch::Sender::new(Mode::Carry)));
        let held = Arc::<AtomicU64>::default();
        let (modes, kept, server) = (Arc::clone(&mode), Arc::clone(&held), server.to_owned());
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let cable = Cable { mode: modes.lock().subscribe(), held: Arc::clone(&kept) };
                tokio::spawn(carry(client, server.clone(), cable));
            }
        });
        Ok(Self { address, mode, held, stranded: Mutex::default(), accepting })
    }

    pub(crate) fn uri(&self) -> String {
        format!("mongodb://{}/", self.address)
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.lock().send_replace(mode);
    }

    /// How many pieces are on their way and kept: messages, unless they are long.
    pub(crate) fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Keeps what is on its way on the connections that there are. Others carry.
    pub(crate) fn strand(&self) {
        let others = watch::Sender::new(Mode::Carry);
        let these = std::mem::replace(&mut *self.mode.lock(), others);
        these.send_replace(Mode::Stall);
        self.stranded.lock().push(these);
    }

    /// Lets what was stranded arrive, and waits until the server has answered all of it and closed; how many
    /// pieces that were. Whoever sent them must be gone.
    pub(crate) async fn release(&self) -> anyhow::Result<u64> {
        let held = self.held();
        let stranded = std::mem::take(&mut *self.stranded.lock());
        for these in &stranded {
            these.send_replace(Mode::Carry);
        }
        let closed = || async { Ok(stranded.iter().all(|these| these.receiver_count() == 0)) };
        wait_for("what was held to arrive", LONG, closed).await?;
        Ok(held)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Carries one connection until both its ends have closed it, or it is cut.
async fn carry(client: TcpStream, server: String, cable: Cable) {
    let mut mode = cable.mode.clone();
    if *mode.borrow() == Mode::Cut {
        return;
    }
    let Ok(server) = TcpStream::connect(server).await else { return };
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let forth = pump(from_client, to_server, cable.clone());
    let back = pump(from_server, to_client, cable);
    tokio::select! {
        // What one end sent before it closed still reaches the other.
        _ = async { tokio::join!(forth, back) } => {}
        _ = mode.wait_for(|mode| *mode == Mode::Cut) => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut cable: Cable) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        let piece = &buffer[..read];
        cable.held.fetch_add(1, Ordering::Relaxed);
        let goes_on = cable.mode.wait_for(|mode| !mode.keeps(piece)).await.is_ok();
        let written = if goes_on { to.write_all(piece).await } else { Ok(()) };
        cable.held.fetch_sub(1, Ordering::Relaxed);
        written?;
    }
}

impl Mode {
    fn keeps(self, piece: &[u8]) -> bool {
        match self {
            Self::Stall => true,
            Self::StallWrites(collection) => writes_to(collection, piece),
            Self::Carry | Self::Cut => false,
        }
    }
}

/// Whether a command within `piece` writes to `collection`: its first element is its name, with the collection's.
fn writes_to(collection: &str, piece: &[u8]) -> bool {
    [cstr!("insert"), cstr!("update"), cstr!("delete")].into_iter().any(|command| {
        let command = rawdoc! { command: collection };
        let element = &command.as_bytes()[4..command.as_bytes().len() - 1];
        piece.windows(element.len()).any(|part| part == element)
    })
}
