//! The control plane: everything that moves a migration forward or back.
pub mod control;
pub mod stream;
pub mod tailer;
pub mod throttle;
