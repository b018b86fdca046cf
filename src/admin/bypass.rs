//! Writers that go past the proxy.

use axum::extract::RawQuery;
use axum::routing::{get, post};
use axum::{Json, Router};

use super::Shared;
use super::extract::{Answer, Body, Change, Named};
use super::problem::Problem;
use super::query;
use crate::migration::control::{Acknowledge, Acknowledged, BypassReport, Page};

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/migrations/{name}/bypass-writes", get(bypass_writes))
        .route("/v1/migrations/{name}/bypass-writes/acknowledge", post(acknowledge))
}

/// Writes that went past the proxy, newest first; with what was undone.
#[utoipa::path(get, path = "/v1/migrations/{name}/bypass-writes", tag = "insight",
    params(
        ("before" = Option<i64>, Query, description = "Only writes with a lower number: next of the page before"),
        ("limit" = Option<u16>, Query, description = "At most so many, 1 to 1000; 100 by default"),
    ),
    responses((status = 200, description = "As it is now", body = BypassReport)))]
pub(super) async fn bypass_writes(RawQuery(query): RawQuery, named: Named) -> Answer<Json<BypassReport>> {
    let page = page(query.as_deref().unwrap_or(""))?;
    Ok(Json(named.control.bypass_writes(&named.name, page).await?))
}

/// Note that they are known and do not matter: only later ones stand in the way of moving writes.
#[utoipa::path(post, path = "/v1/migrations/{name}/bypass-writes/acknowledge", tag = "traffic",
    request_body = Acknowledge,
    responses((status = 200, description = "What is acknowledged", body = Acknowledged)))]
pub(super) async fn acknowledge(
    change: Change,
    Body(asked): Body<Acknowledge>,
) -> Answer<Json<Acknowledged>> {
    Ok(Json(change.control.acknowledge_bypass_writes(&change.by, &change.name, asked).await?))
}

/// Which part of a list a query asks for.
pub(super) fn page(query: &str) -> Result<Page, Box<Problem>> {
    let mut page = Page::default();
    for part in query::parameters(query) {
        match part {
            ("before", value) => page.before = Some(query::next("before", value)?),
            ("limit", value) => page.limit = Some(query::limit(value)?),
            (name, _) => {
                return Err(query::bad(&format!("there is no parameter {name}; use before and limit")));
            }
        }
    }
    Ok(page)
}
