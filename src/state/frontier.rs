//! How far a change stream has been worked off.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bson::Timestamp;
use tokio::sync::watch;

use crate::clock::{Clock, timeout};

/// Where a stream stands; all times are on the time line of the stream's own cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Every event at or below this is done or durably parked.
    pub done: Timestamp,
    /// The cluster's own time when last heard of.
    pub heard: Timestamp,
    /// When it last came to a new position, on the process's clock.
    pub at: Duration,
}

/// A stream that has come to no new position for so long is at work on something, or stuck: how far behind it
/// is is not known then.
const STALE: Duration = Duration::from_secs(5);

/// The frontier of one stream.
#[derive(Debug)]
pub struct Frontier {
    position: watch::Sender<Option<Position>>,
    waiting: watch::Sender<usize>,
    followed: AtomicU64,
}

impl Default for Frontier {
    fn default() -> Self {
        Self {
            position: watch::Sender::new(None),
            waiting: watch::Sender::new(0),
            followed: AtomicU64::new(0),
        }
    }
}

impl Frontier {
    /// Moves it forward; `at` is now, on the process's clock.
    pub fn advance(&self, done: Timestamp, heard: Timestamp, at: Duration) {
        self.position.send_modify(|position| {
            let before = position.map_or(done, |before| before.done);
            *position = Some(Position { done: done.max(before), heard: heard.max(done), at });
        });
    }

    /// So many changes more have been worked off.
    pub fn count(&self, changes: u64) {
        self.followed.fetch_add(changes, Ordering::Relaxed);
    }

    /// Changes worked off since this process began.
    #[must_use]
    pub fn followed(&self) -> u64 {
        self.followed.load(Ordering::Relaxed)
    }

    /// It is not known any more (its tailer has stopped).
    pub fn forget(&self) {
        self.position.send_replace(None);
    }

    /// Where it stands; `None` while unknown.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        *self.position.borrow()
    }

    /// Seconds behind its cluster, as seen at `now`; `None` while unknown.
    #[must_use]
    pub fn lag_seconds(&self, now: Duration) -> Option<f64> {
        let position = self.position().filter(|position| now.saturating_sub(position.at) <= STALE)?;
        Some(f64::from(position.heard.time.saturating_sub(position.done.time)))
    }

    /// Seconds that it stands behind its cluster at `now` at most, however long ago it was heard of; `None` while
    /// unknown.
    #[must_use]
    pub fn age_seconds(&self, now: Duration) -> Option<f64> {
        let position = self.position()?;
        let behind = f64::from(position.heard.time.saturating_sub(position.done.time));
        Some(behind + now.saturating_sub(position.at).as_secs_f64())
    }

    /// Whether somebody waits for it: then the tailer asks for positions more often.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        *self.waiting.borrow() > 0
    }

    /// Waits until somebody waits for it.
    pub async fn until_awaited(&self) {
        let mut waiting = self.waiting.subscribe();
        // It cannot fail while this is there.
        let _awaited = waiting.wait_for(|waiting| *waiting > 0).await;
    }

    /// Whether everything at or below `time` is done.
    #[must_use]
    pub fn has_passed(&self, time: Timestamp) -> bool {
        self.position().is_some_and(|position| position.done >= time)
    }

    /// Waits until everything at or below `time` is done; `false` when `limit` passed first.
    pub async fn wait_past(&self, time: Timestamp, clock: &dyn Clock, limit: Duration) -> bool {
        self.waiting.send_modify(|waiting| *waiting += 1);
        let _until_then = Waiting(&self.waiting);
        let mut positions = self.position.subscribe();
        let passed = positions.wait_for(|position| position.is_some_and(|position| position.done >= time));
        matches!(timeout(clock, limit, passed).await, Ok(Ok(_)))
    }
}

struct Waiting<'a>(&'a watch::Sender<usize>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_does_not_move_is_behind_by_nobody_knows() {
        let (frontier, at) = (Frontier::default(), |time| Timestamp { time, increment: 0 });
        assert_eq!(frontier.lag_seconds(Duration::ZERO), None);
        frontier.advance(at(5), at(7), Duration::from_secs(100));
        assert_eq!(frontier.lag_seconds(Duration::from_secs(102)), Some(2.0));
        assert_eq!(frontier.lag_seconds(Duration::from_secs(106)), None);
        assert_eq!(frontier.age_seconds(Duration::from_secs(106)), Some(8.0));
    }
}
