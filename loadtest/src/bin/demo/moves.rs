//! Moving reads and writes, and waiting until that may be done.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::api::{Problem, Ramp};
use crate::script::Play;
use crate::served::Served;

/// How often a move that was given up is asked for.
const ASKED: u32 = 4;

/// A move of writes that has been made.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Move {
    pub(crate) migration: String,
    pub(crate) what: String,
    /// How long writes waited in the attempt that succeeded.
    pub(crate) pause_ms: u64,
    /// All attempts.
    pub(crate) attempts: u32,
}

impl Play<'_> {
    async fn until_free(&self, migration: &str) -> Result<()> {
        self.until("moment to move", migration, |now| Ok(now.can_cut_over)).await.map(|_| ())
    }

    pub(crate) async fn reads_to(&self, migration: &str, percent: u8) -> Result<()> {
        self.until_free(migration).await?;
        let ramp = self.watch(self.api().reads(migration, percent)).await?;
        ensure!(ramp.percent == percent, "reads are at {} %, not {percent} %", ramp.percent);
        Ok(())
    }

    pub(crate) async fn writes_to(&self, migration: &str, percent: u8) -> Result<()> {
        let what = format!("writes {percent} %");
        let ramp = self.moving(migration, &what, || self.api().writes(migration, percent)).await?;
        ensure!(ramp.percent == percent, "writes are at {} %, not {percent} %", ramp.percent);
        Ok(())
    }

    pub(crate) async fn roll_back(&self, migration: &str) -> Result<()> {
        self.moving(migration, "rollback", || self.api().rollback(migration)).await.map(|_| ())
    }

    async fn moving<Asked>(&self, migration: &str, what: &str, ask: impl Fn() -> Asked) -> Result<Ramp>
    where
        Asked: Future<Output = Result<Ramp>>,
    {
        let mut given_up = 0;
        for asked in 1..=ASKED {
            self.until_free(migration).await?;
            let error = match self.watch(ask()).await {
                Ok(ramp) => {
                    self.moved(migration, what, ramp, given_up);
                    return Ok(ramp);
                }
                Err(error) => error,
            };
            match error.downcast_ref::<Problem>() {
                Some(problem) if matches!(&*problem.code, "given-up" | "blocked") && asked < ASKED => {
                    given_up += u32::try_from(problem.reasons.len()).unwrap_or(u32::MAX);
                    self.screen.note(&format!("{migration}: {what}: {problem}"));
                }
                _ => return Err(error.context(format!("{migration}: {what}"))),
            }
        }
        Err(anyhow::anyhow!("{migration}: {what} was given up"))
    }

    fn moved(&self, migration: &str, what: &str, ramp: Ramp, given_up: u32) {
        let attempts = ramp.attempts + given_up;
        let again = if attempts > 1 { format!(", {} given up before", attempts - 1) } else { String::new() };
        self.screen.done(&format!(
            "{migration}: {what:<12} writes waited {} ms, attempts {attempts}{again}",
            ramp.pause_ms
        ));
        self.moves.lock().push(Move {
            migration: migration.to_owned(),
            what: what.to_owned(),
            pause_ms: ramp.pause_ms,
            attempts,
        });
    }

    /// Reads that old and new served meanwhile.
    pub(crate) async fn served_while(&self, work: impl Future<Output = ()>) -> Result<(u64, u64)> {
        let look = async || self.api().metrics().await.map(|text| Served::parse(&text)).context("metrics");
        let before = look().await?;
        work.await;
        Ok(look().await?.since(&before, "read"))
    }
}

/// Long enough for the clusters' clocks, which count in seconds, to move on.
pub(crate) const CLOCK: Duration = Duration::from_millis(1_500);
