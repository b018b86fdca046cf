//! What is asked of a migration, and how long each cluster takes for it.

use axum::extract::RawQuery;
use axum::routing::get;
use axum::{Json, Router};

use super::Shared;
use super::extract::{Answer, Named};
use super::problem::Problem;
use super::query;
use crate::migration::control::{Part, ShapeList};

pub(super) fn routes() -> Router<Shared> {
    Router::new().route("/v1/migrations/{name}/shapes", get(shapes))
}

/// The shapes of what is asked, with the latency of both clusters side by side, as this process saw them.
#[utoipa::path(get, path = "/v1/migrations/{name}/shapes", tag = "insight",
    params(
        ("after" = Option<u64>, Query, description = "So many are left out: next of the page before"),
        ("limit" = Option<u16>, Query, description = "At most so many, 1 to 1000; 100 by default"),
    ),
    responses((status = 200, description = "As it is now", body = ShapeList)))]
pub(super) async fn shapes(RawQuery(query): RawQuery, named: Named) -> Answer<Json<ShapeList>> {
    let part = part(query.as_deref().unwrap_or(""))?;
    Ok(Json(named.control.shapes(&named.name, part).await?))
}

/// Which part of a list a query asks for.
fn part(query: &str) -> Result<Part, Box<Problem>> {
    let mut part = Part::default();
    for field in query::parameters(query) {
        match field {
            ("after", value) => part.after = query::next("after", value)?,
            ("limit", value) => part.limit = Some(query::limit(value)?),
            (name, _) => {
                return Err(query::bad(&format!("there is no parameter {name}; use after and limit")));
            }
        }
    }
    Ok(part)
}
