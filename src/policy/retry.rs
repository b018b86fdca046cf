//! Whether a write may be a retry that a move of authority has overtaken.
//!
//! A retryable write may have run on the former authority, its reply lost, and be sent again after its slot
//! has moved. Executed again it would count twice. The first number that a proxy sees from a session after a
//! move may be such a retry: then the former authority is asked. What was learnt is kept by session, slot and
//! move, and names the number: the same number asks again, a higher one need not, a lower one is refused.

use std::collections::HashMap;

use crate::model::moves::Move;
use crate::model::side::Side;
use crate::model::slots::Slot;

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

/// Numbers learnt, by session, slot and move. Bounded: what is forgotten is asked again.
#[derive(Debug)]
pub struct Memory {
    learnt: HashMap<([u8; 16], Slot, u64), i64>,
    limit: usize,
}

impl Memory {
    /// Remembers at most `limit` numbers, about 64 bytes each.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { learnt: HashMap::new(), limit }
    }

    /// Judges number `number` of `session` on `slot`, which `authority` owns now.
    pub fn judge(
        &mut self,
        session: [u8; 16],
        slot: Slot,
        number: i64,
        authority: Side,
        moves: &[Move],
    ) -> Verdict {
        let mut verdict = Verdict::Run;
        for past in moves.iter().filter(|past| past.slots.contains(slot) && past.former != authority) {
            if self.learnt.len() >= self.limit {
                self.learnt.clear();
            }
            let learnt = *self.learnt.entry((session, slot, past.epoch)).or_insert(number);
            match number.cmp(&learnt) {
                std::cmp::Ordering::Less => return Verdict::Refuse,
                std::cmp::Ordering::Equal => verdict = Verdict::Ask(past.former),
                std::cmp::Ordering::Greater => {}
            }
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::slots::SlotSet;

    fn judge(memory: &mut Memory, number: i64, slot: u16, moves: &[Move]) -> Verdict {
        memory.judge([1; 16], Slot::from_number(slot).unwrap(), number, Side::New, moves)
    }

    #[test]
    fn the_first_number_after_a_move_asks_and_asks_again() {
        let moves = [Move { slots: SlotSet::percent(50), former: Side::Old, epoch: 3, at: 0 }];
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
}
