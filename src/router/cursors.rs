//! Where the open cursors live. Ids are unique per server only, so a client may know a cursor by another id
//! than its server does.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

use bson::Timestamp;
use parking_lot::Mutex;

use crate::cluster::command::ServerId;
use crate::model::side::Side;
use crate::policy::streams::Watched;

/// Servers forget cursors of idle sessions after 30 minutes; so long one must be known here, and no longer.
pub const IDLE: Duration = Duration::from_secs(40 * 60);
const SHARDS: usize = 32;
const MOST_PER_SHARD: usize = 1 << 15;

/// Where a cursor lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CursorHome {
    /// The cluster.
    pub side: Side,
    /// The server.
    pub server: ServerId,
    /// The id that the server knows it by.
    pub id: i64,
    /// It waits at the server for what is yet to come.
    pub awaits: bool,
}

/// What is known of a cursor that is an application's change stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// What it watches.
    pub watched: Watched,
    /// Another cluster serves it now; everything up to this time is still shown.
    pub until: Option<Timestamp>,
    /// It has been shown to its end.
    pub ended: bool,
}

#[derive(Debug)]
struct Known {
    home: CursorHome,
    used: Duration,
    /// Boxed: most cursors are none.
    stream: Option<Box<Stream>>,
}

/// The open cursors by the ids that clients know, shared by all workers. Bounded; idle ones are forgotten.
#[derive(Debug, Default)]
pub struct Cursors {
    shards: [Mutex<HashMap<i64, Known>>; SHARDS],
}

impl Cursors {
    /// Takes note of a cursor and returns the id under which the client shall know it: the server's own, or
    /// another if a cursor of another server has the same. Times are those of the process's clock.
    pub fn open(&self, home: CursorHome, now: Duration) -> i64 {
        let mut id = home.id;
        loop {
            let mut shard = self.shard(id).lock();
            if shard.len() >= MOST_PER_SHARD {
                make_room(&mut shard, now);
            }
            match shard.entry(id) {
                Entry::Vacant(place) => {
                    place.insert(Known { home, used: now, stream: None });
                    return id;
                }
                Entry::Occupied(mut known) if known.get().home == home => {
                    known.get_mut().used = now;
                    return id;
                }
                Entry::Occupied(_) => id = rand::random_range(1..i64::MAX),
            }
        }
    }

    /// Where the cursor lives that the client knows as `id`.
    #[must_use]
    pub fn find(&self, id: i64, now: Duration) -> Option<CursorHome> {
        self.find_with_stream(id, now).map(|(home, _)| home)
    }

    /// As [`Self::find`], with what is known of it as a change stream.
    #[must_use]
    pub fn find_with_stream(&self, id: i64, now: Duration) -> Option<(CursorHome, Option<Stream>)> {
        let mut shard = self.shard(id).lock();
        let known = shard.get_mut(&id)?;
        known.used = now;
        Some((known.home.clone(), known.stream.as_deref().cloned()))
    }

    /// Remembers that `id` is a change stream, and how it stands.
    pub fn note_stream(&self, id: i64, stream: Stream) {
        if let Some(known) = self.shard(id).lock().get_mut(&id) {
            known.stream = Some(Box::new(stream));
        }
    }

    /// Forgets a cursor that is dead.
    pub fn close(&self, id: i64) {
        self.shard(id).lock().remove(&id);
    }

    /// Forgets what was idle for longer than [`IDLE`]; returns how many.
    pub fn sweep(&self, now: Duration) -> usize {
        self.shards.iter().map(|shard| sweep(&mut shard.lock(), now)).sum()
    }

    /// How many cursors are known on `side`.
    #[must_use]
    pub fn count(&self, side: Side) -> usize {
        let on_side = |shard: &Mutex<HashMap<i64, Known>>| {
            shard.lock().values().filter(|known| known.home.side == side).count()
        };
        self.shards.iter().map(on_side).sum()
    }

    fn shard(&self, id: i64) -> &Mutex<HashMap<i64, Known>> {
        // Servers choose ids at random; the multiplication helps where they do not.
        let mixed = id.cast_unsigned().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 59;
        &self.shards[usize::try_from(mixed).unwrap_or(0) % SHARDS]
    }
}

fn sweep(shard: &mut HashMap<i64, Known>, now: Duration) -> usize {
    let before = shard.len();
    shard.retain(|_, known| now.saturating_sub(known.used) <= IDLE);
    before - shard.len()
}

/// Forgets idle cursors, or else the one that was used least recently. The scan is long, but only a leak
/// of tens of thousands of cursors gets here.
fn make_room(shard: &mut HashMap<i64, Known>, now: Duration) {
    if sweep(shard, now) > 0 {
        return;
    }
    let oldest = shard.iter().min_by_key(|(_, known)| known.used).map(|(id, _)| *id);
    if let Some(oldest) = oldest {
        shard.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(server: &str, id: i64) -> CursorHome {
        CursorHome { side: Side::Old, server: server.into(), id, awaits: false }
    }

    #[test]
    fn the_same_id_on_two_servers_becomes_two_ids() {
        let cursors = Cursors::default();
        let first = cursors.open(home("a:1", 7), Duration::ZERO);
        let second = cursors.open(home("b:1", 7), Duration::ZERO);
        assert_eq!(first, 7);
        assert_ne!(second, 7);
        assert_eq!(cursors.find(second, Duration::ZERO), Some(home("b:1", 7)));
        assert_eq!(cursors.open(home("a:1", 7), Duration::ZERO), 7);
        cursors.close(7);
        assert_eq!(cursors.find(7, Duration::ZERO), None);
        assert_eq!(cursors.count(Side::Old), 1);
    }

    #[test]
    fn idle_cursors_are_forgotten_and_used_ones_kept() {
        let cursors = Cursors::default();
        cursors.open(home("a:1", 1), Duration::ZERO);
        cursors.open(home("a:1", 2), Duration::ZERO);
        assert!(cursors.find(2, IDLE).is_some());
        assert_eq!(cursors.sweep(IDLE + Duration::from_secs(1)), 1);
        assert!(cursors.find(2, IDLE).is_some());
    }
}
