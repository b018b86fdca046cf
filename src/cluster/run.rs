//! [`Commands`] on real servers.

use async_trait::async_trait;

use super::command::{Commands, Reply, Request, SendError};
use super::pools::Pools;

#[async_trait]
impl Commands for Pools {
    async fn run(&self, _request: Request) -> Result<Reply, SendError> {
        unimplemented!()
    }
}
