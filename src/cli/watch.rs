//! Looking again and again until something has ended.

use std::time::Duration;

use hyper::http::Method;
use serde_json::json;

use super::args::Until;
use super::failure::Failure;
use super::migrate::{Session, path, typed};
use super::{output, show};
use crate::migration::control::{Phase, Progress, Verify};

const EVERY: Duration = Duration::from_secs(1);

/// Shows how `name` is going until it is over, or as far as `until`.
pub(super) async fn status(session: &Session, name: &str, until: Option<Until>) -> Result<(), Failure> {
    let path = path(name, "progress");
    loop {
        let value = session.call(Method::GET, &path, None).await?;
        let progress: Progress = typed(value.clone())?;
        if session.json {
            output::json_line(&value);
        } else {
            output::moving_line(&show::progress_line(name, &progress));
        }
        let over = matches!(progress.phase, Phase::Completed | Phase::Aborted | Phase::Failed);
        let reached = until.is_some_and(|until| until.is_reached(&progress));
        if !over && !reached {
            tokio::time::sleep(EVERY).await;
            continue;
        }
        if !session.json {
            output::end_moving_line();
            output::text(&show::progress(name, &progress));
        }
        let well = reached || (until.is_none() && progress.phase != Phase::Failed);
        return if well { Ok(()) } else { Err(Failure::NotPassed) };
    }
}

/// Starts a comparison of `name`, shows how it goes and how it ended.
pub(super) async fn verify(session: &Session, name: &str, how: Verify) -> Result<(), Failure> {
    session.call(Method::POST, &path(name, "verify"), Some(json!(how))).await?;
    let path = path(name, "progress");
    loop {
        let progress: Progress = typed(session.call(Method::GET, &path, None).await?)?;
        let last = if how.is_full() { progress.verification } else { progress.spot_check };
        let Some(verification) = last else {
            return Err(Failure::Failed("the verification has ended without a result".to_owned()));
        };
        if verification.running {
            if !session.json {
                output::moving_line(show::verification(&verification).trim_end());
            }
            tokio::time::sleep(EVERY).await;
            continue;
        }
        if session.json {
            output::json(&serde_json::to_value(&verification).unwrap_or_default());
        } else {
            output::end_moving_line();
            output::text(&show::verification(&verification));
        }
        let equal = verification.failure.is_none() && verification.left() == 0;
        return if equal { Ok(()) } else { Err(Failure::NotPassed) };
    }
}
