//! Where transactions run. A transaction never changes its cluster, nor its router; commits may be repeated,
//! so a transaction is remembered after its commit too.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;

use crate::cluster::command::ServerId;
use crate::model::side::Side;
use crate::state::transactions::UserDigest;
use crate::wire::scan::SessionId;

/// Sessions live for 30 minutes; so long a commit may be repeated.
pub const IDLE: Duration = Duration::from_secs(31 * 60);
const SHARDS: usize = 32;
const MOST_PER_SHARD: usize = 1 << 13;

/// Where a transaction runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransactionHome {
    /// The cluster.
    pub side: Side,
    /// The server that took its first statement.
    pub server: ServerId,
    /// The user whose it is, as sessions name users; `None`: the user of the connection strings.
    pub user: Option<UserDigest>,
}

#[derive(Debug)]
struct Known {
    number: i64,
    home: TransactionHome,
    used: Duration,
}

/// The newest transaction of each session, shared by all workers. Bounded; idle ones are forgotten.
#[derive(Debug, Default)]
pub struct Transactions {
    shards: [Mutex<HashMap<SessionId, Known>>; SHARDS],
}

impl Transactions {
    /// Takes note of where a transaction has begun. An older number than the known one changes nothing.
    pub fn begin(&self, session: SessionId, number: i64, home: TransactionHome, now: Duration) {
        let mut shard = self.shard(&session).lock();
        if shard.get(&session).is_some_and(|known| known.number > number) {
            return;
        }
        if shard.len() >= MOST_PER_SHARD {
            make_room(&mut shard, now);
        }
        shard.insert(session, Known { number, home, used: now });
    }

    /// Where the transaction runs, or ran.
    #[must_use]
    pub fn find(&self, session: &SessionId, number: i64, now: Duration) -> Option<TransactionHome> {
        let mut shard = self.shard(session).lock();
        let known = shard.get_mut(session).filter(|known| known.number == number)?;
        known.used = now;
        Some(known.home.clone())
    }

    /// Forgets what was idle for longer than [`IDLE`]; returns how many.
    pub fn sweep(&self, now: Duration) -> usize {
        self.shards.iter().map(|shard| sweep(&mut shard.lock(), now)).sum()
    }

    /// How many are known on `side`.
    #[must_use]
    pub fn count(&self, side: Side) -> usize {
        let on_side = |shard: &Mutex<HashMap<SessionId, Known>>| {
            shard.lock().values().filter(|known| known.home.side == side).count()
        };
        self.shards.iter().map(on_side).sum()
    }

    fn shard(&self, session: &SessionId) -> &Mutex<HashMap<SessionId, Known>> {
        // The last byte of a random UUID is random.
        &self.shards[usize::from(session[15]) % SHARDS]
    }
}

fn sweep(shard: &mut HashMap<SessionId, Known>, now: Duration) -> usize {
    let before = shard.len();
    shard.retain(|_, known| now.saturating_sub(known.used) <= IDLE);
    before - shard.len()
}

/// Forgets idle transactions, or else the one that was used least recently.
fn make_room(shard: &mut HashMap<SessionId, Known>, now: Duration) {
    if sweep(shard, now) > 0 {
        return;
    }
    let oldest = shard.iter().min_by_key(|(_, known)| known.used).map(|(session, _)| *session);
    if let Some(oldest) = oldest {
        shard.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_known_until_the_next_one_of_its_session() {
        let transactions = Transactions::default();
        let home = |server: &str| TransactionHome { side: Side::Old, server: server.into(), user: None };
        transactions.begin([1; 16], 5, home("a:1"), Duration::ZERO);
        transactions.begin([1; 16], 4, home("b:1"), Duration::ZERO);
        assert_eq!(transactions.find(&[1; 16], 5, Duration::ZERO), Some(home("a:1")));
        assert_eq!(transactions.find(&[1; 16], 4, Duration::ZERO), None);
        transactions.begin([1; 16], 6, home("c:1"), Duration::ZERO);
        assert_eq!(transactions.find(&[1; 16], 5, Duration::ZERO), None);
        assert_eq!(transactions.sweep(IDLE + Duration::from_secs(1)), 1);
        assert_eq!(transactions.count(Side::Old), 0);
    }
}
