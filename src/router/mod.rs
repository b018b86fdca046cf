//! The data plane: one operation in, one reply out.
mod dispatch;
mod followers;
mod pipeline;

pub mod census;
pub mod cursors;
pub mod meters;
pub mod operation;
pub mod preference;
pub mod route;
pub mod transactions;

pub use dispatch::{Dispatch, Replied};
pub use operation::Operation;
pub use pipeline::{Handled, Router, Shared};
pub use route::{AlwaysOld, Route};
