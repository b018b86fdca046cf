//! The thread that a router runs in, with a runtime of its own: it goes on when the runtime of a test is
//! blocked, and its connections break at once when it is ended.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio::runtime::Builder;
use tokio::sync::oneshot;

use super::{Router, Servers, server};

/// A running router; it ends on drop.
#[derive(Debug)]
pub(in crate::sharded) struct RouterThread {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    /// Its folder in /proc.
    task: PathBuf,
}

impl RouterThread {
    /// Starts a router that listens on `listener`, and waits until it is ready.
    pub(in crate::sharded) async fn start(listener: TcpListener, servers: Servers) -> Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let (started, ready) = oneshot::channel();
        let (tell_task, task) = mpsc::channel();
        let run = move || {
            let _ = tell_task.send(fs::read_link("/proc/thread-self").unwrap_or_default());
            let runtime = match Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(started.send(Err(error.into()))),
            };
            runtime.block_on(async {
                tokio::select! {
                    () = serve(listener, servers, started) => {}
                    _ = stopped => {}
                }
            });
            // All connections and tasks end with it.
            runtime.shutdown_timeout(Duration::ZERO);
        };
        let thread = std::thread::Builder::new().name(String::from("testbed-router")).spawn(run)?;
        let task = PathBuf::from("/proc").join(task.recv().context("the router's thread is gone")?);
        let router = Self { stop: Some(stop), thread: Some(thread), task };
        ready.await.map_err(|_| anyhow!("the router's thread is gone"))??;
        Ok(router)
    }

    /// CPU time of the thread.
    pub(in crate::sharded) fn cpu_seconds(&self) -> Option<f64> {
        let stat = fs::read_to_string(self.task.join("schedstat")).ok()?;
        let nanoseconds: u64 = stat.split_whitespace().next()?.parse().ok()?;
        Some(Duration::from_nanos(nanoseconds).as_secs_f64())
    }
}

async fn serve(listener: TcpListener, servers: Servers, started: oneshot::Sender<Result<()>>) {
    let prepare = async {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        anyhow::Ok((listener, Router::connect(&servers).await?))
    };
    match prepare.await {
        Ok((listener, router)) => {
            let _ = started.send(Ok(()));
            server::serve(listener, router).await;
        }
        Err(error) => drop(started.send(Err(error))),
    }
}

impl Drop for RouterThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
