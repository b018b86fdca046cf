//! Cursors that this process has not opened: one that ran before it may have left them open. They live on at their
//! servers, so that an application which has read the half of one reads the other half after a restart. A server that
//! does not have one says so and does nothing else.

use std::collections::HashMap;

use bytes::BytesMut;

use super::cursors::CursorHome;
use super::followers::{NOT_FOUND, UNKNOWN};
use super::operation::Operation;
use super::pipeline::Router;
use crate::cluster::command::ServerId;
use crate::cluster::{Role, Selection};
use crate::model::side::Side;
use crate::wire::error::{CURSOR_NOT_FOUND, ErrorReply};
use crate::wire::reply::ReplyFields;

impl Router {
    /// Fetches more from a cursor that nobody here knows, from the first server that has it.
    pub(super) async fn get_more_left_open(
        &self,
        operation: &Operation<'_>,
        id: i64,
        reply: &mut BytesMut,
    ) -> (Side, Result<bool, ErrorReply>) {
        let nowhere = || ErrorReply::new(CURSOR_NOT_FOUND, format!("cursor id {id} not found"));
        let mut last = (Side::Old, Err(nowhere()));
        if operation.command.in_transaction() {
            // It is bound to a server, and another one would say that there is no such transaction.
            return last;
        }
        let mut unasked = None;
        // A time is given to those cursors alone that wait for what is yet to come.
        let awaits = operation.command.max_time_ms.is_some();
        for (side, server) in self.may_have_left_open() {
            let home = CursorHome { side, server, id, awaits };
            let result = self.get_more_at(operation, id, home.clone(), reply).await;
            match &result {
                Ok(true) => return (side, self.take_up(operation, home, reply)),
                Ok(false) if is_not_found(reply) => last = (side, result),
                Ok(false) => return (side, result),
                Err(error) if error.code == CURSOR_NOT_FOUND => last = (side, Err(nowhere())),
                Err(_) => unasked = Some((side, result)),
            }
        }
        unasked.unwrap_or(last)
    }

    /// Remembers where a cursor lives that was found; `reply` has what came of it.
    fn take_up(
        &self,
        operation: &Operation<'_>,
        mut home: CursorHome,
        reply: &mut BytesMut,
    ) -> Result<bool, ErrorReply> {
        self.shared.meters.cursor_taken_up();
        let (id, side) = (home.id, home.side);
        let lives =
            ReplyFields::scan(reply).ok().and_then(|fields| fields.cursor).is_some_and(|it| it.value == id);
        if !lives {
            return Ok(true);
        }
        let watched = Self::watched_by_cursor(operation, reply);
        home.awaits |= watched.is_some();
        self.shared.cursors.open(home, self.now());
        watched.map_or(Ok(true), |watched| self.take_up_stream(id, side, watched, reply))
    }

    /// Kills cursors that nobody here knows, wherever they are. Returns whether a server refuses the command; its answer
    /// is in `reply` then.
    pub(super) async fn kill_left_open(
        &self,
        operation: &Operation<'_>,
        mut ids: Vec<i64>,
        lists: &mut [Vec<i64>; 4],
        reply: &mut BytesMut,
    ) -> Option<Side> {
        for (side, server) in self.may_have_left_open() {
            if ids.is_empty() {
                break;
            }
            let asked: HashMap<i64, i64> = ids.drain(..).map(|id| (id, id)).collect();
            let mut theirs: [Vec<i64>; 4] = Default::default();
            let at = Selection::Server(server);
            if self.kill_at(operation, side, &at, &asked, &mut theirs, reply).await {
                return Some(side);
            }
            for (list, theirs) in theirs.into_iter().enumerate() {
                if matches!(list, NOT_FOUND | UNKNOWN) {
                    ids.extend(theirs)
                } else {
                    lists[list].extend(theirs)
                }
            }
        }
        lists[NOT_FOUND].extend(ids);
        None
    }

    /// All servers of both clusters that may have a cursor; first those where most are.
    fn may_have_left_open(&self) -> Vec<(Side, ServerId)> {
        let mut servers = Vec::new();
        for side in Side::BOTH {
            let Ok(pools) = self.pools(side) else { continue };
            let topology = pools.cluster().topology();
            let able = topology.servers.iter().filter(|server| server.role.takes_operations());
            servers.extend(able.map(|server| (server.role == Role::Secondary, side, server.address.clone())));
        }
        servers.sort_by_key(|(is_secondary, ..)| *is_secondary);
        servers.into_iter().map(|(_, side, server)| (side, server)).collect()
    }
}

fn is_not_found(reply: &BytesMut) -> bool {
    ReplyFields::scan(reply).is_ok_and(|fields| fields.code == CURSOR_NOT_FOUND.0)
}
