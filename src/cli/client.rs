//! A small HTTP client for the admin API.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// Longer than the server works on a request before it answers.
const LIMIT: Duration = Duration::from_secs(150);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// Asks one admin API.
#[derive(Debug, Clone)]
pub struct Client {
    http: Http<HttpConnector, Full<Bytes>>,
    base: String,
    headers: HeaderMap,
}

/// What the server said.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The address is not one of a server.
    #[error("\"{0}\" is not the address of an admin API; write it like http://127.0.0.1:8080")]
    Address(String),
    /// Nobody answers.
    #[error(
        "no answer from {base}: {cause}; is reshard running there? (--admin or RESHARD_ADMIN says where)"
    )]
    NoAnswer {
        /// Who was asked.
        base: String,
        /// Why, as far as known.
        cause: String,
    },
}

impl Client {
    /// A client of the API at `base`, like `http://127.0.0.1:8080`, that sends `headers` with each request.
    ///
    /// # Errors
    /// [`ClientError::Address`] when `base` is not such an address.
    pub fn new(base: &str, headers: HeaderMap) -> Result<Self, ClientError> {
        let base = base.trim_end_matches('/').to_owned();
        let good = base.parse::<Uri>().is_ok_and(|uri| {
            uri.scheme_str() == Some("http") && uri.host().is_some() && uri.query().is_none()
        });
        if !good {
            return Err(ClientError::Address(base));
        }
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_LIMIT));
        let http = Http::builder(TokioExecutor::new()).build(connector);
        Ok(Self { http, base, headers })
    }

    /// Sends one request and reads the whole answer, whatever its status; it takes at most 150 seconds.
    ///
    /// # Errors
    /// [`ClientError::NoAnswer`] when there is no whole answer.
    pub async fn send(&self, method: Method, path: &str, body: Option<Bytes>) -> Result<Answer, ClientError> {
        match tokio::time::timeout(LIMIT, self.exchange(method, path, body)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.no_answer(&root_cause(error.as_ref()))),
            Err(_) => Err(self.no_answer("it takes too long")),
        }
    }

    fn no_answer(&self, cause: &str) -> ClientError {
        ClientError::NoAnswer { base: self.base.clone(), cause: cause.to_owned() }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(headers) = request.headers_mut() {
            headers.clone_from(&self.headers);
            if body.is_some() {
                headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
            }
        }
        let request = request.body(Full::new(body.unwrap_or_default()))?;
        let (head, body) = self.http.request(request).await?.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await?.to_bytes();
        Ok(Answer { status: head.status, headers: head.headers, body })
    }
}

/// The innermost cause is the one that says something ("Connection refused").
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// `text` as one segment of a path.
#[must_use]
pub fn segment(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_~".contains(&byte);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for good in ["http://127.0.0.1:8080", "http://localhost:8080/", "http://[::1]:1"] {
            assert!(Client::new(good, HeaderMap::new()).is_ok(), "{good}");
        }
        for bad in ["", "127.0.0.1:8080", "https://a", "http://", "http://a?b"] {
            assert!(Client::new(bad, HeaderMap::new()).is_err(), "{bad}");
        }
    }

    #[test]
    fn segments_are_escaped() {
        assert_eq!(segment("orders-1_a"), "orders-1_a");
        assert_eq!(segment("../ä"), "%2E%2E%2F%C3%A4");
    }
}
