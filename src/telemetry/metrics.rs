//! The names of all metrics. Handles are registered once and kept, so that an operation formats nothing.

/// Operations, by `class`, `cluster` and `outcome`.
pub const OPERATIONS: &str = "reshard_operations_total";
/// Seconds from a request's last byte to its reply's first, by `class`.
pub const OPERATION_SECONDS: &str = "reshard_operation_seconds";
/// Attempts after the first, by `cluster`.
pub const RETRIES: &str = "reshard_operation_retries_total";
/// Connected clients.
pub const CLIENTS: &str = "reshard_clients";
/// Clients turned away at the limit.
pub const CLIENTS_REFUSED: &str = "reshard_clients_refused_total";
/// Clients whose connection was closed because of what they sent.
pub const CLIENTS_MALFORMED: &str = "reshard_clients_malformed_total";
/// Server connections in use, by `cluster` and `server`.
pub const POOL_IN_USE: &str = "reshard_pool_in_use";
/// Server connections not in use, by `cluster` and `server`.
pub const POOL_IDLE: &str = "reshard_pool_idle";
/// Operations that wait for a server connection, by `cluster` and `server`.
pub const POOL_WAITING: &str = "reshard_pool_waiting";
/// Server connections opened, by `cluster` and `server`.
pub const POOL_CREATED: &str = "reshard_pool_created_total";
/// Cursors open through the proxy.
pub const CURSORS: &str = "reshard_cursors";
/// Cursors forgotten at the bound of the table or after their time.
pub const CURSORS_FORGOTTEN: &str = "reshard_cursors_forgotten_total";
/// Transactions remembered.
pub const TRANSACTIONS: &str = "reshard_transactions";
