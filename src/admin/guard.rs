//! What happens around every request, and to those that no route takes.

use std::time::Duration;

use axum::extract::{OriginalUri, Request};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::problem::Problem;

/// Moving authority may wait for pauses and be tried again, so this is generous.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs the request to its end even if the client goes away: a change must not stop half way because
/// somebody pressed Ctrl-C.
pub(super) async fn detached(request: Request, next: Next) -> Response {
    let task = tokio::spawn(next.run(request));
    match tokio::time::timeout(LIMIT, task).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => {
            tracing::error!(%error, "a request to the admin API failed");
            let detail = "something went wrong inside reshard; its log says what, and the migration's events \
                          say how far the change came";
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail).into_response()
        }
        Err(_) => {
            let detail = format!(
                "no end within {} seconds; it goes on behind. Look at the migration's progress; repeating \
                 the request is harmless",
                LIMIT.as_secs()
            );
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "timeout", detail).into_response()
        }
    }
}

/// Refuses what a web page of somebody else makes an operator's browser send: the port has no
/// authentication, and browsers reach loopback.
pub(super) async fn same_origin(request: Request, next: Next) -> Response {
    match foreign(request.headers()) {
        Some(detail) => Problem::new(StatusCode::FORBIDDEN, "foreign-origin", detail).into_response(),
        None => next.run(request).await,
    }
}

fn foreign(headers: &HeaderMap) -> Option<&'static str> {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let host = text(header::HOST.as_str()).unwrap_or("localhost");
    // A name of somebody else that resolves to loopback makes his page "same origin".
    if !is_loopback(host) {
        return Some("the Host header does not name this machine; use 127.0.0.1 or localhost");
    }
    let cross_site = match (text("sec-fetch-site"), text(header::ORIGIN.as_str())) {
        (Some(site), _) => !matches!(site, "same-origin" | "none"),
        (None, Some(origin)) => origin.split_once("://").is_none_or(|(_, authority)| authority != host),
        (None, None) => false,
    };
    cross_site.then_some("the request comes from a web page of another origin")
}

fn is_loopback(host: &str) -> bool {
    let Ok(authority) = host.parse::<axum::http::uri::Authority>() else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// No route has this path.
pub(super) async fn unknown_path(uri: Uri) -> Problem {
    let detail = format!("there is nothing at {}; GET /openapi.json lists what there is", uri.path());
    Problem::new(StatusCode::NOT_FOUND, "unknown-path", detail)
}

/// The path exists, but not with this method.
pub(super) async fn wrong_method(method: Method, OriginalUri(uri): OriginalUri) -> Problem {
    let detail =
        format!("{} does not take {method}; GET /openapi.json lists the methods of each path", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "wrong-method", detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_foreign(pairs: &[(&'static str, &'static str)]) -> bool {
        let headers = pairs.iter().map(|(name, value)| {
            (header::HeaderName::from_static(name), header::HeaderValue::from_static(value))
        });
        foreign(&headers.collect()).is_some()
    }

    #[test]
    fn programs_and_the_own_console_pass() {
        assert!(!is_foreign(&[("host", "127.0.0.1:8080")]));
        assert!(!is_foreign(&[("host", "[::1]:8080")]));
        assert!(!is_foreign(&[("host", "localhost:8080"), ("sec-fetch-site", "same-origin")]));
        assert!(!is_foreign(&[("host", "localhost:8080"), ("sec-fetch-site", "none")]));
        assert!(!is_foreign(&[("host", "localhost:8080"), ("origin", "http://localhost:8080")]));
    }

    #[test]
    fn pages_of_others_do_not() {
        assert!(is_foreign(&[("host", "evil.example")]));
        assert!(is_foreign(&[("host", "127.0.0.1.evil.example")]));
        assert!(is_foreign(&[("host", "localhost:8080"), ("sec-fetch-site", "cross-site")]));
        assert!(is_foreign(&[("host", "localhost:8080"), ("sec-fetch-site", "same-site")]));
        assert!(is_foreign(&[("host", "localhost:8080"), ("origin", "http://evil.example")]));
        assert!(is_foreign(&[("host", "localhost:8080"), ("origin", "null")]));
    }
}
