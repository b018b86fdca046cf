//! Being a holder: asking for leases again and again, and seeing to holders that died.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bson::raw::RawBsonRef;
use bson::{RawDocument, rawdoc};
use parking_lot::Mutex;

use super::context::Context;
use crate::clock::timeout;
use crate::cluster::command::Request;
use crate::converge::read::ask;
use crate::converge::sessions::bar_all;
use crate::model::side::{PerSide, Side};
use crate::state::record::AuthorityRecord;
use crate::state::records::first_batch;

const FIRST_LOOK: Duration = Duration::from_millis(5);
const LOOK: Duration = Duration::from_millis(200);

/// The name under which a process's connections show at the servers.
#[must_use]
pub fn app_name(holder: &str) -> String {
    format!("reshard/{holder}")
}

/// The name of the connections that a process's backfill of one migration uses. Each migration has its own:
/// at the end of a copy its connections are waited for and their operations killed, which must not meet
/// those of another copy. At most 114 of the 128 bytes that servers allow.
#[must_use]
pub fn backfill_app_name(holder: &str, migration: &str) -> String {
    format!("reshard/{holder}/backfill/{migration}")
}

/// The name that a process's mirror sessions for one migration follow from.
#[must_use]
pub fn mirror_name(holder: &str, migration: &str) -> String {
    format!("{holder}/{migration}")
}

/// What is known of other holders: for how long they have been silent.
#[derive(Default)]
pub struct Watch {
    seen: Mutex<BTreeMap<(Side, String), Silence>>,
    problems: Mutex<BTreeMap<String, String>>,
    looked: Mutex<PerSide<bool>>,
}

/// How long a holder has been silent, as far as the cluster was heard meanwhile.
///
/// Of a cluster that hangs nobody gets a sign of life through: once it goes on, what all have sent arrives at once, and
/// who looks first must not take the others for dead.
#[derive(Debug, Clone, Copy)]
struct Silence {
    beat: i64,
    heard: Duration,
    lasts: Duration,
}

impl Silence {
    const fn begin(beat: i64, heard: Duration) -> Self {
        Self { beat, heard, lasts: Duration::ZERO }
    }

    /// The cluster was `heard` at that time of this process's clock to say `beat`; between two answers at most `most`
    /// counts. Returns how long the silence lasts.
    fn note(&mut self, beat: i64, heard: Duration, most: Duration) -> Duration {
        let lasts = self.lasts + heard.saturating_sub(self.heard).min(most);
        *self = if beat == self.beat { Self { beat, heard, lasts } } else { Self::begin(beat, heard) };
        self.lasts
    }
}

impl Watch {
    /// Holders that are not done with, each with the reason; they stand in the way of moves.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let looked = *self.looked.lock();
        let unknown = Side::BOTH.into_iter().filter(|side| !looked.get(*side));
        let unknown =
            unknown.map(|side| format!("whether another process writes to {side} is not known yet"));
        let problems = self.problems.lock();
        unknown.chain(problems.iter().map(|(holder, why)| format!("process {holder}: {why}"))).collect()
    }
}

impl Watch {
    /// Why something that another process has sent may yet arrive at `side`; `None` once nothing can.
    #[must_use]
    pub fn problem_on(&self, side: Side) -> Option<String> {
        if !self.looked.lock().get(side) {
            return Some(format!("whether another process writes to {side} is not known yet"));
        }
        let problems = self.problems.lock();
        let on_side = problems.iter().find(|(holder, _)| holder.ends_with(&format!(" on {side}")));
        on_side.map(|(holder, why)| format!("process {holder}: {why}"))
    }
}

impl Context {
    /// Asks `side` for its lease every `every`; for as long as the process lives.
    pub async fn keep_lease(self: Arc<Self>, side: Side, every: Duration) {
        loop {
            match self.beat(side).await {
                Ok(true) => {}
                // The start makes the record, a moment after this has begun.
                Ok(false) if self.authorities.get(side).known().is_none() => {
                    tracing::debug!(%side, "no record yet")
                }
                Ok(false) => tracing::error!(
                    %side,
                    "this process was taken for dead, and may not write to the cluster any more: restart it"
                ),
                Err(error) => tracing::debug!(%side, %error, "no lease yet"),
            }
            self.clock.sleep(every).await;
        }
    }

    /// Looks after holders that stopped beating: expels them, bars what they may have sent, and forgets them
    /// once nothing of theirs can arrive any more.
    pub async fn watch_holders(self: Arc<Self>, watch: Arc<Watch>, lease: Duration) {
        loop {
            for side in Side::BOTH {
                if let Some(record) = self.authorities.get(side).known() {
                    self.look_after(side, &record, &watch, lease).await;
                }
            }
            self.clock.sleep(Duration::from_millis(500)).await;
        }
    }

    /// Notes whether all that `side` executes now comes through this process.
    pub(super) fn note_company(&self, side: Side, record: &AuthorityRecord) {
        let me = self.authorities.get(side).holder();
        let alone = record.holders.keys().all(|holder| holder == me);
        let untouched = record.owned.is_empty() && record.moves.iter().all(|past| past.former != side);
        self.retries.lock().note_alone(side, alone, untouched, self.clock.now());
    }

    async fn look_after(&self, side: Side, record: &AuthorityRecord, watch: &Watch, lease: Duration) {
        self.note_company(side, record);
        let authority = self.authorities.get(side);
        let me = authority.holder().to_owned();
        let mut problems = BTreeMap::new();
        for (holder, state) in record.holders.iter().filter(|(holder, _)| **holder != me) {
            let heard = authority.heard().unwrap_or_default();
            let silent = {
                let mut seen = watch.seen.lock();
                let silence = seen.entry((side, holder.clone())).or_insert(Silence::begin(state.beat, heard));
                silence.note(state.beat, heard, lease / 4)
            };
            // One lease and some more, on this process's clock, since its last sign of life.
            if !state.ended && silent < lease + lease / 8 {
                problems
                    .insert(format!("{holder} on {side}"), "has not been silent for a lease yet".to_owned());
                continue;
            }
            if let Err(why) = self.put_out(side, holder, state.beat, state.sessions).await {
                problems.insert(format!("{holder} on {side}"), why);
            }
        }
        let mut known = watch.problems.lock();
        known.retain(|holder, _| !holder.ends_with(&format!(" on {side}")));
        known.extend(problems);
        *watch.looked.lock().get_mut(side) = true;
    }

    /// Makes sure that nothing of `holder` can arrive at `side` any more, then forgets it.
    async fn put_out(&self, side: Side, holder: &str, beat: i64, sessions: i32) -> Result<(), String> {
        let authority = self.authorities.get(side);
        if !authority.expel(holder, beat).await.map_err(|error| error.to_string())? {
            return Err("it is alive after all".into());
        }
        if self.safeguards.barrier {
            bar_all(self.clusters.get(side), &mirror_name(holder, &self.name), side, sessions).await?;
        }
        for name in [app_name(holder), backfill_app_name(holder, &self.name)] {
            self.connections_gone(side, &name).await?;
        }
        authority.forget(holder).await.map_err(|error| error.to_string())
    }

    /// Checks that the server has no connection of that name: bytes on a connection that is gone cannot
    /// arrive. Its running operations are killed.
    ///
    /// # Errors
    /// In words, what is left.
    pub async fn connections_gone(&self, side: Side, app_name: &str) -> Result<(), String> {
        let cluster = &**self.clusters.get(side);
        let body = rawdoc! {
            "aggregate": 1,
            "pipeline": [
                { "$currentOp": { "allUsers": true, "idleConnections": true } },
                { "$match": { "$or": [
                    { "appName": app_name }, { "clientMetadata.application.name": app_name },
                ] } },
                { "$project": { "opid": 1, "active": 1 } },
            ],
            "cursor": {},
        };
        let reply = ask(cluster, Request::new("admin", body)).await?;
        let left = first_batch(&reply.body)?;
        for operation in &left {
            self.kill(side, operation).await;
        }
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{} of its connections are still open", left.len()))
        }
    }

    /// Waits until that is so. Servers see the end of a connection within moments, if they run.
    pub async fn until_connections_gone(&self, side: Side, app_name: &str) {
        let mut pause = FIRST_LOOK;
        while let Err(why) = self.connections_gone(side, app_name).await {
            tracing::debug!(%side, app_name, why, "connections");
            self.clock.sleep(pause).await;
            pause = (pause * 2).min(LOOK);
        }
    }

    async fn kill(&self, side: Side, operation: &RawDocument) {
        let Ok(Some(opid)) = operation.get("opid") else { return };
        let opid = match opid {
            RawBsonRef::Int32(id) => bson::raw::RawBson::Int32(id),
            RawBsonRef::String(id) => bson::raw::RawBson::String(id.to_owned()),
            _ => return,
        };
        let request = Request::new("admin", rawdoc! { "killOp": 1, "op": opid });
        // It may have ended by itself; the list says so next time.
        let _asked = self.clusters.get(side).run(request).await;
    }

    /// Tells both clusters that this process begins nothing any more, as far as they answer within `limit`.
    pub async fn leave(&self, limit: Duration) {
        let leave = async |side: Side| {
            let left = self.authorities.get(side).leave();
            if !matches!(timeout(&*self.clock, limit, left).await, Ok(Ok(()))) {
                tracing::warn!(%side, "the next process finds out by waiting that this one has ended");
            }
        };
        futures::join!(leave(Side::Old), leave(Side::New));
    }

    /// Finishes or gives up a fence that a process left open when it died.
    pub async fn adopt_fences(&self) {
        for side in Side::BOTH {
            let Some(record) = self.authorities.get(side).known() else { continue };
            let Some(fence) = record.fence.clone() else { continue };
            match fence.state {
                crate::state::record::FenceState::Open => self.decide_aborted(side, &fence).await,
                crate::state::record::FenceState::Committed => self.finish_gain(&fence).await,
                crate::state::record::FenceState::Aborted => {}
            }
        }
        self.publish(|_| ());
    }

    /// Whether both leases are held, for messages.
    #[must_use]
    pub fn leases(&self) -> PerSide<bool> {
        PerSide::from_fn(|side| self.authorities.get(side).lease.begin().is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_that_hangs_makes_nobody_dead() {
        let at = Duration::from_secs;
        let mut silence = Silence::begin(7, at(10));
        assert_eq!(silence.note(7, at(12), at(3)), at(2));
        assert_eq!(silence.note(7, at(12), at(3)), at(2), "nothing was heard");
        assert_eq!(silence.note(7, at(60), at(3)), at(5), "it was silent itself");
        assert_eq!(silence.note(8, at(61), at(3)), at(0), "a sign of life");
        assert_eq!(silence.note(8, at(62), at(3)), at(1));
    }
}
