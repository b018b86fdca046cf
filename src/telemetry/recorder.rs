//! Metrics of the whole process, in the words of Prometheus.

use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Upper bounds, in seconds: from a connection that comes back at once to the longest wait for a server.
const WAITS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0];

/// Makes all metrics of the process go to the returned handle, which renders them.
///
/// Must be called inside a tokio runtime: a task keeps the histograms small while nobody asks.
///
/// # Errors
/// In words, when another recorder is installed already.
pub fn install() -> Result<PrometheusHandle, String> {
    let waits = Matcher::Full(super::metrics::POOL_WAIT.to_owned());
    let builder = PrometheusBuilder::new().set_buckets_for_metric(waits, &WAITS);
    let handle = builder.and_then(PrometheusBuilder::install_recorder).map_err(|error| error.to_string())?;
    let upkeep = handle.clone();
    tokio::spawn(async move {
        let mut every = tokio::time::interval(Duration::from_secs(5));
        loop {
            every.tick().await;
            upkeep.run_upkeep();
        }
    });
    Ok(handle)
}
