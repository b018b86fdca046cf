//! The words that everything else shares: plain data without behaviour beyond parsing and ordering.
pub mod capabilities;
pub mod instant;
pub mod key;
pub mod moves;
pub mod namespace;
pub mod number;
pub mod pattern;
pub mod percent;
pub mod phase;
pub mod side;
pub mod slots;
pub mod span;
