//! The steps of a migration's life.

use axum::routing::post;
use axum::{Json, Router};

use super::Shared;
use super::extract::{Answer, Change, Named, Nothing, OptionalBody, Tagged};
use crate::migration::control::{Complete, MigrationView, PreflightReport, Verification, Verify};

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/migrations/{name}/preflight", post(preflight))
        .route("/v1/migrations/{name}/start", post(start))
        .route("/v1/migrations/{name}/pause", post(pause))
        .route("/v1/migrations/{name}/resume", post(resume))
        .route("/v1/migrations/{name}/verify", post(verify))
        .route("/v1/migrations/{name}/complete", post(complete))
        .route("/v1/migrations/{name}/abort", post(abort))
        .route("/v1/migrations/{name}/drop-old", post(drop_old))
}

/// Look whether it could start. Changes nothing.
#[utoipa::path(post, path = "/v1/migrations/{name}/preflight", tag = "life",
    responses((status = 200, description = "What was found", body = PreflightReport)))]
pub(super) async fn preflight(named: Named, _: OptionalBody<Nothing>) -> Answer<Json<PreflightReport>> {
    Ok(Json(named.control.preflight(&named.name).await?))
}

/// Start: prepare, write to both clusters, copy. Answers once both are written to; the copy goes on behind.
#[utoipa::path(post, path = "/v1/migrations/{name}/start", tag = "life",
    responses((status = 200, description = "Both clusters are written to", body = MigrationView)))]
pub(super) async fn start(change: Change, _: OptionalBody<Nothing>) -> Answer<Tagged<MigrationView>> {
    Ok(Tagged(change.control.start(&change.by, &change.name).await?))
}

/// Halt copying and following. Application traffic goes on.
#[utoipa::path(post, path = "/v1/migrations/{name}/pause", tag = "life",
    responses((status = 200, description = "Halted", body = MigrationView)))]
pub(super) async fn pause(change: Change, _: OptionalBody<Nothing>) -> Answer<Tagged<MigrationView>> {
    Ok(Tagged(change.control.pause(&change.by, &change.name).await?))
}

/// End a pause.
#[utoipa::path(post, path = "/v1/migrations/{name}/resume", tag = "life",
    responses((status = 200, description = "Going on", body = MigrationView)))]
pub(super) async fn resume(change: Change, _: OptionalBody<Nothing>) -> Answer<Tagged<MigrationView>> {
    Ok(Tagged(change.control.resume(&change.by, &change.name).await?))
}

/// Start a comparison of both clusters in the background: in full, or as the body says.
#[utoipa::path(post, path = "/v1/migrations/{name}/verify", tag = "life", request_body = Option<Verify>,
    responses((status = 200, description = "It runs; progress tells how it goes", body = Verification)))]
pub(super) async fn verify(
    change: Change,
    OptionalBody(how): OptionalBody<Verify>,
) -> Answer<Json<Verification>> {
    Ok(Json(change.control.verify(&change.by, &change.name, how).await?))
}

/// End it with new serving.
#[utoipa::path(post, path = "/v1/migrations/{name}/complete", tag = "life", request_body = Option<Complete>,
    responses((status = 200, description = "Old is no longer followed", body = MigrationView)))]
pub(super) async fn complete(
    change: Change,
    OptionalBody(how): OptionalBody<Complete>,
) -> Answer<Tagged<MigrationView>> {
    Ok(Tagged(change.control.complete(&change.by, &change.name, how).await?))
}

/// End it with old serving. Cleans up in the background.
#[utoipa::path(post, path = "/v1/migrations/{name}/abort", tag = "life",
    responses((status = 200, description = "Old serves, as before", body = MigrationView)))]
pub(super) async fn abort(change: Change, _: OptionalBody<Nothing>) -> Answer<Tagged<MigrationView>> {
    Ok(Tagged(change.control.abort(&change.by, &change.name).await?))
}

/// Drop the old copies of a completed migration. Cannot be undone.
#[utoipa::path(post, path = "/v1/migrations/{name}/drop-old", tag = "life",
    responses((status = 200, description = "Dropped", body = MigrationView)))]
pub(super) async fn drop_old(change: Change, _: OptionalBody<Nothing>) -> Answer<Tagged<MigrationView>> {
    Ok(Tagged(change.control.drop_old(&change.by, &change.name).await?))
}
