//! A MongoDB replica set in memory.

pub(crate) mod about;
pub(crate) mod admin;
pub(crate) mod cluster;
pub(crate) mod command;
pub(crate) mod connections;
pub(crate) mod cursor;
pub(crate) mod error;
pub(crate) mod filter;
pub(crate) mod find_and_modify;
pub(crate) mod key;
pub(crate) mod log;
pub(crate) mod read;
pub(crate) mod serve;
pub(crate) mod sessions;
pub(crate) mod state;
pub(crate) mod store;
pub(crate) mod stream;
pub(crate) mod update;
pub(crate) mod write;
pub(crate) mod write_command;
