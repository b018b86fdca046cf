//! Numbered writes whose outcome this process does not know.
//!
//! The authority may execute such a write at any later moment, also when it is the authority no more: then it
//! changes a mirror, and the streams undo it. Nobody was told that it was done. But a retry of it would be:
//! its server's history says "executed", whenever that was. So a retry is refused once any of its slots has
//! moved since; there is nothing that a fence would have to wait for.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;

use crate::model::moves::Move;
use crate::model::slots::SlotSet;
use crate::policy::retry::OLDEST_RETRY;

/// Sessions remembered at once.
const MOST: usize = 100_000;

/// The last such write of each session. A session does one write at a time: whoever sends a higher number has
/// given up the lower one. Bounded; see [`Unsettled::has_forgotten`].
#[derive(Debug)]
pub struct Unsettled {
    state: Mutex<State>,
    limit: usize,
}

#[derive(Debug, Default)]
struct State {
    sessions: HashMap<[u8; 16], Write>,
    /// Until then there may be writes that could not be remembered.
    forgotten_until: Duration,
}

#[derive(Debug)]
struct Write {
    number: i64,
    slots: SlotSet,
    /// The epoch that its first attempt went by; 0 before any migration.
    epoch: u64,
    noted: Duration,
}

impl Default for Unsettled {
    fn default() -> Self {
        Self { state: Mutex::default(), limit: MOST }
    }
}

impl Unsettled {
    /// A write on `slots`, begun at `epoch`, may have been executed, or may be later.
    pub fn note(&self, session: [u8; 16], number: i64, slots: &SlotSet, epoch: u64, now: Duration) {
        let mut state = self.state.lock();
        if state.sessions.len() >= self.limit && !state.sessions.contains_key(&session) {
            state.sessions.retain(|_, write| now.saturating_sub(write.noted) <= OLDEST_RETRY);
            if state.sessions.len() >= self.limit {
                state.forgotten_until = now + OLDEST_RETRY;
                return;
            }
        }
        let write = Write { number, slots: *slots, epoch, noted: now };
        let known = state.sessions.entry(session).or_insert(write);
        if known.number == number {
            known.slots = known.slots.or(slots);
            known.epoch = known.epoch.min(epoch);
            known.noted = now;
        } else if known.number < number {
            *known = Write { number, slots: *slots, epoch, noted: now };
        }
    }

    /// Every statement of the write is known to be executed: copies that arrive later change nothing.
    pub fn settle(&self, session: &[u8; 16], number: i64) {
        let mut state = self.state.lock();
        if state.sessions.get(session).is_some_and(|known| known.number <= number) {
            state.sessions.remove(session);
        }
    }

    /// Whether slots of this write have moved since an attempt of which the outcome is not known.
    #[must_use]
    pub fn is_overtaken(&self, session: &[u8; 16], number: i64, moves: &[Move]) -> bool {
        let state = self.state.lock();
        let known = state.sessions.get(session).filter(|known| known.number == number);
        known.is_some_and(|known| {
            moves.iter().any(|past| past.epoch > known.epoch && past.slots.meets(&known.slots))
        })
    }

    /// Whether there were too many to remember: then what a former authority has executed may be one of those.
    #[must_use]
    pub fn has_forgotten(&self, now: Duration) -> bool {
        now < self.state.lock().forgotten_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::side::Side;

    const SESSION: [u8; 16] = [1; 16];

    fn moves(epoch: u64) -> [Move; 1] {
        [Move { slots: SlotSet::percent(50), former: Side::Old, epoch, at: 0, markers: None }]
    }

    #[test]
    fn a_write_is_overtaken_by_a_later_move_of_its_slots() {
        let (unsettled, slots) = (Unsettled::default(), SlotSet::percent(1));
        let note = |number, slots, epoch| unsettled.note(SESSION, number, slots, epoch, Duration::ZERO);
        let overtaken = |number, epoch| unsettled.is_overtaken(&SESSION, number, &moves(epoch));
        note(5, &slots, 3);
        assert!(overtaken(5, 4) && !overtaken(5, 3) && !overtaken(6, 4));
        // Its retry, too, has an unknown outcome.
        note(5, &slots, 7);
        assert!(overtaken(5, 4));
        unsettled.settle(&SESSION, 5);
        assert!(!overtaken(5, 4));
        note(6, &SlotSet::ALL.minus(&SlotSet::percent(50)), 3);
        assert!(!overtaken(6, 4), "other slots");
    }

    #[test]
    fn too_many_are_known_to_be_forgotten_for_as_long_as_sessions_live() {
        let unsettled = Unsettled { limit: 1, ..Unsettled::default() };
        let note = |session, now| unsettled.note([session; 16], 5, &SlotSet::ALL, 3, now);
        note(1, Duration::ZERO);
        assert!(!unsettled.has_forgotten(Duration::ZERO));
        note(2, Duration::ZERO);
        assert!(
            unsettled.has_forgotten(OLDEST_RETRY - Duration::from_secs(1))
                && !unsettled.has_forgotten(OLDEST_RETRY)
        );
        note(3, OLDEST_RETRY + Duration::from_secs(1));
        assert!(unsettled.is_overtaken(&[3; 16], 5, &moves(4)));
    }
}
