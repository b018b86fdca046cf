//! Writers that go past the proxy: their writes are found in the change streams, counted, listed with what a
//! move undid, and stand in the way of moves of writes. See `docs/adr/0009-writers-past-the-proxy.md`.
mod calls;
mod examining;
mod judging;
mod log;
mod view;

pub use examining::{Change, Examiner};
pub use log::Log;
pub(super) use log::shown;
pub use view::{Acknowledge, Acknowledged, BypassReport, BypassWrite, Page};
