//! `healthcheck`: one question to a running proxy, for containers and scripts.

use hyper::http::{HeaderMap, Method};

use super::client::Client;
use super::failure::Failure;
use super::migrate::{stranger, unreachable};
use super::output;
use crate::admin::Problem;

/// Asks the admin API at `admin` whether the process can serve.
pub(super) async fn check(admin: &str) -> Result<(), Failure> {
    let client = Client::new(admin, HeaderMap::new()).map_err(unreachable)?;
    let answer = client.send(Method::GET, "/readyz", None).await.map_err(unreachable)?;
    if answer.status.is_success() {
        output::text("ready");
        return Ok(());
    }
    let problem: Problem = serde_json::from_slice(&answer.body).map_err(|_| stranger())?;
    Err(Failure::Problem(Box::new(problem)))
}
