//! One MongoDB cluster: topology, pools, and the seam behind which the simulator puts its own.
pub mod command;
