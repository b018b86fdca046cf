//! The control plane: everything that moves a migration forward or back.
pub mod control;
