//! Registering an application's write as this process's own, so that its change events are not taken for those
//! of a writer that goes past the proxy.

use bson::RawDocument;

use super::entry::Entered;
use super::operation::Operation;
use super::pipeline::Router;
use super::writer::{Outcome, keys_in_reply, nothing_found};
use crate::clock::SharedClock;
use crate::cluster::command::{ServerError, number};
use crate::converge::active::Registry;
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
    /// Before anything is sent. `homes` are the clusters that have executed some statements before.
    pub(super) fn begin(
        command: &WriteCommand,
        entered: &Entered,
        slots: &SlotSet,
        homes: &[Option<Side>],
    ) -> Self {
        let Some(active) = &entered.active else { return Self(Vec::new()) };
        let sent_to =
            |side: &Side| entered.route.owned_by(*side).meets(slots) || homes.contains(&Some(*side));
        let own = &active.converger.own;
        let begin = |side| match command.keys() {
            Some(keys) => own.begin(side, &command.namespace, &keys, By::Connections),
            None => own.begin_whole(side, &command.namespace),
        };
        Self(Side::BOTH.into_iter().filter(sent_to).map(begin).collect())
    }

    /// Once there is an outcome.
    pub(super) fn end(self, command: &WriteCommand, outcome: &Result<Outcome, ErrorReply>) {
        match outcome {
            Ok(outcome) if self.0.iter().any(Writing::is_routed) && may_go_on(&outcome.reply) => {}
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
    Some(keys_in_reply(command.verb, &outcome.reply)).filter(|keys| !keys.is_empty())
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
    registry: &'a Registry,
    clock: &'a SharedClock,
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
        let registry = &*self.writer.as_ref()?.gate.registry;
        let writes = operation.class == Class::Write || routed && operation.class == Class::Unknown;
        if !writes {
            return None;
        }
        let clock = &self.shared.clock;
        let unfollowed = Unfollowed { registry, clock, operation, routed, may_have_written: true };
        if routed {
            // Its events may come before its answer.
            registry.process.stray_begins(&unfollowed.namespace());
        }
        Some(unfollowed)
    }
}

impl Unfollowed<'_> {
    /// Once there is an answer: whether it was `ok`.
    pub(super) fn end(mut self, result: &Result<bool, ErrorReply>) {
        self.may_have_written = match result {
            Ok(ok) => *ok && self.routed,
            Err(error) => !error.labels.contains(&NO_WRITES_PERFORMED),
        };
    }

    fn namespace(&self) -> String {
        let command = &self.operation.command;
        format!("{}.{}", command.database.unwrap_or(""), command.collection().unwrap_or(""))
    }
}

impl Drop for Unfollowed<'_> {
    fn drop(&mut self) {
        if self.may_have_written {
            self.registry.process.stray(&self.namespace(), self.clock.now());
        }
        if self.routed {
            self.registry.process.stray_ends(&self.namespace());
        }
    }
}
