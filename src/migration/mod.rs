//! The control plane: everything that moves a migration forward or back.
pub mod backfill;
pub mod catalog;
pub mod context;
pub mod control;
pub mod holder;
pub mod moving;
pub mod preflight;
pub mod prepare;
pub mod ranges;
pub mod stream;
pub mod tailer;
pub mod throttle;
pub mod ttl;
pub mod verify;
