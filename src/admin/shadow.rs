//! Shadow reads: the switch, and what they have found.

mod csv;
mod html;

use axum::extract::RawQuery;
use axum::http::{HeaderValue, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};

use super::Shared;
use super::extract::{Answer, Body, Change, Named};
use super::problem::Problem;
use super::query;
use crate::migration::control::{DiffReport, Part, SetShadow, ShadowView};

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/migrations/{name}/shadow", put(set_shadow))
        .route("/v1/migrations/{name}/diffs", get(diffs))
}

/// Set which share of the reads also runs on the other cluster, to be compared.
#[utoipa::path(put, path = "/v1/migrations/{name}/shadow", tag = "traffic", request_body = SetShadow,
    responses((status = 200, description = "In force", body = ShadowView)))]
pub(super) async fn set_shadow(change: Change, Body(asked): Body<SetShadow>) -> Answer<Json<ShadowView>> {
    Ok(Json(change.control.set_shadow(&change.by, &change.name, asked).await?))
}

/// What shadow reads have found, by query shape; those with most differences first.
#[utoipa::path(get, path = "/v1/migrations/{name}/diffs", tag = "insight",
    params(
        ("after" = Option<u64>, Query, description = "Leave out so many shapes: next of the page before"),
        ("limit" = Option<u16>, Query, description = "At most so many shapes, 1 to 1000; by default 100, in a table or page all"),
        ("format" = Option<String>, Query, description = "json (default); csv: the shapes as a table; html: a page that needs nothing else"),
    ),
    responses((status = 200, description = "As it is now", body = DiffReport)))]
pub(super) async fn diffs(RawQuery(query): RawQuery, named: Named) -> Answer<Response> {
    let (page, format) = asked(query.as_deref().unwrap_or(""))?;
    let report = named.control.diffs(&named.name, page).await?;
    Ok(match format {
        Format::Json => Json(report).into_response(),
        Format::Csv => {
            let kind = HeaderValue::from_static("text/csv; charset=utf-8");
            ([(header::CONTENT_TYPE, kind)], csv::csv(&report.shapes)).into_response()
        }
        Format::Html => Html(html::html(&named.name, &report)).into_response(),
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    Csv,
    Html,
}

fn asked(query: &str) -> Result<(Part, Format), Box<Problem>> {
    let (mut page, mut format) = (Part::default(), Format::Json);
    for part in query::parameters(query) {
        match part {
            ("after", value) => page.after = query::next("after", value)?,
            ("limit", value) => page.limit = Some(query::limit(value)?),
            ("format", "json") => format = Format::Json,
            ("format", "csv") => format = Format::Csv,
            ("format", "html") => format = Format::Html,
            ("format", _) => return Err(query::bad("format must be json, csv or html")),
            (name, _) => {
                let what = format!("there is no parameter {name}; use after, limit and format");
                return Err(query::bad(&what));
            }
        }
    }
    if format != Format::Json {
        // Who keeps a file wants all of it.
        page.limit.get_or_insert(1000);
    }
    Ok((page, format))
}

/// A time of a report, in Unix milliseconds, for people; nothing when there is none.
fn moment(millis: Option<i64>) -> String {
    let text = |millis| bson::DateTime::from_millis(millis).try_to_rfc3339_string();
    millis.map_or(String::new(), |millis| text(millis).unwrap_or_else(|_| millis.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_says_which_part_and_how() {
        let page = |after, limit| Part { after, limit };
        assert_eq!(asked("").unwrap(), (page(0, None), Format::Json));
        assert_eq!(asked("after=5&limit=7&format=csv").unwrap(), (page(5, Some(7)), Format::Csv));
        assert_eq!(asked("format=html").unwrap(), (page(0, Some(1000)), Format::Html));
        for bad in ["after=x", "limit=0", "limit=1001", "format=xml", "page=1"] {
            assert!(asked(bad).is_err(), "{bad}");
        }
    }
}
