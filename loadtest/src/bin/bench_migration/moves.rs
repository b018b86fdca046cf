//! Moving reads and writes under load: how long writes are held, and how long any writer waits.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use reshard_loadtest::{Load, LoadConfig, Outcome};
use serde::Serialize;

use crate::api::{Api, Problem};

/// How long each step is looked at after it was made.
const AFTER: Duration = Duration::from_secs(2);
const CALM: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(120);
/// How often a move that was given up is asked for.
const ASKED: u32 = 10;

/// A step of the migration.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Reads(u8),
    Writes(u8),
}

/// To new, back to old as a rollback does, and to new again.
const STEPS: [Step; 7] = [
    Step::Reads(100),
    Step::Writes(10),
    Step::Writes(50),
    Step::Writes(100),
    Step::Writes(0),
    Step::Reads(100),
    Step::Writes(100),
];

/// One step and what it did to writers.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Moved {
    pub(crate) step: String,
    /// How long the proxy held writes; only moves of writes do.
    pub(crate) pause_ms: Option<u64>,
    pub(crate) attempts: u32,
    /// The slowest acknowledged write of any writer, during the step and shortly after it.
    pub(crate) longest_write_ms: f64,
    /// The longest time any writer was without an acknowledged write.
    pub(crate) longest_outage_ms: f64,
    pub(crate) errors: u64,
}

/// What came of all steps.
pub(crate) struct Moves {
    /// The first is the time before any step.
    pub(crate) moved: Vec<Moved>,
    pub(crate) operations: f64,
    pub(crate) outcome: Outcome,
}

/// Runs a load through the proxy and makes the steps under it. The migration must be synced.
pub(crate) async fn run(api: &Api, migration: &str, config: LoadConfig) -> Result<Moves> {
    let load = Load::start(LoadConfig { first_phase: "warm-up".into(), ..config }).await?;
    tokio::time::sleep(AFTER).await;
    load.set_phase("steady");
    tokio::time::sleep(CALM).await;
    let mut ramps = vec![("steady".to_owned(), None, 0)];
    for (number, step) in STEPS.into_iter().enumerate() {
        until_free(api, migration).await?;
        let name = format!("{}. {}", number + 1, step.name());
        eprintln!("{name}");
        load.set_phase(&name);
        let (pause, attempts) = step.make(api, migration).await?;
        tokio::time::sleep(AFTER).await;
        // A write that takes longer counts where it began.
        load.set_phase("between");
        ramps.push((name, pause, attempts));
    }
    let outcome = load.stop().await;
    let mut moved = Vec::new();
    for (step, pause_ms, attempts) in ramps {
        let phase = outcome.stats.phase(&step).context("a phase without numbers")?;
        let ms = |gap: &Option<reshard_loadtest::Gap>| gap.as_ref().map_or(0.0, |gap| gap.milliseconds);
        moved.push(Moved {
            pause_ms,
            attempts,
            longest_write_ms: ms(&phase.longest_write),
            longest_outage_ms: ms(&phase.longest_outage),
            errors: phase.errors,
            step,
        });
    }
    Ok(Moves { moved, operations: outcome.stats.total.throughput, outcome })
}

/// Waits until everything allows for a move; the comparison that a move of writes needs is asked for.
pub(crate) async fn until_free(api: &Api, migration: &str) -> Result<()> {
    let begun = Instant::now();
    loop {
        let now = api.progress(migration).await?;
        if now.can_cut_over {
            return Ok(());
        }
        ensure!(now.phase != "failed", "the migration failed: {:?}", now.blocked_by);
        let verifying = now.verification.is_some_and(|last| last.running);
        if !verifying && now.blocked_by.iter().all(|why| why.contains("reshard migrate verify ")) {
            api.verify(migration).await?;
        }
        ensure!(begun.elapsed() < LIMIT, "no move is possible: {:?}", now.blocked_by);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

impl Step {
    fn name(self) -> String {
        match self {
            Self::Reads(percent) => format!("reads {percent} %"),
            Self::Writes(percent) => format!("writes {percent} %"),
        }
    }

    /// Makes it, again when it was given up because the pause would have been too long.
    pub(crate) async fn make(self, api: &Api, migration: &str) -> Result<(Option<u64>, u32)> {
        let mut given_up = 0;
        for _ in 0..ASKED {
            let asked = match self {
                Self::Reads(percent) => api.reads(migration, percent).await,
                Self::Writes(percent) => api.writes(migration, percent).await,
            };
            let error = match asked {
                Ok(ramp) => {
                    let pause = matches!(self, Self::Writes(_)).then_some(ramp.pause_ms);
                    return Ok((pause, ramp.attempts + given_up));
                }
                Err(error) => error,
            };
            match error.downcast_ref::<Problem>() {
                Some(problem) if matches!(&*problem.code, "given-up" | "blocked") => {
                    eprintln!("{}: {problem}", self.name());
                    given_up += u32::try_from(problem.reasons.len()).unwrap_or(1);
                    until_free(api, migration).await?;
                }
                _ => return Err(error.context(self.name())),
            }
        }
        bail!("{} was given up", self.name())
    }
}
