//! The edge towards applications: sockets, workers, sessions, and the faces that drivers see.
mod acceptor;
mod accounts;
mod belongings;
mod buffers;
mod client;
mod exhaust;
mod fail_points;
mod introduction;
mod login;
mod scram;
mod session;
mod waiting;

pub mod face;
pub mod hello;
pub mod settings;
pub mod tls;
pub mod worker;

pub use acceptor::{Listener, bind};
pub use settings::{Entrance, Settings};
pub use worker::{Worker, Workers};
