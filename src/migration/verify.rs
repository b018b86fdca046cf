//! Comparing both clusters, while writes go on, and repairing what differs.
//!
//! Ranges of `_id` are read on both sides and compared by hashes of the documents' bytes, or by hashes that the
//! servers make. What differs there is only suspected: documents change between the two reads. Each suspect is
//! looked at again by the rule of `policy::compare`; only a difference that passes it counts, and is converged.
//! Ranges that are done are stored, so that the next process goes on with the others.

mod checkpoint;
mod differences;
mod range;
mod suspects;
mod tally;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bson::Timestamp;
use futures::stream::{self, StreamExt};
use parking_lot::Mutex;

use self::checkpoint::Part;
pub use self::checkpoint::{VERIFIED, forget};
pub use self::differences::digests_or_refused;
use self::range::compare;
use self::tally::Tally;
use super::context::Context;
use super::control::{Compared, EqualUpTo, Mismatch, Throttle, Verification, Verify};
use super::ranges;
use super::throttle::Limiter;
use crate::model::namespace::Namespace;
use crate::model::side::{PerSide, Side};
use crate::policy::sample::sampled;
use crate::state::switched::SwitchedOff;

/// How long the streams may take to reach the end of a comparison.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where real differences are told to.
pub type Found = dyn Fn(Mismatch) + Send + Sync;

/// Compares both sides of one migration.
pub struct Verifier {
    ctx: Arc<Context>,
    asked: Verify,
    limiters: PerSide<Limiter>,
    unsettled: AtomicU64,
    /// For what an operator wants nothing made equal.
    only_tells: Arc<SwitchedOff>,
}

/// How a comparison ended.
#[derive(Debug, Default)]
pub struct Ended {
    /// Documents that changed at every look: they may differ still.
    pub unsettled: u64,
    /// Why it did not go through.
    pub failure: Option<String>,
}

/// What is under way: where numbers and differences go.
struct Run<'a> {
    ctx: &'a Context,
    asked: &'a Verify,
    limiters: &'a PerSide<Limiter>,
    only_tells: &'a SwitchedOff,
    state: &'a Mutex<Verification>,
    found: &'a Found,
    /// Keys that changed at every look.
    unsettled: &'a AtomicU64,
    /// When this process began with it, and what was compared by then.
    began: (Duration, u64),
}

impl Verifier {
    /// A comparison as `asked`. Each range in work needs about 100 bytes of memory for each of its documents, of
    /// which 16 MB are in a range.
    #[must_use]
    pub fn new(ctx: Arc<Context>, asked: Verify) -> Self {
        let throttle = Throttle {
            documents_per_second: asked.documents_per_second,
            megabytes_per_second: asked.megabytes_per_second,
        };
        let limiters = PerSide::from_fn(|_| {
            let limiter = Limiter::new(ctx.clock.clone());
            limiter.set(throttle);
            limiter
        });
        Self { ctx, asked, limiters, unsettled: AtomicU64::new(0), only_tells: Arc::default() }
    }

    /// The same, but that nothing is made equal for which `switched` is off, at any moment.
    #[must_use]
    pub fn only_telling(self, switched: Option<Arc<SwitchedOff>>) -> Self {
        Self { only_tells: switched.unwrap_or_default(), ..self }
    }

    /// Compares everything that was asked for, but for what the stored ranges say is done. Progress is in
    /// `state`, which at the end says whether it went through; differences go to `found`, already repaired where
    /// that was asked for and possible.
    pub async fn run(&self, state: Arc<Mutex<Verification>>, found: &Found) -> Ended {
        self.unsettled.store(0, Ordering::Relaxed);
        let failure = self.compare_all(&state, found).await.err();
        let unsettled = self.unsettled.load(Ordering::Relaxed);
        let equal_up_to = if failure.is_none() { self.equal_up_to(&state).await } else { None };
        let mut state = state.lock();
        state.running = false;
        state.remaining_seconds = None;
        state.finished_at = Some(self.ctx.clock.wall_millis());
        state.failure.clone_from(&failure);
        if failure.is_none() && unsettled > 0 {
            // Unknown is not equal.
            state.failure = Some(format!("{unsettled} documents changed at every look; verify again"));
        }
        state.equal_up_to = equal_up_to.filter(|_| state.failure.is_none());
        Ended { unsettled, failure }
    }

    async fn compare_all(&self, state: &Mutex<Verification>, found: &Found) -> Result<(), String> {
        let parallel = usize::from(self.asked.parallel.max(1));
        let known = self.ctx.scope.known();
        begin(state, &self.asked, &known);
        let parts = self.parts(&known, parallel).await?;
        let began = {
            let mut state = state.lock();
            state.total_documents = parts.iter().map(|part| part.documents).sum();
            for part in &parts {
                if let Some(tally) = &part.done {
                    tally.add_to(&mut state, &part.range.namespace);
                }
            }
            (self.ctx.clock.now(), state.compared_documents)
        };
        let run = Run {
            ctx: &self.ctx,
            asked: &self.asked,
            limiters: &self.limiters,
            only_tells: &self.only_tells,
            state,
            found,
            unsettled: &self.unsettled,
            began,
        };
        for namespace in &known {
            run.compare_catalogs(namespace).await?;
        }
        let todo: Vec<Part> = parts.into_iter().filter(|part| part.done.is_none()).collect();
        let compared = todo.into_iter().map(|part| async { compare(&run, part).await });
        let mut compared = stream::iter(compared).buffer_unordered(parallel);
        while let Some(result) = compared.next().await {
            result?;
        }
        Ok(())
    }

    /// The ranges to compare: those that are stored, else cut and sampled anew.
    async fn parts(&self, known: &[Namespace], parallel: usize) -> Result<Vec<Part>, String> {
        let stored = checkpoint::load(&self.ctx.records, &self.ctx.name).await;
        let mut parts = stored.map_err(|error| error.to_string())?;
        for namespace in known {
            if checkpoint::is_cut(&parts, namespace) {
                continue;
            }
            parts.retain(|part| part.range.namespace != *namespace);
            let authority = self.ctx.route().and_then(|route| route.sole_authority()).unwrap_or(Side::Old);
            let cluster = &**self.ctx.clusters.get(authority);
            let size = ranges::size_of(cluster, namespace).await?;
            let all = ranges::split(cluster, namespace, size, parallel).await?;
            let documents = size.documents / all.len().max(1) as u64;
            let seed = self.ctx.clock.wall_millis().unsigned_abs();
            let chosen = sampled(all.len(), self.asked.sample_percent, seed);
            // Numbered anew: what is stored is complete where number 0 is.
            let cut = (0..).zip(chosen).map(|(number, index)| {
                let range = ranges::Range { number, ..all[index].clone() };
                Part { range, documents, done: None }
            });
            let cut: Vec<Part> = cut.collect();
            let stored = checkpoint::store_all(&self.ctx.records, &self.ctx.name, &cut).await;
            stored.map_err(|error| error.to_string())?;
            parts.extend(cut);
        }
        Ok(parts)
    }

    /// Until when a full comparison that left nothing proves equality: its end, once both streams have passed
    /// that. What was written after a document was looked at, they have brought over.
    async fn equal_up_to(&self, state: &Mutex<Verification>) -> Option<EqualUpTo> {
        if !self.asked.is_full() || state.lock().left() > 0 {
            return None;
        }
        let (old, new) = (self.passed(Side::Old).await?, self.passed(Side::New).await?);
        Some(PerSide { old, new }.into())
    }

    /// A time of `side` up to which its stream is worked off.
    async fn passed(&self, side: Side) -> Option<Timestamp> {
        let time = self.ctx.mark(side, PATIENCE).await.ok()?;
        let frontier = self.ctx.frontiers.get(side);
        frontier.wait_past(time, &*self.ctx.clock, PATIENCE).await.then_some(time)
    }
}

/// Numbers begin at nothing: what is done already is added from what is stored.
fn begin(state: &Mutex<Verification>, asked: &Verify, known: &[Namespace]) {
    let mut state = state.lock();
    let (started_at, outdated) = (state.started_at, state.outdated);
    let names: Vec<String> = known.iter().map(|namespace| namespace.as_str().to_owned()).collect();
    let collection = |namespace: &String| Compared { namespace: namespace.clone(), ..Compared::default() };
    let collections = names.iter().map(collection).collect();
    *state = Verification {
        running: true,
        asked: *asked,
        namespaces: names,
        collections,
        started_at,
        outdated,
        ..Verification::default()
    };
}

impl Run<'_> {
    /// Tells of a real difference.
    fn tell(&self, tally: &Mutex<Tally>, mismatch: Mismatch) {
        tally.lock().tell(mismatch.repaired);
        let mut told = Tally::default();
        told.tell(mismatch.repaired);
        told.add_differences_to(&mut self.state.lock(), &mismatch.namespace);
        (self.found)(mismatch);
    }

    /// A range is compared.
    async fn done(&self, part: &Part, tally: Tally) -> Result<(), String> {
        let stored = checkpoint::done(&self.ctx.records, &self.ctx.name, part, &tally).await;
        stored.map_err(|error| error.to_string())?;
        let mut state = self.state.lock();
        // Its differences were added as they were found.
        tally.add_documents_to(&mut state, &part.range.namespace);
        let (since, before) = self.began;
        let seconds = self.ctx.clock.now().saturating_sub(since).as_secs_f64();
        state.set_pace(before, seconds);
        Ok(())
    }
}
