//! Background tasks: how they are started, told to stop, and waited for.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Starts background tasks. The simulator has one of its own.
pub trait Spawn: Send + Sync {
    /// Runs `task` in the background; `name` is for logs.
    fn spawn(&self, name: &'static str, task: BoxFuture<'static, ()>);
}

/// The spawner that the whole process shares.
pub type SharedSpawn = Arc<dyn Spawn>;

/// Tasks of the process on tokio, with one signal that ends them all.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    token: CancellationToken,
}

impl Tasks {
    /// The signal that tells everybody to stop.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Tells every task to stop and waits up to `grace` for them.
    /// Returns whether all of them ended in time.
    pub async fn stop(&self, grace: Duration) -> bool {
        self.token.cancel();
        self.tracker.close();
        tokio::time::timeout(grace, self.tracker.wait()).await.is_ok()
    }
}

impl Spawn for Tasks {
    fn spawn(&self, name: &'static str, task: BoxFuture<'static, ()>) {
        let token = self.token.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                () = token.cancelled() => tracing::debug!(task = name, "stopped"),
                () = task => tracing::debug!(task = name, "ended"),
            }
        });
    }
}
