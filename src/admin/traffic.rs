//! Which cluster serves what, and how fast the copy may go.

use axum::extract::RawQuery;
use axum::routing::{get, post, put};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Shared;
use super::extract::{Answer, Body, Change, Named, OptionalBody, Tagged};
use super::problem::Problem;
use super::query;
use crate::migration::control::{
    AcknowledgeUnreturned, Cluster, Keys, MOST_ATTEMPTS, PAUSE_MS, Patience, Ramp, SetPins, SetSwitches,
    Switches, Throttle, UnreturnedList, UnreturnedPage, UnreturnedView, WithoutNew,
};
use crate::model::percent::Percent;

/// The share of reads that new is to serve.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetReads {
    /// 0 to 100, in steps of 0.1.
    #[schema(minimum = 0, maximum = 100)]
    pub percent: f64,
}

/// The share of documents whose authority is to be new.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetWrites {
    /// 0 to 100, in steps of 0.1.
    #[schema(minimum = 0, maximum = 100)]
    pub percent: f64,
    /// How long writes may be held, in milliseconds; left out, as configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 50, maximum = 10000)]
    pub max_pause_ms: Option<u64>,
    /// End open transactions that stand in the way once so many tries were given up because of them; their clients
    /// are told to run them again. Left out: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 7)]
    pub end_transactions_after: Option<u32>,
}

/// What is to return to old.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rollback {
    /// In extended JSON: only these `_id`s, or values of the route key, and what lies in their slots. Left out: everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>, example = json!(["acme"]))]
    pub keys: Option<Vec<serde_json::Value>>,
    /// Only these ranges, by name (and the keys, if there are any). Left out: everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranges: Option<Vec<String>>,
    /// While new is away: everything, or these keys and ranges. What only new has acknowledged is named (`unreturned`), and brought back when new is
    /// there again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub without_new: Option<WithoutNew>,
}

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/migrations/{name}/reads", put(set_reads))
        .route("/v1/migrations/{name}/writes", put(set_writes))
        .route("/v1/migrations/{name}/rollback", post(rollback))
        .route("/v1/migrations/{name}/unreturned", get(unreturned))
        .route("/v1/migrations/{name}/unreturned/acknowledge", post(acknowledge_unreturned))
        .route("/v1/migrations/{name}/switches", put(set_switches))
        .route("/v1/migrations/{name}/throttle", put(set_throttle))
}

/// Move reads. Answers when it is in force everywhere.
#[utoipa::path(put, path = "/v1/migrations/{name}/reads", tag = "traffic", request_body = SetReads,
    responses((status = 200, description = "In force", body = Ramp)))]
pub(super) async fn set_reads(change: Change, Body(wanted): Body<SetReads>) -> Answer<Tagged<Ramp>> {
    let percent = percent(wanted.percent)?;
    Ok(Tagged(change.control.set_reads(&change.by, &change.name, percent).await?))
}

/// Move authority over documents, and with it their writes. Answers when it is in force everywhere.
#[utoipa::path(put, path = "/v1/migrations/{name}/writes", tag = "traffic", request_body = SetWrites,
    responses((status = 200, description = "In force", body = Ramp)))]
pub(super) async fn set_writes(change: Change, Body(wanted): Body<SetWrites>) -> Answer<Tagged<Ramp>> {
    let percent = percent(wanted.percent)?;
    let max_pause = wanted.max_pause_ms;
    let (least, most) = (u64::from(*PAUSE_MS.start()), u64::from(*PAUSE_MS.end()));
    if max_pause.is_some_and(|pause| !(least..=most).contains(&pause)) {
        let detail =
            format!("max_pause_ms must be a whole number from {least} to {most}, as in the configuration");
        return Err(Problem::invalid("invalid-max-pause", detail));
    }
    let after = wanted.end_transactions_after;
    if after.is_some_and(|tries| !(1..MOST_ATTEMPTS).contains(&tries)) {
        let most = MOST_ATTEMPTS - 1;
        let detail = format!(
            "end_transactions_after must be a whole number from 1 to {most}, as a move is tried {MOST_ATTEMPTS} \
             times; leave it out to end none"
        );
        return Err(Problem::invalid("invalid-end-transactions", detail));
    }
    let patience = Patience { max_pause_ms: max_pause, end_transactions_after: after };
    Ok(Tagged(change.control.set_writes(&change.by, &change.name, percent, patience).await?))
}

/// Return all writes, then all reads, to old, and remove pins to new. With keys or ranges: those alone, as by pinning them to old; a
/// plan goes on with the rest. Without new, of everything or of these: refused as long as new answers.
#[utoipa::path(post, path = "/v1/migrations/{name}/rollback", tag = "traffic", request_body = Option<Rollback>,
    responses((status = 200, description = "Old serves everything, or these keys and ranges", body = Ramp)))]
pub(super) async fn rollback(
    change: Change,
    OptionalBody(asked): OptionalBody<Rollback>,
) -> Answer<Tagged<Ramp>> {
    let Rollback { keys, ranges, without_new } = asked;
    if let Some(how) = without_new {
        let named = keys.is_some() || ranges.is_some();
        let only = Keys { keys: keys.unwrap_or_default(), ranges: ranges.unwrap_or_default() };
        let only = named.then_some(only);
        return Ok(Tagged(change.control.rollback_without_new(&change.by, &change.name, how, only).await?));
    }
    if keys.is_none() && ranges.is_none() {
        return Ok(Tagged(change.control.rollback(&change.by, &change.name).await?));
    }
    let (keys, ranges) = (keys.unwrap_or_default(), ranges.unwrap_or_default());
    let back = SetPins { keys, ranges, to: Cluster::Old };
    let pinned = change.control.pin(&change.by, &change.name, back).await?;
    Ok(Tagged(pinned.ramp))
}

/// What only new may have acknowledged when everything was rolled back without it, and what has become of each document.
#[utoipa::path(get, path = "/v1/migrations/{name}/unreturned", tag = "insight",
    params(
        ("after" = Option<String>, Query, description = "Only documents after this one: next of the page before"),
        ("limit" = Option<u16>, Query, description = "At most so many, 1 to 1000; 100 by default"),
    ),
    responses((status = 200, description = "As it is now", body = UnreturnedList)))]
pub(super) async fn unreturned(RawQuery(query): RawQuery, named: Named) -> Answer<Json<UnreturnedList>> {
    let page = unreturned_page(query.as_deref().unwrap_or(""))?;
    Ok(Json(named.control.unreturned(&named.name, page).await?))
}

/// Note that the documents that had changed on both clusters were looked at: they do not stand in the way of moving writes to
/// new any more.
#[utoipa::path(post, path = "/v1/migrations/{name}/unreturned/acknowledge", tag = "traffic",
    request_body = AcknowledgeUnreturned,
    responses((status = 200, description = "As it is now", body = UnreturnedView)))]
pub(super) async fn acknowledge_unreturned(
    change: Change,
    Body(asked): Body<AcknowledgeUnreturned>,
) -> Answer<Json<UnreturnedView>> {
    Ok(Json(change.control.acknowledge_unreturned(&change.by, &change.name, asked).await?))
}

fn unreturned_page(query: &str) -> Result<UnreturnedPage, Box<Problem>> {
    let mut page = UnreturnedPage::default();
    for part in query::parameters(query) {
        match part {
            ("after", value) if value.len() == 32 && value.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                page.after = Some(value.to_owned());
            }
            ("after", _) => return Err(query::bad("after must be next of the page before")),
            ("limit", value) => page.limit = Some(query::limit(value)?),
            (name, _) => {
                return Err(query::bad(&format!("there is no parameter {name}; use after and limit")));
            }
        }
    }
    Ok(page)
}

/// Switch the inline mirror, the routing of reads, shadow reads, repair or plans off, and on again, for everything or for one
/// collection; what is left out stays as it is.
#[utoipa::path(put, path = "/v1/migrations/{name}/switches", tag = "traffic", request_body = SetSwitches,
    responses((status = 200, description = "In force", body = Switches)))]
pub(super) async fn set_switches(change: Change, Body(asked): Body<SetSwitches>) -> Answer<Json<Switches>> {
    Ok(Json(change.control.switch(&change.by, &change.name, asked).await?))
}

/// Set how fast the copy may go; what is left out or null is unlimited.
#[utoipa::path(put, path = "/v1/migrations/{name}/throttle", tag = "traffic", request_body = Throttle,
    responses((status = 200, description = "In force", body = Throttle)))]
pub(super) async fn set_throttle(change: Change, Body(throttle): Body<Throttle>) -> Answer<Json<Throttle>> {
    let limits = [throttle.documents_per_second, throttle.megabytes_per_second];
    if limits.into_iter().flatten().any(|limit| !limit.is_finite() || limit <= 0.0) {
        let detail = "a limit must be above 0; leave it out for no limit, or use pause to halt the copy";
        return Err(Problem::invalid("invalid-throttle", detail));
    }
    Ok(Json(change.control.set_throttle(&change.by, &change.name, throttle).await?))
}

fn percent(wanted: f64) -> Result<Percent, Box<Problem>> {
    Percent::try_from(wanted).map_err(|why| Box::new(Problem::invalid("invalid-percent", why)))
}
