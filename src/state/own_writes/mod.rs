//! What this process itself writes to the collections of a migration, so that its own change events are told
//! from those of writers that go past the proxy.
//!
//! Every write is registered before it is sent: what it may touch, and the newest time of its cluster known by
//! then. Its events are not older than that, since commands carry the newest `$clusterTime` along. With the
//! answer comes a time that its events are not newer than; without one they may come at any later moment. A
//! write is forgotten once the cluster's stream has passed its time: no event of it can be shown after that.

mod line;

use std::sync::Arc;
use std::time::Duration;

use bson::Timestamp;
use parking_lot::Mutex;

use crate::clock::SharedClock;
use crate::model::key::Key;
use crate::model::namespace::Namespace;
use crate::model::side::{PerSide, Side};
use line::{End, Line, Touch};

/// Keys remembered for each cluster, 64 bytes each.
const MOST_KEYS: usize = 1_000_000;
/// How long a write without a key and without an answer accounts for every event of its collection: as long
/// as its session lives.
pub const LOST_FOR: Duration = Duration::from_secs(31 * 60);
const ZERO: Timestamp = Timestamp { time: 0, increment: 0 };

/// Whose an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// This process may have caused it, or it has been judged before.
    Own,
    /// It cannot be told.
    Unknown,
    /// Nothing that this process did can have caused it.
    Foreign,
}

/// The register; one for each migration.
pub struct OwnWrites {
    lines: PerSide<Mutex<Line>>,
    clock: SharedClock,
    limit: usize,
}

/// Over what a write is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The process's connections, as applications' writes are.
    Connections,
    /// The same, on a mirror session, which can be barred.
    MirrorSession,
    /// Connections that do not hear of times that the others know.
    ConnectionsApart,
}

enum Touched {
    Keys(Vec<u128>),
    Whole(Namespace, u64),
    Uncounted,
}

/// A write that is under way. Dropped without word of its end it may be executed at any later moment.
pub struct Writing {
    own: Arc<OwnWrites>,
    /// Where it is sent.
    pub side: Side,
    touched: Touched,
    since: Timestamp,
    by: By,
    ended: bool,
}

impl OwnWrites {
    /// Nothing is registered, and no event can be judged.
    #[must_use]
    pub fn new(clock: SharedClock) -> Arc<Self> {
        Arc::new(Self { lines: PerSide::default(), clock, limit: MOST_KEYS })
    }

    /// A write of these keys is about to be sent to `side`.
    #[must_use]
    pub fn begin<'a>(
        self: &Arc<Self>,
        side: Side,
        namespace: &Namespace,
        keys: impl IntoIterator<Item = &'a Key>,
        by: By,
    ) -> Writing {
        let keys: Vec<u128> = keys.into_iter().map(|key| key.fingerprint_in(namespace)).collect();
        let mut line = self.lines.get(side).lock();
        let since = if by == By::ConnectionsApart { ZERO } else { line.since(line.heard) };
        let touched = if line.has_room(keys.len(), self.limit) {
            for key in &keys {
                let new = Touch { since, until: ZERO, under_way: 0, lost: false, lost_on_mirror: None };
                let touch = line.keys.entry(*key).or_insert(new);
                touch.since = touch.since.min(since);
                touch.under_way += 1;
            }
            Touched::Keys(keys)
        } else {
            line.uncounted += 1;
            Touched::Uncounted
        };
        drop(line);
        Writing { own: Arc::clone(self), side, touched, since, by, ended: false }
    }

    /// The same of a write that does not name its keys.
    #[must_use]
    pub fn begin_whole(self: &Arc<Self>, side: Side, namespace: &Namespace) -> Writing {
        let mut line = self.lines.get(side).lock();
        line.numbers += 1;
        let (since, number) = (line.since(line.heard), line.numbers);
        line.spans.entry(namespace.clone()).or_default().under_way.insert(number, since);
        drop(line);
        let touched = Touched::Whole(namespace.clone(), number);
        Writing { own: Arc::clone(self), side, touched, since, by: By::Connections, ended: false }
    }

    /// Events later than `from` can be judged from now on; `None`: none can.
    pub fn judge_from(&self, side: Side, from: Option<Timestamp>) {
        self.lines.get(side).lock().from = from;
    }

    /// Whether `side` is a sharded cluster, once that is known.
    pub fn set_router(&self, side: Side, is_router: bool) {
        self.lines.get(side).lock().is_router = is_router;
    }

    /// Whether `side` may be a sharded cluster.
    #[must_use]
    pub fn is_router(&self, side: Side) -> bool {
        self.lines.get(side).lock().is_router
    }

    /// Since when events can be judged.
    #[must_use]
    pub fn judged_from(&self, side: Side) -> Option<Timestamp> {
        self.lines.get(side).lock().from
    }

    /// Whose these events of `side` are.
    pub fn judge<'a>(
        &self,
        side: Side,
        events: impl IntoIterator<Item = (&'a Namespace, &'a Key, Timestamp)>,
    ) -> Vec<Verdict> {
        let now = self.clock.now();
        let line = self.lines.get(side).lock();
        events.into_iter().map(|(namespace, key, time)| line.judge(namespace, key, time, now)).collect()
    }

    /// The stream of `side` has shown every event below `position`.
    pub fn passed(&self, side: Side, position: Timestamp) {
        let mut line = self.lines.get(side).lock();
        line.judged = line.judged.max(position);
        line.heard = line.heard.max(position);
        line.clear_out();
    }

    /// The newest mirror write of `side` that may still arrive, to be barred. None where a router is: what it has
    /// taken may be executed after its barrier, and a writer that is none costs more than one that is not seen.
    #[must_use]
    pub fn lost_on_mirror(&self, side: Side) -> Option<u64> {
        let line = self.lines.get(side).lock();
        if line.lost == 0 || line.is_router {
            return None;
        }
        line.keys.values().filter_map(|touch| touch.lost_on_mirror).max()
    }

    /// No mirror write of `side` up to `number` can arrive later than `time`.
    pub fn barred(&self, side: Side, number: u64, time: Timestamp) {
        let mut line = self.lines.get(side).lock();
        let mut found = 0;
        for touch in line.keys.values_mut() {
            if touch.lost_on_mirror.is_some_and(|lost| lost <= number) {
                touch.lost_on_mirror = None;
                touch.until = touch.until.max(time);
                found += usize::from(!touch.lost);
            }
        }
        line.lost = line.lost.saturating_sub(found);
    }
}

impl Writing {
    /// Whether it is sent through a router, which may answer before it has ended.
    #[must_use]
    pub fn is_routed(&self) -> bool {
        self.own.is_router(self.side)
    }

    /// Nothing of it is executed later than `time`, its cluster's time in the answer; `None`: nobody knows.
    pub fn ended(mut self, time: Option<Timestamp>) {
        if let Some(time) = time {
            self.close(&End::At(time));
        }
    }

    /// The same, and it touched these keys at most.
    pub fn ended_on(mut self, keys: &[Key], time: Option<Timestamp>) {
        match (time, &self.touched) {
            (Some(time), Touched::Whole(..)) => self.close(&End::On(keys, time)),
            (Some(time), _) => self.close(&End::At(time)),
            (None, _) => {}
        }
    }

    /// It has changed nothing, and never will.
    pub fn nothing(mut self) {
        self.close(&End::Nothing);
    }

    fn close(&mut self, how: &End<'_>) {
        if !std::mem::replace(&mut self.ended, true) {
            let now = self.own.clock.now();
            let own = Arc::clone(&self.own);
            own.lines.get(self.side).lock().close(self, how, now);
        }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.close(&End::Lost);
    }
}

#[cfg(test)]
mod tests;
