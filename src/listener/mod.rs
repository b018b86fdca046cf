//! The edge towards applications: sockets, workers, sessions, and the face of a router that drivers see.
mod acceptor;
mod buffers;
mod session;

pub mod hello;
pub mod settings;
pub mod worker;

pub use acceptor::Listener;
pub use settings::Settings;
pub use worker::{Worker, Workers};
