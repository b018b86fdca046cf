//! The data plane's way through a migration: which operations it concerns, and what happens to each.

use bson::{RawDocument, oid::ObjectId};
use bytes::BytesMut;

use super::both_sides::BothSides;
use super::entry::not_sent;
use super::expiry::Expiring;
use super::operation::Operation;
use super::pipeline::Router;
use super::reading::side_of_read;
use super::writer::{HOLD, Writer, Written};
use crate::model::namespace::Namespace;
use crate::model::side::Side;
use crate::model::slots::SlotSet;
use crate::policy::classify::{Class, is_about_users};
use crate::policy::ddl::Touched;
use crate::policy::writes::{Verb, WriteCommand};
use crate::state::ddl::UnderWay;
use crate::state::inflight::Work;
use crate::state::table::MigrationRoute;
use crate::wire::error::{ErrorReply, NOT_NOW};
use crate::wire::op_msg::build;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Commands that a namespace must not see while it moves.
const REFUSED_DDL: [&str; 18] = [
    // Change streams do not tell of what it changes.
    "applyOps",
    "drop",
    "renameCollection",
    "convertToCapped",
    "cloneCollectionAsCapped",
    "dropDatabase",
    "shardCollection",
    "shardcollection",
    "reshardCollection",
    "refineCollectionShardKey",
    "moveCollection",
    "unshardCollection",
    "compactStructuredEncryptionData",
    "movePrimary",
    "moveprimary",
    // They live beside the servers, and one cluster may have no place for them.
    "createSearchIndexes",
    "updateSearchIndex",
    "dropSearchIndex",
];

/// Commands that both clusters get.
const ON_BOTH: [&str; 4] = ["createIndexes", "dropIndexes", "deleteIndexes", "collMod"];

/// Commands that name a collection by its full name. Those that are not refused go to its authority.
const BY_FULL_NAME: [&str; 13] = [
    "renameCollection",
    "shardCollection",
    "shardcollection",
    "reshardCollection",
    "refineCollectionShardKey",
    "moveCollection",
    "unshardCollection",
    "moveChunk",
    "movechunk",
    "moveRange",
    "split",
    "mergeChunks",
    "clearJumboFlag",
];

/// What becomes of an operation on a migrating namespace.
pub(super) enum Course {
    /// Forwarded as it is, to this cluster.
    Plain(Side),
    /// Answered; the reply is in the buffer. Whether it says `ok: 1`.
    Answered(Side, bool),
}

impl Router {
    /// The route of the operation's namespace, if it migrates. One atomic load when nothing does.
    pub(super) fn migration_of(&self, operation: &Operation<'_>) -> Option<Arc<MigrationRoute>> {
        let writer = self.writer.as_ref()?;
        let table = writer.gate.routing.peek();
        if table.routes.is_empty() {
            return None;
        }
        let (database, collection) = (operation.command.database?, collection(operation));
        if pulls_away(operation) {
            let concerned =
                || table.routes.iter().filter(|(namespace, route)| concerns(operation, namespace, route));
            // One that runs decides, whatever else has been completed in the same database.
            let runs = concerned().map(|(_, route)| route).find(|route| !route.phase.is_over());
            let runs = runs.or_else(|| table.patterned.iter().find(|route| would_concern(operation, route)));
            let over = || concerned().next().map(|(_, route)| route);
            // What a completed migration's pattern names.
            let named = || table.route(&namespace_of(operation)?);
            return runs.or_else(over).or_else(named).cloned();
        }
        let mut name = String::with_capacity(database.len() + 1 + collection?.len());
        name.push_str(database);
        name.push('.');
        name.push_str(collection?);
        table.route(&name).cloned()
    }

    /// A change of collections or indexes, from before it is looked up whether they migrate until there is an
    /// answer; `None`: it is none.
    ///
    /// # Errors
    /// The error to answer with: it has waited too long for a start.
    pub(super) async fn change(&self, operation: &Operation<'_>) -> Result<Option<UnderWay>, ErrorReply> {
        let name = operation.command.name;
        let Some(writer) = &self.writer else { return Ok(None) };
        if !(REFUSED_DDL.contains(&name) || ON_BOTH.contains(&name)) {
            return Ok(None);
        }
        let Some(touched) = touched(operation) else { return Ok(None) };
        let what: Arc<str> = format!("{name} on {}", super::transacting::name_of(operation)).into();
        let hold = operation.hold().min(HOLD);
        let entered = writer.gate.registry.ddl.enter(&touched, &what, &*self.shared.clock, hold).await;
        entered.map(Some).map_err(|why| {
            not_sent(format!(
                "{what} would reach one cluster alone now: {why}; nothing has changed, try again"
            ))
        })
    }

    /// Runs an operation outside transactions whose namespace `route` routes.
    pub(super) async fn through_migration(
        &self,
        operation: &Operation<'_>,
        route: &MigrationRoute,
        reply: &mut BytesMut,
    ) -> Result<Course, ErrorReply> {
        let Some(writer) = &self.writer else { return Ok(Course::Plain(Side::Old)) };
        let authority = route.sole_authority();
        match operation.class {
            Class::Write => write(writer, operation, route, reply).await,
            Class::Read => {
                let chosen = side_of_read(&writer.gate, operation, route).await?;
                match chosen.otherwise {
                    None => Ok(Course::Plain(chosen.side)),
                    Some((authority, active)) => {
                        self.read_on_mirror(operation, chosen.side, authority, &active, reply).await
                    }
                }
            }
            _ if pulls_away(operation) && !route.phase.is_over() => self.ddl(operation, route, reply).await,
            Class::PipelineWrite => match authority {
                Some(side) => Ok(Course::Plain(side)),
                None => Err(ErrorReply::new(
                    NOT_NOW,
                    "$out, $merge and mapReduce cannot run while writes are divided",
                )),
            },
            _ => Ok(Course::Plain(authority.unwrap_or(Side::Old))),
        }
    }

    /// Indexes and `collMod` go to both sides; what would pull the collection away is refused.
    async fn ddl(
        &self,
        operation: &Operation<'_>,
        route: &MigrationRoute,
        reply: &mut BytesMut,
    ) -> Result<Course, ErrorReply> {
        let name = operation.command.name;
        if REFUSED_DDL.contains(&name) {
            let what = match name {
                "movePrimary" | "moveprimary" => "collections of this database that are not sharded",
                "dropDatabase" => "collections of this database",
                "applyOps" => "collections, whose change streams do not tell of it",
                _ => "this collection",
            };
            return Err(ErrorReply::new(
                NOT_NOW,
                format!(
                    "{name} cannot run while migration {} moves {what}; complete or abort it first",
                    route.name
                ),
            ));
        }
        // Under way like a write: a move waits for it, and it goes by what holds after a move.
        let entered = match (&self.writer, namespace_of(operation)) {
            (Some(writer), Some(namespace)) => {
                let what: Arc<str> = format!("{name} on {namespace}").into();
                writer
                    .gate
                    .enter(&namespace, SlotSet::ALL, Work::Write, &what, operation.hold().min(HOLD))
                    .await?
            }
            _ => None,
        };
        let route = entered.as_ref().map_or(route, |entered| &*entered.route);
        if makes_unique(operation) {
            if route.sole_authority().is_none() && route.mirrors() {
                return Err(ErrorReply::new(
                    NOT_NOW,
                    "a unique index cannot be made while writes are divided: each cluster could have accepted one \
                     value for another document; move all writes to one of them first",
                ));
            }
            if let Some(active) = entered.as_ref().and_then(|entered| entered.active.as_ref()) {
                active.counters.unique_indexes.fetch_add(1, Ordering::Relaxed);
            }
        }
        let first = route.sole_authority().unwrap_or(Side::Old);
        let active = entered.as_ref().and_then(|entered| entered.active.as_ref());
        let namespace = namespace_of(operation).as_deref().and_then(Namespace::parse);
        let (true, true, Some(active), Some(namespace), Some(writer)) =
            (route.mirrors(), ON_BOTH.contains(&name), active, namespace, &self.writer)
        else {
            let ok = self.plain(operation, first, reply).await?;
            return Ok(Course::Answered(first, ok));
        };
        if let Some(expiring) = Expiring::of(operation)? {
            return self.set_expiry(operation, active, first, expiring, reply).await;
        }
        let both = BothSides { router: self, writer, active, namespace: &namespace, authority: first };
        both.run(operation, reply).await.course(first)
    }
}

/// The collection that an operation is about; of an `explain`, that of the explained command. A user may have the
/// name of one.
fn collection<'a>(operation: &Operation<'a>) -> Option<&'a str> {
    if is_about_users(operation.command.name) {
        return None;
    }
    if operation.class != Class::Explain {
        return operation.command.collection();
    }
    operation.command.first.children()?.next()?.ok()?.as_str()
}

pub(super) fn namespace_of(operation: &Operation<'_>) -> Option<String> {
    let command = &operation.command;
    Some(format!("{}.{}", command.database?, command.collection()?))
}

/// What a change of collections concerns.
fn touched(operation: &Operation<'_>) -> Option<Touched> {
    let command = &operation.command;
    match command.name {
        "dropDatabase" => Some(Touched::Database(command.database?.to_owned())),
        "movePrimary" | "moveprimary" => Some(Touched::Database(command.first.as_str()?.to_owned())),
        name if BY_FULL_NAME.contains(&name) => {
            let body = RawDocument::from_bytes(&operation.message[operation.parts.body.clone()]).ok()?;
            let names = [command.collection(), body.get_str("to").ok()].into_iter().flatten();
            Some(Touched::Collections(names.filter_map(Namespace::parse).collect()))
        }
        _ => Some(Touched::Collections(vec![Namespace::parse(&namespace_of(operation)?)?])),
    }
}

/// Whether it makes an index unique.
fn makes_unique(operation: &Operation<'_>) -> bool {
    let Ok(body) = RawDocument::from_bytes(&operation.message[operation.parts.body.clone()]) else {
        return false;
    };
    let is_unique = |index: &RawDocument| {
        ["unique", "prepareUnique"].into_iter().any(|name| index.get_bool(name).unwrap_or(false))
    };
    if let Ok(index) = body.get_document("index") {
        return is_unique(index);
    }
    let indexes = body.get_array("indexes").into_iter().flatten().flatten();
    indexes.filter_map(|index| index.as_document()).any(is_unique)
}

/// Whether it changes collections, or where they lie.
fn pulls_away(operation: &Operation<'_>) -> bool {
    let name = operation.command.name;
    operation.class == Class::Ddl && !is_about_users(name)
        || REFUSED_DDL.contains(&name)
        || BY_FULL_NAME.contains(&name)
}

/// Whether a change of collections concerns `namespace`, routed by `route`.
fn concerns(operation: &Operation<'_>, namespace: &Namespace, route: &MigrationRoute) -> bool {
    let command = &operation.command;
    let Some(database) = command.database else { return false };
    match command.name {
        "applyOps" => true,
        "dropDatabase" => database == namespace.database(),
        // It goes to old, and takes along what is not sharded there.
        "movePrimary" | "moveprimary" => {
            command.first.as_str() == Some(namespace.database())
                && !route.shard_keys.old.contains_key(namespace)
        }
        name if BY_FULL_NAME.contains(&name) => {
            let body = RawDocument::from_bytes(&operation.message[operation.parts.body.clone()]).ok();
            let to = body.and_then(|body| body.get_str("to").ok());
            command.collection() == Some(namespace.as_str()) || to == Some(namespace.as_str())
        }
        _ => database == namespace.database() && command.collection() == Some(namespace.collection()),
    }
}

/// Whether it would make a collection, past all that has to be done for it, that a pattern of `route` names,
/// or drop all there are.
fn would_concern(operation: &Operation<'_>, route: &MigrationRoute) -> bool {
    let command = &operation.command;
    let named = |name: Option<&str>| {
        let name = name.and_then(|name| name.split_once('.'));
        name.is_some_and(|(database, collection)| route.names(database, collection))
    };
    if route.phase.is_over() || !REFUSED_DDL.contains(&command.name) {
        return false;
    }
    if command.name == "applyOps" {
        return !route.patterns.is_empty();
    }
    if command.name == "dropDatabase" {
        return route.patterns.iter().any(|pattern| Some(pattern.database()) == command.database);
    }
    let body = RawDocument::from_bytes(&operation.message[operation.parts.body.clone()]).ok();
    let to = body.and_then(|body| body.get_str("to").ok());
    BY_FULL_NAME.contains(&command.name) && (named(command.collection()) || named(to))
}

async fn write(
    writer: &Writer,
    operation: &Operation<'_>,
    route: &MigrationRoute,
    reply: &mut BytesMut,
) -> Result<Course, ErrorReply> {
    let plain = || Course::Plain(route.sole_authority().unwrap_or(Side::Old));
    let Some(command) = understand(operation) else { return Ok(plain()) };
    let Some(Written { mut body, operation_time }) =
        writer.write(&command, route.by(&command.namespace)).await?
    else {
        return Ok(plain());
    };
    if let Some(time) = operation_time {
        body.append(bson::cstr!("operationTime"), time);
    }
    let ok = crate::cluster::command::ServerError::of(&body).is_none();
    reply.clear();
    reply.extend_from_slice(&build(0, operation.request_id(), 0, body.as_bytes(), None));
    Ok(Course::Answered(route.sole_authority().unwrap_or(Side::Old), ok))
}

fn understand(operation: &Operation<'_>) -> Option<WriteCommand> {
    let command = &operation.command;
    let verb = Verb::of(command.name)?;
    let namespace = Namespace::new(command.database?, command.collection()?);
    let body = RawDocument::from_bytes(&operation.message[operation.parts.body.clone()]).ok()?;
    let named = |identifier: &std::ops::Range<usize>| Some(&operation.message[identifier.clone()]);
    let sequence = match operation.parts.sequences.as_slice() {
        [] => None,
        [one] if named(&one.identifier) == verb.array().map(str::as_bytes) => Some(one),
        // Not its own: a server refuses it.
        _ => return None,
    };
    let sequence = sequence.map(|sequence| &operation.message[sequence.documents.clone()]);
    WriteCommand::parse(namespace, verb, body, sequence, ObjectId::new).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    #[test]
    fn a_user_is_no_collection() {
        let about = |name: &str| {
            let mut body = bson::RawDocumentBuf::new();
            body.append(bson::raw::CString::try_from(name).unwrap(), "orders");
            let message = build(1, 0, 0, body.as_bytes(), None);
            let operation = Operation::parse(&message, 1).unwrap();
            (pulls_away(&operation), collection(&operation).is_some())
        };
        for name in ["createUser", "dropUser", "grantRolesToUser", "createRole", "usersInfo"] {
            assert_eq!(about(name), (false, false), "{name}");
        }
        assert_eq!(about("drop"), (true, true));
        assert_eq!(about("find"), (false, true));
        let explained = rawdoc! { "explain": { "find": "orders" } };
        let message = build(1, 0, 0, explained.as_bytes(), None);
        assert_eq!(collection(&Operation::parse(&message, 1).unwrap()), Some("orders"));
    }
}
