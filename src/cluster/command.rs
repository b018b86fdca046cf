//! The seam to a cluster: run one command, once.
//!
//! Everything that the engine does to a cluster (reads, writes, change streams, records) is a command with a
//! reply. The real implementation sends it to a server; the simulator's runs it on servers in memory.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bson::raw::RawDocumentBuf;
use bson::{RawDocument, Timestamp};
use bytes::Bytes;

pub use crate::model::number::number;

/// The address of a server, as `host:port`.
pub type ServerId = Arc<str>;

/// Where a command goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The writable primary, or any router of a sharded cluster.
    Primary,
    /// This server and no other (a cursor lives there).
    Server(ServerId),
}

/// Documents of a command sent beside its body (an OP_MSG document sequence).
#[derive(Debug, Clone)]
pub struct Sequence {
    /// The field of the command that they stand for.
    pub identifier: &'static str,
    /// BSON documents back to back.
    pub documents: Bytes,
}

/// One command to one cluster.
#[derive(Debug, Clone)]
pub struct Request {
    /// The `$db`.
    pub database: String,
    /// The command without `$db`, `$clusterTime` and without what stands in `sequence`.
    pub body: RawDocumentBuf,
    /// Documents beside the body.
    pub sequence: Option<Sequence>,
    /// Where it goes.
    pub target: Target,
    /// How long to wait for a server and for its answer.
    pub limit: Duration,
    /// Looked at when there is a connection, before anything is sent; as long as it holds, what was sent is waited
    /// for beyond `limit`.
    pub only_if: Option<OnlyIf>,
}

/// A condition under which a command may still be sent.
#[derive(Clone)]
pub struct OnlyIf(pub Arc<dyn Fn() -> bool + Send + Sync>);

impl std::fmt::Debug for OnlyIf {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("OnlyIf")
    }
}

impl Request {
    /// A command to the primary, with the default limit of 30 s.
    #[must_use]
    pub fn new(database: &str, body: RawDocumentBuf) -> Self {
        Self {
            database: database.to_owned(),
            body,
            sequence: None,
            target: Target::Primary,
            limit: Duration::from_secs(30),
            only_if: None,
        }
    }

    /// With documents beside the body.
    #[must_use]
    pub fn sequence(mut self, identifier: &'static str, documents: impl Into<Bytes>) -> Self {
        self.sequence = Some(Sequence { identifier, documents: documents.into() });
        self
    }

    /// To `target` instead of the primary.
    #[must_use]
    pub fn to(mut self, target: Target) -> Self {
        self.target = target;
        self
    }

    /// With another limit.
    #[must_use]
    pub fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// To be sent only if this holds then.
    #[must_use]
    pub fn only_if(mut self, condition: OnlyIf) -> Self {
        self.only_if = Some(condition);
        self
    }

    /// Fails when it must not be sent any more.
    ///
    /// # Errors
    /// [`SendError::NotSent`].
    pub fn must_be_due(&self) -> Result<(), SendError> {
        match &self.only_if {
            Some(OnlyIf(holds)) if !holds() => Err(SendError::NotSent("it may not be sent any more".into())),
            _ => Ok(()),
        }
    }
}

/// What a server answered; `ok: 0` is an answer too.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The reply without `$clusterTime` and `operationTime`.
    pub body: RawDocumentBuf,
    /// The server's `operationTime`; the cluster's own time line.
    pub operation_time: Option<Timestamp>,
    /// Who answered.
    pub server: ServerId,
}

/// Why there is no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SendError {
    /// Surely nothing reached a server.
    #[error("nothing was sent: {0}")]
    NotSent(String),
    /// Nothing was sent either: all connections to the server were in use.
    #[error("nothing was sent: {0}")]
    Busy(String),
    /// Nothing was sent either: the user who is to send it cannot log in, now or later.
    #[error("nothing was sent: {0}")]
    LoginRefused(String),
    /// The command may have run, may run later, or never.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
}

/// A cluster that runs commands.
#[async_trait]
pub trait Commands: Send + Sync {
    /// Runs `request` once; never repeats it. A dropped future may have sent it.
    ///
    /// # Errors
    /// [`SendError`] says whether the command can have reached a server.
    async fn run(&self, request: Request) -> Result<Reply, SendError>;
}

/// A cluster shared by everybody who uses it.
pub type SharedCluster = Arc<dyn Commands>;

/// The error in a reply with `ok: 0`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} (code {code})")]
pub struct ServerError {
    /// MongoDB's error code; 0 when the reply had none.
    pub code: i32,
    /// The `errmsg`.
    pub message: String,
    /// The `errorLabels`.
    pub labels: Vec<String>,
}

impl ServerError {
    /// Reads the error of a reply, `None` for `ok: 1`.
    #[must_use]
    pub fn of(body: &RawDocument) -> Option<Self> {
        if number(body, "ok").is_some_and(|ok| ok == 1.0) {
            return None;
        }
        let code = number(body, "code").unwrap_or(0.0);
        let message = body.get_str("errmsg").unwrap_or("no errmsg").to_owned();
        let labels = body.get_array("errorLabels").map(|labels| {
            labels.into_iter().flatten().filter_map(|label| label.as_str().map(str::to_owned)).collect()
        });
        #[expect(clippy::cast_possible_truncation, reason = "error codes are small whole numbers")]
        Some(Self { code: code as i32, message, labels: labels.unwrap_or_default() })
    }
}

impl Reply {
    /// The error of the command as a whole, `None` for `ok: 1`.
    #[must_use]
    pub fn error(&self) -> Option<ServerError> {
        ServerError::of(&self.body)
    }
}
