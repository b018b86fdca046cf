//! An application with the driver for Rust.
use anyhow::Result;
use tokio::sync::oneshot;

use super::stage::{Phase, Stage};

pub(crate) async fn run(_stage: &Stage, _phase: Phase) -> Result<()> {
    Ok(())
}

pub(crate) async fn across(
    _uri: String,
    _before: Phase,
    _after: Phase,
    ready: oneshot::Sender<()>,
    go_on: oneshot::Receiver<()>,
) -> Result<()> {
    _ = ready.send(());
    go_on.await?;
    Ok(())
}
