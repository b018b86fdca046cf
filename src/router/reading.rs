//! Reads of migrating namespaces: choosing the cluster, and waiting until it may answer.

use std::sync::Arc;
use std::time::Duration;

use bson::RawDocument;
use bytes::BytesMut;

use super::entry::Gate;
use super::migrating::Course;
use super::operation::Operation;
use super::pipeline::Router;
use super::shapes::is_failure;
use crate::clock::timeout;
use crate::converge::active::Active;
use crate::model::side::Side;
use crate::model::slots::SlotSet;
use crate::policy::failover::is_lost_behind;
use crate::policy::reads::{Ask, Ownership, Plan, joins, plan, slot_of_read};
use crate::policy::route_key::By;
use crate::state::table::MigrationRoute;
use crate::wire::error::{AUTHENTICATION_FAILED, ErrorReply, HOST_UNREACHABLE, NOT_NOW};
use crate::wire::reply::ReplyFields;

/// How long a read that meets documents of both authorities waits for the mirror to be current.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(10);
/// A mirror that has not answered a read after this is taken for hung.
const SLOW_READ: Duration = Duration::from_secs(10);

/// Where a read goes.
pub struct Chosen {
    /// The cluster.
    pub side: Side,
    /// The authority to fall back on, when `side` is its mirror and does not answer.
    pub otherwise: Option<(Side, Arc<Active>)>,
}

impl Router {
    /// Reads where the cluster is a mirror; when it does not answer in time, the authority does.
    pub(super) async fn read_on_mirror(
        &self,
        operation: &Operation<'_>,
        mirror: Side,
        authority: Side,
        active: &Active,
        reply: &mut BytesMut,
    ) -> Result<Course, ErrorReply> {
        let begun = self.shared.clock.now();
        let read = self.plain_within(operation, mirror, active.mirror_timeout, reply);
        let read = timeout(&*self.shared.clock, SLOW_READ, read).await;
        // A user who is not known there says nothing about the cluster.
        let is_stranger = matches!(&read, Ok(Err(error)) if error.code == AUTHENTICATION_FAILED);
        let answered = is_stranger || matches!(read, Ok(Ok(_)));
        active.breakers.get(mirror).note(answered, self.shared.clock.now());
        let failed = read.as_ref().map_or(true, |read| is_failure(read, reply));
        self.note_read_of(operation, active, mirror, begun, failed);
        match read {
            Ok(Ok(ok)) if ok || !lost_somebody(reply) => Ok(Course::Answered(mirror, ok)),
            _ => Ok(Course::Plain(authority)),
        }
    }
}

/// Whether the mirror's answer is that it could not reach a part of itself. A driver would ask once more, and might
/// then meet the same failure on the authority: its one repetition is for the cluster that counts.
fn lost_somebody(reply: &BytesMut) -> bool {
    ReplyFields::scan(reply).is_ok_and(|fields| is_lost_behind(fields.code))
}

/// The cluster for a read of a namespace that `route` routes.
///
/// # Errors
/// The error to answer with: it needs one authority and there are two, or no cluster is current in time.
pub async fn side_of_read(
    gate: &Gate,
    operation: &Operation<'_>,
    route: &MigrationRoute,
) -> Result<Chosen, ErrorReply> {
    let ask = ask(operation, route);
    let chosen = chosen(gate, operation, route, &ask).await?;
    if !route.key_ranges.is_empty()
        && let (Some(slot), Some(active)) = (ask.slot, gate.registry.get(&route.name))
    {
        active.range_counts.read(route.key_ranges.layout(), slot, chosen.side);
    }
    Ok(chosen)
}

async fn chosen(
    gate: &Gate,
    operation: &Operation<'_>,
    route: &MigrationRoute,
    ask: &Ask,
) -> Result<Chosen, ErrorReply> {
    let owned = Ownership {
        old: route.owned_by_old,
        new: route.owned_by_new,
        unread: route.unread,
        reads_on_new: route.read_on_new(operation.command.database.zip(operation.command.collection())),
    };
    match plan(ask, &owned) {
        Plan::Authority(side) => Ok(Chosen { side, otherwise: None }),
        Plan::Refuse => Err(ErrorReply::new(
            NOT_NOW,
            "this read needs one authority, and writes are divided between two clusters now",
        )),
        Plan::Mirror { side, foreign, otherwise } => {
            let Some(active) = gate.registry.get(&route.name) else {
                return Ok(Chosen { side: otherwise.unwrap_or(Side::Old), otherwise: None });
            };
            let chosen = current(gate, &active, side, &foreign, otherwise).await?;
            let fallback =
                otherwise.filter(|authority| *authority != chosen).map(|authority| (authority, active));
            Ok(Chosen { side: chosen, otherwise: fallback })
        }
    }
}

fn ask(operation: &Operation<'_>, route: &MigrationRoute) -> Ask {
    let command = &operation.command;
    let by = command
        .database
        .zip(command.collection())
        .map_or(By::ID, |(database, collection)| route.by_name(database, collection));
    let body = RawDocument::from_bytes(&operation.message[operation.parts.body.clone()]).ok();
    let hash = xxhash_rust::xxh3::xxh3_64;
    let session =
        command.session().map_or_else(|| hash(&operation.client.to_le_bytes()), |session| hash(&session));
    let level =
        body.and_then(|body| body.get_document("readConcern").ok()).and_then(|rc| rc.get_str("level").ok());
    let strict = matches!(level, Some("linearizable" | "snapshot"));
    Ask {
        slot: body.and_then(|body| slot_of_read(command.name, body, by)),
        session: route.key_ranges.layout().of_hash(session),
        authority_only: strict || body.is_some_and(joins),
        causal: command.read_concern.is_some() && command.after_cluster_time().is_some(),
    }
}

/// `side` if it misses no acknowledged write of `foreign`; else the authority, or a wait until it does not.
async fn current(
    gate: &Gate,
    active: &Active,
    side: Side,
    foreign: &SlotSet,
    otherwise: Option<Side>,
) -> Result<Side, ErrorReply> {
    let authority = side.other();
    let frontier = active.frontiers.get(authority);
    let give_up = gate.clock.now() + PATIENCE;
    loop {
        let reachable = active.breakers.get(side).allows(gate.clock.now());
        let certain = active.converger.sessions.get(side).is_readable(active.frontiers.get(side));
        if reachable && certain && active.unreadable.is_current(authority, foreign, frontier) {
            return Ok(side);
        }
        if let Some(authority) = otherwise {
            return Ok(authority);
        }
        if gate.clock.now() >= give_up {
            return Err(ErrorReply::new(
                HOST_UNREACHABLE,
                "no cluster is current for this read yet; try again",
            ));
        }
        gate.clock.sleep(LOOK).await;
    }
}
