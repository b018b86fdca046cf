//! Change streams of applications: opened on the cluster that serves them, and ended there once another one does.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bson::spec::BinarySubtype;
use bson::{Binary, RawDocument, Timestamp, rawdoc};
use bytes::BytesMut;

use super::cursors::Stream;
use super::operation::Operation;
use super::pipeline::Router;
use super::writer::Writer;
use crate::cluster::command::Request;
use crate::converge::read::ask;
use crate::model::side::{PerSide, Side};
use crate::policy::streams::{
    Beginning, Token, Watched, home, may_begin, moved_at, token_collection, token_time,
};
use crate::state::table::{MigrationRoute, RoutingTable};
use crate::wire::element::Elements;
use crate::wire::error::{CHANGE_STREAM_FATAL, ErrorReply, NOT_NOW};
use crate::wire::reply::ReplyFields;
use crate::wire::scan::find;

/// How long a cluster may take to tell of its collections.
const LOOK: Duration = Duration::from_secs(2);

/// Who serves a change stream.
struct Serving {
    side: Side,
    /// The migration that decides about it.
    route: Option<Arc<MigrationRoute>>,
}

impl Serving {
    /// The times of the move that made it serve.
    fn since(&self) -> Option<PerSide<Timestamp>> {
        let route = self.route.as_ref()?;
        moved_at(self.side, &route.owned_by_new, &route.moves)
    }
}

impl Router {
    /// What an operation watches that opens a change stream; `None`: it opens none.
    pub(super) fn watched(&self, operation: &Operation<'_>) -> Option<Watched> {
        let command = &operation.command;
        self.writer.as_ref().and(command.pipeline)?;
        let body = RawDocument::from_bytes(&operation.message[operation.parts.body.clone()]).ok()?;
        Watched::by(command.database?, command.collection(), body)
    }

    /// Opens a change stream of an application, where it is served.
    pub(super) async fn open_stream(
        &self,
        operation: &Operation<'_>,
        watched: Watched,
        reply: &mut BytesMut,
    ) -> (Side, Result<bool, ErrorReply>) {
        let side = match self.side_of_stream(operation, &watched).await {
            Ok(side) => side,
            Err(error) => return (Side::Old, Err(error)),
        };
        let opened = self.plain(operation, side, reply).await;
        if matches!(opened, Ok(true))
            && let Some(cursor) = ReplyFields::scan(reply).ok().and_then(|fields| fields.cursor)
        {
            let stream = Stream { watched, until: None, ended: false };
            self.shared.cursors.note_stream(cursor.value, stream);
        }
        (side, opened)
    }

    /// The cluster for a stream that is to open; not where it asks to begin by what may be the other's time.
    async fn side_of_stream(&self, operation: &Operation<'_>, watched: &Watched) -> Result<Side, ErrorReply> {
        let Some(writer) = &self.writer else { return Ok(Side::Old) };
        let serving = serving(&writer.gate.routing.peek(), watched)?;
        let Some(since) = serving.since() else { return Ok(serving.side) };
        let body = RawDocument::from_bytes(&operation.message[operation.parts.body.clone()]);
        let beginning = body.map_or(Beginning::Now, Beginning::of);
        let foreign = match (beginning, operation.command.database) {
            (Beginning::Token(Token { collection: Some(collection), .. }), Some(database)) => {
                // Where the other cluster cannot be asked, times alone tell.
                is_there(writer, serving.side.other(), database, collection).await
            }
            _ => None,
        };
        if foreign.unwrap_or_else(|| !may_begin(beginning, &since, serving.side)) {
            return Err(elsewhere(watched, serving.side, Some(&since)));
        }
        Ok(serving.side)
    }

    /// How the change stream `id` stands that lives on `side`, before more of it is fetched; `None`: it goes on.
    ///
    /// # Errors
    /// The error to answer with: it has ended.
    pub(super) fn leaving(
        &self,
        id: i64,
        side: Side,
        mut stream: Stream,
    ) -> Result<Option<Stream>, ErrorReply> {
        let Some(writer) = &self.writer else { return Ok(None) };
        let serving = serving(&writer.gate.routing.peek(), &stream.watched);
        if serving.as_ref().is_ok_and(|serving| serving.side == side) {
            return Ok(None);
        }
        let since = serving.as_ref().ok().and_then(Serving::since);
        if stream.ended {
            return Err(serving
                .err()
                .unwrap_or_else(|| elsewhere(&stream.watched, side.other(), since.as_ref())));
        }
        if stream.until.is_none() {
            stream.until = self.shown_until(writer, side, serving.ok().as_ref());
            self.shared.cursors.note_stream(id, stream.clone());
        }
        Ok(Some(stream))
    }

    /// Up to when a stream on `side` must be shown before it may end: what others wrote before the move has come
    /// here by then. `None`: not known yet.
    fn shown_until(&self, writer: &Writer, side: Side, serving: Option<&Serving>) -> Option<Timestamp> {
        let newest = self
            .pools(side)
            .map_or(Timestamp { time: 0, increment: 0 }, |pools| pools.cluster().gossip().newest());
        let (Some(route), Some(since)) =
            (serving.and_then(|it| it.route.as_ref()), serving.and_then(Serving::since))
        else {
            return Some(newest);
        };
        let active = writer.gate.registry.get(&route.name);
        let other = side.other();
        let has_come = active.is_none_or(|active| active.frontiers.get(other).has_passed(*since.get(other)));
        has_come.then(|| newest.max(*since.get(side)))
    }

    /// More of the change stream `id` has been fetched from `side` into `reply`, while another cluster serves it.
    ///
    /// # Errors
    /// The error to answer with: that was all.
    pub(super) fn shown(
        &self,
        id: i64,
        side: Side,
        mut stream: Stream,
        reply: &mut BytesMut,
    ) -> Result<bool, ErrorReply> {
        let Some(writer) = &self.writer else { return Ok(true) };
        let Some(batch) = Batch::of(reply) else { return Ok(true) };
        let serving = serving(&writer.gate.routing.peek(), &stream.watched);
        let since = serving.as_ref().ok().and_then(Serving::since);
        if stream.until.is_some_and(|until| batch.position >= until) {
            stream.ended = true;
            self.shared.cursors.note_stream(id, stream.clone());
            if batch.is_empty {
                return Err(serving
                    .err()
                    .unwrap_or_else(|| elsewhere(&stream.watched, side.other(), since.as_ref())));
            }
        }
        // A token that stands for a time alone does not show whose time it is: clients get none after the move.
        if let (Some(since), true) = (since, batch.is_time) {
            put_time(&mut reply[batch.time], batch.position.min(*since.get(side)));
        }
        Ok(true)
    }
}

/// Change streams that a process before this one left open.
impl Router {
    /// What the cursor watches that `operation` has fetched `reply` from; `None`: it is no change stream.
    pub(super) fn watched_by_cursor(operation: &Operation<'_>, reply: &[u8]) -> Option<Watched> {
        let command = &operation.command;
        Batch::of(reply)?;
        Some(Watched::by_name(command.database?, command.collection_field?))
    }

    /// Goes on with the change stream `id` on `side`, of which `reply` was fetched.
    ///
    /// # Errors
    /// The error to answer with: another cluster serves it by now, and that was all.
    pub(super) fn take_up_stream(
        &self,
        id: i64,
        side: Side,
        watched: Watched,
        reply: &mut BytesMut,
    ) -> Result<bool, ErrorReply> {
        let stream = Stream { watched, until: None, ended: false };
        self.shared.cursors.note_stream(id, stream.clone());
        match self.leaving(id, side, stream)? {
            Some(stream) => self.shown(id, side, stream, reply),
            None => Ok(true),
        }
    }
}

/// A batch of a change stream, as far as it shows where the stream stands.
struct Batch {
    position: Timestamp,
    /// The digits of `position` in the reply.
    time: Range<usize>,
    /// The token stands for no event.
    is_time: bool,
    is_empty: bool,
}

impl Batch {
    fn of(reply: &[u8]) -> Option<Self> {
        let fields = ReplyFields::scan(reply).ok()?;
        let mut elements = Elements::within(reply, fields.body).ok()?.flatten();
        let cursor = elements.find(|element| element.key == b"cursor")?;
        let token = find(cursor, b"postBatchResumeToken")?;
        let digits = find(token, b"_data")?.value_range().start + LENGTH + TYPE;
        let token = RawDocument::from_bytes(token.value()).ok()?;
        Some(Self {
            position: token_time(token)?,
            time: digits..digits + DIGITS,
            is_time: token_collection(token).is_none(),
            is_empty: find(cursor, b"nextBatch")?.children()?.next().is_none(),
        })
    }
}

/// Before a string.
const LENGTH: usize = 4;
/// The digits of the type, before those of the time.
const TYPE: usize = 2;
const DIGITS: usize = 16;

fn put_time(digits: &mut [u8], time: Timestamp) {
    let text = format!("{:08X}{:08X}", time.time, time.increment);
    digits.copy_from_slice(text.as_bytes());
}

/// Whether `side` has a collection of this UUID; `None`: it does not say.
async fn is_there(writer: &Writer, side: Side, database: &str, collection: [u8; 16]) -> Option<bool> {
    let uuid = Binary { subtype: BinarySubtype::Uuid, bytes: collection.to_vec() };
    let body = rawdoc! { "listCollections": 1, "filter": { "info.uuid": uuid }, "cursor": {} };
    let reply = ask(&**writer.own.get(side), Request::new(database, body).within(LOOK)).await.ok()?;
    let batch = reply.body.get_document("cursor").ok()?.get_array("firstBatch").ok()?;
    Some(batch.into_iter().next().is_some())
}

fn home_of(route: &MigrationRoute) -> Side {
    home(&route.owned_by_old, &route.owned_by_new, route.unread)
}

fn serving(table: &RoutingTable, watched: &Watched) -> Result<Serving, ErrorReply> {
    let by = |route: &Arc<MigrationRoute>| Serving { side: home_of(route), route: Some(route.clone()) };
    let concerned = |database: Option<&str>| -> Vec<&Arc<MigrationRoute>> {
        let is_it = |name: &str| database.is_none_or(|database| database == name);
        let named = table.routes.iter().filter(|(namespace, _)| is_it(namespace.database()));
        let awaited =
            table.patterned.iter().filter(|route| route.patterns.iter().any(|it| is_it(it.database())));
        named.map(|(_, route)| route).chain(awaited).collect()
    };
    let several = match watched {
        Watched::Collection(namespace) => {
            let name = namespace.as_str();
            let route = table.route(name).or_else(|| table.awaiting(name));
            return Ok(route.map_or(Serving { side: Side::Old, route: None }, by));
        }
        Watched::Database(database) => concerned(Some(database)),
        Watched::Everything => concerned(None),
    };
    let moved = several.iter().copied().find(|route| home_of(route) == Side::New);
    let Some(moved) = moved else {
        // Of those that have come back, the last.
        let last = several.into_iter().max_by_key(|route| by(route).since().map(|since| since.old));
        return Ok(last.map_or(Serving { side: Side::Old, route: None }, by));
    };
    match watched {
        Watched::Database(database) if moved.patterns.iter().any(|it| it.names_all_of(database)) => {
            Ok(by(moved))
        }
        _ => Err(ErrorReply::new(
            NOT_NOW,
            format!(
                "change streams of {watched} would show one cluster alone, and collections of migration {} have moved to \
                 new while others are on old: watch collections one by one",
                moved.name
            ),
        )),
    }
}

/// It begins, or goes on, on another cluster only.
fn elsewhere(watched: &Watched, side: Side, since: Option<&PerSide<Timestamp>>) -> ErrorReply {
    let from = since.map_or_else(String::new, |since| {
        let Timestamp { time, increment } = since.get(side);
        format!(", or, to miss nothing, with startAtOperationTime: Timestamp({time}, {increment}), the time of the move there")
    });
    ErrorReply::new(
        CHANGE_STREAM_FATAL,
        format!(
            "change streams of {watched} are served by {side} now, where resume tokens and times of {} mean nothing: open it \
             anew without one{from}",
            side.other()
        ),
    )
}
