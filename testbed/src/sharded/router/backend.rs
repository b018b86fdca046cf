//! One replica set behind the router: its primary is found and spoken to by the project's own cluster layer.

use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bson::{Document, RawDocument, RawDocumentBuf};
use bytes::BytesMut;
use reshard::cluster::command::{Commands, Request, SendError, ServerId, number};
use reshard::cluster::{Cluster, Pooled, Pools, Selection, Settings, TimesFor};
use reshard::shutdown::Tasks;

use super::failure::{Failure, is_ok};

/// How long the router looks for a primary, as mongos does by default.
const SELECTION: Duration = Duration::from_secs(20);
/// Commands such as resharding take minutes.
const ANSWER: Duration = Duration::from_secs(3600);
const CONNECTIONS: usize = 1000;
/// How often a command is sent again when that is safe.
const ATTEMPTS: usize = 60;

/// Surely nothing was done: `NotWritablePrimary`, `NotPrimaryNoSecondaryOk`.
const NOT_PRIMARY: [i32; 2] = [10107, 13435];
/// The primary went away, perhaps in mid-write.
const INTERRUPTED: [i32; 4] = [11602, 11600, 189, 91];

/// Whether a command may be sent again after its outcome got lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// It reads, or servers recognise it.
    Yes,
    /// Only if surely nothing was done.
    No,
}

/// A replica set.
#[derive(Debug)]
pub(super) struct Backend {
    connection_string: String,
    cluster: Arc<Cluster>,
    pools: Arc<Pools>,
    /// The time of the whole sharded cluster.
    time: TimesFor,
}

impl Backend {
    /// `connection_string` is `name/host:port,...`.
    pub(super) async fn connect(connection_string: &str, time: TimesFor, tasks: &Tasks) -> Result<Arc<Self>> {
        let (name, hosts) = connection_string.split_once('/').context("not name/hosts")?;
        let uri = format!("mongodb://{hosts}/?replicaSet={name}&heartbeatFrequencyMS=5000");
        let settings = Settings::parse(&uri).await?.app_name("testbed router");
        let cluster = Cluster::connect(settings, tasks).await?;
        let pools = cluster.pools(CONNECTIONS);
        Ok(Arc::new(Self { connection_string: connection_string.to_owned(), cluster, pools, time }))
    }

    pub(super) fn connection_string(&self) -> &str {
        &self.connection_string
    }

    pub(super) fn close(&self) {
        self.cluster.close();
    }

    /// A connection of one's own to the primary.
    pub(super) async fn checkout(&self) -> Result<Pooled, Failure> {
        self.pools.checkout(&Selection::Primary, SELECTION).await.map_err(|error| Failure::of_send(&error))
    }

    /// Sends a whole message, given in parts, to the primary; says which server that was.
    pub(super) async fn exchange(
        &self,
        parts: &[IoSlice<'_>],
        reply: &mut BytesMut,
        repeat: Repeat,
    ) -> Result<ServerId, Failure> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let mut pooled = self.checkout().await?;
            let mut parts = parts.to_vec();
            match pooled.exchange(&mut parts, reply).await {
                Ok(()) => return Ok(pooled.server().clone()),
                Err(SendError::NotSent(_)) if attempt < ATTEMPTS => {}
                Err(SendError::Unknown(_)) if repeat == Repeat::Yes && attempt < 3 => {}
                Err(error) => return Err(Failure::of_send(&error)),
            }
        }
    }

    /// Whether a command that was answered with this code is to be sent again, to the next primary.
    pub(super) fn lost_primary(&self, server: &ServerId, code: i64, repeat: Repeat) -> bool {
        let Ok(code) = i32::try_from(code) else { return false };
        let interrupted = INTERRUPTED.contains(&code);
        if interrupted || NOT_PRIMARY.contains(&code) {
            self.cluster.note_reply_error(server, code);
        }
        NOT_PRIMARY.contains(&code) || (interrupted && repeat == Repeat::Yes)
    }

    /// Runs a command on the primary and returns its reply, whether ok or not, without cluster times.
    pub(super) async fn run(
        &self,
        database: &str,
        body: RawDocumentBuf,
        repeat: Repeat,
    ) -> Result<RawDocumentBuf, Failure> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let selected = self.cluster.wait_for(&Selection::Primary, SELECTION).await;
            selected.map_err(|error| Failure::of_send(&error))?;
            self.tell_time();
            let answer = self.pools.run(Request::new(database, body.clone()).within(ANSWER)).await;
            self.learn_time();
            let reply = match answer {
                Ok(reply) => reply.body,
                Err(SendError::NotSent(_)) if attempt < ATTEMPTS => continue,
                Err(SendError::Unknown(_)) if repeat == Repeat::Yes && attempt < ATTEMPTS => continue,
                Err(error) => return Err(Failure::of_send(&error)),
            };
            // The cluster layer has taken note: the next attempt waits for a primary.
            let code = if number(&reply, "ok") == Some(1.0) { None } else { number(&reply, "code") };
            let is =
                |codes: &[i32]| code.is_some_and(|code| codes.iter().any(|other| f64::from(*other) == code));
            let again = is(&NOT_PRIMARY) || (repeat == Repeat::Yes && is(&INTERRUPTED));
            if !again || attempt >= ATTEMPTS {
                return Ok(reply);
            }
        }
    }

    /// As [`Self::run`], with decoded documents.
    pub(super) async fn ask(
        &self,
        database: &str,
        command: &Document,
        repeat: Repeat,
    ) -> Result<Document, Failure> {
        let body = RawDocumentBuf::try_from(command)?;
        Ok(Document::try_from(&*self.run(database, body, repeat).await?)?)
    }

    /// As [`Self::ask`], where a reply that is not ok is a failure.
    pub(super) async fn command(&self, database: &str, command: &Document) -> Result<Document, Failure> {
        let reply = self.ask(database, command, Repeat::Yes).await?;
        if is_ok(&reply) { Ok(reply) } else { Err(Failure(reply)) }
    }

    /// All documents of a `find` or an `aggregate` or whatever else has a cursor.
    pub(super) async fn all(&self, database: &str, command: &Document) -> Result<Vec<Document>, Failure> {
        let mut reply = self.command(database, command).await?;
        let name = command.keys().next().map_or("", String::as_str);
        let more = if name == "clusterAggregate" { "clusterGetMore" } else { "getMore" };
        let collection = command.get_str(name).unwrap_or("$cmd.aggregate");
        let mut found = Vec::new();
        loop {
            let cursor = reply.get_document_mut("cursor").map_err(|_| Failure::bad_value("no cursor"))?;
            for field in ["firstBatch", "nextBatch"] {
                if let Ok(batch) = cursor.get_array_mut(field) {
                    found.extend(batch.drain(..).filter_map(|value| match value {
                        bson::Bson::Document(document) => Some(document),
                        _ => None,
                    }));
                }
            }
            let id = super::failure::whole(cursor, "id").unwrap_or(0);
            if id == 0 {
                return Ok(found);
            }
            reply = self.command(database, &bson::doc! {more: id, "collection": collection}).await?;
        }
    }

    /// Takes note of the time in a reply that did not come by way of [`Self::run`].
    pub(super) fn observe_time(&self, reply: &RawDocument) {
        if let Ok(time) = reply.get_document("$clusterTime") {
            self.time.observe(time);
        }
    }

    /// The replica set hears of the newest time before it is asked.
    fn tell_time(&self) {
        if let Some(time) = self.time.latest() {
            self.pools.times().observe(&time);
        }
    }

    fn learn_time(&self) {
        if let Some(time) = self.pools.times().latest() {
            self.time.observe(&time);
        }
    }
}
