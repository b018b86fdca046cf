//! The settings of a cluster, from a MongoDB connection string.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use mongodb::options::{
    Acknowledgment, AuthMechanism, ClientOptions, ReadPreference, SelectionCriteria, ServerAddress, Tls,
    TlsOptions,
};

use super::command::ServerId;
use super::srv::Lookup;
use crate::wire::compressed::Compressor;

const DEFAULT_PORT: u16 = 27017;
const DEFAULT_MAX_POOL_SIZE: u32 = 100;

/// How to reach one cluster.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where to begin.
    pub seeds: Vec<ServerId>,
    /// Where to ask for others, of a sharded cluster.
    pub lookup: Option<Lookup>,
    /// The name the replica set must have.
    pub replica_set: Option<String>,
    /// Talk to the one seed and ignore other members.
    pub direct: bool,
    /// Who to log in as; `None` for clusters without authentication.
    pub credential: Option<Credential>,
    /// How to encrypt; `None` for plain TCP.
    pub tls: Option<TlsSettings>,
    /// How messages may be compressed, what is wanted most first; none: they are not.
    pub compressors: Vec<Compressor>,
    /// The name that the servers' logs and `$currentOp` show.
    pub app_name: String,
    /// Most connections per server, all pool shards together.
    pub max_pool_size: u32,
    /// Connections per server that are opened before anybody asks, all pool shards together.
    pub min_pool_size: u32,
    /// An unused connection is closed after this.
    pub max_idle_time: Duration,
    /// How long an operation may wait for a server.
    pub server_selection_timeout: Duration,
    /// Limit for connecting with handshake and login, and for the reply to a check.
    pub connect_timeout: Duration,
    /// How often each server is checked.
    pub heartbeat: Duration,
    /// How much slower than the nearest server another one may be to take reads.
    pub latency_window: Duration,
}

/// Who to log in as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// The user.
    pub username: String,
    /// The password; empty for X.509.
    pub password: Secret,
    /// The database that knows the user.
    pub source: String,
    /// How to prove it; `None` asks the server.
    pub mechanism: Option<Mechanism>,
}

/// How a user proves who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mechanism {
    /// SCRAM-SHA-1.
    ScramSha1,
    /// SCRAM-SHA-256.
    ScramSha256,
    /// The certificate of the TLS connection.
    X509,
}

/// Text that never shows in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides `text`.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("***")
    }
}

/// How to encrypt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsSettings {
    /// PEM file with the authorities to trust; `None` trusts the public ones.
    pub ca_file: Option<PathBuf>,
    /// PEM file with the own certificate and its key.
    pub certificate_key_file: Option<PathBuf>,
    /// Accept any certificate.
    pub allow_invalid_certificates: bool,
}

/// Why a connection string cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum UriError {
    /// It is malformed, or its SRV record cannot be resolved.
    #[error("invalid connection string: {0}")]
    Invalid(String),
    /// It asks for something that is not supported.
    #[error("{option} in the connection string is not supported: {way_out}")]
    Unsupported {
        /// The option.
        option: String,
        /// What to do instead.
        way_out: &'static str,
    },
}

fn unsupported<T>(option: impl Into<String>, way_out: &'static str) -> Result<T, UriError> {
    Err(UriError::Unsupported { option: option.into(), way_out })
}

impl Settings {
    /// Reads a `mongodb://` or `mongodb+srv://` connection string; the latter asks DNS.
    ///
    /// # Errors
    /// [`UriError`], which never shows the password.
    pub async fn parse(uri: &str) -> Result<Self, UriError> {
        // The driver fails on these with messages that do not say what to do.
        refuse_before_parsing(uri)?;
        let options = ClientOptions::parse(uri)
            .await
            .map_err(|error| UriError::Invalid(without_password(&error.kind.to_string(), uri)))?;
        refuse_unsupported(&options)?;
        let lookup = Lookup::of(uri, &options);
        Ok(Self { lookup, ..Self::from_options(options)? })
    }

    fn from_options(options: ClientOptions) -> Result<Self, UriError> {
        let seeds = options.hosts.iter().map(seed).collect::<Result<Vec<_>, _>>()?;
        let direct = options.direct_connection.unwrap_or(false);
        if direct && seeds.len() > 1 {
            return unsupported("directConnection with several hosts", "give one host");
        }
        let tls = options.tls.and_then(|tls| match tls {
            Tls::Enabled(options) => Some(tls_settings(options)),
            Tls::Disabled => None,
        });
        let credential = options.credential.map(|given| credential(given, tls.is_some())).transpose()?;
        let or = |given: Option<Duration>, seconds| given.unwrap_or(Duration::from_secs(seconds));
        Ok(Self {
            seeds,
            lookup: None,
            replica_set: options.repl_set_name,
            direct,
            credential,
            tls,
            compressors: options.compressors.iter().flatten().map(compressor).collect::<Result<_, _>>()?,
            app_name: options.app_name.unwrap_or_else(|| "reshard".to_owned()),
            max_pool_size: options.max_pool_size.unwrap_or(DEFAULT_MAX_POOL_SIZE),
            min_pool_size: options.min_pool_size.unwrap_or(0),
            max_idle_time: options
                .max_idle_time
                .filter(|time| !time.is_zero())
                .unwrap_or(Duration::from_secs(600)),
            server_selection_timeout: or(options.server_selection_timeout, 30),
            connect_timeout: or(options.connect_timeout, 10),
            heartbeat: or(options.heartbeat_freq, 10).max(Duration::from_millis(500)),
            latency_window: options.local_threshold.unwrap_or(Duration::from_millis(15)),
        })
    }

    /// With another application name.
    #[must_use]
    pub fn app_name(mut self, name: impl Into<String>) -> Self {
        self.app_name = name.into();
        self
    }
}

pub(super) fn seed(address: &ServerAddress) -> Result<ServerId, UriError> {
    match address {
        // An IPv6 address keeps its brackets, as in the members' lists of servers.
        ServerAddress::Tcp { host, port } => {
            let host = host.to_lowercase();
            let port = port.unwrap_or(DEFAULT_PORT);
            let bare_ipv6 = host.contains(':') && !host.starts_with('[');
            Ok(if bare_ipv6 { format!("[{host}]:{port}") } else { format!("{host}:{port}") }.into())
        }
        _ => unsupported("a Unix socket", "give host:port"),
    }
}

fn compressor(wanted: &mongodb::options::Compressor) -> Result<Compressor, UriError> {
    match wanted {
        mongodb::options::Compressor::Snappy => Ok(Compressor::Snappy),
        mongodb::options::Compressor::Zlib { .. } => Ok(Compressor::Zlib),
        mongodb::options::Compressor::Zstd { .. } => Ok(Compressor::Zstd),
        _ => unsupported("a compressor other than snappy, zstd and zlib", "remove it"),
    }
}

fn tls_settings(options: TlsOptions) -> TlsSettings {
    TlsSettings {
        ca_file: options.ca_file_path,
        certificate_key_file: options.cert_key_file_path,
        allow_invalid_certificates: options.allow_invalid_certificates.unwrap_or(false),
    }
}

fn credential(given: mongodb::options::Credential, tls: bool) -> Result<Credential, UriError> {
    const SCRAM_OR_X509: &str = "use SCRAM-SHA-256, SCRAM-SHA-1 or MONGODB-X509";
    let mechanism = match given.mechanism {
        None => None,
        Some(AuthMechanism::ScramSha1) => Some(Mechanism::ScramSha1),
        Some(AuthMechanism::ScramSha256) => Some(Mechanism::ScramSha256),
        Some(AuthMechanism::MongoDbX509) if tls => Some(Mechanism::X509),
        Some(AuthMechanism::MongoDbX509) => {
            return unsupported("authMechanism=MONGODB-X509 without TLS", "add tls=true");
        }
        Some(other) => {
            return unsupported(format!("authMechanism={}", mechanism_name(&other)), SCRAM_OR_X509);
        }
    };
    let x509 = mechanism == Some(Mechanism::X509);
    if !x509 && given.password.is_none() {
        return Err(UriError::Invalid("a user without a password".to_owned()));
    }
    Ok(Credential {
        username: given.username.unwrap_or_default(),
        password: Secret::new(given.password.unwrap_or_default()),
        source: given.source.unwrap_or_else(|| if x509 { "$external" } else { "admin" }.to_owned()),
        mechanism,
    })
}

fn mechanism_name(mechanism: &AuthMechanism) -> &'static str {
    match mechanism {
        AuthMechanism::MongoDbCr => "MONGODB-CR",
        AuthMechanism::Plain => "PLAIN",
        AuthMechanism::MongoDbOidc => "MONGODB-OIDC",
        _ => "(this one)",
    }
}

const APPS_DECIDE: &str = "remove it; applications send it with their own operations";

fn refuse_before_parsing(uri: &str) -> Result<(), UriError> {
    let query = uri.split_once('?').map_or("", |(_, query)| query);
    for pair in query.split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        match (key.to_lowercase().as_str(), value) {
            ("zlibcompressionlevel", _) => return unsupported(key, "remove it; zlib has its usual level"),
            ("proxyhost" | "proxyport" | "proxyusername" | "proxypassword", _) => {
                return unsupported(key, "the clusters must be reachable without a SOCKS proxy");
            }
            ("tlscertificatekeyfilepassword", _) => {
                return unsupported(key, "store the key without a password");
            }
            ("tlsallowinvalidhostnames", "true") => {
                return unsupported(key, "give the CA with tlsCAFile and certificates with the right names");
            }
            ("authmechanism", "GSSAPI" | "MONGODB-AWS") => {
                return unsupported(pair, "use SCRAM-SHA-256, SCRAM-SHA-1 or MONGODB-X509");
            }
            _ => {}
        }
    }
    Ok(())
}

fn refuse_unsupported(options: &ClientOptions) -> Result<(), UriError> {
    if options.load_balanced == Some(true) {
        return unsupported("loadBalanced=true", "give the addresses of the servers behind it");
    }
    if matches!(&options.selection_criteria, Some(criteria) if !is_primary(criteria)) {
        return unsupported("readPreference", APPS_DECIDE);
    }
    if options.read_concern.is_some() {
        return unsupported("readConcernLevel", APPS_DECIDE);
    }
    let majority = |concern: &mongodb::options::WriteConcern| {
        matches!(concern.w, None | Some(Acknowledgment::Majority)) && concern.w_timeout.is_none()
    };
    if options.write_concern.as_ref().is_some_and(|concern| !majority(concern)) {
        return unsupported("a write concern other than w=majority", APPS_DECIDE);
    }
    Ok(())
}

fn is_primary(criteria: &SelectionCriteria) -> bool {
    matches!(criteria, SelectionCriteria::ReadPreference(ReadPreference::Primary))
}

/// `message` without the password of `uri`, in whatever form the message repeats it.
pub(super) fn without_password(message: &str, uri: &str) -> String {
    let user_info = uri.split_once("://").map(|(_, rest)| rest).and_then(|rest| rest.rsplit_once('@'));
    let password =
        user_info.and_then(|(user_info, _)| user_info.split_once(':')).map(|(_, password)| password);
    match password {
        Some(password) if !password.is_empty() => message.replace(password, "***"),
        _ => message.to_owned(),
    }
}

#[cfg(test)]
#[path = "uri_tests.rs"]
mod tests;
