//! Keys whose slots are held on one cluster.

use axum::routing::delete;
use axum::{Json, Router};

use super::Shared;
use super::extract::{Answer, Body, Change, Epoch, Named, Tagged};
use crate::migration::control::{Keys, PinList, Pinned, SetPins};

pub(super) fn routes() -> Router<Shared> {
    Router::new().route("/v1/migrations/{name}/pins", delete(unpin).get(pins).put(pin))
}

impl Epoch for Pinned {
    fn epoch(&self) -> u64 {
        self.ramp.epoch
    }
}

/// What is pinned.
#[utoipa::path(get, path = "/v1/migrations/{name}/pins", tag = "traffic",
    responses((status = 200, description = "As it is now", body = PinList)))]
pub(super) async fn pins(named: Named) -> Answer<Json<PinList>> {
    Ok(Json(named.control.pins(&named.name).await?))
}

/// Hold reads and writes of keys on one cluster, whatever percentages say, and move them there. Their slots go with them.
/// Answers when it is in force everywhere.
#[utoipa::path(put, path = "/v1/migrations/{name}/pins", tag = "traffic", request_body = SetPins,
    responses((status = 200, description = "In force", body = Pinned)))]
pub(super) async fn pin(change: Change, Body(asked): Body<SetPins>) -> Answer<Tagged<Pinned>> {
    Ok(Tagged(change.control.pin(&change.by, &change.name, asked).await?))
}

/// Let keys go where the percentages say. Answers when they are there.
#[utoipa::path(delete, path = "/v1/migrations/{name}/pins", tag = "traffic", request_body = Keys,
    responses((status = 200, description = "In force", body = Pinned)))]
pub(super) async fn unpin(change: Change, Body(asked): Body<Keys>) -> Answer<Tagged<Pinned>> {
    Ok(Tagged(change.control.unpin(&change.by, &change.name, asked).await?))
}
