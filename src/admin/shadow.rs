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
    use crate::migration::shadow::{AccessView, Example, ExampleField, LatencyView, ShapeDiff};

    /// A shape whose numbers are all different ones, and whose texts are hostile.
    fn hostile() -> ShapeDiff {
        let bad = "=<script>\"x\"</script>";
        let latency = |samples, p50, p95, p99| LatencyView {
            samples,
            p50_ms: Some(p50),
            p95_ms: Some(p95),
            p99_ms: Some(p99),
        };
        let fields = vec![ExampleField {
            path: bad.into(),
            kind: bad.into(),
            old: Some(bad.into()),
            new: Some(bad.into()),
        }];
        let example =
            Example { at: 0, kind: bad.into(), served_by: bad.into(), key: Some(bad.into()), fields };
        let access = AccessView { at: 0, scan: bad.into(), documents_examined: 9019, shards: bad.into() };
        ShapeDiff {
            shape: bad.into(),
            namespace: bad.into(),
            command: bad.into(),
            query: bad.into(),
            runs: 9001,
            equal: 9002,
            permuted: 9003,
            transient: 9004,
            different: 9005,
            nondeterministic: 9006,
            unsettled: 9007,
            failed: 9008,
            differences: [(bad.to_owned(), 9009)].into(),
            first_seen: Some(0),
            last_seen: Some(0),
            examples: vec![example],
            old: latency(9010, 1.024, 2.048, 19.999),
            new: latency(9011, 1.281, 3.072, 0.017),
            old_access: Some(access.clone()),
            new_access: Some(access),
        }
    }

    #[test]
    fn tables_and_pages_have_the_numbers_of_json_and_run_nothing() {
        let report = DiffReport { shapes: vec![hostile()], ..DiffReport::default() };
        let json = serde_json::to_value(&report.shapes[0]).unwrap();
        let mut numbers: Vec<String> = (9001..=9011).chain([9019]).map(|number| number.to_string()).collect();
        for (side, quantile) in [
            ("old", "p50_ms"),
            ("old", "p95_ms"),
            ("old", "p99_ms"),
            ("new", "p50_ms"),
            ("new", "p95_ms"),
            ("new", "p99_ms"),
        ] {
            numbers.push(json[side][quantile].to_string());
        }
        let (table, page) = (csv::csv(&report.shapes), html::html("m", &report));
        for number in numbers {
            assert!(json.to_string().contains(&number), "{number}");
            assert!(table.contains(&format!(",{number}")), "{number} in {table}");
            assert!(page.contains(&number), "{number} in {page}");
        }
        assert!(!page.contains("<script") && page.contains("&lt;script&gt;&quot;x"), "{page}");
        assert!(
            !table.contains(",\"=") && !table.contains(",=") && table.contains("\"'=<script>"),
            "{table}"
        );
    }

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
