//! Decisions without IO, clock, randomness or logs: what makes the product right or wrong.
pub mod bypass;
pub mod canonical;
pub mod catalog;
pub mod classify;
pub mod compare;
pub mod converge;
pub mod failover;
pub mod gate;
pub mod others;
pub mod privileges;
pub mod reads;
pub mod retry;
pub mod safeguards;
pub mod shard_key;
pub mod split;
pub mod statement;
pub mod writes;
