//! The edge towards applications: sockets, workers, sessions, and the faces that drivers see.
mod acceptor;
mod accounts;
mod answering;
mod belongings;
mod buffers;
mod client;
mod exhaust;
mod fail_points;
mod incoming;
mod kept;
mod login;
mod misplaced;
mod session;

pub mod face;
pub mod hello;
pub mod introduction;
pub mod sasl;
pub mod scram;
pub mod settings;
pub mod tls;
pub mod waiting;
pub mod worker;

pub use acceptor::{Listener, bind};
pub use kept::take_on;
pub use settings::{Entrance, Settings};
pub use worker::{Worker, Workers};
