//! Asking a cluster for a collection's options and indexes.

use std::time::Duration;

use bson::{Document, RawDocument, rawdoc};

use crate::cluster::command::{Commands, Reply, Request, Target};
use crate::converge::read::cursor_id;
use crate::model::namespace::Namespace;
use crate::policy::catalog::{Collection, Index};
use crate::state::records::batch;

const NAMESPACE_NOT_FOUND: i32 = 26;

/// Why a server's answer is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Unanswered {
    /// MongoDB's code; `None` when there was no answer at all.
    pub code: Option<i32>,
    /// In words.
    pub message: String,
}

impl Unanswered {
    /// The user may not ask this (13), or nobody is logged in.
    #[must_use]
    pub fn is_forbidden(&self) -> bool {
        self.code == Some(13)
    }

    /// A reply that does not read.
    #[must_use]
    pub fn malformed(message: impl Into<String>) -> Self {
        Self { code: Some(0), message: message.into() }
    }
}

/// Runs a command that must succeed, keeping the code when it does not.
///
/// # Errors
/// [`Unanswered`].
pub async fn question(cluster: &dyn Commands, request: Request) -> Result<Reply, Unanswered> {
    let reply = cluster.run(request).await;
    let reply = reply.map_err(|error| Unanswered { code: None, message: error.to_string() })?;
    match reply.error() {
        None => Ok(reply),
        Some(error) => Err(Unanswered { code: Some(error.code), message: error.to_string() }),
    }
}

/// What a collection is on `cluster`; `None` when it is not there. Each question takes at most `limit`.
///
/// # Errors
/// [`Unanswered`].
pub async fn describe(
    cluster: &dyn Commands,
    namespace: &Namespace,
    limit: Duration,
) -> Result<Option<Collection>, Unanswered> {
    let filter = rawdoc! { "listCollections": 1, "filter": { "name": namespace.collection() } };
    let request = Request::new(namespace.database(), filter).within(limit);
    let found = all(cluster, request, "$cmd.listCollections").await?;
    let Some(found) = found.into_iter().next() else { return Ok(None) };
    let kind = found.get_str("type").unwrap_or("collection").to_owned();
    let options = found.get_document("options").cloned().unwrap_or_default();
    let indexes =
        if kind == "collection" { indexes_of(cluster, namespace, limit).await? } else { Vec::new() };
    Ok(Some(Collection { kind, options, indexes }))
}

/// The indexes of a collection on `cluster`; none where it is not there. Each question takes at most `limit`.
///
/// # Errors
/// [`Unanswered`].
pub async fn indexes_of(
    cluster: &dyn Commands,
    namespace: &Namespace,
    limit: Duration,
) -> Result<Vec<Index>, Unanswered> {
    let collection = namespace.collection();
    let listing = |body| Request::new(namespace.database(), body).within(limit);
    let cursor = format!("$cmd.listIndexes.{collection}");
    let with_builds = listing(rawdoc! { "listIndexes": collection, "includeBuildUUIDs": true });
    let mut listed = all(cluster, with_builds, &cursor).await;
    if listed.as_ref().is_err_and(|error| error.code != Some(NAMESPACE_NOT_FOUND) && error.code.is_some()) {
        // Routers and old servers do not take that field.
        listed = all(cluster, listing(rawdoc! { "listIndexes": collection }), &cursor).await;
    }
    let listed = match listed {
        Err(error) if error.code == Some(NAMESPACE_NOT_FOUND) => Vec::new(),
        other => other?,
    };
    Ok(listed.into_iter().map(index).collect())
}

/// An index under way is wrapped, with the id of its build beside it.
fn index(listed: Document) -> Index {
    match listed.get_document("spec") {
        Ok(spec) if !listed.contains_key("key") => Index { spec: spec.clone(), building: true },
        _ => Index { building: listed.contains_key("buildUUID"), spec: listed },
    }
}

/// All documents of a cursor over `collection`.
///
/// # Errors
/// [`Unanswered`].
pub async fn all(
    cluster: &dyn Commands,
    request: Request,
    collection: &str,
) -> Result<Vec<Document>, Unanswered> {
    let (database, limit) = (request.database.clone(), request.limit);
    let mut reply = question(cluster, request).await?;
    let mut field = "firstBatch";
    let mut documents = Vec::new();
    loop {
        for document in batch(&reply.body, field).map_err(Unanswered::malformed)? {
            documents.push(owned(&document)?);
        }
        let cursor = cursor_id(&reply.body);
        if cursor == 0 {
            return Ok(documents);
        }
        let more = rawdoc! { "getMore": cursor, "collection": collection };
        let request = Request::new(&database, more).to(Target::Server(reply.server)).within(limit);
        reply = question(cluster, request).await?;
        field = "nextBatch";
    }
}

/// A document to look into.
///
/// # Errors
/// [`Unanswered`] when it does not read.
pub fn owned(document: &RawDocument) -> Result<Document, Unanswered> {
    Document::try_from(document).map_err(|error| Unanswered::malformed(error.to_string()))
}
