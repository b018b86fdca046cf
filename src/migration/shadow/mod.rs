//! Shadow reads: a sample of the application's reads runs on the other cluster too, off the way of its replies, and
//! what both say is compared.
//!
//! Nothing here can hold an application up: the data plane drops what finds no room, connections are the shadow's
//! own, and all limits are counted.

mod calls;
mod explaining;
mod reading;
mod report;
mod reports;
mod settling;
mod view;

pub use reports::{Reports, Tally};
pub use view::{
    AccessView, DiffReport, Example, ExampleField, LatencyView, SetShadow, ShadowCounts, ShadowView,
    ShapeDiff,
};

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bson::RawDocument;
use futures::StreamExt;
use tokio::sync::{Semaphore, mpsc};

use self::explaining::Turns;
pub(super) use self::reading::{Read, Trouble};
use self::report::{Ended, Look};
use self::settling::Settled;
use super::context::Context;
use crate::cluster::command::SharedCluster;
use crate::model::namespace::Namespace;
use crate::model::side::PerSide;
use crate::policy::latency::is_about_the_cluster;
use crate::policy::shadow::answer::{Answer, Comparison, compare};
use crate::policy::shadow::eligible::{Eligible, Reason, decide, is_passing, whole_answer};
use crate::policy::shape::Asked;
use crate::state::handed_over::Job;
use crate::state::shadowing::Shadow;

/// First looks at once.
const LOOKS: usize = 4;
/// Differences that are looked at again at once.
const SETTLING: usize = 8;
/// A read that has waited longer tells little about the moment that it was served at.
const STALE: Duration = Duration::from_secs(5);
/// How often what was found is stored.
const STORE_EVERY: Duration = Duration::from_secs(10);

/// How many connections to each server shadow reads have, of their own: a 25th of what the application may have there,
/// so that they never ask more of a cluster than that share of its capacity.
#[must_use]
pub fn connections(of_application: u32) -> usize {
    (of_application as usize / 25).clamp(1, LOOKS)
}

/// Runs sampled reads on the other cluster.
pub struct Shadower {
    /// The migration's parts.
    pub context: Arc<Context>,
    /// Connections of its own to both clusters.
    pub clusters: PerSide<SharedCluster>,
    /// Where the reads come from.
    pub shadow: Arc<Shadow>,
    /// Where what is found goes.
    pub reports: Arc<Reports>,
    /// Whether its history is copied: before that everything differs.
    pub copied: Box<dyn Fn() -> bool + Send + Sync>,
    turns: Turns,
}

impl Shadower {
    /// Works until its task is ended.
    pub async fn run(self) {
        let Some(jobs) = self.shadow.queue.take() else { return };
        self.read_stored().await;
        futures::join!(self.look_at_all(jobs), self.keep_storing());
    }

    async fn read_stored(&self) {
        while let Err(error) = self.reports.load(&self.context.records).await {
            tracing::debug!(migration = %self.context.name, %error, "stored shadow reports are not read yet");
            self.context.clock.sleep(STORE_EVERY).await;
        }
    }

    async fn look_at_all(&self, jobs: mpsc::Receiver<Job>) {
        let (looks, settling) = (Semaphore::new(LOOKS), Semaphore::new(SETTLING));
        let jobs = futures::stream::unfold(jobs, |mut jobs| async { Some((jobs.recv().await?, jobs)) });
        jobs.for_each_concurrent(LOOKS + SETTLING, |job| self.look_at(job, &looks, &settling)).await;
    }

    async fn keep_storing(&self) {
        loop {
            self.context.clock.sleep(STORE_EVERY).await;
            if let Err(error) = self.reports.store(&self.context.records).await {
                tracing::warn!(migration = %self.context.name, %error, "shadow reports could not be stored");
            }
        }
    }

    async fn look_at(&self, job: Job, looks: &Semaphore, settling: &Semaphore) {
        if !(self.copied)() {
            self.shadow.skip(Reason::NotCopied);
            return;
        }
        let Some(read) = Read::of(&job) else {
            self.shadow.skip(Reason::NotUnderstood);
            return;
        };
        let terms = match decide(&read.name, &read.body) {
            Eligible::Run(terms) => terms,
            Eligible::Nondeterministic(_) => {
                self.reports.note(&read, Look::default(), Ended::Nondeterministic, &*self.context.clock);
                return;
            }
            Eligible::Skip(reason) => {
                self.shadow.skip(reason);
                return;
            }
        };
        let first = {
            let _one_of_few = looks.acquire().await;
            let age = self.context.clock.now().saturating_sub(job.at);
            if age > STALE {
                self.shadow.queue.dropped.fetch_add(1, Ordering::Relaxed);
                return;
            }
            self.first_look(&read, &job).await
        };
        let (mut look, served, shadow) = match first {
            Ok(first) => first,
            Err(Trouble::TooLarge) => {
                self.shadow.skip(Reason::TooLarge);
                return;
            }
            Err(Trouble::Failed) => {
                self.reports.note(&read, Look::default(), Ended::Failed, &*self.context.clock);
                return;
            }
        };
        // Its room is for others from here on.
        drop(job);
        let compared = compare(&served, &shadow, &terms);
        let ended = match &compared {
            Comparison::Equal => Ended::Equal,
            Comparison::Permuted => Ended::Permuted,
            // What the replies do not tell of a list's ends, the documents that it is made of may.
            Comparison::Untold | Comparison::Different(_) => match settling.try_acquire() {
                Ok(_one_of_few) => match self.settle(&read, &terms).await {
                    Settled::Gone => Ended::Transient,
                    Settled::Stays(differences, keys) => Ended::Different(differences, keys),
                    Settled::Nondeterministic => Ended::Nondeterministic,
                    Settled::Unsettled => Ended::Unsettled,
                    Settled::TooLarge => {
                        self.shadow.skip(Reason::TooLarge);
                        return;
                    }
                },
                Err(_) if compared == Comparison::Untold => Ended::Nondeterministic,
                Err(_) => Ended::Unsettled,
            },
        };
        look.access = self.explained(&read).await;
        self.reports.note(&read, look, ended, &*self.context.clock);
    }

    /// What was served, from the client's own reply where all of it is there, and what the other cluster says.
    async fn first_look(&self, read: &Read, job: &Job) -> Result<(Look, Answer, Answer), Trouble> {
        let reply = job.reply.as_ref().and_then(|reply| RawDocument::from_bytes(reply).ok());
        let served = reply.and_then(whole_answer);
        if matches!(served, Some(Answer::Error(code)) if is_passing(code)) {
            return Err(Trouble::Failed);
        }
        let begun = self.context.clock.now();
        let shadow = self.read(read, read.served.other(), reading::Level::Local).await;
        let took = self.context.clock.now().saturating_sub(begun);
        let measure = |side, took, failed| {
            self.shadow.shapes.record(&asked(read), side, took, failed, self.context.clock.now());
        };
        if let Err(Trouble::Failed) = shadow {
            measure(read.served.other(), took, true);
        }
        let shadow = shadow?;
        let (served, took_served) = match served {
            Some(served) => {
                // More than one batch takes longer than the first reply, which is what is known of applications.
                measure(read.served, job.took, is_failure(&served));
                measure(read.served.other(), took, is_failure(&shadow));
                (served, job.took)
            }
            None => {
                let begun = self.context.clock.now();
                let served = self.read(read, read.served, reading::Level::Local).await?;
                (served, self.context.clock.now().saturating_sub(begun))
            }
        };
        let mut look = Look::default();
        *look.took.get_mut(read.served) = Some(took_served);
        *look.took.get_mut(read.served.other()) = Some(took);
        Ok((look, served, shadow))
    }
}

/// Whether an answer speaks against the cluster that gave it.
pub(super) fn is_failure(answer: &Answer) -> bool {
    matches!(answer, Answer::Error(code) if is_about_the_cluster(*code))
}

/// The collection that a read is of.
fn namespace(database: &str, body: &RawDocument) -> Option<Namespace> {
    let (_, collection) = body.iter().next()?.ok()?;
    Some(Namespace::new(database, collection.as_str()?))
}

fn asked(read: &Read) -> Asked<'_> {
    Asked { namespace: read.namespace.as_str(), body: &read.body, statements: None }
}

/// What a read has in common with others that differ in their values alone.
fn shape_of(read: &Read) -> (String, String) {
    let asked = asked(read);
    (format!("{:016x}", asked.hash()), asked.text())
}
