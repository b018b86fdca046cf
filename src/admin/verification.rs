//! What comparisons have proved, to be kept: as JSON, or as a page.

use axum::extract::RawQuery;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};

use super::Shared;
use super::extract::{Answer, Named};
use super::page::{escaped, list, page, table};
use super::problem::Problem;
use crate::migration::control::{Conclusion, Mismatch, Verification, VerificationReport};
use crate::model::instant::spelled;

pub(super) fn routes() -> Router<Shared> {
    Router::new().route("/v1/migrations/{name}/verification", get(verification))
}

/// What comparisons have proved so far, with a fingerprint.
#[utoipa::path(get, path = "/v1/migrations/{name}/verification", tag = "insight",
    params(("format" = Option<String>, Query, description = "json (the default) or html")),
    responses((status = 200, description = "As it is now", body = VerificationReport)))]
pub(super) async fn verification(RawQuery(query): RawQuery, named: Named) -> Answer<Response> {
    let as_html = is_html(query.as_deref().unwrap_or(""))?;
    let report = named.control.verification(&named.name).await?;
    Ok(if as_html { Html(html(&report)).into_response() } else { Json(report).into_response() })
}

fn is_html(query: &str) -> Result<bool, Box<Problem>> {
    match query {
        "" | "format=json" => Ok(false),
        "format=html" => Ok(true),
        _ => {
            let detail = "the only parameter is format, and that is json or html";
            Err(Box::new(Problem::invalid("invalid-query", detail)))
        }
    }
}

/// The report as a page.
fn html(report: &VerificationReport) -> String {
    let class = match report.conclusion {
        Conclusion::Equal => "equal",
        Conclusion::Different => "different",
        Conclusion::NotProved => "not_proved",
    };
    let mut body = format!(
        "<p>Old and new: <strong class=\"{class}\">{}</strong></p>\n{}",
        report.conclusion.as_str(),
        list(&report.reasons)
    );
    body += &table(
        &["", ""],
        &[
            vec!["Made".into(), format!("{} by reshard {}", spelled(report.made_at), report.made_by)],
            vec!["Phase".into(), report.phase.to_string()],
            vec!["Old cluster".into(), report.clusters.old.clone()],
            vec!["New cluster".into(), report.clusters.new.clone()],
        ],
    );
    let kinds = [("Full comparison by bytes", &report.verification), ("Spot check", &report.spot_check)];
    for (title, last) in kinds {
        if let Some(last) = last {
            body += &format!("<h2>{title}</h2>\n{}", comparison(last));
        }
    }
    if !report.blind_spots.is_empty() {
        body += &format!("<h2>What digests do not see</h2>\n{}", list(&report.blind_spots));
    }
    if !report.mismatches.is_empty() {
        let rows: Vec<_> = report.mismatches.iter().map(mismatch).collect();
        let heads = ["Collection", "_id", "Kind", "Fields", "Made equal", "At"];
        body += &format!("<h2>Differences found</h2>\n{}", table(&heads, &rows));
    }
    body += &format!(
        "<p><small>Fingerprint (SHA-256 of the JSON form with an empty fingerprint): {}</small></p>\n",
        escaped(&report.fingerprint)
    );
    page(&format!("Verification of {}", report.migration), "", &body)
}

fn comparison(last: &Verification) -> String {
    let at = |time: Option<i64>| time.map_or_else(|| "-".to_owned(), spelled);
    let equal = last.equal_up_to.map_or_else(
        || "not proved".to_owned(),
        |times| format!("{} of old's clock, {} of new's", times.old, times.new),
    );
    let state = match (&last.failure, last.running, last.outdated) {
        (Some(failure), ..) => failure.clone(),
        (None, true, _) => "running".into(),
        (None, false, true) => "outdated: a stream has missed changes since".into(),
        (None, false, false) => "went through".into(),
    };
    let facts = table(
        &["", ""],
        &[
            vec!["State".into(), state],
            vec!["Began".into(), at(last.started_at)],
            vec!["Ended".into(), at(last.finished_at)],
            vec![
                "Compared".into(),
                format!("{} % of the ranges, by {}", last.asked.sample_percent, last.asked.compare.as_str()),
            ],
            vec!["Equal up to".into(), equal],
        ],
    );
    let rows: Vec<_> = last
        .collections
        .iter()
        .map(|of| {
            vec![
                of.namespace.clone(),
                of.documents_on_old.to_string(),
                of.documents_on_new.to_string(),
                of.mismatches.to_string(),
                of.repaired.to_string(),
                of.digest_of_old.clone(),
                of.digest_of_new.clone(),
            ]
        })
        .collect();
    let heads =
        ["Collection", "On old", "On new", "Different", "Made equal", "Digest of old", "Digest of new"];
    facts + &table(&heads, &rows)
}

fn mismatch(found: &Mismatch) -> Vec<String> {
    vec![
        found.namespace.clone(),
        found.key.clone(),
        found.kind.clone(),
        found.paths.join(", "),
        if found.repaired { "yes" } else { "no" }.to_owned(),
        spelled(found.at),
    ]
}
