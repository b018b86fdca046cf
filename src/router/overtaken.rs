//! Retries that a move of authority has overtaken: the former authority is asked first.
//!
//! The question is a delete that cannot match, under the write's own session, number and statement ids: a
//! server that has executed the statement answers n = 1 from its history, whatever it was, and one that has
//! not answers n = 0 and changes nothing.

use std::time::Duration;

use bson::raw::{RawArrayBuf, RawDocumentBuf, cstr};
use bson::{RawDocument, rawdoc};

use super::entry::{Entered, Gate, not_sent};
use super::outcome::{Outcome, changed_something};
use super::sending::send;
use crate::clock::SharedClock;
use crate::cluster::command::{Request, ServerError, SharedCluster, number};
use crate::model::side::{PerSide, Side};
use crate::model::slots::Slot;
use crate::policy::counting::Search;
use crate::policy::failover::Kind;
use crate::policy::invariants::{Invariant, once};
use crate::policy::retry::Verdict;
use crate::policy::writes::WriteCommand;
use crate::state::table::MigrationRoute;
use crate::wire::error::{Code, ErrorReply};

const TRANSACTION_TOO_OLD: Code = Code(225, "TransactionTooOld");
const INCOMPLETE_HISTORY: Code = Code(217, "IncompleteTransactionHistory");
/// For one question.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where each statement of a command must go: `Some` for those that have been executed there before.
///
/// # Errors
/// The error to answer with: the former authority cannot be asked, or cannot tell, or the number is an old one.
pub(super) async fn executed_before(
    command: &WriteCommand,
    entered: &Entered,
    clusters: &PerSide<SharedCluster>,
    gate: &Gate,
    deadline: Duration,
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
    let mut sent: PerSide<bool> = PerSide::default();
    let (now, by) = (gate.clock.now(), entered.route.by(&command.namespace));
    {
        let mut memory = active.retries.lock();
        for (index, statement) in command.statements.iter().enumerate() {
            let named = command.slot_of(statement, by);
            // One that names no key stands for all slots; every upward move includes the first.
            let slot = named.unwrap_or_else(|| Slot::of_hash(0));
            let Some(authority) = entered.route.authority(slot) else { continue };
            // It tells of all that new has executed, also before earlier moves.
            let taken_back =
                entered.route.taken_back().filter(|it| named.is_none_or(|slot| it.slots.contains(slot)));
            let verdict = match taken_back {
                Some(past) => memory.judge_taken_back(session, txn_number, past, now),
                None => memory.judge(session, slot, txn_number, authority, &entered.route.moves, now),
            };
            for side in Side::BOTH {
                let may_get_it = named.is_none() && !entered.route.owned_by(side).is_empty();
                *sent.get_mut(side) |= may_get_it || side == authority;
            }
            match verdict {
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
        for authority in Side::BOTH.into_iter().filter(|side| *sent.get(*side)) {
            memory.note_sent(authority, session, txn_number, now);
        }
    }
    for side in Side::BOTH {
        let asking = Asking {
            command,
            route: &entered.route,
            side,
            cluster: clusters.get(side),
            clock: &gate.clock,
            deadline,
        };
        for index in asking.find_executed(ask.get(side)).await? {
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

/// One write that may be a retry, and whom to ask about it.
struct Asking<'a> {
    command: &'a WriteCommand,
    route: &'a MigrationRoute,
    side: Side,
    cluster: &'a SharedCluster,
    clock: &'a SharedClock,
    /// When the write itself has waited for long enough.
    deadline: Duration,
}

impl Asking<'_> {
    /// Those of the statements `indexes` that the cluster has executed.
    async fn find_executed(&self, indexes: &[usize]) -> Result<Vec<usize>, ErrorReply> {
        let mut search = Search::among(indexes.len());
        while let Some(part) = search.question() {
            search.answer(self.count_executed(&indexes[part]).await?);
        }
        Ok(search.executed().into_iter().map(|number| indexes[number]).collect())
    }

    /// How many of the statements it has executed.
    async fn count_executed(&self, indexes: &[usize]) -> Result<usize, ErrorReply> {
        let left = self.deadline.saturating_sub(self.clock.now());
        let request = self.question(indexes);
        let answer =
            send(&**self.cluster, request, Kind::RetryableWrite, PATIENCE.min(left), self.clock).await;
        let answer = answer.map_err(|_| {
            let side = self.side;
            not_sent(format!("whether this write was made before cannot be asked: {side} does not answer"))
        })?;
        let body = &answer.reply.body;
        if let Some(ServerError { code, message, .. }) = answer.reply.error().or_else(|| of_a_statement(body))
        {
            return Err(cannot_tell(self.side, code, message));
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        let executed = number(body, "n").unwrap_or(0.0) as usize;
        Ok(executed)
    }

    /// Deletes that cannot match, under the write's own session, number and statement ids.
    fn question(&self, indexes: &[usize]) -> Request {
        let command = self.command;
        // To the shard that the statement itself went to, and where a driver's own retry would go.
        let shard_key = self.route.shard_keys.get(self.side).get(&command.namespace);
        let mut deletes = Vec::new();
        let mut ids = RawArrayBuf::new();
        for index in indexes {
            let statement = &command.statements[*index];
            let mut equal = RawDocumentBuf::new();
            if let Some(key) = &statement.key {
                equal.append(cstr!("$eq"), key.value());
            } else {
                equal.append(cstr!("$eq"), bson::raw::RawBsonRef::MinKey);
            }
            let mut filter = rawdoc! { "_id": equal };
            if let Some((shard_key, place)) =
                shard_key.and_then(|key| Some((key, command.place(statement, key)?)))
            {
                shard_key.aim_at(&mut filter, &place);
            }
            filter.append(cstr!("$expr"), false);
            let delete = rawdoc! { "q": filter, "limit": 1 };
            deletes.extend_from_slice(delete.as_bytes());
            ids.push(command.number(*index));
        }
        let mut body = rawdoc! { "delete": command.namespace.collection(), "ordered": false, "stmtIds": ids };
        if let (Some(lsid), Some(txn_number)) = (&command.lsid, command.txn_number) {
            body.append(cstr!("lsid"), lsid.clone());
            body.append(cstr!("txnNumber"), txn_number);
        }
        Request::new(command.namespace.database(), body).sequence("deletes", deletes)
    }
}

/// A statement whose question failed is not one that was not executed.
fn of_a_statement(body: &RawDocument) -> Option<ServerError> {
    let errors = body.get_array("writeErrors").ok()?;
    let first = errors.into_iter().flatten().find_map(|error| error.as_document())?;
    #[expect(clippy::cast_possible_truncation, reason = "error codes are small whole numbers")]
    let code = number(first, "code").unwrap_or(0.0) as i32;
    let message = first.get_str("errmsg").unwrap_or("no errmsg").to_owned();
    Some(ServerError { code, message, labels: Vec::new() })
}

/// What to answer where the former authority has executed a write, by its session, and can no longer say with what
/// outcome.
pub(super) fn answer_forgotten(homes: &[Option<Side>], reply: &RawDocument) -> Option<ErrorReply> {
    let side = homes.iter().find_map(|home| *home)?;
    let error = ServerError::of(reply).filter(|error| error.code == INCOMPLETE_HISTORY.0)?;
    let message = format!(
        "the write was executed before its slots moved, and {side} has forgotten with what outcome: its oplog is shorter \
         than the wait before this retry. Nothing was written now; read what it has changed ({})",
        error.message
    );
    Some(ErrorReply::new(INCOMPLETE_HISTORY, message))
}

/// The former authority has answered, but not whether it has executed the write.
fn cannot_tell(side: Side, code: i32, message: String) -> ErrorReply {
    if code != INCOMPLETE_HISTORY.0 {
        return ErrorReply::new(Code(code, "ServerError"), message);
    }
    ErrorReply::new(
        INCOMPLETE_HISTORY,
        format!(
            "the write was begun before its slots moved, and {side} has forgotten whether it was executed: its oplog \
             is shorter than the wait before this retry. Nothing was written now; read what it was to change, and \
             write anew what is missing ({message})"
        ),
    )
}

/// A write of one statement, of which the reply proves that it changed something, must have done so once.
pub(super) fn watch_retry(
    command: &WriteCommand,
    entered: &Entered,
    outcome: &Outcome,
    homes: &[Option<Side>],
) {
    let (Some(active), Some(session), Some(number)) =
        (&entered.retries, command.session(), command.txn_number)
    else {
        return;
    };
    let side = match (outcome.times.old, outcome.times.new) {
        (Some(_), None) => Side::Old,
        (None, Some(_)) => Side::New,
        _ => return,
    };
    let is_one =
        command.statements.len() == 1 && command.numbers.is_none() && homes.iter().all(Option::is_none);
    if !is_one || !changed_something(command, &outcome.reply) {
        return;
    }
    let key = command.statements.first().and_then(|statement| statement.key.as_ref());
    let document = key.map(|key| key.fingerprint_in(&command.namespace));
    let before = active.retries.lock().note_executed(session, number, document, side);
    active.converger.violations.watch(Invariant::Once, once(before, side));
}
