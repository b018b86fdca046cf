//! What every part of one migration's control plane works with.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bson::{Timestamp, rawdoc};
use parking_lot::Mutex;

use super::scope::Scope;
use crate::clock::SharedClock;
use crate::cluster::command::{Request, SharedCluster};
use crate::converge::converger::Converger;
use crate::converge::read::ask;
use crate::converge::sessions::Sessions;
use crate::model::phase::Phase;
use crate::model::side::{PerSide, Side};
use crate::model::slots::SlotSet;
use crate::policy::retry::Memory;
use crate::policy::safeguards::Safeguards;
use crate::state::authority::Authority;
use crate::state::frontier::Frontier;
use crate::state::inflight::Inflight;
use crate::state::newcomers::Newcomers;
use crate::state::parking::Parking;
use crate::state::record::{DATABASE, MARKERS, route};
use crate::state::records::{RecordError, Records, write_concern_problem};
use crate::state::table::{MigrationRoute, Routing};

/// One migration, as this process works on it.
pub struct Context {
    /// Its name.
    pub name: Arc<str>,
    /// What it moves.
    pub scope: Arc<Scope>,
    /// Where what comes into being is told.
    pub newcomers: Arc<Newcomers>,
    /// Both clusters.
    pub clusters: PerSide<SharedCluster>,
    /// This process's hold on each cluster's record.
    pub authorities: PerSide<Arc<Authority>>,
    /// This process's mirror sessions on each.
    pub sessions: PerSide<Arc<Sessions>>,
    /// Where routes are published.
    pub routing: Arc<Routing>,
    /// The register of work under way.
    pub inflight: Arc<Inflight>,
    /// The primitive.
    pub converger: Arc<Converger>,
    /// What tells retries that a move has overtaken.
    pub retries: Arc<Mutex<Memory>>,
    /// How far each cluster's stream is worked off.
    pub frontiers: PerSide<Arc<Frontier>>,
    /// Keys that cannot be made equal now.
    pub parking: Arc<Parking>,
    /// Where checkpoints, parked keys and the like are stored.
    pub records: Arc<Records>,
    /// The clock.
    pub clock: SharedClock,
    /// Replies wait for mirrors, whatever the records say.
    pub keeps_mirrors_current: AtomicBool,
    /// Held from where the records are read until what they say is published: what is published last is what is known.
    pub publishing: Mutex<()>,
    /// Slots that are being taken back without new: writes to them, and converging them, wait.
    pub taking_back: Mutex<SlotSet>,
    /// All on, but in the simulator.
    pub safeguards: Safeguards,
}

impl Context {
    /// What the records last seen say about routing; `None` while none has been seen.
    #[must_use]
    pub fn route(&self) -> Option<MigrationRoute> {
        let known = PerSide::from_fn(|side| self.authorities.get(side).known());
        let mut route = route(known.old.as_ref(), known.new.as_ref())?;
        route.ack_both |= self.keeps_mirrors_current.load(Ordering::Relaxed);
        let taking_back = *self.taking_back.lock();
        route.held = route.held.or(&taking_back);
        route.sealed = route.sealed.or(&taking_back);
        Some(route)
    }

    /// Publishes what the records last seen say, adjusted; returns the version, `None` while none was seen. For calls, of
    /// which one runs at a time: what an earlier one has adjusted does not stay.
    pub fn publish(&self, adjust: impl FnOnce(&mut MigrationRoute)) -> Option<u64> {
        let _in_order = self.publishing.lock();
        self.publish_next(adjust)
    }

    /// The same for who works beside calls: what one of these has set for a move stays.
    pub fn publish_beside(&self) -> Option<u64> {
        let _in_order = self.publishing.lock();
        let (sealed, ack_both) = self.set_for_a_move();
        self.publish_next(|route| {
            route.sealed = route.sealed.or(&sealed);
            route.ack_both |= ack_both;
        })
    }

    fn publish_next(&self, adjust: impl FnOnce(&mut MigrationRoute)) -> Option<u64> {
        let mut route = self.route()?;
        adjust(&mut route);
        Some(self.routing.publish_route(&self.scope.known(), &route))
    }

    fn published(&self) -> Option<Arc<MigrationRoute>> {
        let namespace = self.scope.known().into_iter().next()?;
        self.routing.load().route(namespace.as_str()).cloned()
    }

    fn set_for_a_move(&self) -> (SlotSet, bool) {
        self.published().map_or_else(Default::default, |route| (route.sealed, route.ack_both))
    }

    /// Asks `side` for its lease. What its record says is published before the lease counts.
    ///
    /// # Errors
    /// [`RecordError`].
    pub async fn beat(&self, side: Side) -> Result<bool, RecordError> {
        self.authorities.get(side).beat(|| self.publish_news()).await
    }

    /// Publishes what the records last seen say, if that is news; what this process has set for a move of
    /// its own stays.
    fn publish_news(&self) {
        let Some(route) = self.route().filter(|_| !self.scope.known().is_empty()) else { return };
        let is_news = self.published().is_none_or(|published| !published.agrees_with(&route));
        // Once it is aborted its namespaces are nobody's business any more.
        if is_news && route.phase != Phase::Aborted {
            self.publish_beside();
        }
    }

    /// The epoch as last seen on either side.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.route().map_or(0, |route| route.epoch)
    }

    /// Writes a marker to `side`'s stream; everything acknowledged there before has a time at or below the
    /// one returned, and the majority has it.
    ///
    /// # Errors
    /// In words, why it is not there.
    pub async fn mark(&self, side: Side, limit: Duration) -> Result<Timestamp, String> {
        mark(self.clusters.get(side), &self.name, limit).await
    }
}

/// Writes a marker to a cluster's stream, see [`Context::mark`].
///
/// # Errors
/// In words, why it is not there.
pub(super) async fn mark(cluster: &SharedCluster, name: &str, limit: Duration) -> Result<Timestamp, String> {
    let body = rawdoc! {
        "update": MARKERS,
        "updates": [{ "q": { "_id": name }, "u": { "$inc": { "n": 1_i64 } }, "upsert": true }],
        "writeConcern": { "w": "majority" },
    };
    let request = Request::new(DATABASE, body).within(limit);
    let reply = ask(&**cluster, request).await?;
    if let Some(problem) = write_concern_problem(&reply.body) {
        return Err(problem);
    }
    reply.operation_time.ok_or_else(|| "a server without operationTime".to_owned())
}
