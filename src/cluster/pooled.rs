//! A connection taken from a pool: exchanges one message at a time.

use std::io::IoSlice;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::sync::OwnedSemaphorePermit;

use super::command::{SendError, ServerId};
use super::connection::{Connection, ExchangeError};
use super::pool::Pool;

/// A connection that goes back to its pool on drop, unless an exchange failed or is under way.
#[derive(Debug)]
pub struct Pooled {
    /// `None` once the connection is of no use any more.
    connection: Option<Connection>,
    generation: u64,
    pool: Arc<Pool>,
    /// Freed after the connection is back, because fields are dropped after `drop` ran.
    _permit: OwnedSemaphorePermit,
}

impl Pooled {
    pub(super) fn new(
        connection: Connection,
        generation: u64,
        pool: Arc<Pool>,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self { connection: Some(connection), generation, pool, _permit: permit }
    }

    /// The server at the other end.
    #[must_use]
    pub fn server(&self) -> &ServerId {
        &self.pool.member().address
    }

    /// Whether the connection can still be used: no exchange failed and the server is not known to be gone.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.connection.is_some() && self.generation == self.pool.member().generation()
    }

    /// Sends one whole message, given in parts, and reads one whole reply.
    /// `reply` is cleared first and holds exactly the reply, header included, afterwards. The reply's header
    /// length is checked before memory is reserved for it, and that it answers this message (when the first
    /// part has the message's header). Has no limit of its own: drop the future to give up; the connection
    /// is closed then. After [`SendError::NotSent`] the parts are as they were and may be sent on another
    /// connection. A reply that announces more replies is returned like any other, but the connection is
    /// closed, so do not allow the server to send such.
    ///
    /// # Errors
    /// [`SendError::NotSent`] when not one byte was written, else [`SendError::Unknown`]; the connection is
    /// closed.
    pub async fn exchange(
        &mut self,
        message: &mut [IoSlice<'_>],
        reply: &mut BytesMut,
    ) -> Result<(), SendError> {
        // Whatever happens from here on, the connection only comes back after a whole reply.
        let Some(mut connection) = self.connection.take() else {
            return Err(SendError::NotSent(format!("{}: the connection is closed", self.server())));
        };
        match connection.exchange(message, reply).await {
            Ok(at_rest) => {
                self.connection = at_rest.then_some(connection);
                Ok(())
            }
            Err(error) => Err(self.failed(&error)),
        }
    }

    #[cold]
    fn failed(&self, error: &ExchangeError) -> SendError {
        let message = format!("{}: {error}", self.server());
        match error {
            // An idle connection that the server had closed; says nothing about the server itself.
            ExchangeError::NotSent(_) => SendError::NotSent(message),
            ExchangeError::Broken(_) => {
                let pool = &self.pool;
                pool.cluster().note_broken_connection(pool.member(), self.generation, &message);
                SendError::Unknown(message)
            }
            ExchangeError::Frame(_) => {
                tracing::warn!(server = %self.server(), %error, "unusable reply; closing the connection");
                SendError::Unknown(message)
            }
        }
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.pool.put_back(connection, self.generation);
        }
    }
}
