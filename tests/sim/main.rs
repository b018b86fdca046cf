//! The deterministic simulator: production code on clusters, clocks and networks in memory.
//!
//! One seed is one schedule: who runs next, how long each message takes, which are lost, when a member fails
//! over. The same seed replays exactly. A failing schedule prints its seed; replay it with
//!
//! ```text
//! SIM_SEED=123 cargo test --test sim -- --nocapture
//! ```
//!
//! `SIM_SCHEDULES=n` runs n schedules per test, beginning at `SIM_SEED` if that is given too; `SIM_SECONDS=n` generates
//! schedules for so long, from a seed that no run had before. `SIM_KEEP` leaves out all acts of a generated schedule but
//! those: a failing one prints which. `SIM_BASE=n` stands for the seeds that no run had before: then two runs are the
//! same.
//!
//! Code that runs here must not look at anything that differs from run to run: no order of a `HashMap`, no
//! `tokio::select!` or `futures::select!` without `biased`, no clock and no randomness but the injected ones.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    reason = "the world offers more than the schedules use today, and it is test code"
)]

mod checks;
mod executor;
mod mongo;
mod network;
mod process;
mod rng;
mod scenario;
mod schedules;
mod selftest;
mod world;
