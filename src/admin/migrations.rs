//! `/v1/migrations`: making migrations known and listing them.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Shared;
use super::extract::{Answer, Body, Named, Tagged, Who};
use crate::migration::control::{By, MigrationView, NewMigration};

/// All migrations.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct MigrationList {
    /// Oldest first.
    pub migrations: Vec<MigrationView>,
}

pub(super) fn routes() -> Router<Shared> {
    Router::new().route("/v1/migrations", get(list).post(create)).route("/v1/migrations/{name}", get(one))
}

/// Make a migration known. Changes nothing else.
#[utoipa::path(post, path = "/v1/migrations", tag = "migrations", request_body = NewMigration,
    responses((status = 201, description = "It is known now", body = MigrationView)))]
pub(super) async fn create(
    State(api): State<Shared>,
    Who(who): Who,
    Body(new): Body<NewMigration>,
) -> Answer<Response> {
    let view = api.control.create(&By { who, only_at: None }, new).await?;
    // Names are letters, digits, - and _.
    let location = format!("/v1/migrations/{}", view.name);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Tagged(view)).into_response())
}

/// All migrations, oldest first.
#[utoipa::path(get, path = "/v1/migrations", tag = "migrations",
    responses((status = 200, description = "All there are", body = MigrationList)))]
pub(super) async fn list(State(api): State<Shared>) -> Answer<Json<MigrationList>> {
    Ok(Json(MigrationList { migrations: api.control.list().await? }))
}

/// One migration.
#[utoipa::path(get, path = "/v1/migrations/{name}", tag = "migrations",
    responses((status = 200, description = "As it is now", body = MigrationView)))]
pub(super) async fn one(named: Named) -> Answer<Tagged<MigrationView>> {
    Ok(Tagged(named.control.get(&named.name).await?))
}
