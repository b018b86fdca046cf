//! Bytes without IO: framing, OP_MSG, scanning and patching of commands and replies.
pub mod compressed;
pub mod element;
pub mod error;
pub mod header;
pub mod op_msg;
pub mod patch;
pub mod query;
pub mod reply;
pub mod scan;
