//! The admin API, as an operator's script would use it.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, header};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Longer than the server works on a request before it answers.
const LIMIT: Duration = Duration::from_secs(150);

/// Why a request was refused.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Problem {
    pub(crate) code: String,
    pub(crate) detail: String,
    #[serde(default)]
    pub(crate) reasons: Vec<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.detail)?;
        if self.reasons.is_empty() { Ok(()) } else { write!(out, " ({})", self.reasons.join("; ")) }
    }
}

impl std::error::Error for Problem {}

/// The answer to a change of percentage.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Ramp {
    pub(crate) percent: u8,
    pub(crate) pause_ms: u64,
    pub(crate) attempts: u32,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Progress {
    pub(crate) phase: String,
    pub(crate) reads_percent: u8,
    pub(crate) writes_percent: u8,
    pub(crate) copied_documents: u64,
    pub(crate) total_documents: u64,
    pub(crate) copied_bytes: u64,
    pub(crate) bytes_per_second: f64,
    pub(crate) documents_per_second: f64,
    pub(crate) remaining_seconds: Option<f64>,
    pub(crate) lag_seconds: Option<f64>,
    pub(crate) converged: u64,
    pub(crate) repaired: u64,
    pub(crate) mirror_failures: u64,
    pub(crate) can_cut_over: bool,
    pub(crate) blocked_by: Vec<String>,
    pub(crate) verification: Option<Verification>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Verification {
    pub(crate) running: bool,
    pub(crate) compared_documents: u64,
    pub(crate) total_documents: u64,
    pub(crate) mismatches: u64,
    pub(crate) failure: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Preflight {
    pub(crate) ok: bool,
    pub(crate) findings: Vec<Finding>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Finding {
    pub(crate) severity: String,
    pub(crate) message: String,
    #[serde(default)]
    pub(crate) remedy: String,
}

/// What shadow reads have found.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Diffs {
    pub(crate) shadow_compared: u64,
    pub(crate) shadow_differences: Option<u64>,
}

/// One admin API.
#[derive(Clone)]
pub(crate) struct Api {
    http: Client<HttpConnector, Full<Bytes>>,
    base: String,
}

impl Api {
    pub(crate) fn new(base: String) -> Self {
        Self { http: Client::builder(TokioExecutor::new()).build_http(), base }
    }

    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    async fn exchange(&self, method: Method, path: &str, body: Option<Value>) -> Result<(bool, Bytes)> {
        let request = Request::builder()
            .method(method.clone())
            .uri(format!("{}{path}", self.base))
            .header(header::CONTENT_TYPE, "application/json")
            .header("x-reshard-actor", "demo");
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let send = async {
            let answer = self.http.request(request.body(Full::new(Bytes::from(body)))?).await?;
            let good = answer.status().is_success();
            anyhow::Ok((good, answer.into_body().collect().await?.to_bytes()))
        };
        let answer = tokio::time::timeout(LIMIT, send).await.context("no answer in time");
        answer.and_then(|answer| answer).with_context(|| format!("{method} {path}"))
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<Value>) -> Result<T> {
        let (good, bytes) = self.exchange(method.clone(), path, body).await?;
        if good {
            return serde_json::from_slice(&bytes).with_context(|| format!("the answer to {method} {path}"));
        }
        let problem: Problem = serde_json::from_slice(&bytes)
            .with_context(|| format!("{method} {path}: {}", String::from_utf8_lossy(&bytes)))?;
        Err(anyhow::Error::new(problem).context(format!("{method} {path}")))
    }

    pub(crate) async fn is_ready(&self) -> bool {
        matches!(self.exchange(Method::GET, "/readyz", None).await, Ok((true, _)))
    }

    pub(crate) async fn metrics(&self) -> Result<String> {
        let (_, text) = self.exchange(Method::GET, "/metrics", None).await?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// New shards the collection by `shard_key`, unless that is null.
    pub(crate) async fn create(&self, name: &str, namespace: &str, shard_key: Value) -> Result<()> {
        let namespaces = json!([{ "namespace": namespace, "shard_key": shard_key }]);
        let body = json!({ "name": name, "namespaces": namespaces });
        self.ask(Method::POST, "/v1/migrations", Some(body)).await.map(|_: Value| ())
    }

    pub(crate) async fn preflight(&self, name: &str) -> Result<Preflight> {
        self.ask(Method::POST, &format!("/v1/migrations/{name}/preflight"), None).await
    }

    pub(crate) async fn start(&self, name: &str) -> Result<()> {
        let path = format!("/v1/migrations/{name}/start");
        self.ask(Method::POST, &path, None).await.map(|_: Value| ())
    }

    pub(crate) async fn verify(&self, name: &str) -> Result<()> {
        let path = format!("/v1/migrations/{name}/verify");
        self.ask(Method::POST, &path, None).await.map(|_: Value| ())
    }

    pub(crate) async fn progress(&self, name: &str) -> Result<Progress> {
        self.ask(Method::GET, &format!("/v1/migrations/{name}/progress"), None).await
    }

    /// So many percent of the reads also run on the other cluster.
    pub(crate) async fn shadow(&self, name: &str, percent: u8) -> Result<()> {
        let path = format!("/v1/migrations/{name}/shadow");
        self.ask(Method::PUT, &path, Some(json!({ "percent": percent }))).await.map(|_: Value| ())
    }

    pub(crate) async fn diffs(&self, name: &str) -> Result<Diffs> {
        self.ask(Method::GET, &format!("/v1/migrations/{name}/diffs"), None).await
    }

    /// The diff report as a page of HTML, with every shape that is told apart.
    pub(crate) async fn diffs_page(&self, name: &str) -> Result<Bytes> {
        let path = format!("/v1/migrations/{name}/diffs?format=html&limit=1000");
        let (good, page) = self.exchange(Method::GET, &path, None).await?;
        ensure!(good, "GET {path}: {}", String::from_utf8_lossy(&page));
        Ok(page)
    }

    pub(crate) async fn reads(&self, name: &str, percent: u8) -> Result<Ramp> {
        let path = format!("/v1/migrations/{name}/reads");
        self.ask(Method::PUT, &path, Some(json!({ "percent": percent }))).await
    }

    pub(crate) async fn writes(&self, name: &str, percent: u8) -> Result<Ramp> {
        let path = format!("/v1/migrations/{name}/writes");
        self.ask(Method::PUT, &path, Some(json!({ "percent": percent }))).await
    }

    pub(crate) async fn rollback(&self, name: &str) -> Result<Ramp> {
        self.ask(Method::POST, &format!("/v1/migrations/{name}/rollback"), None).await
    }

    #[allow(dead_code, reason = "for the benchmarks")]
    pub(crate) async fn abort(&self, name: &str) -> Result<()> {
        let path = format!("/v1/migrations/{name}/abort");
        self.ask(Method::POST, &path, None).await.map(|_: Value| ())
    }

    pub(crate) async fn complete(&self, name: &str) -> Result<()> {
        let path = format!("/v1/migrations/{name}/complete");
        let how = json!({ "force": true, "reason": "demo" });
        self.ask(Method::POST, &path, Some(how)).await.map(|_: Value| ())
    }
}
