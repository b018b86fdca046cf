//! `getMore` and `killCursors`: to the servers where the cursors live, whatever the route says.

use std::collections::{HashMap, HashSet};

use bson::raw::{RawArrayBuf, RawDocumentBuf};
use bytes::BytesMut;

use crate::cluster::Selection;
use crate::cluster::command::{SendError, ServerId};
use crate::model::side::Side;
use crate::policy::failover::Kind;
use crate::wire::element::{Elements, INT64};
use crate::wire::error::{CURSOR_NOT_FOUND, ErrorReply, HOST_UNREACHABLE};
use crate::wire::op_msg::build;
use crate::wire::reply::overwrite;

use super::cursors::CursorHome;
use super::dispatch::{Dispatch, Replied};
use super::operation::{HOLD_FOLLOWER, Operation};
use super::pipeline::Router;
use super::shapes::is_failure;

/// The lists in a reply to `killCursors`.
const LISTS: [&str; 4] = ["cursorsKilled", "cursorsNotFound", "cursorsAlive", "cursorsUnknown"];
const KILLED: usize = 0;
pub(super) const NOT_FOUND: usize = 1;
pub(super) const UNKNOWN: usize = 3;

impl Router {
    /// Fetches more from a cursor. Returns the cursor's cluster and whether the reply says `ok: 1`.
    pub(super) async fn get_more(
        &self,
        operation: &Operation<'_>,
        reply: &mut BytesMut,
    ) -> (Side, Result<bool, ErrorReply>) {
        let command = &operation.command;
        let id = command.first.as_i64().filter(|_| command.first.kind == INT64);
        let (Some(id), Some(_), Some(_)) = (id, command.collection_field, command.database) else {
            return self.left_to_a_server(operation, reply).await;
        };
        let Some((home, stream)) = self.shared.cursors.find_with_stream(id, self.now()) else {
            return Box::pin(self.get_more_left_open(operation, id, reply)).await;
        };
        let side = home.side;
        let leaving = match stream.map(|stream| self.leaving(id, side, stream)).transpose() {
            Ok(leaving) => leaving.flatten(),
            Err(error) => return (side, Err(error)),
        };
        let awaits = home.awaits;
        let mut result = self.get_more_at(operation, id, home, reply).await;
        if !awaits {
            self.note_besides(operation, side, is_failure(&result, reply));
        }
        if let (Some(stream), Ok(true)) = (leaving, &result) {
            result = self.shown(id, side, stream, reply);
        }
        if result.as_ref().is_err_and(|error| error.code == CURSOR_NOT_FOUND) {
            self.shared.cursors.close(id);
        }
        (side, result)
    }

    /// Fetches more from the cursor that the client knows as `id`. A server that does not have it says so.
    pub(super) async fn get_more_at(
        &self,
        operation: &Operation<'_>,
        id: i64,
        home: CursorHome,
        reply: &mut BytesMut,
    ) -> Result<bool, ErrorReply> {
        let pools = self.pools(home.side)?;
        let mut patch = operation.patch(pools.times());
        if home.id != id {
            patch.replace(operation.command.first.value_range(), home.id.to_le_bytes().to_vec());
        }
        let patched = patch.finish();
        let hold = operation.hold();
        let _turn = match home.awaits {
            true => pools.turn_to_wait(&home.server, hold).await.map_err(all_wait)?,
            false => None,
        };
        let dispatch = Dispatch {
            side: home.side,
            selection: &Selection::Server(home.server),
            kind: operation.kind(),
            hold,
            only_if: None,
            message: operation.message,
            patched: &patched,
        };
        let Replied { fields, .. } = self.send(&dispatch, reply).await?;
        match &fields.cursor {
            Some(cursor) if cursor.value == 0 => self.shared.cursors.close(id),
            Some(cursor) if cursor.value != id => overwrite(reply, &cursor.place, id),
            None if fields.code == CURSOR_NOT_FOUND.0 => self.shared.cursors.close(id),
            _ => {}
        }
        let ok = fields.ok;
        fields.strip(reply);
        Ok(ok)
    }

    /// Kills cursors, wherever each one lives. The reply names the ids that the client knows.
    pub(super) async fn kill_cursors(
        &self,
        operation: &Operation<'_>,
        reply: &mut BytesMut,
    ) -> (Side, Result<bool, ErrorReply>) {
        let command = &operation.command;
        let names = [command.database, command.first.as_str()].into_iter().flatten();
        if !command.names_cursors() || names.filter(|name| !name.is_empty()).count() < 2 {
            return self.left_to_a_server(operation, reply).await;
        }
        let now = self.now();
        let mut lists: [Vec<i64>; 4] = Default::default();
        let ids = operation.command.cursor_ids().map(|(id, _)| id);
        let Named { homes, unknown, again } = Named::sort(ids, |id| self.shared.cursors.find(id, now));
        lists[NOT_FOUND] = again;
        let side = homes.keys().next().map_or(Side::Old, |(side, _)| *side);
        if homes.is_empty() && unknown.is_empty() {
            // Nothing to kill; but a server says what else may be wrong.
            let nothing = HashMap::new();
            if self.kill_at(operation, side, &Selection::Primary, &nothing, &mut lists, reply).await {
                return (side, Ok(false));
            }
        }
        for ((side, server), ids) in homes {
            let at = Selection::Server(server);
            if self.kill_at(operation, side, &at, &ids, &mut lists, reply).await {
                return (side, Ok(false));
            }
        }
        if let Some(side) =
            self.kill_left_open(operation, unknown.into_iter().collect(), &mut lists, reply).await
        {
            return (side, Ok(false));
        }
        // The others may still be there.
        for id in lists[KILLED].iter().chain(&lists[NOT_FOUND]) {
            self.shared.cursors.close(*id);
        }
        in_order(&mut lists, operation);
        reply.clear();
        reply.extend_from_slice(&build(0, operation.request_id(), 0, merged(&lists).as_bytes(), None));
        (side, Ok(true))
    }

    /// What names its cursors in a way that no server takes, is for a server to refuse.
    async fn left_to_a_server(
        &self,
        operation: &Operation<'_>,
        reply: &mut BytesMut,
    ) -> (Side, Result<bool, ErrorReply>) {
        let side = self.side_outside_migrations(operation);
        (side, self.plain(operation, side, reply).await)
    }

    /// Kills the cursors of one server; `ids` maps the server's ids to those of the client. Returns whether the server
    /// refuses the command; its answer is in `reply` then, fit for the client.
    pub(super) async fn kill_at(
        &self,
        operation: &Operation<'_>,
        side: Side,
        selection: &Selection,
        ids: &HashMap<i64, i64>,
        lists: &mut [Vec<i64>; 4],
        reply: &mut BytesMut,
    ) -> bool {
        let (Ok(pools), Some(cursors)) = (self.pools(side), operation.command.cursors) else { return false };
        let mut patch = operation.patch(pools.times());
        patch.replace(cursors.value_range(), array(ids.keys().copied()).as_bytes().to_vec());
        let patched = patch.finish();
        let dispatch = Dispatch {
            side,
            selection,
            kind: Kind::Read,
            hold: HOLD_FOLLOWER,
            only_if: None,
            message: operation.message,
            patched: &patched,
        };
        match self.send(&dispatch, reply).await {
            Ok(replied) if replied.fields.ok => {
                sort_into(lists, &reply[replied.fields.body], ids);
                false
            }
            Ok(replied) => !self.finish(operation, side, replied, reply),
            Err(_) => {
                lists[UNKNOWN].extend(ids.values());
                false
            }
        }
    }
}

/// The cursors that a `killCursors` names. There may be millions.
#[derive(Default)]
struct Named {
    /// By where they live, the ids that the server knows and those of the client.
    homes: HashMap<(Side, ServerId), HashMap<i64, i64>>,
    /// Those that nobody here knows.
    unknown: HashSet<i64>,
    /// Named before: the second time it is not there any more.
    again: Vec<i64>,
}

impl Named {
    fn sort(ids: impl Iterator<Item = i64>, find: impl Fn(i64) -> Option<CursorHome>) -> Self {
        let mut named = Self::default();
        for id in ids {
            let is_new = match find(id) {
                Some(home) => {
                    let ids = named.homes.entry((home.side, home.server)).or_default();
                    ids.insert(home.id, id).is_none()
                }
                None => named.unknown.insert(id),
            };
            if !is_new {
                named.again.push(id);
            }
        }
        named
    }
}

/// The cursor lives on; drivers resume a change stream that meets this.
fn all_wait(busy: SendError) -> ErrorReply {
    ErrorReply::new(HOST_UNREACHABLE, busy.to_string())
}

fn array(ids: impl Iterator<Item = i64>) -> RawArrayBuf {
    let mut array = RawArrayBuf::new();
    ids.for_each(|id| array.push(id));
    array
}

fn sort_into(lists: &mut [Vec<i64>; 4], body: &[u8], ids: &HashMap<i64, i64>) {
    for element in Elements::of(body).into_iter().flatten().flatten() {
        let Some(list) = LISTS.iter().position(|name| name.as_bytes() == element.key) else { continue };
        let named = element.children().into_iter().flatten().flatten().filter_map(|id| id.as_i64());
        lists[list].extend(named.filter_map(|id| ids.get(&id)));
    }
}

/// As the client named them.
fn in_order(lists: &mut [Vec<i64>; 4], operation: &Operation<'_>) {
    if lists.iter().all(|list| list.len() < 2) {
        return;
    }
    let mut places = HashMap::new();
    for (place, (id, _)) in operation.command.cursor_ids().enumerate() {
        places.entry(id).or_insert(place);
    }
    lists.iter_mut().for_each(|list| list.sort_by_key(|id| places.get(id).copied()));
}

fn merged(lists: &[Vec<i64>; 4]) -> RawDocumentBuf {
    let list = |list: usize| array(lists[list].iter().copied());
    bson::rawdoc! {
        "cursorsKilled": list(KILLED),
        "cursorsNotFound": list(NOT_FOUND),
        "cursorsAlive": list(2),
        "cursorsUnknown": list(UNKNOWN),
        "ok": 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_cursors_as_a_message_can_name_are_sorted() {
        const MANY: i64 = 500_000;
        let at_home =
            |id: i64| CursorHome { side: Side::New, server: "a:1".into(), id: id + 7, awaits: false };
        let find = |id: i64| (id % 2 == 0).then(|| at_home(id));
        let Named { homes, unknown, again } = Named::sort((0..MANY).chain(0..MANY), find);
        let ids = &homes[&(Side::New, "a:1".into())];
        let half = usize::try_from(MANY / 2).unwrap();
        assert_eq!((homes.len(), ids.len(), unknown.len()), (1, half, half));
        assert_eq!((ids.get(&(4 + 7)), unknown.contains(&5)), (Some(&4), true));
        assert!(again.iter().copied().eq(0..MANY), "the second time it is not there any more");
    }

    #[test]
    fn a_reply_is_told_in_the_clients_ids() {
        let ids = HashMap::from([(7, 70), (8, 80)]);
        let body = bson::rawdoc! {
            "cursorsKilled": [7_i64], "cursorsNotFound": [8_i64], "cursorsAlive": [], "cursorsUnknown": [], "ok": 1.0,
        };
        let mut lists: [Vec<i64>; 4] = Default::default();
        lists[NOT_FOUND].push(5);
        sort_into(&mut lists, body.as_bytes(), &ids);
        assert_eq!(lists, [vec![70], vec![5, 80], vec![], vec![]]);
        assert!(merged(&lists).get_array("cursorsKilled").is_ok());
    }
}
