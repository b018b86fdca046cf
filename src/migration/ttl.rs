//! Time to live while two clusters hold the same documents.
//!
//! Each server would remove documents at moments of its own; the other would put them back. So expiry is
//! suspended on both, and [`expire_due`] removes what is due on its authority alone. The streams take the
//! removal to the mirror.

use std::sync::Arc;
use std::time::Duration;

use bson::raw::{RawBson, RawDocumentBuf, cstr};
use bson::{DateTime, Document, RawDocument, rawdoc};

use super::catalog::describe;
use super::context::Context;
use super::prepare::{Created, change, gone};
use crate::cluster::command::{Commands, Request, number};
use crate::converge::read::{ask, id_of};
use crate::model::key::Key;
use crate::model::namespace::Namespace;
use crate::model::side::Side;
use crate::model::slots::{Slot, SlotSet};
use crate::policy::catalog::{Index, SUSPENDED};
use crate::policy::route_key::RouteKey;
use crate::state::inflight::{Ticket, Work};
use crate::state::own_writes::By;
use crate::state::records::{first_batch, write_concern_problem};

const LIMIT: Duration = Duration::from_secs(30);
/// Documents removed by one command.
const BATCH: i32 = 200;
/// Commands of one index on one side in one call; what is left is due the next time too.
const MOST_BATCHES: usize = 500;
/// Documents looked at to find those of one authority.
const LOOK: i32 = 10_000;

/// Suspends the expiry of TTL indexes. Harmless to repeat.
pub(super) async fn suspend(
    cluster: &dyn Commands,
    namespace: &Namespace,
    ttl: &[(String, i64)],
) -> Result<(), String> {
    let suspended: Vec<_> = ttl.iter().map(|(name, _)| (name.clone(), SUSPENDED)).collect();
    set(cluster, namespace, &suspended).await
}

/// Sets the seconds of TTL indexes.
pub(super) async fn set(
    cluster: &dyn Commands,
    namespace: &Namespace,
    ttl: &[(String, i64)],
) -> Result<(), String> {
    for (name, seconds) in ttl {
        let body = rawdoc! {
            "collMod": namespace.collection(),
            "index": { "name": name.as_str(), "expireAfterSeconds": *seconds },
        };
        gone(change(cluster, namespace.database(), body).await)
            .map_err(|error| format!("TTL index {name} of {namespace}: {error}"))?;
    }
    Ok(())
}

/// Removes documents that are due by the saved seconds, each on its authority and only if it still is.
/// Returns how many.
///
/// # Errors
/// In words, why it stopped; what is removed stays removed, the rest is due the next time too.
pub async fn expire_due(ctx: &Context, saved: &[Created]) -> Result<u64, String> {
    let mut removed = 0;
    for created in saved.iter().filter(|created| !created.ttl.is_empty()) {
        let namespace = created.parsed()?;
        for side in Side::BOTH {
            if ctx.route().is_none_or(|route| route.owned_by(side).is_empty()) {
                continue;
            }
            let cluster = &**ctx.clusters.get(side);
            let Some(collection) =
                describe(cluster, &namespace, LIMIT).await.map_err(|error| error.to_string())?
            else {
                continue;
            };
            for (name, seconds) in &created.ttl {
                let mut indexes = collection.indexes.iter();
                if let Some(index) = indexes.find(|index| index.name() == name && index.is_ttl()) {
                    removed += Expiry::new(ctx, side, &namespace, index, *seconds).await?.run().await?;
                }
            }
        }
    }
    Ok(removed)
}

/// A document that is due.
struct Due {
    key: Key,
    slot: Slot,
    /// What holds as long as it lies in that slot.
    condition: Option<RawDocumentBuf>,
}

/// The work on one index on one side.
struct Expiry<'a> {
    ctx: &'a Context,
    side: Side,
    namespace: &'a Namespace,
    index: &'a Index,
    /// What a document must match to be due.
    due: RawDocumentBuf,
}

impl<'a> Expiry<'a> {
    async fn new(
        ctx: &'a Context,
        side: Side,
        namespace: &'a Namespace,
        index: &'a Index,
        seconds: i64,
    ) -> Result<Self, String> {
        let now = server_millis(&**ctx.clusters.get(side)).await?;
        let before = now.saturating_sub(seconds.saturating_mul(1000));
        let due = due(index, DateTime::from_millis(before))?;
        Ok(Self { ctx, side, namespace, index, due })
    }

    async fn run(&self) -> Result<u64, String> {
        let mut removed = 0;
        for _ in 0..MOST_BATCHES {
            let keys = self.find().await?;
            if keys.is_empty() {
                break;
            }
            let now = self.remove(keys).await?;
            removed += now;
            if now == 0 {
                // They have changed, or a fence is open on them.
                break;
            }
        }
        Ok(removed)
    }

    /// Documents that are due and whose authority this side is.
    async fn find(&self) -> Result<Vec<Due>, String> {
        let Some(route) = self.ctx.route() else { return Ok(Vec::new()) };
        let by = route.by(self.namespace);
        let projection = by.field().map_or_else(|| rawdoc! { "_id": 1 }, RouteKey::projection);
        let mut body = rawdoc! {
            "find": self.namespace.collection(), "filter": self.due.clone(), "projection": projection,
            "limit": LOOK, "batchSize": LOOK, "singleBatch": true,
            "readConcern": { "level": "majority" },
        };
        if !self.index.is_hidden() {
            body.append(cstr!("hint"), self.index.name());
        }
        let request = Request::new(self.namespace.database(), body).within(LIMIT);
        let reply = ask(&**self.ctx.clusters.get(self.side), request).await?;
        let found = first_batch(&reply.body)?;
        let due = |document: &RawDocumentBuf| {
            let slot = by.of_document(document)?;
            let condition = by.field().map(|field| field.condition(document));
            Some(Due { key: id_of(document)?, slot, condition })
        };
        let mine = found
            .iter()
            .filter_map(due)
            .filter(|due| route.authority(due.slot) == Some(self.side) && !route.held.contains(due.slot));
        Ok(mine.take(usize::try_from(BATCH).unwrap_or(0)).collect())
    }

    /// Removes those of `keys` that still are due, under the rules of every write to an authority: entered
    /// in the register, by the table, under the lease, and on a session that can be barred.
    async fn remove(&self, all: Vec<Due>) -> Result<u64, String> {
        let ctx = self.ctx;
        let slots: SlotSet = all.iter().map(|due| due.slot).collect();
        let what: Arc<str> = format!("expire {}", self.namespace).into();
        let ticket = ctx.inflight.enter(&ctx.converger.migration, slots, Work::Write, &what);
        let all: Vec<Due> = all.into_iter().filter(|due| self.may(&ticket, due.slot)).collect();
        let keys: Vec<Key> = all.iter().map(|due| due.key.clone()).collect();
        let lease = &ctx.authorities.get(self.side).lease;
        let Some(_under) = lease.begin().filter(|_| !keys.is_empty()) else { return Ok(0) };
        let mut statements = Vec::new();
        for due in &all {
            let mut filter = RawDocumentBuf::new();
            let mut equal = RawDocumentBuf::new();
            equal.append(cstr!("$eq"), due.key.value());
            filter.append(cstr!("_id"), equal);
            let mut both = bson::raw::RawArrayBuf::new();
            both.push(filter);
            both.push(self.due.clone());
            due.condition.iter().for_each(|condition| both.push(condition.clone()));
            let statement =
                rawdoc! { "q": { "$and": both }, "limit": 1, "collation": { "locale": "simple" } };
            statements.extend_from_slice(statement.as_bytes());
        }
        let mut body = rawdoc! {
            "delete": self.namespace.collection(), "ordered": false, "writeConcern": { "w": "majority" },
        };
        let mut session = ctx.sessions.get(self.side).borrow().await?;
        let writing = ctx.converger.own.begin(self.side, self.namespace, &keys, By::MirrorSession);
        session.stamp(&mut body);
        let request = Request::new(self.namespace.database(), body).sequence("deletes", statements);
        let reply = ask(&**ctx.clusters.get(self.side), request.within(LIMIT)).await?;
        session.settled();
        writing.ended(reply.operation_time);
        if let Some(problem) = write_concern_problem(&reply.body) {
            return Err(problem);
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small count")]
        Ok(number(&reply.body, "n").unwrap_or(0.0) as u64)
    }

    /// Whether the table that the ticket goes by lets this side be written in `slot`.
    fn may(&self, ticket: &Ticket, slot: Slot) -> bool {
        let route = ticket.table.route(self.namespace.as_str());
        route.is_some_and(|route| {
            route.authority(slot) == Some(self.side)
                && !route.held.contains(slot)
                && !route.sealed.contains(slot)
        })
    }
}

/// What a TTL index would remove: a date not after `before`, in documents that the index holds.
fn due(index: &Index, before: DateTime) -> Result<RawDocumentBuf, String> {
    let field = bson::raw::CString::try_from(index.first_field()).map_err(|error| error.to_string())?;
    let mut dated = RawDocumentBuf::new();
    dated.append(field, rawdoc! { "$lte": before, "$gte": DateTime::MIN });
    let Ok(partial) = index.spec.get_document("partialFilterExpression") else { return Ok(dated) };
    let partial = raw_of(partial)?;
    let mut both = bson::raw::RawArrayBuf::new();
    both.push(dated);
    both.push(partial);
    Ok(rawdoc! { "$and": both })
}

fn raw_of(document: &Document) -> Result<RawDocumentBuf, String> {
    RawDocumentBuf::try_from(document).map_err(|error| error.to_string())
}

/// The server's own clock, which TTL goes by.
async fn server_millis(cluster: &dyn Commands) -> Result<i64, String> {
    let reply = ask(cluster, Request::new("admin", rawdoc! { "isMaster": 1 }).within(LIMIT)).await?;
    let time = |body: &RawDocument| body.get("localTime").ok().flatten().map(RawBson::from);
    match time(&reply.body) {
        Some(RawBson::DateTime(now)) => Ok(now.timestamp_millis()),
        _ => Err("a server without localTime".to_owned()),
    }
}
