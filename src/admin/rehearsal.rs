//! Rehearsals: what is read on old also runs on new, some times over.

use axum::routing::get;
use axum::{Json, Router};

use super::Shared;
use super::extract::{Answer, Body, Change, Named};
use crate::migration::control::{RehearsalView, SetRehearsal};

pub(super) fn routes() -> Router<Shared> {
    Router::new().route("/v1/migrations/{name}/rehearsal", get(rehearsal).put(set_rehearsal))
}

/// Begin a rehearsal in place of the one before, or end it. What new cannot take ends it too.
#[utoipa::path(put, path = "/v1/migrations/{name}/rehearsal", tag = "traffic", request_body = SetRehearsal,
    responses((status = 200, description = "In force", body = RehearsalView)))]
pub(super) async fn set_rehearsal(
    change: Change,
    Body(asked): Body<SetRehearsal>,
) -> Answer<Json<RehearsalView>> {
    Ok(Json(change.control.set_rehearsal(&change.by, &change.name, asked).await?))
}

/// How the rehearsal goes, or how the last one went: latencies of both clusters, by shape too.
#[utoipa::path(get, path = "/v1/migrations/{name}/rehearsal", tag = "insight",
    responses((status = 200, description = "As it is now", body = RehearsalView)))]
pub(super) async fn rehearsal(named: Named) -> Answer<Json<RehearsalView>> {
    Ok(Json(named.control.rehearsal(&named.name).await?))
}
