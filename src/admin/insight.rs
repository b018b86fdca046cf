//! How a migration is going.

use axum::extract::RawQuery;
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Shared;
use super::bypass::page;
use super::extract::{Answer, Named};
use crate::migration::control::{Conflict, EventList, Mismatch, Progress};

/// Keys that cannot be made equal now.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ConflictList {
    /// At most 1,000.
    pub conflicts: Vec<Conflict>,
}

/// Differences that verifications found.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct MismatchList {
    /// Newest first, at most 1,000.
    pub mismatches: Vec<Mismatch>,
}

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/migrations/{name}/progress", get(progress))
        .route("/v1/migrations/{name}/conflicts", get(conflicts))
        .route("/v1/migrations/{name}/mismatches", get(mismatches))
        .route("/v1/migrations/{name}/events", get(events))
}

/// How far it is, how fast, and what stands in the way.
#[utoipa::path(get, path = "/v1/migrations/{name}/progress", tag = "insight",
    responses((status = 200, description = "As it is now", body = Progress)))]
pub(super) async fn progress(named: Named) -> Answer<Json<Progress>> {
    Ok(Json(named.control.progress(&named.name).await?))
}

/// Keys that cannot be made equal now.
#[utoipa::path(get, path = "/v1/migrations/{name}/conflicts", tag = "insight",
    responses((status = 200, description = "As it is now", body = ConflictList)))]
pub(super) async fn conflicts(named: Named) -> Answer<Json<ConflictList>> {
    Ok(Json(ConflictList { conflicts: named.control.conflicts(&named.name).await? }))
}

/// Differences that verifications found.
#[utoipa::path(get, path = "/v1/migrations/{name}/mismatches", tag = "insight",
    responses((status = 200, description = "As it is now", body = MismatchList)))]
pub(super) async fn mismatches(named: Named) -> Answer<Json<MismatchList>> {
    Ok(Json(MismatchList { mismatches: named.control.mismatches(&named.name).await? }))
}

/// The audit: who asked for what, and how it ended.
#[utoipa::path(get, path = "/v1/migrations/{name}/events", tag = "insight",
    params(
        ("before" = Option<i64>, Query, description = "Only what is older, in Unix milliseconds: next of the page before"),
        ("limit" = Option<u16>, Query, description = "At most so many, 1 to 1000; 1000 by default"),
    ),
    responses((status = 200, description = "As it is now", body = EventList)))]
pub(super) async fn events(RawQuery(query): RawQuery, named: Named) -> Answer<Json<EventList>> {
    let page = page(query.as_deref().unwrap_or(""))?;
    Ok(Json(named.control.audit(&named.name, page).await?))
}
