//! A connection taken from a pool: exchanges one message at a time.

use std::io::IoSlice;

use bytes::BytesMut;

use super::command::{SendError, ServerId};

/// A connection that goes back to its pool on drop, unless an exchange failed or is under way.
#[derive(Debug)]
pub struct Pooled {}

impl Pooled {
    /// The server at the other end.
    #[must_use]
    pub fn server(&self) -> &ServerId {
        unimplemented!()
    }

    /// Sends one whole message, given in parts, and reads one whole reply.
    /// `reply` is cleared first and holds exactly the reply, header included, afterwards. The reply's header
    /// length is checked before memory is reserved for it. Has no limit of its own: drop the future to give
    /// up; the connection is closed then.
    ///
    /// # Errors
    /// [`SendError::NotSent`] when not one byte was written, else [`SendError::Unknown`]; the connection is
    /// closed.
    pub async fn exchange(
        &mut self,
        _message: &mut [IoSlice<'_>],
        _reply: &mut BytesMut,
    ) -> Result<(), SendError> {
        unimplemented!()
    }
}
