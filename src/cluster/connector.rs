//! Opening a connection: TCP, TLS, handshake, login.

use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::connection::Connection;
use super::hello::{self, HelloReply};
use super::login::Login;
use super::stream::{Socket, Stream};
use super::tls;
use super::uri::Settings;
use crate::model::span::spoken;
use crate::wire::compressed::Compressor;

/// Dead peers are noticed on idle connections after this and a few probes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(120);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// Why there is no connection.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum ConnectError {
    /// It may work later.
    #[error("{0}")]
    Unreachable(String),
    /// The server did not answer in time.
    #[error("{0}")]
    TimedOut(String),
    /// It will not work until somebody changes something: wrong password, wrong certificate.
    #[error("{0}")]
    Hopeless(String),
}

/// A new connection and what the server said on it.
pub(super) struct Opened {
    pub(super) connection: Connection,
    pub(super) hello: HelloReply,
    /// How long the handshake's answer took.
    pub(super) rtt: Duration,
}

/// Opens connections to the servers of one cluster.
pub(super) struct Connector {
    app_name: String,
    tls: Option<TlsConnector>,
    login: Option<Login>,
    compressors: Vec<Compressor>,
    limit: Duration,
}

impl Connector {
    /// # Errors
    /// Which TLS file cannot be used.
    pub(super) fn new(settings: &Settings) -> Result<Self, String> {
        Ok(Self {
            app_name: settings.app_name.clone(),
            tls: settings.tls.as_ref().map(tls::connector).transpose()?,
            login: settings.credential.clone().map(Login::new),
            compressors: settings.compressors.clone(),
            limit: settings.connect_timeout,
        })
    }

    /// A connection for operations, logged in as the user of the connection string, or as `other`.
    pub(super) async fn open(&self, address: &str, other: Option<&Login>) -> Result<Opened, ConnectError> {
        self.limited(address, self.open_without_limit(address, other.or(self.login.as_ref()))).await
    }

    /// A connection that is not logged in, for `hello` only.
    pub(super) async fn open_for_checks(&self, address: &str) -> Result<Opened, ConnectError> {
        self.limited(address, self.open_without_limit(address, None)).await
    }

    async fn limited(
        &self,
        address: &str,
        opening: impl Future<Output = Result<Opened, ConnectError>>,
    ) -> Result<Opened, ConnectError> {
        match tokio::time::timeout(self.limit, opening).await {
            Ok(result) => result,
            Err(_) => Err(ConnectError::TimedOut(format!(
                "{address}: no connection with handshake within {}",
                spoken(self.limit)
            ))),
        }
    }

    async fn open_without_limit(&self, address: &str, login: Option<&Login>) -> Result<Opened, ConnectError> {
        let unreachable = |error: String| ConnectError::Unreachable(format!("{address}: {error}"));
        let stream = self.stream(address).await?;
        let mut connection = Connection::new(stream);
        let user = login.and_then(Login::user_to_ask_for);
        let handshake = hello::handshake(&self.app_name, user.as_deref(), &self.compressors);
        let asked = Instant::now();
        let answer = connection.command(&handshake).await.map_err(|error| unreachable(error.to_string()))?;
        let rtt = asked.elapsed();
        let hello = HelloReply::parse(&answer).map_err(|error| unreachable(error.to_string()))?;
        // Arbiters hold no users; nobody can log in there.
        if let Some(login) = login.filter(|_| hello.role != Some(super::topology::Role::Arbiter)) {
            login.run(&mut connection, hello.mechanisms.as_deref()).await.map_err(|error| {
                let message = format!("login at {address}: {error}");
                if error.is_hopeless() {
                    ConnectError::Hopeless(message)
                } else {
                    ConnectError::Unreachable(message)
                }
            })?;
        }
        let agreed = |one: &&Compressor| hello.compressors.iter().any(|name| name == one.name());
        connection.compress(self.compressors.iter().find(agreed).copied());
        Ok(Opened { connection, hello, rtt })
    }

    async fn stream(&self, address: &str) -> Result<Stream, ConnectError> {
        let unreachable = |error: std::io::Error| ConnectError::Unreachable(format!("{address}: {error}"));
        let stream = TcpStream::connect(address).await.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive).map_err(unreachable)?;
        let socket = Socket::new(stream);
        let Some(tls) = &self.tls else {
            return Ok(Stream::Plain(socket));
        };
        let name = tls::server_name(address).map_err(ConnectError::Hopeless)?;
        let stream = tls.connect(name, socket).await.map_err(|error| {
            // rustls reports what it refuses as invalid data; a broken connection has other kinds.
            let message = format!("TLS with {address}: {error}");
            if error.kind() == std::io::ErrorKind::InvalidData {
                ConnectError::Hopeless(message)
            } else {
                ConnectError::Unreachable(message)
            }
        })?;
        Ok(Stream::Tls(Box::new(stream)))
    }
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Connector").field("app_name", &self.app_name).finish_non_exhaustive()
    }
}
