//! `listCollections` and `listDatabases` once something is served by new: both clusters are asked.

use bson::raw::{RawArrayBuf, RawBsonRef};
use bson::{Document, RawDocument, RawDocumentBuf, rawdoc};
use bytes::BytesMut;

use super::operation::{HOLD, Operation};
use super::pipeline::Router;
use super::sending::send;
use super::writer::Writer;
use crate::cluster::command::{Reply, Request, Target};
use crate::converge::read::cursor_id;
use crate::model::side::{PerSide, Side};
use crate::policy::failover::Kind;
use crate::policy::listing::{asked, collections, databases};
use crate::policy::streams::home;
use crate::state::table::{MigrationRoute, RoutingTable};
use crate::wire::error::{ErrorReply, HOST_UNREACHABLE};
use crate::wire::op_msg::build;

const COLLECTIONS: &str = "listCollections";
const DATABASES: &str = "listDatabases";

impl Router {
    /// Whether an operation lists what both clusters have a part of.
    pub(super) fn lists_both(&self, operation: &Operation<'_>) -> bool {
        let name = operation.command.name;
        if !matches!(name, COLLECTIONS | DATABASES) {
            return false;
        }
        let Some(writer) = &self.writer else { return false };
        let table = writer.gate.routing.peek();
        match operation.command.database {
            _ if name == DATABASES => {
                table.routes.values().chain(&table.patterned).any(|route| is_news(route))
            }
            Some(database) => serves(&table, database),
            None => false,
        }
    }

    /// Lists what there is on both clusters, each thing once; all in one batch.
    pub(super) async fn list_both(
        &self,
        operation: &Operation<'_>,
        reply: &mut BytesMut,
    ) -> (Side, Result<bool, ErrorReply>) {
        let (Some(writer), Some(database)) = (&self.writer, operation.command.database) else {
            return (Side::Old, Ok(false));
        };
        let body = &operation.message[operation.parts.body.clone()];
        let listed = match RawDocument::from_bytes(body) {
            Ok(body) if operation.command.name == DATABASES => list_databases(writer, database, body).await,
            Ok(body) => list_collections(writer, database, body).await,
            Err(error) => Err(malformed(&error)),
        };
        let (body, ok) = match listed {
            Ok(body) => (body, true),
            Err(Failed::Refused(body)) => (body, false),
            Err(Failed::NotAnswered(error)) => return (Side::Old, Err(error)),
        };
        reply.clear();
        reply.extend_from_slice(&build(0, operation.request_id(), 0, body.as_bytes(), None));
        (Side::Old, Ok(ok))
    }
}

/// Why there is no list.
enum Failed {
    /// A cluster's answer.
    Refused(RawDocumentBuf),
    NotAnswered(ErrorReply),
}

fn malformed(error: &impl std::fmt::Display) -> Failed {
    Failed::NotAnswered(ErrorReply::new(HOST_UNREACHABLE, error.to_string()))
}

/// Asks `side`, again where its primary changes meanwhile: no driver may hear of that.
async fn run(writer: &Writer, side: Side, request: Request, kind: Kind) -> Result<Reply, Failed> {
    let asked = send(&**writer.clusters.get(side), request, kind, HOLD, &writer.gate.clock);
    let reply = asked.await.map_err(Failed::NotAnswered)?.reply;
    if reply.error().is_some() {
        return Err(Failed::Refused(without_times(&reply.body)));
    }
    Ok(reply)
}

/// An error without what belongs to one cluster or server.
fn without_times(body: &RawDocument) -> RawDocumentBuf {
    let mut error = RawDocumentBuf::new();
    let of_one = |name: &str| name.starts_with('$') || matches!(name, "operationTime" | "topologyVersion");
    for (name, value) in body.iter().flatten().filter(|(name, _)| !of_one(name.as_str())) {
        error.append(name, value);
    }
    error
}

fn is_news(route: &MigrationRoute) -> bool {
    home(&route.owned_by_old, &route.owned_by_new, route.unread) == Side::New
}

/// Whether new serves something in `database`.
fn serves(table: &RoutingTable, database: &str) -> bool {
    let named = table.routes.iter().filter(|(namespace, _)| namespace.database() == database);
    let awaited = table.patterned.iter().filter(|it| it.patterns.iter().any(|it| it.database() == database));
    named.map(|(_, route)| route).chain(awaited).any(|route| is_news(route))
}

async fn list_databases(
    writer: &Writer,
    database: &str,
    body: &RawDocument,
) -> Result<RawDocumentBuf, Failed> {
    let list = async |side| {
        let reply = run(writer, side, Request::new(database, asked(body)), Kind::Read).await?;
        Document::try_from(&*reply.body).map_err(|error| malformed(&error))
    };
    let (old, new) = futures::try_join!(list(Side::Old), list(Side::New))?;
    let table = writer.gate.routing.peek();
    let shown = databases(&PerSide { old, new }, |name| serves(&table, name));
    RawDocumentBuf::try_from(&shown).map_err(|error| malformed(&error))
}

async fn list_collections(
    writer: &Writer,
    database: &str,
    body: &RawDocument,
) -> Result<RawDocumentBuf, Failed> {
    let list = |side| entries(writer, side, database, body);
    let (old, new) = futures::try_join!(list(Side::Old), list(Side::New))?;
    let table = writer.gate.routing.peek();
    let home = |name: &str| {
        let route = table.route(&format!("{database}.{name}"))?;
        Some(home(&route.owned_by_old, &route.owned_by_new, route.unread))
    };
    let mut batch = RawArrayBuf::new();
    collections(PerSide { old, new }, home).into_iter().for_each(|entry| batch.push(entry));
    let namespace = format!("{database}.$cmd.listCollections");
    Ok(rawdoc! { "cursor": { "id": 0_i64, "ns": namespace, "firstBatch": batch }, "ok": 1.0 })
}

/// All that a cluster lists.
async fn entries(
    writer: &Writer,
    side: Side,
    database: &str,
    body: &RawDocument,
) -> Result<Vec<RawDocumentBuf>, Failed> {
    let mut request = asked(body);
    request.append(bson::cstr!("cursor"), rawdoc! {});
    let mut entries = Vec::new();
    let mut reply = run(writer, side, Request::new(database, request), Kind::Read).await?;
    take(&reply, "firstBatch", &mut entries)?;
    while cursor_id(&reply.body) != 0 {
        let more = rawdoc! { "getMore": cursor_id(&reply.body), "collection": "$cmd.listCollections" };
        let request = Request::new(database, more).to(Target::Server(reply.server.clone()));
        reply = run(writer, side, request, Kind::Follower).await?;
        take(&reply, "nextBatch", &mut entries)?;
    }
    Ok(entries)
}

fn take(reply: &Reply, field: &str, entries: &mut Vec<RawDocumentBuf>) -> Result<(), Failed> {
    let batch = reply.body.get_document("cursor").and_then(|cursor| cursor.get_array(field));
    for entry in batch.map_err(|error| malformed(&error))? {
        if let Ok(RawBsonRef::Document(entry)) = entry {
            entries.push(entry.to_owned());
        }
    }
    Ok(())
}
