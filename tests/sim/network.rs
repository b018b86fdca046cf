//! The network: every command takes its time, may come much later, or never; replies likewise.
//!
//! A command that was sent is delivered whatever becomes of its sender. Order between calls is not kept.

mod connection;
mod fate;
mod mail;

pub(crate) use connection::Connection;
pub(crate) use fate::Weather;
pub(crate) use mail::{Message, Network};
