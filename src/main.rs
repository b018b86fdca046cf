//! reshard
fn main() {}
