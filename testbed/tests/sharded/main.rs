//! Sharded clusters: what drivers see of the router, and what shards do.

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests are tests too.

mod catalog;
mod commands;
mod failures;
mod keys;
mod numbers;
mod streams;
mod support;
