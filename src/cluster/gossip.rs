//! The highest `$clusterTime` of one cluster. It never crosses to another cluster: signatures and clocks are
//! the cluster's own.
//!
//! Nor does every time cross to another user. Servers sign none for users who may set the clock (`advanceClusterTime`),
//! and refuse such a one from everybody else: it is kept for the user who got it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwapOption;
use bson::{RawDocument, RawDocumentBuf, Timestamp};
use parking_lot::Mutex;

/// What is known of the `$clusterTime` of one cluster.
#[derive(Debug, Default)]
pub struct Gossip {
    /// Of all times, whoever may show them.
    newest: AtomicU64,
    /// Everybody may show it.
    common: Arc<Highest>,
    /// For one user each; without a name, that of the connection string.
    of_users: Mutex<HashMap<Option<String>, Weak<Highest>>>,
    foreign: AtomicBool,
}

impl Gossip {
    /// Clients may hold times of another cluster from now on.
    pub fn expect_foreign_times(&self) {
        self.foreign.store(true, Ordering::Relaxed);
    }

    /// The newest time that was seen, whoever may show it.
    #[must_use]
    pub fn newest(&self) -> Timestamp {
        let newest = self.newest.load(Ordering::Relaxed);
        #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
        Timestamp { time: (newest >> 32) as u32, increment: newest as u32 }
    }

    /// What the user `name` may show, the same for all connections of that user; without a name, the user of the
    /// connection string. `has_users`: whether servers ask who somebody is.
    #[must_use]
    pub fn times_for(self: &Arc<Self>, name: Option<String>, has_users: bool) -> TimesFor {
        let own = has_users.then(|| {
            let mut of_users = self.of_users.lock();
            of_users.retain(|_, times| times.strong_count() > 0);
            let known = of_users.get(&name).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let times = Arc::default();
                of_users.insert(name, Arc::downgrade(&times));
                times
            })
        });
        TimesFor { gossip: Arc::clone(self), own }
    }
}

/// The times of one cluster that one user may show.
#[derive(Debug, Clone, Default)]
pub struct TimesFor {
    gossip: Arc<Gossip>,
    /// That nobody else may; `None` where there are no users.
    own: Option<Arc<Highest>>,
}

impl TimesFor {
    /// The time to wait for instead of one that a client asks for, which may be another cluster's: the
    /// newest that this user ever saw of this one, so never an older read than the client's. `None` where clients
    /// only know this cluster. [`Self::latest`], asked for later, is no older.
    #[must_use]
    pub fn instead_of_a_clients(&self) -> Option<u64> {
        let newest = self.highest().newest.load(Ordering::Relaxed);
        (self.gossip.foreign.load(Ordering::Relaxed) && newest > 0).then_some(newest)
    }

    /// The document to send as `$clusterTime`, byte for byte as a server sent it; `None` before the first
    /// reply and for servers without cluster time.
    #[must_use]
    pub fn latest(&self) -> Option<Arc<RawDocumentBuf>> {
        self.highest().latest.load_full()
    }

    /// Takes the `$clusterTime` document of a reply to this user; cheap when it is not newer.
    pub fn observe(&self, cluster_time: &RawDocument) {
        let Ok(time) = cluster_time.get_timestamp("clusterTime") else { return };
        let time = (u64::from(time.time) << 32) | u64::from(time.increment);
        // Of most replies all workers read this alone.
        if time > self.gossip.newest.load(Ordering::Relaxed) {
            self.gossip.newest.fetch_max(time, Ordering::Relaxed);
        }
        let own = self.own.as_ref().filter(|_| !is_signed(cluster_time));
        own.unwrap_or(&self.gossip.common).raise(time, cluster_time);
    }

    /// One that is signed is preferred: its user may lose the right to set the clock.
    fn highest(&self) -> &Highest {
        let common = &*self.gossip.common;
        let newer =
            |own: &&Highest| own.newest.load(Ordering::Relaxed) > common.newest.load(Ordering::Relaxed);
        self.own.as_deref().filter(newer).unwrap_or(common)
    }
}

/// The highest of some times.
#[derive(Debug, Default)]
struct Highest {
    /// The timestamp of `latest`; most replies bring nothing newer and need only this.
    newest: AtomicU64,
    latest: ArcSwapOption<RawDocumentBuf>,
    writing: Mutex<()>,
}

impl Highest {
    fn raise(&self, time: u64, document: &RawDocument) {
        if time <= self.newest.load(Ordering::Relaxed) {
            return;
        }
        let _writing = self.writing.lock();
        if time > self.newest.load(Ordering::Relaxed) {
            self.latest.store(Some(Arc::new(document.to_owned())));
            self.newest.store(time, Ordering::Relaxed);
        }
    }
}

fn is_signed(cluster_time: &RawDocument) -> bool {
    let signature = cluster_time.get_document("signature");
    signature.is_ok_and(|signature| signature.get_i64("keyId").is_ok_and(|key| key != 0))
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;

    fn at(time: u32, key: i64) -> RawDocumentBuf {
        rawdoc! { "clusterTime": Timestamp { time, increment: 1 }, "signature": { "keyId": key } }
    }

    fn packed(time: u64) -> u64 {
        (time << 32) | 1
    }

    #[test]
    fn times_of_clients_are_replaced_only_where_they_may_be_foreign() {
        let times = TimesFor::default();
        times.observe(&at(5, 1));
        assert_eq!(times.instead_of_a_clients(), None);
        times.gossip.expect_foreign_times();
        assert_eq!(times.instead_of_a_clients(), Some(packed(5)));
    }

    #[test]
    fn only_a_newer_time_replaces() {
        let times = TimesFor::default();
        assert!(times.latest().is_none());
        times.observe(&at(5, 1));
        times.observe(&at(4, 2));
        times.observe(&at(5, 3));
        assert_eq!(*times.latest().unwrap(), at(5, 1));
        times.observe(&at(6, 4));
        assert_eq!(*times.latest().unwrap(), at(6, 4));
    }

    #[test]
    fn a_time_that_is_not_signed_is_for_who_got_it() {
        let gossip = Arc::new(Gossip::default());
        gossip.expect_foreign_times();
        let of = |name: Option<&str>| gossip.times_for(name.map(ToOwned::to_owned), true);
        let (keeper, same, plain, itself) =
            (of(Some("keeper")), of(Some("keeper")), of(Some("plain")), of(None));
        plain.observe(&at(5, 1));
        keeper.observe(&at(6, 0));
        // On any of the user's connections, and what is asked for is never newer than what is shown.
        for times in [&keeper, &same] {
            assert_eq!(times.instead_of_a_clients(), Some(packed(6)));
            assert_eq!(*times.latest().unwrap(), at(6, 0));
        }
        for times in [&plain, &itself] {
            assert_eq!(times.instead_of_a_clients(), Some(packed(5)));
            assert_eq!(*times.latest().unwrap(), at(5, 1));
        }
        assert_eq!(gossip.newest(), Timestamp { time: 6, increment: 1 });
        // Who may not set the clock any more gets it signed.
        same.observe(&at(6, 1));
        assert_eq!(*keeper.latest().unwrap(), at(6, 1));
        assert_eq!(*plain.latest().unwrap(), at(6, 1));
    }

    #[test]
    fn users_who_are_gone_are_forgotten() {
        let gossip = Arc::new(Gossip::default());
        for number in 0..100 {
            gossip.times_for(Some(number.to_string()), true).observe(&at(7, 0));
        }
        let last = gossip.times_for(Some("7".into()), true);
        assert!(last.latest().is_none() && gossip.of_users.lock().len() == 1);
    }

    #[test]
    fn where_there_are_no_users_every_time_is_for_all() {
        let gossip = Arc::new(Gossip::default());
        let (one, other) = (gossip.times_for(None, false), gossip.times_for(Some("x".into()), false));
        one.observe(&at(5, 0));
        assert_eq!(*other.latest().unwrap(), at(5, 0));
    }
}
