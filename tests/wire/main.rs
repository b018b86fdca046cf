//! What the protocol allows and drivers rarely do, where two clusters are behind.

mod colliding;
#[path = "../raw/mod.rs"]
mod raw;
mod sections;
mod sessions;
#[path = "../support/mod.rs"]
mod support;
