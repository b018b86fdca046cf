//! A rehearsal: what the application reads on old also runs on new, some times over, so that new has met the load, and
//! filled its caches, before anybody depends on it.
//!
//! Nothing here can hold an application up: the data plane drops what finds no room, the connections are the
//! rehearsal's own, and what new cannot take ends it.

mod calls;
mod recorded;
mod view;

pub use calls::Run;
pub use view::{RehearsalCounts, RehearsalView, SetRehearsal};

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{iter, unfold};
use parking_lot::Mutex;

use self::recorded::Recorded;
use super::context::Context;
use super::shadow::{Read, Trouble};
use crate::cluster::command::SharedCluster;
use crate::model::side::Side;
use crate::policy::shadow::eligible::{Eligible, decide};
use crate::policy::shape::Asked;
use crate::state::handed_over::Job;
use crate::state::rehearsing::Rehearsal;

/// Connections of rehearsals to each server of new, and repetitions at once.
pub const CONNECTIONS: usize = 32;
/// A repetition that has waited longer says nothing about the load of its moment.
const STALE: Duration = Duration::from_secs(5);

/// Repeats what the application reads.
pub(super) struct Rehearser {
    /// The migration's parts.
    pub context: Arc<Context>,
    /// Connections of its own to new.
    pub new: SharedCluster,
    /// Where the reads come from.
    pub rehearsal: Arc<Rehearsal>,
}

/// One repetition.
struct Repetition {
    read: Read,
    at: Duration,
}

impl Rehearser {
    /// Works until its task is ended.
    pub(super) async fn run(self) {
        let Some(jobs) = self.rehearsal.queue.take() else { return };
        let recorded = Mutex::new(Recorded::default());
        let jobs = unfold(jobs, |mut jobs| async { Some((jobs.recv().await?, jobs)) });
        let repetitions = jobs.flat_map(|job| iter(self.repetitions(&job, &recorded)));
        repetitions.for_each_concurrent(CONNECTIONS, |one| self.repeat(one)).await;
    }

    /// What is to be run of a read: the read itself, and others of its shape.
    fn repetitions(&self, job: &Job, recorded: &Mutex<Recorded>) -> Vec<Repetition> {
        let read = Read::of(job).filter(|read| !matches!(decide(&read.name, &read.body), Eligible::Skip(_)));
        let Some(read) = read else {
            self.rehearsal.skipped.fetch_add(1, Ordering::Relaxed);
            return Vec::new();
        };
        let asked = asked(&read);
        self.rehearsal.shapes().record(&asked, Side::Old, job.took, false, self.context.clock.now());
        let hash = asked.hash();
        let mut recorded = recorded.lock();
        recorded.keep(hash, &read);
        let count = self.rehearsal.copies(&job.body);
        let others = (1..count).map(|_| recorded.like(hash, &read)).collect::<Vec<_>>();
        let first = (count > 0).then_some(read);
        first.into_iter().chain(others).map(|read| Repetition { read, at: job.at }).collect()
    }

    async fn repeat(&self, Repetition { read, at }: Repetition) {
        let clock = &self.context.clock;
        if clock.now().saturating_sub(at) > STALE {
            self.rehearsal.late.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let begun = clock.now();
        let answered = read.drain(&*self.new, clock).await;
        let took = match answered {
            Ok(took) => took,
            // New did what it was asked for, as far as it was asked.
            Err(Trouble::TooLarge) => clock.now().saturating_sub(begun),
            Err(Trouble::Failed) => {
                self.rehearsal.errors.fetch_add(1, Ordering::Relaxed);
                let shapes = self.rehearsal.shapes();
                shapes.record(&asked(&read), Side::New, Duration::ZERO, true, clock.now());
                return;
            }
        };
        self.rehearsal.reads.fetch_add(1, Ordering::Relaxed);
        self.rehearsal.shapes().record(&asked(&read), Side::New, took, false, clock.now());
    }
}

fn asked(read: &Read) -> Asked<'_> {
    Asked { namespace: read.namespace.as_str(), body: &read.body, statements: None }
}
