//! The way of served reads from the data plane to where they are run once more.
//!
//! The data plane gives and never waits: when there is no room, the read is dropped and counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::model::side::Side;

/// Reads that may wait.
pub const MOST_WAITING: usize = 256;
/// KiB of requests and replies that may wait or be in work.
const MOST_KIB: usize = 64 * 1024;
/// A larger request is not kept.
pub const MOST_REQUEST: usize = 1 << 20;
/// A larger reply is not kept: the read is run again where it was served.
pub const MOST_REPLY: usize = 1 << 20;

/// A read that was served, to be run once more.
#[derive(Debug)]
pub struct Job {
    /// The database.
    pub database: String,
    /// The command as the client sent it.
    pub body: Bytes,
    /// The reply as the client got it; `None` where it was too large to be kept.
    pub reply: Option<Bytes>,
    /// The cluster that served it.
    pub served: Side,
    /// How long that took.
    pub took: Duration,
    /// When it was served, on the process's clock.
    pub at: Duration,
    _room: OwnedSemaphorePermit,
}

/// What the data plane says of a read that was served.
#[derive(Debug, Clone, Copy)]
pub struct Served<'a> {
    /// The database.
    pub database: &'a str,
    /// The command as the client sent it.
    pub body: &'a [u8],
    /// The body of the reply.
    pub reply: &'a [u8],
    /// The cluster that served it.
    pub side: Side,
    /// How long that took.
    pub took: Duration,
    /// Now, on the process's clock.
    pub at: Duration,
}

/// Reads on their way.
pub struct Queue {
    give: mpsc::Sender<Job>,
    take: Mutex<Option<mpsc::Receiver<Job>>>,
    room: Arc<Semaphore>,
    /// Reads for which there was no room.
    pub dropped: AtomicU64,
}

impl Default for Queue {
    fn default() -> Self {
        let (give, take) = mpsc::channel(MOST_WAITING);
        Self {
            give,
            take: Mutex::new(Some(take)),
            room: Arc::new(Semaphore::new(MOST_KIB)),
            dropped: AtomicU64::new(0),
        }
    }
}

impl Queue {
    /// Takes a read that was served, with its reply if that is wanted, if there is room for it. Never waits. False if
    /// it is larger than what is kept.
    pub fn give(&self, served: &Served<'_>, with_reply: bool) -> bool {
        if served.body.len() > MOST_REQUEST {
            return false;
        }
        let kept = with_reply && served.reply.len() <= MOST_REPLY;
        let bytes = served.body.len() + if kept { served.reply.len() } else { 0 };
        let kib = u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).try_acquire_many_owned(kib);
        let (Ok(room), Ok(place)) = (room, self.give.try_reserve()) else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return true;
        };
        place.send(Job {
            database: served.database.to_owned(),
            body: Bytes::copy_from_slice(served.body),
            reply: kept.then(|| Bytes::copy_from_slice(served.reply)),
            served: served.side,
            took: served.took,
            at: served.at,
            _room: room,
        });
        true
    }

    /// Where the reads come out; there is one end.
    #[must_use]
    pub fn take(&self) -> Option<mpsc::Receiver<Job>> {
        self.take.lock().take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served<'a>(body: &'a [u8], reply: &'a [u8]) -> Served<'a> {
        let side = Side::Old;
        Served { database: "shop", body, reply, side, took: Duration::ZERO, at: Duration::ZERO }
    }

    #[test]
    fn what_finds_no_room_is_dropped_and_counted() {
        let queue = Queue::default();
        for _ in 0..MOST_WAITING + 7 {
            assert!(queue.give(&served(b"body", b"reply"), true));
        }
        assert_eq!(queue.dropped.load(Ordering::Relaxed), 7);
        let mut jobs = queue.take().unwrap();
        assert!(queue.take().is_none());
        while jobs.try_recv().is_ok() {}
        // All that may wait together is bounded too.
        let large = vec![0; MOST_REPLY];
        for _ in 0..100 {
            queue.give(&served(b"", &large), true);
        }
        let waiting = std::iter::from_fn(|| jobs.try_recv().ok()).count();
        assert!((60..=64).contains(&waiting), "{waiting}");
        assert_eq!(queue.dropped.load(Ordering::Relaxed), 7 + 100 - waiting as u64);
    }

    #[test]
    fn what_is_too_large_is_not_kept() {
        let queue = Queue::default();
        let large = vec![0; MOST_REPLY + 1];
        assert!(queue.give(&served(b"", &large), true));
        assert!(queue.give(&served(b"", b"reply"), false));
        assert!(!queue.give(&served(&large, b""), true));
        let mut jobs = queue.take().unwrap();
        assert!(jobs.try_recv().unwrap().reply.is_none());
        assert!(jobs.try_recv().unwrap().reply.is_none());
        assert!(jobs.try_recv().is_err());
    }
}
