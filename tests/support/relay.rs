//! A network between the proxy and one cluster that can be cut, and that can keep what is on its way.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bson::{cstr, rawdoc};
use parking_lot::Mutex;
use reshard_testbed::wait_for;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
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
    /// It breaks connections off, by a reset, and lets no others come about.
    Cut,
}

/// Pieces in which servers tell of their set are no longer than that.
const SHORT: usize = 4096;

/// What servers call themselves, and the addresses of the same length that stand for it.
type Names = Arc<Vec<(String, String)>>;

/// The connections of one time, and what happens to them.
#[derive(Clone)]
struct Cable {
    mode: watch::Receiver<Mode>,
    names: Names,
    /// Pieces that are kept: messages, unless they are long.
    held: Arc<AtomicU64>,
}

/// Carries bytes from a port of its own to a server.
pub(crate) struct Relay {
    address: String,
    server: Arc<Mutex<String>>,
    mode: Arc<Mutex<watch::Sender<Mode>>>,
    held: Arc<AtomicU64>,
    /// Connections that stay stalled whatever happens to others.
    stranded: Mutex<Vec<watch::Sender<Mode>>>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Relay {
    pub(crate) async fn to(server: &str) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        Self::on(listener, server, &Names::default())
    }

    /// One to each member of a set. Members tell clients where the others are; what they say is changed on its way, so
    /// that clients look for all of them here.
    pub(crate) async fn to_each(members: &[&str]) -> anyhow::Result<Vec<Self>> {
        let mut listeners = Vec::new();
        let mut names = Vec::new();
        for member in members {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let address = listener.local_addr()?.to_string();
            // Nothing else of a message changes then.
            anyhow::ensure!(address.len() == member.len(), "{address} is not as long as {member}");
            names.push(((*member).to_owned(), address));
            listeners.push(listener);
        }
        let names = Arc::new(names);
        let each = listeners.into_iter().zip(members);
        Ok(each.map(|(listener, member)| Self::on(listener, member, &names)).collect::<io::Result<_>>()?)
    }

    fn on(listener: TcpListener, server: &str, names: &Names) -> io::Result<Self> {
        let address = listener.local_addr()?.to_string();
        let mode = Arc::new(Mutex::new(watch::Sender::new(Mode::Carry)));
        let held = Arc::<AtomicU64>::default();
        let (modes, kept, names) = (Arc::clone(&mode), Arc::clone(&held), Arc::clone(names));
        let server = Arc::new(Mutex::new(server.to_owned()));
        let leads = Arc::clone(&server);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (mode, held) = (modes.lock().subscribe(), Arc::clone(&kept));
                let server = leads.lock().clone();
                tokio::spawn(carry(client, server, Cable { mode, names: Arc::clone(&names), held }));
            }
        });
        Ok(Self { address, server, mode, held, stranded: Mutex::default(), accepting })
    }

    /// `host:port`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn uri(&self) -> String {
        format!("mongodb://{}/", self.address)
    }

    /// Connections lead to another server from now on; those that there are stay where they are.
    pub(crate) fn lead_to(&self, server: String) {
        *self.server.lock() = server;
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.lock().send_replace(mode);
    }

    /// Breaks off the connections that there are.
    pub(crate) fn reset(&self) {
        let others = watch::Sender::new(Mode::Carry);
        let these = std::mem::replace(&mut *self.mode.lock(), others);
        these.send_replace(Mode::Cut);
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
async fn carry(mut client: TcpStream, server: String, cable: Cable) {
    let mut mode = cable.mode.clone();
    if *mode.borrow() == Mode::Cut {
        return;
    }
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    let is_cut = {
        let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
        let forth = pump(from_client, to_server, Cable { names: Names::default(), ..cable.clone() });
        let back = pump(from_server, to_client, cable);
        tokio::select! {
            // What one end sent before it closed still reaches the other.
            _ = async { tokio::join!(forth, back) } => false,
            cut = mode.wait_for(|mode| *mode == Mode::Cut) => cut.is_ok(),
        }
    };
    if is_cut {
        // Without an orderly end; both sides' sockets are gone all the same.
        let _reset = (client.set_zero_linger(), server.set_zero_linger());
    }
}

/// Whatever ended `from`, the other end learns that there is no more.
async fn pump(from: ReadHalf<'_>, mut to: WriteHalf<'_>, cable: Cable) -> io::Result<()> {
    let _over = carry_on(from, &mut to, cable).await;
    to.shutdown().await
}

async fn carry_on(mut from: ReadHalf<'_>, to: &mut WriteHalf<'_>, mut cable: Cable) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        let piece = &mut buffer[..read];
        rename(&cable.names, piece);
        cable.held.fetch_add(1, Ordering::Relaxed);
        let goes_on = cable.mode.wait_for(|mode| !mode.keeps(piece)).await.is_ok();
        let written = if goes_on { to.write_all(piece).await } else { Ok(()) };
        cable.held.fetch_sub(1, Ordering::Relaxed);
        written?;
    }
}

fn rename(names: &Names, piece: &mut [u8]) {
    if piece.len() > SHORT {
        return;
    }
    for (name, other) in names.iter() {
        let there: Vec<usize> = memchr::memmem::find_iter(piece, name.as_bytes()).collect();
        for at in there {
            piece[at..at + name.len()].copy_from_slice(other.as_bytes());
        }
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
