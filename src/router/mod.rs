//! The data plane: one operation in, one reply out.
mod both_sides;
mod bulk;
mod dispatch;
mod expiry;
mod followers;
mod foreign_commits;
mod migrating;
mod outcome;
mod overtaken;
mod owning;
mod pipeline;
mod resolving;
mod sending;
mod shadowing;
mod shapes;
mod shared;
mod together;

pub mod census;
pub mod cursors;
pub mod entry;
pub mod meters;
pub mod mirroring;
pub mod newcomers;
pub mod open_transactions;
pub mod operation;
pub mod preference;
pub mod reading;
pub mod route;
pub mod transacting;
pub mod transactions;
pub mod writer;

pub use dispatch::{Dispatch, Replied};
pub use operation::Operation;
pub use pipeline::{Handled, Router};
pub use route::{AlwaysOld, Route};
pub use shared::Shared;
