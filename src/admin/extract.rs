//! What handlers take and give: names, actors, preconditions, bodies, ETags.

use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Shared;
use super::problem::Problem;
use crate::migration::control::{Actor, By, Control, MigrationView, Ramp};

/// Header that says who asks, for the audit.
pub(super) const ACTOR: &str = "x-reshard-actor";
/// Longest name of an actor, in bytes.
const MAX_ACTOR: usize = 128;

/// What every handler of the API gives.
pub(super) type Answer<T> = Result<T, Problem>;

/// A question about one migration.
pub(super) struct Named {
    pub(super) control: Arc<dyn Control>,
    pub(super) name: String,
}

impl FromRequestParts<Shared> for Named {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Shared) -> Result<Self, Problem> {
        let Path(name) = Path::<String>::from_request_parts(parts, api)
            .await
            .map_err(|_| Problem::invalid("invalid-name", "the name in the path is not valid UTF-8"))?;
        Ok(Self { control: api.control.clone(), name })
    }
}

/// A change of one migration. What its `If-Match` demands, the engine looks at while nothing else can change it.
pub(super) struct Change {
    pub(super) control: Arc<dyn Control>,
    pub(super) by: By,
    pub(super) name: String,
}

impl FromRequestParts<Shared> for Change {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Shared) -> Result<Self, Problem> {
        let Named { control, name } = Named::from_request_parts(parts, api).await?;
        let Who(who) = Who::from_request_parts(parts, api).await?;
        let only_at = epochs(parts.headers.get_all(header::IF_MATCH));
        Ok(Self { control, by: By { who, only_at }, name })
    }
}

/// The epochs that `If-Match` names; `None` without it, or when any will do. Weak tags name none.
fn epochs<'a>(values: impl IntoIterator<Item = &'a HeaderValue>) -> Option<Vec<u64>> {
    let mut values = values.into_iter().peekable();
    values.peek()?;
    let tags: Vec<&str> = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(str::trim))
        .collect();
    if tags.contains(&"*") {
        return None;
    }
    let named = |tag: &&str| tag.strip_prefix('"')?.strip_suffix('"')?.parse().ok();
    Some(tags.iter().filter_map(named).collect())
}

/// Who asks.
pub(super) struct Who(pub(super) Actor);

impl FromRequestParts<Shared> for Who {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self, Problem> {
        let Some(value) = parts.headers.get(ACTOR) else { return Ok(Self(Actor("api".to_owned()))) };
        match value.to_str() {
            Ok(name) if !name.trim().is_empty() && name.len() <= MAX_ACTOR => {
                Ok(Self(Actor(name.trim().to_owned())))
            }
            _ => {
                let detail = format!("X-Reshard-Actor must be 1 to {MAX_ACTOR} printable ASCII characters");
                Err(Problem::invalid("invalid-actor", detail))
            }
        }
    }
}

/// A JSON body that must be there. Its `Content-Type` does not matter: nothing else is ever meant.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Shared> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Shared) -> Result<Self, Problem> {
        let bytes = read(request, api).await?;
        if bytes.is_empty() {
            return Err(Problem::invalid("body-missing", "the request needs a body in JSON"));
        }
        Ok(Self(parse(&bytes)?))
    }
}

/// A JSON body that may be left out.
pub(super) struct OptionalBody<T>(pub(super) T);

impl<T: DeserializeOwned + Default> FromRequest<Shared> for OptionalBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Shared) -> Result<Self, Problem> {
        let bytes = read(request, api).await?;
        Ok(Self(if bytes.is_empty() { T::default() } else { parse(&bytes)? }))
    }
}

/// The body of a change that takes nothing: none or `{}`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

async fn read(request: Request, api: &Shared) -> Result<Bytes, Problem> {
    Bytes::from_request(request, api).await.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            let detail = format!("the body is larger than {} KB", super::MAX_BODY / 1024);
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", detail)
        }
        _ => Problem::invalid("body-unreadable", "the body ended before its announced length"),
    })
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Box<Problem>> {
    serde_json::from_slice(bytes).map_err(|error| {
        let (code, what) = match error.classify() {
            serde_json::error::Category::Data => ("invalid-body", "the body does not fit"),
            _ => ("invalid-json", "the body is not JSON"),
        };
        Box::new(Problem::invalid(code, format!("{what}: {error}")))
    })
}

/// What has an epoch, which becomes its ETag.
pub(super) trait Epoch: Serialize {
    /// Version of the routing it shows.
    fn epoch(&self) -> u64;
}

impl Epoch for MigrationView {
    fn epoch(&self) -> u64 {
        self.epoch
    }
}

impl Epoch for Ramp {
    fn epoch(&self) -> u64 {
        self.epoch
    }
}

/// A JSON answer with its ETag.
pub(super) struct Tagged<T>(pub(super) T);

impl<T: Epoch> IntoResponse for Tagged<T> {
    fn into_response(self) -> Response {
        let tag = format!("\"{}\"", self.0.epoch());
        // The epoch does not tell all that a view shows, so that it must not be cached by it.
        ([(header::ETAG, tag), (header::CACHE_CONTROL, "no-store".to_owned())], Json(self.0)).into_response()
    }
}
