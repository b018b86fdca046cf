//! The `hello` command: what is sent, and what its reply says about a server.

/// Limits of a server, as its `hello` reply states them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest document in bytes.
    pub max_bson_object_size: i32,
    /// Largest message in bytes.
    pub max_message_size: i32,
    /// Most writes in one command.
    pub max_write_batch_size: i32,
}
