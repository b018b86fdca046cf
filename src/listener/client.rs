//! The socket of a client, encrypted or not.

use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use futures::FutureExt as _;
use rustix::io::ioctl_fionread;
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How long a client may take to agree on keys.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A connected client.
pub(super) enum Client {
    Plain(TcpStream),
    Tls(Box<Encrypted>),
}

/// What is decrypted comes in records, and waits in the TLS session; that some is there shows only when it is read.
/// So whoever waits for more reads one byte ahead.
pub(super) struct Encrypted {
    stream: TlsStream<TcpStream>,
    ahead: Option<u8>,
    ended: bool,
}

impl Client {
    /// Agrees on keys.
    ///
    /// # Errors
    /// In words, why there are none.
    pub(super) async fn encrypted(stream: TcpStream, tls: &TlsAcceptor) -> Result<Self, String> {
        match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
            Ok(Ok(stream)) => Ok(Self::Tls(Box::new(Encrypted { stream, ahead: None, ended: false }))),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("it does not finish its TLS handshake".to_owned()),
        }
    }

    /// Waits until there is something to read, or the end of it.
    pub(super) async fn readable(&mut self) -> std::io::Result<()> {
        match self {
            Self::Plain(stream) => stream.readable().await,
            Self::Tls(encrypted) => encrypted.look_ahead().await,
        }
    }

    /// Reads what is there; `None`: nothing is, after all. 0: the client has left.
    pub(super) fn try_read(&mut self, input: &mut BytesMut) -> std::io::Result<Option<usize>> {
        // Not tokio's `try_read`: this way it learns from a short read that the socket is empty and saves a system
        // call.
        self.read(input).now_or_never().transpose()
    }

    /// Reads some; 0: the client has left. What is read is not lost when the future is dropped.
    pub(super) async fn read(&mut self, input: &mut BytesMut) -> std::io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read_buf(input).await,
            Self::Tls(encrypted) => encrypted.read(input).await,
        }
    }

    /// How many bytes have come that nobody has read. Of what is encrypted it is only known whether there are any.
    pub(super) fn unread(&mut self) -> usize {
        match self {
            // Asked of the system: the runtime may not have heard yet.
            Self::Plain(stream) => {
                ioctl_fionread(stream).map_or(0, |bytes| bytes.try_into().unwrap_or(usize::MAX))
            }
            Self::Tls(encrypted) => {
                // An error, or the end, shows when it is read.
                _ = encrypted.look_ahead().now_or_never();
                usize::from(encrypted.ahead.is_some())
            }
        }
    }

    /// Writes all of it.
    pub(super) async fn write_all(&mut self, output: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Plain(stream) => stream.write_all(output).await,
            Self::Tls(encrypted) => {
                encrypted.stream.write_all(output).await?;
                encrypted.stream.flush().await
            }
        }
    }

    /// Completes when the client has closed its connection; never, once it has sent more instead.
    pub(super) async fn gone(&mut self) {
        match self {
            Self::Plain(stream) => gone(stream).await,
            Self::Tls(encrypted) => {
                if encrypted.look_ahead().await.is_ok() && encrypted.ahead.is_some() {
                    std::future::pending().await
                }
            }
        }
    }

    /// Its socket, for another process; `None`: it cannot go on there.
    pub(super) fn into_socket(self) -> Option<OwnedFd> {
        match self {
            Self::Plain(stream) => Some(stream.into_std().ok()?.into()),
            Self::Tls(_) => None,
        }
    }

    /// Whether it speaks TLS.
    pub(super) fn is_encrypted(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Where it is.
    pub(super) fn address(&self) -> std::io::Result<SocketAddr> {
        match self {
            Self::Plain(stream) => stream.peer_addr(),
            Self::Tls(encrypted) => encrypted.stream.get_ref().0.peer_addr(),
        }
    }
}

impl Encrypted {
    async fn look_ahead(&mut self) -> std::io::Result<()> {
        if self.ahead.is_some() || self.ended {
            return Ok(());
        }
        let mut byte = [0];
        match self.stream.read(&mut byte).await? {
            0 => self.ended = true,
            _ => self.ahead = Some(byte[0]),
        }
        Ok(())
    }

    async fn read(&mut self, input: &mut BytesMut) -> std::io::Result<usize> {
        if self.ended {
            return Ok(0);
        }
        let Some(byte) = self.ahead.take() else { return self.stream.read_buf(input).await };
        input.put_u8(byte);
        // With what stands behind it, if that is there already.
        let more = self.stream.read_buf(input).now_or_never().transpose()?;
        self.ended = more == Some(0);
        Ok(1 + more.unwrap_or(0))
    }
}

/// Completes when the client has closed its connection; never, once it has sent more instead.
async fn gone(stream: &TcpStream) {
    loop {
        if stream.readable().await.is_err() {
            return;
        }
        let mut byte = [MaybeUninit::uninit()];
        match stream.try_io(Interest::READABLE, || SockRef::from(stream).peek(&mut byte)) {
            Ok(0) => return,
            Ok(_) => std::future::pending().await,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}
