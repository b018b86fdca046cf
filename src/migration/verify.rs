//! Comparing both clusters in full, while writes go on, and repairing what differs.
//!
//! Ranges of `_id` are read on both sides and compared by hashes of the documents' bytes. What differs there
//! is only suspected: documents change between the two reads. Each suspect is looked at again by the rule of
//! `policy::compare`; only a difference that passes it counts, and is converged.

mod range;
mod suspects;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::stream::{self, StreamExt};
use parking_lot::Mutex;

use self::range::compare;
use super::catalog::describe;
use super::context::Context;
use super::control::{Mismatch, Verification};
use super::ranges::{self, Range};
use crate::model::namespace::Namespace;
use crate::model::side::Side;
use crate::policy::catalog::{Collection, comparable_options, creation_options};

const LIMIT: std::time::Duration = std::time::Duration::from_secs(30);

/// Where real differences are told to.
pub type Found = dyn Fn(Mismatch) + Send + Sync;

/// Compares both sides of one migration.
pub struct Verifier {
    ctx: Arc<Context>,
    parallel: usize,
    unsettled: AtomicU64,
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
    state: &'a Mutex<Verification>,
    found: &'a Found,
    /// Keys that changed at every look.
    unsettled: &'a AtomicU64,
}

impl Verifier {
    /// A comparison that reads `parallel` ranges at once. Each range in work needs about 100 bytes of memory
    /// for each of its documents, of which 16 MB are in a range.
    #[must_use]
    pub const fn new(ctx: Arc<Context>, parallel: usize) -> Self {
        Self { ctx, parallel, unsettled: AtomicU64::new(0) }
    }

    /// Compares everything once. Progress is in `state`, which at the end says whether it went through;
    /// differences go to `found`, already repaired where that was possible.
    pub async fn run(&self, state: Arc<Mutex<Verification>>, found: &Found) -> Ended {
        {
            let mut state = state.lock();
            if !state.running {
                *state = Verification { running: true, ..Verification::default() };
            }
        }
        self.unsettled.store(0, Ordering::Relaxed);
        let run = Run { ctx: &self.ctx, state: &state, found, unsettled: &self.unsettled };
        let failure = self.compare_all(&run).await.err();
        let unsettled = self.unsettled.load(Ordering::Relaxed);
        let mut state = state.lock();
        state.running = false;
        state.finished_at = Some(self.ctx.clock.wall_millis());
        state.failure.clone_from(&failure);
        if failure.is_none() && unsettled > 0 {
            // Unknown is not equal.
            state.failure = Some(format!("{unsettled} documents changed at every look; verify again"));
        }
        Ended { unsettled, failure }
    }

    async fn compare_all(&self, run: &Run<'_>) -> Result<(), String> {
        let mut todo: Vec<Range> = Vec::new();
        for namespace in &self.ctx.scope.known() {
            run.compare_catalogs(namespace).await?;
            let authority = self.ctx.route().and_then(|route| route.sole_authority()).unwrap_or(Side::Old);
            let cluster = &**self.ctx.clusters.get(authority);
            let size = ranges::size_of(cluster, namespace).await?;
            run.state.lock().total_documents += size.documents;
            todo.extend(ranges::split(cluster, namespace, size, self.parallel).await?);
        }
        let mut done = stream::iter(todo.into_iter().map(|range| async move { compare(run, &range).await }))
            .buffer_unordered(self.parallel);
        while let Some(result) = done.next().await {
            result?;
        }
        Ok(())
    }
}

impl Run<'_> {
    /// Tells of a real difference.
    fn tell(&self, namespace: &Namespace, key: String, kind: &str, repaired: bool) {
        {
            let mut state = self.state.lock();
            state.mismatches += 1;
            state.repaired += u64::from(repaired);
        }
        let (namespace, kind) = (namespace.as_str().to_owned(), kind.to_owned());
        (self.found)(Mismatch { namespace, key, kind, repaired, at: self.ctx.clock.wall_millis() });
    }

    /// Compares options and indexes; indexes that only new has force nothing on anybody, unless unique.
    async fn compare_catalogs(&self, namespace: &Namespace) -> Result<(), String> {
        let on = async |side: Side| {
            let described = describe(&**self.ctx.clusters.get(side), namespace, LIMIT).await;
            let described = described.map_err(|error| format!("{namespace} on {side}: {error}"))?;
            described.ok_or_else(|| format!("{namespace} is not on {side} any more"))
        };
        let (old, new) = (on(Side::Old).await?, on(Side::New).await?);
        for (name, kind) in differences(&old, &new) {
            self.tell(namespace, name, kind, false);
        }
        Ok(())
    }
}

/// Names of options and indexes that differ, with the kind of difference.
fn differences(old: &Collection, new: &Collection) -> BTreeMap<String, &'static str> {
    let mut differences = BTreeMap::new();
    let options = |collection: &Collection| comparable_options(&creation_options(&collection.options));
    let (of_old, of_new) = (options(old), options(new));
    for name in of_old.keys().chain(of_new.keys()).filter(|name| of_old.get(*name) != of_new.get(*name)) {
        differences.insert(name.clone(), "option");
    }
    for index in old.indexes.iter().filter(|index| !index.is_implied()) {
        let twin = new.indexes.iter().find(|twin| twin.name() == index.name());
        if !twin.is_some_and(|twin| twin.same_as(index) && !twin.building) {
            differences.insert(index.name().to_owned(), "index");
        }
    }
    for index in new.indexes.iter().filter(|index| !index.is_implied() && index.is_unique()) {
        if !old.indexes.iter().any(|twin| twin.name() == index.name()) {
            differences.insert(index.name().to_owned(), "index");
        }
    }
    differences
}
