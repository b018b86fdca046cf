//! Memory of clients that are connected and ask for nothing.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;

use crate::client::{Client, Operation};
use crate::usage::rss;

const SETTLE: Duration = Duration::from_millis(500);

/// Bytes of memory that a process holds for each idle client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PerClient {
    /// After a hello.
    pub(crate) greeted: f64,
    /// After a hello and one find.
    pub(crate) used: f64,
}

/// Opens `count` connections to the process `pid`, which must be fresh.
pub(crate) async fn measure(address: SocketAddr, pid: u32, count: u16) -> Result<PerClient> {
    // What is made for the first client is not the price of one more.
    let mut first = Client::connect(address, Operation::Find, u128::MAX).await?;
    first.operate_and_check(Operation::Find, 1, 1).await?;
    tokio::time::sleep(SETTLE).await;
    let before = rss(pid)?;
    let mut clients = Vec::with_capacity(count.into());
    for number in 0..count {
        clients.push(Client::connect(address, Operation::Find, number.into()).await?);
    }
    tokio::time::sleep(SETTLE).await;
    let greeted = rss(pid)?;
    for client in &mut clients {
        client.operate_and_check(Operation::Find, 1, 1).await?;
    }
    tokio::time::sleep(SETTLE).await;
    let used = rss(pid)?;
    #[expect(clippy::cast_precision_loss, reason = "sizes of memory")]
    let each = |now: u64| now.saturating_sub(before) as f64 / f64::from(count);
    Ok(PerClient { greeted: each(greeted), used: each(used) })
}
