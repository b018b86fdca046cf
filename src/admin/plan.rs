//! Ramps by plan.

use axum::extract::RawQuery;
use axum::routing::{delete, get, post};
use axum::{Json, Router};

use super::Shared;
use super::bypass::page;
use super::extract::{Answer, Body, Change, Named, Nothing, OptionalBody};
use crate::migration::control::{DecisionList, Plan, RampView, Steer};

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/migrations/{name}/plan", delete(stop).get(plan).put(start))
        .route("/v1/migrations/{name}/plan/pause", post(pause))
        .route("/v1/migrations/{name}/plan/resume", post(resume))
        .route("/v1/migrations/{name}/plan/decisions", get(decisions))
}

/// How the ramp by plan is going.
#[utoipa::path(get, path = "/v1/migrations/{name}/plan", tag = "ramp",
    responses((status = 200, description = "As it is now", body = RampView)))]
pub(super) async fn plan(named: Named) -> Answer<Json<RampView>> {
    Ok(Json(named.control.plan(&named.name).await?))
}

/// Start a ramp by plan, in place of the one before. It goes up as its gates hold, and comes down by itself.
#[utoipa::path(put, path = "/v1/migrations/{name}/plan", tag = "ramp", request_body = Plan,
    responses((status = 200, description = "It runs", body = RampView)))]
pub(super) async fn start(change: Change, Body(plan): Body<Plan>) -> Answer<Json<RampView>> {
    Ok(Json(change.control.start_plan(&change.by, &change.name, plan).await?))
}

/// Forget the plan. Reads and writes stay where they are.
#[utoipa::path(delete, path = "/v1/migrations/{name}/plan", tag = "ramp",
    responses((status = 200, description = "As it was", body = RampView)))]
pub(super) async fn stop(change: Change) -> Answer<Json<RampView>> {
    Ok(Json(change.control.stop_plan(&change.by, &change.name).await?))
}

/// Halt the ramp: it moves nothing, neither up nor down.
#[utoipa::path(post, path = "/v1/migrations/{name}/plan/pause", tag = "ramp",
    responses((status = 200, description = "Halted", body = RampView)))]
pub(super) async fn pause(change: Change, _: OptionalBody<Nothing>) -> Answer<Json<RampView>> {
    Ok(Json(change.control.steer_plan(&change.by, &change.name, Steer::Pause).await?))
}

/// Let the ramp go on, also one that came down too often to go up by itself.
#[utoipa::path(post, path = "/v1/migrations/{name}/plan/resume", tag = "ramp",
    responses((status = 200, description = "Going on", body = RampView)))]
pub(super) async fn resume(change: Change, _: OptionalBody<Nothing>) -> Answer<Json<RampView>> {
    Ok(Json(change.control.steer_plan(&change.by, &change.name, Steer::Resume).await?))
}

/// What ramps of this migration decided, with the numbers that they went by.
#[utoipa::path(get, path = "/v1/migrations/{name}/plan/decisions", tag = "ramp",
    params(
        ("before" = Option<i64>, Query, description = "Only decisions with a lower number: next of the page before"),
        ("limit" = Option<u16>, Query, description = "At most so many, 1 to 1000; 100 by default"),
    ),
    responses((status = 200, description = "As it is now", body = DecisionList)))]
pub(super) async fn decisions(RawQuery(query): RawQuery, named: Named) -> Answer<Json<DecisionList>> {
    let page = page(query.as_deref().unwrap_or(""))?;
    Ok(Json(named.control.decisions(&named.name, page).await?))
}
