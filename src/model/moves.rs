//! Past moves of authority.

use bson::Timestamp;

use super::side::{PerSide, Side};
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
    /// The times of the fence on both clusters; what an older version stored has none.
    pub markers: Option<PerSide<Timestamp>>,
}
