//! Decisions without IO, clock, randomness or logs: what makes the product right or wrong.
pub mod canonical;
pub mod catalog;
pub mod compare;
pub mod converge;
pub mod privileges;
pub mod safeguards;
