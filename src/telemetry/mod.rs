//! Numbers about the process.
pub mod metrics;
