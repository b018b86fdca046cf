//! Past moves of authority.

use super::side::Side;
use super::slots::SlotSet;

/// One past move of authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// What moved.
    pub slots: SlotSet,
    /// Who had it before.
    pub former: Side,
    /// The epoch that the move brought.
    pub epoch: u64,
    /// Unix milliseconds, to forget it one day.
    pub at: i64,
}
