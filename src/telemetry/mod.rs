//! What the process tells about itself: logs and metrics.
pub mod log_writer;
pub mod logging;
pub mod metrics;
pub mod recorder;
