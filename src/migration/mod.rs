//! The control plane: everything that moves a migration forward or back.
pub mod backfill;
pub mod context;
pub mod control;
pub mod holder;
pub mod moving;
pub mod ranges;
pub mod stream;
pub mod tailer;
pub mod throttle;
