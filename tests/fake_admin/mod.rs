//! An admin API on a real socket over a fake engine, for the tests of the API and of the command line.
#![allow(dead_code, unreachable_pub)] // Each test file uses its part.

mod fake_control;

use std::net::SocketAddr;
use std::sync::Arc;

pub use fake_control::FakeControl;
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// A running API; it ends when dropped.
pub struct Server {
    pub control: Arc<FakeControl>,
    pub address: SocketAddr,
    shutdown: CancellationToken,
}

impl Server {
    pub async fn start() -> Self {
        let control = Arc::new(FakeControl::default());
        let recorder = PrometheusBuilder::new().build_recorder();
        let metrics = recorder.handle();
        metrics::with_local_recorder(&recorder, || metrics::counter!("reshard_fake_total").increment(3));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let router = reshard::admin::router(control.clone(), metrics);
        tokio::spawn(reshard::admin::serve(listener, router, shutdown.clone()));
        Self { control, address, shutdown }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}
