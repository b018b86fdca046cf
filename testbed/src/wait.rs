//! Waiting for a condition in place of sleeping.

use std::future::Future;
use std::time::Duration;

use anyhow::{Error, Result, bail};
use tokio::time::{Instant, sleep, timeout_at};

/// Pause between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(20);

/// What a condition may answer: `bool`, or an [`anyhow::Result<bool>`] whose error counts as "not yet".
/// There is no form for other errors, so that `?` in a condition needs no type annotation.
pub trait Condition {
    /// `Ok(true)` when the condition holds; an error says what was seen in its place.
    fn holds(self) -> Result<bool, String>;
}

impl Condition for bool {
    fn holds(self) -> Result<bool, String> {
        Ok(self)
    }
}

impl Condition for Result<bool> {
    fn holds(self) -> Result<bool, String> {
        self.map_err(|error| format!("{error:#}"))
    }
}

/// Polls `condition` until it holds. After `limit` the error names `what` was awaited and the last
/// state seen. A single look that hangs is cut off at the limit too.
pub async fn wait_for<F, Fut>(what: &str, limit: Duration, mut condition: F) -> Result<()>
where
    F: FnMut() -> Fut,
    Fut: Future,
    Fut::Output: Condition,
{
    wait_for_value(what, limit, || {
        let look = condition();
        async move { look.await.holds().map(|holds| holds.then_some(())).map_err(Error::msg) }
    })
    .await
}

/// As [`wait_for`], for a value that is to appear.
pub async fn wait_for_value<T, F, Fut>(what: &str, limit: Duration, mut look: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Option<T>>>,
{
    let end = Instant::now() + limit;
    let mut last = String::from("never looked at");
    loop {
        match timeout_at(end, look()).await {
            Ok(Ok(Some(value))) => return Ok(value),
            Ok(Ok(None)) => last = String::from("not yet true"),
            Ok(Err(error)) => last = format!("{error:#}"),
            Err(_) => bail!("waited {limit:?} for {what}; the last look did not end; before it: {last}"),
        }
        if Instant::now() + PAUSE >= end {
            bail!("waited {limit:?} for {what}; last state: {last}");
        }
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[tokio::test]
    async fn ends_when_the_condition_holds() {
        let mut looks = 0;
        wait_for("three looks", Duration::from_secs(5), || {
            looks += 1;
            let done = looks == 3;
            async move { done }
        })
        .await
        .unwrap();
        assert_eq!(looks, 3);
    }

    #[tokio::test]
    async fn names_what_was_awaited_and_the_last_state() {
        let error = wait_for("the moon", Duration::from_millis(60), || async {
            Err::<bool, _>(anyhow!("still dark"))
        })
        .await
        .unwrap_err();
        let text = error.to_string();
        assert!(text.contains("the moon") && text.contains("still dark"), "{text}");
    }

    #[tokio::test]
    async fn a_look_that_hangs_is_cut_off() {
        let error =
            wait_for("an answer", Duration::from_millis(50), std::future::pending::<bool>).await.unwrap_err();
        assert!(error.to_string().contains("did not end"));
    }
}
