//! A byte stream to a server, encrypted or not, that others can cut.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker, ready};

use bytes::BytesMut;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// A byte stream to a server.
#[derive(Debug)]
pub(super) enum Stream {
    /// Plain TCP.
    Plain(Arc<TcpStream>),
    /// TLS over TCP; the socket again, for cutting it.
    Tls(Box<TlsStream<Shared>>, Arc<TcpStream>),
}

/// Cuts a stream while somebody else waits on it, who then sees its end.
#[derive(Debug)]
pub(super) struct Cutter(Weak<TcpStream>);

impl Cutter {
    /// Whether there is still something to cut.
    pub(super) fn is_of_use(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// Ends the stream, if it is still there.
    pub(super) fn cut(&self) {
        if let Some(socket) = self.0.upgrade() {
            // Fails only when the peer was faster.
            let _ = SockRef::from(&*socket).shutdown(Shutdown::Both);
        }
    }
}

impl Stream {
    /// What cuts this stream.
    pub(super) fn cutter(&self) -> Cutter {
        match self {
            Self::Plain(socket) | Self::Tls(_, socket) => Cutter(Arc::downgrade(socket)),
        }
    }

    /// Whether the peer has neither closed the stream nor sent anything; waits for nothing.
    pub(super) fn is_quiet(&mut self) -> bool {
        let mut byte = [0_u8; 1];
        match self {
            // Costs no system call unless the reactor saw something.
            Self::Plain(socket) => {
                matches!(socket.try_read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
            }
            // Under TLS something may have come that is not data (a session ticket): let TLS digest it.
            Self::Tls(stream, _) => {
                let mut context = Context::from_waker(Waker::noop());
                Pin::new(stream).poll_read(&mut context, &mut ReadBuf::new(&mut byte)).is_pending()
            }
        }
    }

    /// Reads what is there into the spare room of `buffer`; 0 at the end of the stream.
    pub(super) async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => loop {
                poll_fn(|context| socket.poll_read_ready(context)).await?;
                match socket.try_read_buf(buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    result => return result,
                }
            },
            Self::Tls(stream, _) => stream.read_buf(buffer).await,
        }
    }

    /// Writes some of `parts`; returns how much.
    pub(super) async fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => loop {
                poll_fn(|context| socket.poll_write_ready(context)).await?;
                match socket.try_write_vectored(parts) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    result => return result,
                }
            },
            Self::Tls(stream, _) => stream.write_vectored(parts).await,
        }
    }

    /// Sends what encryption may hold back.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(stream, _) => stream.flush().await,
        }
    }
}

/// A socket below TLS that a [`Cutter`] can reach too.
#[derive(Debug)]
pub(super) struct Shared(pub(super) Arc<TcpStream>);

impl AsyncRead for Shared {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(context))?;
            match self.0.try_read(buffer.initialize_unfilled()) {
                Ok(count) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Shared {
    fn poll_writing(
        &self,
        context: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(context))?;
            match write(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }
}

impl AsyncWrite for Shared {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_writing(context, |socket| socket.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_writing(context, |socket| socket.try_write_vectored(parts))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&*self.0).shutdown(Shutdown::Write))
    }
}
