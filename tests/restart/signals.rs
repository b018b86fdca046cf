//! Signals that come while the program is another, or about to be.

use anyhow::{Context as _, Result, ensure};
use bson::{Document, doc};
use mongodb::Client;
use reshard_testbed::{ReplicaSet, wait_for};
use rustix::process::Signal;

use crate::support::LONG;
use crate::support::process::Server;

const SERVES: &str = "serving clients";

/// Waits until it has ended, and looks at how.
async fn ends_in_order(server: &Server) -> Result<()> {
    wait_for("its end", LONG, || async { Ok(server.has_ended()) }).await.with_context(|| server.tail())?;
    ensure!(server.exit_code() == Some(0), "{:?}: {}", server.exit_code(), server.tail());
    Ok(())
}

/// Whether the process has become its successor, which need not have done anything yet.
fn is_the_successor(server: &Server) -> Result<bool> {
    let environment = std::fs::read(format!("/proc/{}/environ", server.pid()?))?;
    Ok(environment.split(|byte| *byte == 0).any(|one| one.starts_with(b"LISTEN_FDS_FIRST_FD=")))
}

/// Waits for the moment right after `exec`, with no pause between two looks.
async fn until_the_successor(server: &Server) -> Result<()> {
    let looking = async {
        while !is_the_successor(server)? {
            ensure!(!server.has_ended(), "it has ended: {:?}", server.exit_code());
            tokio::task::yield_now().await;
        }
        Ok(())
    };
    tokio::time::timeout(LONG, looking).await?.with_context(|| server.tail())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_in_quick_succession_end_nothing() -> Result<()> {
    let set = ReplicaSet::builder("restart-again").start().await?;
    let server = Server::start(&set.uri(), None).await?;
    let c = Client::with_uri_str(server.uri()).await?.database("shop").collection::<Document>("c");
    c.insert_one(doc! { "_id": 1 }).await?;
    server.signal(Signal::USR2)?;
    until_the_successor(&server).await?;
    // Whatever the new program is at when they come, and others after it.
    let several = wait_for("several programs", LONG, || async {
        server.signal(Signal::USR2)?;
        ensure!(!server.has_ended(), "{:?}", server.exit_code());
        Ok(server.times_logged(SERVES) >= 5)
    })
    .await;
    several.with_context(|| server.tail())?;
    c.insert_one(doc! { "_id": 2 }).await?;
    ensure!(c.count_documents(doc! {}).await? == 2 && !server.has_ended(), "{}", server.tail());
    server.signal(Signal::TERM)?;
    ends_in_order(&server).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_right_after_a_restart_ends_it_in_order() -> Result<()> {
    let set = ReplicaSet::builder("restart-stop").start().await?;
    let server = Server::start(&set.uri(), None).await?;
    server.signal(Signal::USR2)?;
    server.signal(Signal::TERM)?;
    ends_in_order(&server).await?;
    // When the old program has ended as far as possible, and the new one has not begun.
    server.restart().await?;
    let before = server.times_logged(SERVES);
    server.signal(Signal::USR2)?;
    until_the_successor(&server).await?;
    server.signal(Signal::TERM)?;
    ends_in_order(&server).await?;
    ensure!(server.times_logged(SERVES) <= before + 1, "{}", server.tail());
    Ok(())
}
