//! The way of sampled reads from the data plane to where they are run on the other cluster.
//!
//! The data plane gives and never waits: when there is no room, the read is dropped and counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use xxhash_rust::xxh3::xxh3_64;

use crate::model::side::Side;
use crate::policy::shadow::eligible::Reason;

/// Reads that may wait.
pub const MOST_WAITING: usize = 256;
/// KiB of requests and replies that may wait or be in work.
const MOST_KIB: usize = 64 * 1024;
/// A larger request is not kept.
pub const MOST_REQUEST: usize = 1 << 20;
/// A larger reply is not kept: the read is run again where it was served.
pub const MOST_REPLY: usize = 1 << 20;

/// A read that was served, to be run on the other cluster too.
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

/// The switch, the queue and what is counted, for one migration.
pub struct Shadow {
    tenths: AtomicU32,
    give: mpsc::Sender<Job>,
    take: Mutex<Option<mpsc::Receiver<Job>>>,
    room: Arc<Semaphore>,
    /// Reads that were in the sample.
    pub sampled: AtomicU64,
    /// Of those, for which there was no room, or no time.
    pub dropped: AtomicU64,
    skipped: [AtomicU64; Reason::ALL.len()],
}

impl Default for Shadow {
    fn default() -> Self {
        let (give, take) = mpsc::channel(MOST_WAITING);
        Self {
            tenths: AtomicU32::new(0),
            give,
            take: Mutex::new(Some(take)),
            room: Arc::new(Semaphore::new(MOST_KIB)),
            sampled: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            skipped: Default::default(),
        }
    }
}

impl Shadow {
    /// The share of reads that are in the sample, in tenths of a percent.
    #[must_use]
    pub fn tenths(&self) -> u32 {
        self.tenths.load(Ordering::Relaxed)
    }

    /// Sets the share, in tenths of a percent.
    pub fn set_tenths(&self, tenths: u32) {
        self.tenths.store(tenths.min(1000), Ordering::Relaxed);
    }

    /// Whether the operation `message` is in the sample. By its bytes, among them the number that its driver gave
    /// it: the same operation is in every larger sample too.
    #[must_use]
    pub fn samples(&self, message: &[u8]) -> bool {
        let tenths = self.tenths();
        tenths > 0 && xxh3_64(message) % 1000 < u64::from(tenths)
    }

    /// Takes a read that was served, if there is room for it. Never waits.
    pub fn give(&self, served: &Served<'_>) {
        self.sampled.fetch_add(1, Ordering::Relaxed);
        if served.body.len() > MOST_REQUEST {
            self.skip(Reason::TooLarge);
            return;
        }
        let kept = served.reply.len() <= MOST_REPLY;
        let bytes = served.body.len() + if kept { served.reply.len() } else { 0 };
        let kib = u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).try_acquire_many_owned(kib);
        let (Ok(room), Ok(place)) = (room, self.give.try_reserve()) else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
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
    }

    /// Where the reads come out; there is one end.
    #[must_use]
    pub fn take(&self) -> Option<mpsc::Receiver<Job>> {
        self.take.lock().take()
    }

    /// Counts a read that is not run.
    pub fn skip(&self, reason: Reason) {
        self.skipped[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many were not run, and why.
    #[must_use]
    pub fn skipped(&self, reason: Reason) -> u64 {
        self.skipped[reason as usize].load(Ordering::Relaxed)
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
    fn a_larger_sample_holds_every_smaller_one() {
        let shadow = Shadow::default();
        let count = |tenths: u32| -> Vec<u32> {
            shadow.set_tenths(tenths);
            (0..20_000_u32).filter(|number| shadow.samples(&number.to_le_bytes())).collect()
        };
        assert_eq!(count(0), [0; 0]);
        let (few, more) = (count(100), count(101));
        assert!((1800..2200).contains(&few.len()), "{}", few.len());
        assert!(more.len() > few.len() && few.iter().all(|number| more.contains(number)));
        assert_eq!(count(1000).len(), 20_000);
    }

    #[test]
    fn what_finds_no_room_is_dropped_and_counted() {
        let shadow = Shadow::default();
        for _ in 0..MOST_WAITING + 7 {
            shadow.give(&served(b"body", b"reply"));
        }
        assert_eq!(shadow.dropped.load(Ordering::Relaxed), 7);
        let mut jobs = shadow.take().unwrap();
        assert!(shadow.take().is_none());
        while jobs.try_recv().is_ok() {}
        // All that may wait together is bounded too.
        let large = vec![0; MOST_REPLY];
        for _ in 0..100 {
            shadow.give(&served(b"", &large));
        }
        let waiting = std::iter::from_fn(|| jobs.try_recv().ok()).count();
        assert!((60..=64).contains(&waiting), "{waiting}");
        assert_eq!(shadow.dropped.load(Ordering::Relaxed), 7 + 100 - waiting as u64);
    }

    #[test]
    fn what_is_too_large_is_not_kept() {
        let shadow = Shadow::default();
        let large = vec![0; MOST_REPLY + 1];
        shadow.give(&served(b"", &large));
        shadow.give(&served(&large, b""));
        let mut jobs = shadow.take().unwrap();
        assert!(jobs.try_recv().unwrap().reply.is_none());
        assert!(jobs.try_recv().is_err());
        assert_eq!(shadow.skipped(Reason::TooLarge), 1);
    }
}
