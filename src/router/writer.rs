//! Writes on a migrating namespace: the authority first, then the mirror.
//!
//! Fence first, then lane. The reply is the authority's; it is shown only if the leases that the write began
//! under still hold. A mirror that fails or is late costs the application nothing but, where a read could
//! meet it, a bounded wait.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bson::Timestamp;
use bson::raw::RawDocumentBuf;

use super::entry::{Entered, Gate};
use super::mirroring::{Direct, Effect, Mirroring, concern};
use super::outcome::{Outcome, all_done, keys_in_reply, nothing_found};
use super::overtaken::{answer_forgotten, executed_before, perhaps_too_late, watch_retry};
use super::owning::Owning;
use super::resolving::resolve;
use super::route_keys::{may_run, must_name_slots};
use super::sending::{part_of, send, whole};
use super::shapes::note_write;
use crate::clock::timeout;
use crate::cluster::command::{ServerError, SharedCluster};
use crate::converge::lanes::{MOST_KEYS, Taken};
use crate::model::key::Key;
use crate::model::side::{PerSide, Side};
use crate::model::slots::SlotSet;
use crate::policy::failover::Kind;
use crate::policy::route_key::By;
use crate::policy::shard_key::Place;
use crate::policy::split::{Part, merge, parts, stops};
use crate::policy::statement::Statement;
use crate::policy::writes::{Verb, WriteCommand};
use crate::state::inflight::Work;
use crate::state::table::MigrationRoute;
use crate::wire::error::{ErrorReply, HOST_UNREACHABLE, NO_WRITES_PERFORMED, RETRYABLE_WRITE};
use crate::wire::header::MAX_MESSAGE_LEN;

/// How long a write may wait for fences, leases and servers, unless its `maxTimeMS` is shorter.
pub const HOLD: Duration = Duration::from_secs(15);
/// Bytes of a statement's number in a message.
const FOR_A_NUMBER: usize = 16;
/// Bytes of a message beside statements and the client's own fields: header, session, times, concerns.
const FOR_THE_REST: usize = 16 * 1024;

/// Writes for one worker.
pub struct Writer {
    /// Both clusters, by this worker's pools, as the user of the client.
    pub clusters: PerSide<SharedCluster>,
    /// The same as the user of the connection strings, for what the client has not asked for by itself.
    pub own: PerSide<SharedCluster>,
    /// The way in.
    pub gate: Gate,
    /// What follows the authority's answer.
    pub mirroring: Mirroring,
}

/// A write's answer for its client.
pub struct Written {
    /// The reply.
    pub body: RawDocumentBuf,
    /// The authority's time.
    pub operation_time: Option<Timestamp>,
}

/// What became of one attempt at a write.
enum Attempt {
    /// There is an answer.
    Written(Written),
    /// Its namespace does not migrate (any more).
    Elsewhere,
    /// The lease that it began under has ended: what came of it may not be shown.
    LeaseEnded(ErrorReply),
}

impl Writer {
    /// Runs a write whose slots are computed `by` something; `Ok(None)`: its namespace does not migrate (any more).
    ///
    /// What was answered after its lease had ended is not shown. A write that servers know by its number is
    /// sent again under the next lease, while there is time: they answer with what it did the first time.
    ///
    /// # Errors
    /// The error to answer with.
    pub async fn write(&self, command: &WriteCommand, by: By<'_>) -> Result<Option<Written>, ErrorReply> {
        let deadline = self.gate.clock.now() + hold(command);
        let mut is_first = true;
        loop {
            match self.attempt(command, by, deadline).await {
                Ok(Attempt::Written(written)) => return Ok(Some(written)),
                Ok(Attempt::Elsewhere) => return Ok(None),
                Ok(Attempt::LeaseEnded(error)) => {
                    let again = error.labels.contains(&RETRYABLE_WRITE) && command.txn_number.is_some();
                    if !again || self.gate.clock.now() >= deadline {
                        return Err(unless_first(error, is_first));
                    }
                }
                Err(error) => return Err(unless_first(error, is_first)),
            }
            is_first = false;
        }
    }

    async fn attempt(
        &self,
        command: &WriteCommand,
        by: By<'_>,
        deadline: Duration,
    ) -> Result<Attempt, ErrorReply> {
        let left = || deadline.saturating_sub(self.gate.clock.now());
        let keys = command.keys();
        let slots = command.slots(by);
        let namespace = command.namespace.as_str();
        let what: Arc<str> = format!("{} on {namespace}", command.verb.name()).into();
        let Some(entered) = self.gate.enter(namespace, slots, Work::Write, &what, left()).await? else {
            return Ok(Attempt::Elsewhere);
        };
        may_run(command, &entered, by)?;
        note_shape(command, &entered);
        self.must_not_be_overtaken(command, &entered)?;
        let before_lanes = self.gate.clock.now();
        let lanes = self.lanes(&entered, command, keys.as_deref()).await;
        let waited = self.gate.clock.now() - before_lanes;
        let homes = executed_before(command, &entered, &self.clusters, &self.gate, deadline).await?;
        let own = Owning::begin(command, keys.as_deref(), &entered, &slots, &homes);
        let outcome = self.execute(command, &entered, &homes, left()).await;
        own.end(command, &outcome);
        let answered = entered.answered(&self.gate, namespace);
        self.note_outcome(command, &outcome, answered.may_show, &slots, entered.route.epoch);
        if !answered.may_show {
            let ended = |_| {
                ErrorReply::new(HOST_UNREACHABLE, "the lease to write ended meanwhile")
                    .labelled(vec![RETRYABLE_WRITE])
            };
            return Ok(Attempt::LeaseEnded(outcome.map_or_else(std::convert::identity, ended)));
        }
        let outcome = outcome?;
        if let Some(forgotten) = answer_forgotten(&homes, &outcome.reply) {
            return Err(forgotten);
        }
        entered.watch(&answered, &slots);
        watch_retry(command, &entered, &outcome, &homes);
        let operation_time = outcome.times.old.or(outcome.times.new);
        let body = outcome.reply.clone();
        if entered.route.mirrors() && ServerError::of(&outcome.reply).is_none() {
            let effect = effect(command, &entered, outcome, slots, lanes, &homes);
            self.mirroring.follow(&self.own, entered, effect, waited).await;
        }
        Ok(Attempt::Written(Written { body, operation_time }))
    }

    /// The lanes of the keys; `None` when they are too many, unknown, or not to be had in time.
    async fn lanes(&self, entered: &Entered, command: &WriteCommand, keys: Option<&[Key]>) -> Option<Taken> {
        let active = entered.active.as_ref().filter(|_| entered.route.mirrors())?;
        if active.leaves_to_streams(&entered.route) || active.inline_off.is_for(&command.namespace) {
            return None;
        }
        let keys = keys.filter(|keys| keys.len() <= MOST_KEYS)?;
        let lanes = active.converger.lanes.take(command.namespace.as_str(), keys);
        timeout(&*self.gate.clock, active.mirror_timeout, lanes).await.ok()
    }

    async fn execute(
        &self,
        command: &WriteCommand,
        entered: &Entered,
        homes: &[Option<Side>],
        hold: Duration,
    ) -> Result<Outcome, ErrorReply> {
        let (sole, by) = (entered.route.sole_authority(), entered.route.by(&command.namespace));
        let statements: Option<Vec<(Side, usize)>> = command
            .statements
            .iter()
            .zip(homes)
            .map(|(statement, home)| {
                let slot = || command.slot_of(statement, by);
                let owner = || slot().map_or(sole, |slot| entered.route.authority(slot));
                Some(((*home).or_else(owner)?, statement.raw.as_bytes().len() + FOR_A_NUMBER))
            })
            .collect();
        let Some(statements) = statements else {
            return self.unkeyed_while_mixed(command, entered, hold).await;
        };
        let room = MAX_MESSAGE_LEN.saturating_sub(command.body.as_bytes().len() + FOR_THE_REST);
        let parts = parts(&statements, command.ordered, room);
        if let [part] = parts.as_slice() {
            return self.run_whole(command, part.side, entered, hold).await;
        }
        self.run_parts(command, parts, entered, hold).await
    }

    /// The client's command as it is, but for the `_id`s that inserts were given.
    async fn run_whole(
        &self,
        command: &WriteCommand,
        side: Side,
        entered: &Entered,
        hold: Duration,
    ) -> Result<Outcome, ErrorReply> {
        let request = whole(command);
        let request = request.only_if(entered.only_if_held());
        let begun = self.gate.clock.now();
        let answer = send(&**self.clusters.get(side), request, kind(command), hold, &self.gate.clock).await;
        note_write(entered.active.as_deref(), command, side, begun, self.gate.clock.now(), &answer);
        let answer = answer?;
        let mut times = PerSide::default();
        *times.get_mut(side) = answer.reply.operation_time;
        Ok(Outcome { reply: answer.reply.body, times, sent: answer.sent, keys: Vec::new() })
    }

    async fn run_parts(
        &self,
        command: &WriteCommand,
        parts: Vec<Part>,
        entered: &Entered,
        hold: Duration,
    ) -> Result<Outcome, ErrorReply> {
        let mut replies: Vec<(Part, RawDocumentBuf)> = Vec::new();
        let mut times = PerSide::default();
        let mut sent = 0;
        for part in parts {
            let request = part_of(command, &part).only_if(entered.only_if_held());
            let cluster = &**self.clusters.get(part.side);
            let begun = self.gate.clock.now();
            let answer = send(cluster, request, kind(command), hold, &self.gate.clock).await;
            note_write(entered.active.as_deref(), command, part.side, begun, self.gate.clock.now(), &answer);
            // What came before was done, whatever became of this part.
            let answer = answer.map_err(|error| unless_first(error, replies.is_empty()))?;
            *times.get_mut(part.side) = answer.reply.operation_time.or(*times.get(part.side));
            sent = sent.max(answer.sent);
            if answer.reply.error().is_some() {
                // The command as a whole was refused; what came before stays, as in any batch cut short.
                return Ok(Outcome { reply: answer.reply.body, times, sent, keys: Vec::new() });
            }
            let stop = command.ordered && stops(&answer.reply.body);
            replies.push((part, answer.reply.body));
            if stop {
                break;
            }
        }
        Ok(Outcome { reply: merge(&replies), times, sent, keys: Vec::new() })
    }

    /// Refuses a retry of a write that may have been executed too late: nobody can tell whether it counts.
    fn must_not_be_overtaken(&self, command: &WriteCommand, entered: &Entered) -> Result<(), ErrorReply> {
        let Some((session, number)) = command.session().zip(command.txn_number) else { return Ok(()) };
        let moves = entered.route.moves_of(command.statements.iter().all(|it| it.key.is_some()));
        let refused = entered.retries.as_ref().is_some_and(|active| active.converger.safeguards.unsettled)
            && self.gate.unsettled.is_overtaken(&session, number, &moves);
        if !refused {
            return Ok(());
        }
        Err(perhaps_too_late())
    }

    /// Remembers a write of which an attempt may be executed later, until it is known to be done. `in_time`: its
    /// lease held when the answer was there; else it tells that the write was executed, but not when.
    fn note_outcome(
        &self,
        command: &WriteCommand,
        outcome: &Result<Outcome, ErrorReply>,
        in_time: bool,
        slots: &SlotSet,
        epoch: u64,
    ) {
        let Some((session, number)) = command.session().zip(command.txn_number) else { return };
        let unsettled = &self.gate.unsettled;
        match outcome {
            // Other commands may have more statements under the number, and one of them may be the late one.
            Ok(outcome) if in_time && all_done(command, &outcome.reply) => {
                if command.numbers.is_none() {
                    unsettled.settle(&session, number);
                }
            }
            Ok(outcome) if in_time && outcome.sent <= 1 => {}
            Err(error) if error.labels.contains(&NO_WRITES_PERFORMED) => {}
            Ok(_) | Err(_) => unsettled.note(session, number, slots, epoch, self.gate.clock.now()),
        }
    }

    /// Some statement names no key while authority is mixed.
    async fn unkeyed_while_mixed(
        &self,
        command: &WriteCommand,
        entered: &Entered,
        hold: Duration,
    ) -> Result<Outcome, ErrorReply> {
        must_name_slots(command, entered.route.by(&command.namespace))?;
        resolve(self, command, entered, hold).await
    }
}

/// The error of a part of a command: unless it is the first one, others were executed.
pub(super) fn unless_first(mut error: ErrorReply, is_first: bool) -> ErrorReply {
    if !is_first {
        error.labels.retain(|label| *label != NO_WRITES_PERFORMED);
    }
    error
}

fn hold(command: &WriteCommand) -> Duration {
    let asked =
        command.max_time_ms.and_then(|millis| u64::try_from(millis).ok()).filter(|millis| *millis > 0);
    asked.map_or(HOLD, |millis| HOLD.min(Duration::from_millis(millis)))
}

pub(super) fn kind(command: &WriteCommand) -> Kind {
    if command.txn_number.is_some() { Kind::RetryableWrite } else { Kind::Once }
}

/// Remembers what kinds of writes a namespace sees: some force a move in one step.
fn note_shape(command: &WriteCommand, entered: &Entered) {
    use std::sync::atomic::Ordering::Relaxed;
    let Some(active) = &entered.active else { return };
    let by = entered.route.by(&command.namespace);
    for statement in command.statements.iter().filter(|statement| command.slot_of(statement, by).is_none()) {
        active.counters.unkeyed_writes.fetch_add(1, Relaxed);
        if !statement.multi && command.txn_number.is_some() {
            active.counters.unkeyed_retryable.fetch_add(1, Relaxed);
        }
    }
}

/// What the mirror is to be told.
fn effect(
    command: &WriteCommand,
    entered: &Entered,
    outcome: Outcome,
    slots: SlotSet,
    lanes: Option<Taken>,
    homes: &[Option<Side>],
) -> Effect {
    let mut keys: Vec<Key> =
        command.statements.iter().filter_map(|statement| statement.key.clone()).collect();
    let mut all_known = command.is_keyed();
    let found = keys_in_reply(command, &outcome.reply);
    if command.verb == Verb::FindAndModify && !all_known {
        // It wrote one document at most, and says which, unless it projected the `_id` away.
        all_known = !found.is_empty() || nothing_found(&outcome.reply);
    }
    keys.extend(found);
    all_known |= !outcome.keys.is_empty();
    keys.extend(outcome.keys);
    let first_attempt = outcome.sent == 1 && outcome.reply.get_array("retriedStmtIds").is_err();
    let clean = all_done(command, &outcome.reply);
    let is_direct = !entered.route.ack_both
        && first_attempt
        && clean
        && homes.iter().all(Option::is_none)
        && command.statements.iter().all(|statement| statement.direct);
    Effect {
        namespace: command.namespace.clone(),
        slots: match entered.route.by(&command.namespace) {
            by if by.field().is_some() => slots,
            by if all_known => keys.iter().filter_map(|key| by.of_key(key)).collect(),
            _ => SlotSet::ALL,
        },
        keys,
        all_known,
        times: outcome.times,
        direct: entered.route.sole_authority().filter(|_| is_direct).map(|authority| Direct {
            mirror: authority.other(),
            verb: command.verb,
            statements: command.statements.clone(),
            shard_key: entered.route.shard_keys.get(authority.other()).get(&command.namespace).cloned(),
        }),
        concern: concern(command.concern.as_ref(), &entered.active),
        aims: Arc::new(PerSide::from_fn(|side| places(command, &entered.route, side))),
        lanes,
    }
}

/// Where the documents of the statements lie on `side`, if it is sharded and they say so.
fn places(command: &WriteCommand, route: &MigrationRoute, side: Side) -> HashMap<Key, Place> {
    let Some(shard_key) = route.shard_keys.get(side).get(&command.namespace) else { return HashMap::new() };
    let place = |statement: &Statement| Some((statement.key.clone()?, command.place(statement, shard_key)?));
    command.statements.iter().filter_map(place).collect()
}
