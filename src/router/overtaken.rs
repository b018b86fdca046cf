//! Retries that a move of authority has overtaken: the former authority is asked first.
//!
//! The question is a delete that cannot match, under the write's own session, number and statement ids: a
//! server that has executed the statement answers n = 1 from its history, whatever it was, and one that has
//! not answers n = 0 and changes nothing.

use std::time::Duration;

use bson::raw::{RawArrayBuf, RawDocumentBuf, cstr};
use bson::rawdoc;

use super::entry::{Entered, Gate, not_sent};
use super::sending::send;
use crate::clock::SharedClock;
use crate::cluster::command::{Request, ServerError, SharedCluster, number};
use crate::model::side::{PerSide, Side};
use crate::model::slots::Slot;
use crate::policy::failover::Kind;
use crate::policy::retry::Verdict;
use crate::policy::writes::WriteCommand;
use crate::state::table::MigrationRoute;
use crate::wire::error::{Code, ErrorReply};

const TRANSACTION_TOO_OLD: Code = Code(225, "TransactionTooOld");
const PATIENCE: Duration = Duration::from_secs(5);

/// Where each statement of a command must go: `Some` for those that have been executed there before.
///
/// # Errors
/// The error to answer with: the former authority cannot be asked, or the number is an old one.
pub(super) async fn executed_before(
    command: &WriteCommand,
    entered: &Entered,
    clusters: &PerSide<SharedCluster>,
    gate: &Gate,
) -> Result<Vec<Option<Side>>, ErrorReply> {
    let mut homes = vec![None; command.statements.len()];
    let (Some(active), Some(session), Some(txn_number)) =
        (&entered.retries, command.session(), command.txn_number)
    else {
        return Ok(homes);
    };
    if !active.converger.safeguards.probe {
        return Ok(homes);
    }
    let mut ask: PerSide<Vec<usize>> = PerSide::default();
    let now = gate.clock.now();
    {
        let mut memory = active.retries.lock();
        for (index, statement) in command.statements.iter().enumerate() {
            // One that names no key stands for all slots; every upward move includes the first.
            let slot = statement.key.as_ref().map_or_else(|| Slot::of_hash(0), crate::model::key::Key::slot);
            let Some(authority) = entered.route.authority(slot) else { continue };
            match memory.judge(session, slot, txn_number, authority, &entered.route.moves, now) {
                Verdict::Run => {}
                Verdict::Ask(side) => ask.get_mut(side).push(index),
                Verdict::Refuse => {
                    return Err(ErrorReply::new(
                        TRANSACTION_TOO_OLD,
                        "its session has gone on to a later write",
                    ));
                }
            }
        }
        for authority in Side::BOTH.into_iter().filter(|side| !entered.route.owned_by(*side).is_empty()) {
            memory.note_sent(authority, session, txn_number, now);
        }
    }
    for side in Side::BOTH {
        let indexes = std::mem::take(ask.get_mut(side));
        for index in find_executed(command, &entered.route, &indexes, side, clusters, &gate.clock).await? {
            homes[index] = Some(side);
        }
    }
    if homes.iter().any(Option::is_some) {
        if gate.unsettled.has_forgotten(gate.clock.now()) {
            return Err(perhaps_too_late());
        }
        active.counters.overtaken_retries.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
    Ok(homes)
}

/// Nobody can tell whether a write was executed while its cluster was the authority.
pub(super) fn perhaps_too_late() -> ErrorReply {
    ErrorReply::new(
        TRANSACTION_TOO_OLD,
        "it was sent before its slots moved, and whether it was executed in time is not known",
    )
}

async fn find_executed(
    command: &WriteCommand,
    route: &MigrationRoute,
    indexes: &[usize],
    side: Side,
    clusters: &PerSide<SharedCluster>,
    clock: &SharedClock,
) -> Result<Vec<usize>, ErrorReply> {
    if indexes.is_empty() {
        return Ok(Vec::new());
    }
    let cluster = clusters.get(side);
    let count = question(command, route, indexes, side, cluster, clock).await?;
    if count == 0 {
        return Ok(Vec::new());
    }
    if count == indexes.len() {
        return Ok(indexes.to_vec());
    }
    let mut executed = Vec::new();
    for index in indexes {
        if question(command, route, &[*index], side, cluster, clock).await? == 1 {
            executed.push(*index);
        }
    }
    Ok(executed)
}

/// How many of the statements the cluster has executed.
async fn question(
    command: &WriteCommand,
    route: &MigrationRoute,
    indexes: &[usize],
    side: Side,
    cluster: &SharedCluster,
    clock: &SharedClock,
) -> Result<usize, ErrorReply> {
    // To the shard that the statement itself went to, and where a driver's own retry would go.
    let shard_key = route.shard_keys.get(side).get(&command.namespace);
    let place = |statement| shard_key.and_then(|key| Some((key, command.place(statement, key)?)));
    let mut deletes = Vec::new();
    let mut ids = RawArrayBuf::new();
    for index in indexes {
        let mut equal = RawDocumentBuf::new();
        if let Some(key) = &command.statements[*index].key {
            equal.append(cstr!("$eq"), key.value());
        } else {
            equal.append(cstr!("$eq"), bson::raw::RawBsonRef::MinKey);
        }
        let mut filter = rawdoc! { "_id": equal };
        if let Some((shard_key, place)) = place(&command.statements[*index]) {
            shard_key.aim_at(&mut filter, &place);
        }
        filter.append(cstr!("$expr"), false);
        let delete = rawdoc! { "q": filter, "limit": 1 };
        deletes.extend_from_slice(delete.as_bytes());
        ids.push(i32::try_from(*index).unwrap_or(i32::MAX));
    }
    let mut body = rawdoc! { "delete": command.namespace.collection(), "ordered": false, "stmtIds": ids };
    if let (Some(lsid), Some(txn_number)) = (&command.lsid, command.txn_number) {
        body.append(cstr!("lsid"), lsid.clone());
        body.append(cstr!("txnNumber"), txn_number);
    }
    let request = Request::new(command.namespace.database(), body).sequence("deletes", deletes);
    let answer = send(&**cluster, request, Kind::RetryableWrite, PATIENCE, clock).await.map_err(|_| {
        not_sent(format!("whether this write was made before cannot be asked: {side} does not answer"))
    })?;
    if let Some(ServerError { code, message, .. }) = answer.reply.error() {
        return Err(ErrorReply::new(Code(code, "ServerError"), message));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
    let executed = number(&answer.reply.body, "n").unwrap_or(0.0) as usize;
    Ok(executed)
}
