//! Registering an application's write as this process's own, so that its change events are not taken for those
//! of a writer that goes past the proxy.

use bson::RawDocument;

use super::entry::{Entered, Gate};
use super::operation::Operation;
use super::outcome::{Outcome, all_done, keys_in_reply, nothing_found};
use super::pipeline::Router;
use super::transacting::name_of;
use crate::cluster::command::{ServerError, number};
use crate::model::key::Key;
use crate::model::side::Side;
use crate::model::slots::SlotSet;
use crate::policy::bypass::may_go_on;
use crate::policy::classify::Class;
use crate::policy::writes::{Verb, WriteCommand};
use crate::state::own_writes::{By, Writing};
use crate::wire::error::{ErrorReply, NO_WRITES_PERFORMED, NOT_NOW};

/// A write of an application on each cluster that it may be sent to.
pub(super) struct Owning(Vec<Writing>);

impl Owning {
    /// Before anything is sent. `keys` are those of all statements; `homes` are the clusters that have executed some statements before.
    pub(super) fn begin(
        command: &WriteCommand,
        keys: Option<&[Key]>,
        entered: &Entered,
        slots: &SlotSet,
        homes: &[Option<Side>],
    ) -> Self {
        let Some(active) = &entered.active else { return Self(Vec::new()) };
        let sent_to =
            |side: &Side| entered.route.owned_by(*side).meets(slots) || homes.contains(&Some(*side));
        let own = &active.converger.own;
        let begin = |side| match keys {
            Some(keys) => own.begin(side, &command.namespace, keys, By::Connections),
            None => own.begin_whole(side, &command.namespace),
        };
        Self(Side::BOTH.into_iter().filter(sent_to).map(begin).collect())
    }

    /// Once there is an outcome.
    pub(super) fn end(self, command: &WriteCommand, outcome: &Result<Outcome, ErrorReply>) {
        match outcome {
            Ok(outcome) if may_go_on(&outcome.reply) && self.0.iter().any(Writing::is_routed) => {}
            Ok(outcome) if may_come_again(command, outcome) => {}
            Ok(outcome) => self.answered(command, outcome),
            // A command that was resolved may have been executed in part, whatever its last part says.
            Err(error)
                if error.code == NOT_NOW
                    || command.is_keyed() && error.labels.contains(&NO_WRITES_PERFORMED) =>
            {
                self.0.into_iter().for_each(Writing::nothing);
            }
            Err(_) => {}
        }
    }

    fn answered(self, command: &WriteCommand, outcome: &Outcome) {
        let heard = outcome.times.old.is_some() || outcome.times.new.is_some();
        let keys = found_out(command, outcome);
        for writing in self.0 {
            match (*outcome.times.get(writing.side), &keys) {
                // It was not sent there after all.
                (None, _) if heard => writing.nothing(),
                (Some(_), Some(keys)) if keys.is_empty() && outcome.sent <= 1 => writing.nothing(),
                (time, Some(keys)) if !keys.is_empty() => writing.ended_on(keys, time),
                (time, _) => writing.ended(time),
            }
        }
    }
}

/// Whether an earlier attempt may still be executed: a server takes no number twice, but one whose statements
/// it has not executed is no number it knows.
fn may_come_again(command: &WriteCommand, outcome: &Outcome) -> bool {
    command.txn_number.is_some() && outcome.sent > 1 && !all_done(command, &outcome.reply)
}

/// The keys that a write that named none has touched, where the answer proves which.
fn found_out(command: &WriteCommand, outcome: &Outcome) -> Option<Vec<Key>> {
    if command.is_keyed() {
        return None;
    }
    if !outcome.keys.is_empty() && ServerError::of(&outcome.reply).is_none() {
        let named = command.statements.iter().filter_map(|statement| statement.key.clone());
        return Some(outcome.keys.iter().cloned().chain(named).collect());
    }
    if wrote_nothing(command, &outcome.reply) {
        return Some(Vec::new());
    }
    // Its answer could show another field as `_id`.
    let is_projected = command.body.get("fields").ok().flatten().is_some();
    if command.verb != Verb::FindAndModify || is_projected {
        return None;
    }
    Some(keys_in_reply(command, &outcome.reply)).filter(|keys| !keys.is_empty())
}

fn wrote_nothing(command: &WriteCommand, reply: &RawDocument) -> bool {
    if ServerError::of(reply).is_some() || reply.get_array("writeErrors").is_ok() {
        return false;
    }
    match command.verb {
        Verb::FindAndModify => nothing_found(reply),
        _ => number(reply, "n") == Some(0.0) && reply.get_array("upserted").is_err(),
    }
}

/// A write that is forwarded without being followed: of a collection that does not migrate yet, or one that is
/// not understood. Where its outcome is not known, and also where `routed` and it was done, later events of
/// its collection may be its own.
pub(super) struct Unfollowed<'a> {
    gate: &'a Gate,
    operation: &'a Operation<'a>,
    routed: bool,
    may_have_written: bool,
}

impl Router {
    /// Before an operation is forwarded as it is; `routed`: its collection migrates.
    pub(super) fn unfollowed<'a>(
        &'a self,
        operation: &'a Operation<'a>,
        routed: bool,
    ) -> Option<Unfollowed<'a>> {
        let gate = &self.writer.as_ref()?.gate;
        let routed = routed && operation.class != Class::PipelineWrite;
        let writes = matches!(operation.class, Class::Write | Class::PipelineWrite)
            || routed && operation.class == Class::Unknown;
        if !writes {
            return None;
        }
        let unfollowed = Unfollowed { gate, operation, routed, may_have_written: true };
        if routed {
            // Its events may come before its answer.
            gate.registry.process.stray_begins(&unfollowed.namespace());
        }
        Some(unfollowed)
    }
}

impl Unfollowed<'_> {
    /// Once there is an answer: whether it was `ok`.
    pub(super) fn end(mut self, result: &Result<bool, ErrorReply>) {
        self.may_have_written = self.routed && *result.as_ref().unwrap_or(&true);
        let (command, gate) = (&self.operation.command, &self.gate);
        if let Err(error) = result {
            gate.note_failed(&self.namespace(), command.session(), command.txn_number, error);
        }
    }

    fn namespace(&self) -> String {
        name_of(self.operation)
    }
}

impl Drop for Unfollowed<'_> {
    fn drop(&mut self) {
        if self.may_have_written {
            self.gate.registry.process.stray(&self.namespace(), self.gate.clock.now());
        }
        if self.routed {
            self.gate.registry.process.stray_ends(&self.namespace());
        }
    }
}
