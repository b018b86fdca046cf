//! Bytes without IO: framing, OP_MSG, scanning and patching of commands and replies.
pub mod header;
pub mod op_msg;
