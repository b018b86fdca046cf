//! For those who watch the process: is it alive, is it ready, its metrics, its API.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::extract::Answer;
use super::problem::Problem;
use super::{Shared, openapi};

/// How the process is.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok` or `ready`.
    pub status: String,
}

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(openapi_json))
}

/// The process runs.
#[utoipa::path(get, path = "/healthz", tag = "health",
    responses((status = 200, description = "It runs", body = Health)))]
pub(super) async fn healthz() -> Json<Health> {
    Json(Health { status: "ok".to_owned() })
}

/// The process can serve applications.
#[utoipa::path(get, path = "/readyz", tag = "health",
    responses((status = 200, description = "It can serve", body = Health),
        (status = 503, description = "It cannot; the reasons say why",
            body = Problem, content_type = "application/problem+json")))]
pub(super) async fn readyz(State(api): State<Shared>) -> Answer<Json<Health>> {
    let reasons = api.control.not_ready().await;
    if reasons.is_empty() {
        return Ok(Json(Health { status: "ready".to_owned() }));
    }
    let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", "not ready to serve");
    Err(problem.because(reasons))
}

/// Metrics in the text format of Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "health",
    responses((status = 200, description = "All metrics", body = String, content_type = "text/plain")))]
pub(super) async fn metrics(State(api): State<Shared>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], api.metrics.render())
}

/// This description.
#[utoipa::path(get, path = "/openapi.json", tag = "health",
    responses((status = 200, description = "OpenAPI 3.1", body = Object)))]
pub(super) async fn openapi_json() -> impl IntoResponse {
    Json(openapi::document())
}
