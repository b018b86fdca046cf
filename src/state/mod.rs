//! What the data plane and the control plane share.
pub mod authority;
pub mod checkpoint;
pub mod expiry;
pub mod frontier;
pub mod inflight;
pub mod lease;
pub mod newcomers;
pub mod own_writes;
pub mod parking;
pub mod process_writes;
pub mod recent;
pub mod record;
pub mod records;
pub mod table;
pub mod transactions;
pub mod unsettled;
pub mod violations;
