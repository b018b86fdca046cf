//! Decisions without IO, clock, randomness or logs.
pub mod classify;
pub mod failover;
