//! A network between the proxy and one cluster that can be cut, and that can keep what is on its way.

use std::io;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What the network does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It carries.
    Carry,
    /// It keeps what it has, and what comes, until it carries again.
    Stall,
    /// It breaks connections off and lets no others come about.
    Cut,
}

/// Carries bytes from a port of its own to a server.
pub(crate) struct Relay {
    address: String,
    mode: watch::Sender<Mode>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Relay {
    pub(crate) async fn to(server: &str) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let (mode, modes) = watch::channel(Mode::Carry);
        let server = server.to_owned();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, server.clone(), modes.clone()));
            }
        });
        Ok(Self { address, mode, accepting })
    }

    pub(crate) fn uri(&self) -> String {
        format!("mongodb://{}/", self.address)
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Carries one connection until one of its ends closes it, or it is cut.
async fn carry(client: TcpStream, server: String, mut modes: watch::Receiver<Mode>) {
    if *modes.borrow() == Mode::Cut {
        return;
    }
    let Ok(server) = TcpStream::connect(server).await else { return };
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let forth = pump(from_client, to_server, modes.clone());
    let back = pump(from_server, to_client, modes.clone());
    tokio::select! {
        _ = forth => {}
        _ = back => {}
        _ = modes.wait_for(|mode| *mode == Mode::Cut) => {}
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut modes: watch::Receiver<Mode>,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        if modes.wait_for(|mode| *mode != Mode::Stall).await.is_err() {
            return Ok(());
        }
        to.write_all(&buffer[..read]).await?;
    }
}
