//! The words that everything else shares: plain data without behaviour beyond parsing and ordering.
pub mod key;
pub mod namespace;
pub mod phase;
pub mod side;
pub mod slots;
