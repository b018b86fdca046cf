//! Snapshots of sessions through a migration: one is of one cluster, and is never taken for one of the other.

mod support;

use anyhow::{Context as _, Result, ensure};
use bson::{Document, doc};
use mongodb::options::SessionOptions;
use mongodb::{Client, ClientSession, Collection};
use support::{Operator, proxy, two_sets, uri};

const TOO_OLD: i32 = 239;

async fn snapshot(client: &Client) -> Result<ClientSession> {
    Ok(client.start_session().with_options(SessionOptions::builder().snapshot(true).build()).await?)
}

async fn sees(things: &Collection<Document>, session: &mut ClientSession, wanted: u64) -> Result<()> {
    let seen = things.count_documents(doc! {}).session(&mut *session).await?;
    ensure!(seen == wanted, "{seen} documents of {wanted} in {}", things.name());
    Ok(())
}

async fn is_refused(things: &Collection<Document>, session: &mut ClientSession) -> Result<()> {
    let refused = things.count_documents(doc! {}).session(session).await.err().context("it was read")?;
    let code = match &*refused.kind {
        mongodb::error::ErrorKind::Command(error) => error.code,
        _ => 0,
    };
    ensure!(code == TOO_OLD, "{refused}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_ends_with_a_move() -> Result<()> {
    let (old, new) = two_sets("snapshots").await?;
    let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
    let client = Client::with_uri_str(uri(&proxy)).await?;
    let shop = client.database("shop");
    let (moved, stays) = (shop.collection::<Document>("moved"), shop.collection::<Document>("stays"));
    for things in [&moved, &stays] {
        things.insert_one(doc! { "_id": 1 }).await?;
    }
    let operator = Operator::of(&proxy, "snapshots");
    operator.create(&["shop.moved"]).await?;
    operator.start().await?;
    operator.until_synced().await?;
    operator.reads(100).await?;
    let mut session = snapshot(&client).await?;
    sees(&moved, &mut session, 1).await?;
    moved.insert_one(doc! { "_id": 2 }).await?;
    sees(&moved, &mut session, 1).await?;
    sees(&stays, &mut session, 1).await?;

    operator.writes(100).await?;
    is_refused(&moved, &mut session).await?;
    sees(&stays, &mut session, 1).await?;
    let mut session = snapshot(&client).await?;
    sees(&moved, &mut session, 2).await?;
    moved.insert_one(doc! { "_id": 3 }).await?;
    sees(&moved, &mut session, 2).await?;
    is_refused(&stays, &mut session).await?;
    operator.rollback().await?;
    is_refused(&moved, &mut session).await?;
    proxy.shutdown().await;
    Ok(())
}
