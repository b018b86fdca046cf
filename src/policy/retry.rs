//! Whether a write may be a retry that a move of authority has overtaken.
//!
//! A retryable write may have run on the former authority, its reply lost, and be sent again after its slot
//! has moved. Executed again it would count twice. The first number that a proxy sees from a session after a
//! move may be such a retry: then the former authority is asked. What was learnt is kept by session, slot and
//! move, and names the number: the same number asks again, a higher one need not, a lower one is refused.
//!
//! What old has taken back without new is no move of which records tell, but to a retry it is one. New cannot be asked as
//! long as it is away, and refusing more than must be would cost applications what the rollback gave them: there the
//! first number of a session decides for all its slots, as drivers use a session for one write at a time.
//!
//! Nobody need be asked where every write that the former authority may have executed came through this
//! process, and this one did not: so a cluster that goes away after it gave up its slots is not missed by the
//! process that made the move.

use std::collections::HashMap;
use std::time::Duration;

use crate::model::moves::Move;
use crate::model::side::{PerSide, Side};
use crate::model::slots::{Slot, SlotSet};

/// What to do with a retryable write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It cannot have run elsewhere.
    Run,
    /// Ask this cluster first.
    Ask(Side),
    /// An older write of a session that has gone on: no driver waits for it.
    Refuse,
}

/// Sessions live for 30 minutes at servers, and drivers do not use older ones: no retry is older than this.
pub const OLDEST_RETRY: Duration = Duration::from_secs(31 * 60);

/// From when on every write that a cluster executed as an authority came through this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Alone {
    /// It executed none before.
    Ever,
    /// This time of the process's clock.
    Since(Duration),
}

/// Numbers learnt, by session, slot and move. Bounded: what is forgotten is asked again.
#[derive(Debug)]
pub struct Memory {
    learnt: HashMap<([u8; 16], Slot, u64), i64>,
    /// The highest number of each session that this process has sent to a cluster as the authority.
    sent: PerSide<HashMap<[u8; 16], i64>>,
    /// The write of each session that was seen last to change something, of which document, and where.
    executed: HashMap<[u8; 16], (i64, Option<u128>, Side)>,
    /// When this process first heard of each move: none matters for longer than retries live.
    heard: HashMap<u64, Duration>,
    /// When there were too many of them.
    forgotten: PerSide<Option<Duration>>,
    /// Whether no other process writes to a cluster now.
    alone: PerSide<Option<Alone>>,
    /// The same at the moment of each move, for the cluster that gave up its slots: what came later was no
    /// write of an authority.
    alone_until: HashMap<u64, Alone>,
    limit: usize,
}

/// Sessions whose numbers are remembered.
const SESSIONS_REMEMBERED: usize = 200_000;

impl Default for Memory {
    fn default() -> Self {
        Self::new(SESSIONS_REMEMBERED)
    }
}

impl Memory {
    /// Remembers at most `limit` numbers of each kind, about 64 bytes each.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            learnt: HashMap::new(),
            sent: PerSide::default(),
            executed: HashMap::new(),
            heard: HashMap::new(),
            forgotten: PerSide::default(),
            alone: PerSide::default(),
            alone_until: HashMap::new(),
            limit,
        }
    }

    /// This process is about to send number `number` of `session` to `authority`.
    pub fn note_sent(&mut self, authority: Side, session: [u8; 16], number: i64, now: Duration) {
        let sent = self.sent.get_mut(authority);
        if sent.len() >= self.limit && !sent.contains_key(&session) {
            sent.clear();
            *self.forgotten.get_mut(authority) = Some(now);
        }
        let highest = sent.entry(session).or_insert(number);
        *highest = number.max(*highest);
    }

    /// Number `number` of `session` has changed something on `side`, which is the `document` of that fingerprint if it
    /// names one; returns where it had done so before. No driver gives one number to writes of two documents: one that
    /// does has sent no retry.
    pub fn note_executed(
        &mut self,
        session: [u8; 16],
        number: i64,
        document: Option<u128>,
        side: Side,
    ) -> Option<Side> {
        if self.executed.len() >= self.limit && !self.executed.contains_key(&session) {
            self.executed.clear();
        }
        let before = self.executed.insert(session, (number, document, side));
        before.filter(|(before, of, _)| (*before, *of) == (number, document)).map(|(_, _, side)| side)
    }

    /// Whether the record of `side` names no other process; `untouched`: none can have sent a write to it as
    /// the authority for longer than retries live. No process takes its own name out of a record, so one that
    /// names nobody else now, and did before, has named nobody else in between.
    pub fn note_alone(&mut self, side: Side, alone: bool, untouched: bool, now: Duration) {
        let known = self.alone.get_mut(side);
        let begin = || if untouched { Alone::Ever } else { Alone::Since(now) };
        *known = alone.then(|| known.unwrap_or_else(begin));
    }

    /// `former` has given up slots at `epoch`.
    pub fn note_move(&mut self, former: Side, epoch: u64) {
        if self.alone_until.len() >= self.limit {
            self.alone_until.clear();
        }
        self.alone_until.extend(self.alone.get(former).map(|alone| (epoch, alone)));
    }

    /// Judges number `number` of `session` on `slot`, which `authority` owns now.
    pub fn judge(
        &mut self,
        session: [u8; 16],
        slot: Slot,
        number: i64,
        authority: Side,
        moves: &[Move],
        now: Duration,
    ) -> Verdict {
        // The last of them: the number that comes first after it may be a retry of before any of them.
        let past = moves.iter().filter(|past| past.slots.contains(slot) && past.former != authority);
        let Some(past) = past.max_by_key(|past| past.epoch) else { return Verdict::Run };
        let heard = *self.heard.entry(past.epoch).or_insert(now);
        if now >= heard + OLDEST_RETRY {
            return Verdict::Run;
        }
        if self.learnt.len() >= self.limit {
            self.learnt.clear();
        }
        let learnt = *self.learnt.entry((session, slot, past.epoch)).or_insert(number);
        match number.cmp(&learnt) {
            std::cmp::Ordering::Less => Verdict::Refuse,
            std::cmp::Ordering::Equal if self.may_have_run(past, session, number, now) => {
                Verdict::Ask(past.former)
            }
            std::cmp::Ordering::Equal | std::cmp::Ordering::Greater => Verdict::Run,
        }
    }

    /// Judges number `number` of `session`, which old is the authority of since it has `taken_back` its slot.
    pub fn judge_taken_back(
        &mut self,
        session: [u8; 16],
        number: i64,
        taken_back: Move,
        now: Duration,
    ) -> Verdict {
        let of_all = Move { slots: SlotSet::ALL, ..taken_back };
        self.judge(session, Slot::of_hash(0), number, Side::Old, &[of_all], now)
    }

    fn may_have_run(&self, past: &Move, session: [u8; 16], number: i64, now: Duration) -> bool {
        let is_over = |begin: Duration| now >= begin + OLDEST_RETRY;
        let alone = match self.alone_until.get(&past.epoch) {
            None => false,
            Some(Alone::Ever) => true,
            Some(Alone::Since(begin)) => is_over(*begin),
        };
        let all_known = alone && self.forgotten.get(past.former).is_none_or(is_over);
        !all_known || self.sent.get(past.former).get(&session).is_some_and(|sent| *sent >= number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(memory: &mut Memory, number: i64, slot: u16, moves: &[Move]) -> Verdict {
        memory.judge([1; 16], Slot::from_number(slot).unwrap(), number, Side::New, moves, NOW)
    }

    const NOW: Duration = Duration::from_secs(5000);

    #[test]
    fn the_first_number_after_a_move_asks_and_asks_again() {
        let moves = [Move { slots: SlotSet::percent(50), former: Side::Old, epoch: 3, at: 0, markers: None }];
        let mut memory = Memory::new(100);
        assert_eq!(judge(&mut memory, 7, 1, &moves), Verdict::Ask(Side::Old));
        assert_eq!(judge(&mut memory, 7, 1, &moves), Verdict::Ask(Side::Old));
        assert_eq!(judge(&mut memory, 8, 1, &moves), Verdict::Run);
        assert_eq!(judge(&mut memory, 6, 1, &moves), Verdict::Refuse);
        // Another slot of the same move has been learnt nothing about.
        assert_eq!(judge(&mut memory, 8, 2, &moves), Verdict::Ask(Side::Old));
        // A slot that never moved.
        assert_eq!(judge(&mut memory, 1, 1000, &moves), Verdict::Run);
    }

    #[test]
    fn nobody_is_asked_about_what_only_this_process_could_have_sent() {
        let moves = [Move { slots: SlotSet::ALL, former: Side::Old, epoch: 3, at: 0, markers: None }];
        let mut memory = Memory::new(100);
        memory.note_alone(Side::Old, true, true, NOW);
        memory.note_move(Side::Old, 3);
        // Who comes after the move finds no authority there.
        memory.note_alone(Side::Old, false, false, NOW);
        assert_eq!(judge(&mut memory, 7, 1, &moves), Verdict::Run);
        // Sent by this process before the move, its reply lost between it and the client.
        memory.note_sent(Side::Old, [1; 16], 8, NOW);
        assert_eq!(judge(&mut memory, 8, 2, &moves), Verdict::Ask(Side::Old));
        assert_eq!(judge(&mut memory, 9, 3, &moves), Verdict::Run);
    }

    #[test]
    fn what_was_taken_back_asks_once_for_each_session_whatever_its_slots() {
        let taken_back =
            || Move { slots: SlotSet::percent(5), former: Side::New, epoch: 8, at: 0, markers: None };
        let mut memory = Memory::new(100);
        let judge = |memory: &mut Memory, session: u8, number| {
            memory.judge_taken_back([session; 16], number, taken_back(), NOW)
        };
        assert_eq!(judge(&mut memory, 1, 7), Verdict::Ask(Side::New), "another process may have sent it");
        assert_eq!(judge(&mut memory, 1, 7), Verdict::Ask(Side::New));
        assert_eq!(judge(&mut memory, 1, 8), Verdict::Run);
        assert_eq!(judge(&mut memory, 1, 6), Verdict::Refuse);
        // Of a process that has sent all that new has executed, only what it has sent itself.
        let mut memory = Memory::new(100);
        memory.note_alone(Side::New, true, true, NOW);
        memory.note_sent(Side::New, [2; 16], 3, NOW);
        memory.note_move(Side::New, 8);
        assert_eq!(judge(&mut memory, 1, 7), Verdict::Run);
        assert_eq!(judge(&mut memory, 2, 3), Verdict::Ask(Side::New));
        assert_eq!(judge(&mut memory, 2, 4), Verdict::Run);
    }

    #[test]
    fn of_several_moves_back_and_forth_the_last_one_counts() {
        let to_old = |epoch| Move { slots: SlotSet::ALL, former: Side::New, epoch, at: 0, markers: None };
        let moves = [to_old(3), Move { former: Side::Old, ..to_old(4) }, to_old(5)];
        let mut memory = Memory::new(100);
        // The first of them was made by another process, the last by this one, which has sent all that new executed.
        memory.note_alone(Side::New, true, true, NOW);
        memory.note_move(Side::New, 5);
        let slot = |number| Slot::from_number(number).unwrap();
        for number in 1..5 {
            let judged = memory.judge([1; 16], slot(number), i64::from(number), Side::Old, &moves, NOW);
            assert_eq!(judged, Verdict::Run);
        }
    }

    #[test]
    fn the_last_write_of_a_session_is_known_by_where_it_was_executed() {
        let mut memory = Memory::new(1);
        let mut note =
            |session: u8, number, document, side| memory.note_executed([session; 16], number, document, side);
        assert_eq!(note(1, 7, Some(1), Side::Old), None);
        assert_eq!(note(1, 7, Some(1), Side::New), Some(Side::Old));
        assert_eq!(note(1, 7, Some(2), Side::Old), None, "of another document: no retry");
        assert_eq!(note(1, 7, None, Side::Old), None);
        assert_eq!(note(1, 7, None, Side::New), Some(Side::Old));
        assert_eq!(note(1, 8, None, Side::New), None);
        assert_eq!(note(2, 8, None, Side::New), None, "another session, and no room for both");
        assert_eq!(note(1, 8, None, Side::New), None);
    }

    #[test]
    fn another_process_may_have_sent_it() {
        let moves = [Move { slots: SlotSet::ALL, former: Side::Old, epoch: 3, at: 0, markers: None }];
        let mut memory = Memory::new(100);
        memory.note_move(Side::Old, 3);
        assert_eq!(judge(&mut memory, 9, 3, &moves), Verdict::Ask(Side::Old), "nobody has looked");
        memory.note_alone(Side::Old, true, true, NOW);
        memory.note_alone(Side::Old, false, false, NOW);
        memory.note_alone(Side::Old, true, false, NOW);
        memory.note_move(Side::Old, 3);
        assert_eq!(judge(&mut memory, 9, 3, &moves), Verdict::Ask(Side::Old), "there was another one");
    }

    #[test]
    fn what_others_may_have_sent_is_asked_for_as_long_as_retries_live() {
        let moves = [Move { slots: SlotSet::ALL, former: Side::Old, epoch: 3, at: 0, markers: None }];
        let slot = Slot::from_number(1).unwrap();
        let mut memory = Memory::new(1);
        memory.note_alone(Side::Old, true, false, NOW);
        memory.note_move(Side::Old, 3);
        let at = |memory: &mut Memory, now| memory.judge([1; 16], slot, 7, Side::New, &moves, now);
        // This process has been alone for long enough when it first hears of the move.
        let later = NOW + OLDEST_RETRY;
        assert_eq!(at(&mut memory, later), Verdict::Run);
        // Too many sessions to remember: what is forgotten may have been sent.
        memory.note_sent(Side::Old, [2; 16], 1, later);
        memory.note_sent(Side::Old, [3; 16], 1, later);
        assert_eq!(at(&mut memory, later), Verdict::Ask(Side::Old));
    }

    #[test]
    fn a_move_is_forgotten_when_no_retry_can_be_older() {
        let moves = [Move { slots: SlotSet::ALL, former: Side::Old, epoch: 3, at: 0, markers: None }];
        let slot = Slot::from_number(1).unwrap();
        let mut memory = Memory::new(100);
        let mut at = |number, now| memory.judge([1; 16], slot, number, Side::New, &moves, now);
        assert_eq!(at(7, NOW), Verdict::Ask(Side::Old));
        let almost = NOW + OLDEST_RETRY - Duration::from_secs(1);
        assert_eq!(at(7, almost), Verdict::Ask(Side::Old));
        assert_eq!(at(7, NOW + OLDEST_RETRY), Verdict::Run);
    }
}
