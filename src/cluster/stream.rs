//! A byte stream to a server, encrypted or not, that others can cut.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker, ready};

use bytes::BytesMut;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_rustls::client::TlsStream;

/// A byte stream to a server.
#[derive(Debug)]
pub(super) enum Stream {
    /// Plain TCP.
    Plain(Socket),
    /// TLS over TCP.
    Tls(Box<TlsStream<Socket>>),
}

impl Stream {
    /// What cuts this stream.
    pub(super) fn cutter(&self) -> Cutter {
        let socket = match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => stream.get_ref().0,
        };
        Cutter(Arc::downgrade(&socket.write))
    }

    /// Whether the peer has neither closed the stream nor sent anything; waits for nothing.
    pub(super) fn is_quiet(&mut self) -> bool {
        let mut byte = [0_u8; 1];
        match self {
            // Costs no system call unless the reactor saw something.
            Self::Plain(socket) => {
                let result = socket.read.try_read(&mut byte);
                matches!(result, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
            }
            // Under TLS something may have come that is not data (a session ticket): let TLS digest it.
            Self::Tls(stream) => {
                let mut context = Context::from_waker(Waker::noop());
                Pin::new(stream).poll_read(&mut context, &mut ReadBuf::new(&mut byte)).is_pending()
            }
        }
    }

    /// Reads what is there into the spare room of `buffer`; 0 at the end of the stream.
    pub(super) async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read_buf(buffer).await,
            Self::Tls(stream) => stream.read_buf(buffer).await,
        }
    }

    /// Writes some of `parts`; returns how much.
    pub(super) async fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write_vectored(parts).await,
            Self::Tls(stream) => stream.write_vectored(parts).await,
        }
    }

    /// Sends what encryption may hold back.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(stream) => stream.flush().await,
        }
    }
}

/// A TCP socket that a [`Cutter`] can reach too.
#[derive(Debug)]
pub(super) struct Socket {
    /// Knows after a short read that nothing more is there, and saves the system call that would say so.
    read: OwnedReadHalf,
    write: Arc<OwnedWriteHalf>,
}

/// Cuts a stream while somebody else waits on it, who then sees its end.
#[derive(Debug)]
pub(super) struct Cutter(Weak<OwnedWriteHalf>);

impl Cutter {
    /// Whether there is still something to cut.
    pub(super) fn is_of_use(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// Ends the stream, if it is still there.
    pub(super) fn cut(&self) {
        if let Some(half) = self.0.upgrade() {
            let stream: &TcpStream = (*half).as_ref();
            // Fails only when the peer was faster.
            let _ = SockRef::from(stream).shutdown(Shutdown::Both);
        }
    }
}

impl Socket {
    pub(super) fn new(stream: TcpStream) -> Self {
        let (read, write) = stream.into_split();
        Self { read, write: Arc::new(write) }
    }

    fn poll_writing(
        &self,
        context: &mut Context<'_>,
        write: impl Fn(&OwnedWriteHalf) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let stream: &TcpStream = (*self.write).as_ref();
        loop {
            ready!(stream.poll_write_ready(context))?;
            match write(&self.write) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().read).poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_writing(context, |half| half.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_writing(context, |half| half.try_write_vectored(parts))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream: &TcpStream = (*self.write).as_ref();
        Poll::Ready(SockRef::from(stream).shutdown(Shutdown::Write))
    }
}
