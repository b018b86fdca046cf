//! Sessions that mirror writes carry, so that late ones can be barred.
//!
//! Every mirror write carries an lsid of its process's own and a rising txnNumber. A real write with a higher
//! number on the same session is a barrier: the server lets the one that is executing finish, and refuses
//! every later arrival with code 225. The ids follow from the holder's id, so that a successor can bar the
//! sessions of a process that died.

use std::sync::Arc;

use bson::Timestamp;
use bson::raw::{RawDocumentBuf, cstr};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

use super::barriers::{Layout, bar};
use crate::clock::SharedClock;
use crate::cluster::command::SharedCluster;
use crate::model::side::Side;
use crate::state::frontier::Frontier;
use crate::state::records::lsid;

/// Mirror sessions of one process on one cluster, unless its settings say otherwise; also the bound on its concurrent
/// mirror writes there.
pub const SESSIONS: i32 = 64;

const NAMES: Uuid = Uuid::from_u128(0x8f1c_5a0e_9d24_4a77_b1d3_6a5b_7e90_2f41);

/// The id of one mirror session; part of the stored protocol.
#[must_use]
pub fn session_id(holder: &str, side: Side, index: i32) -> Uuid {
    Uuid::new_v5(&NAMES, format!("{holder}/{side}/{index}").as_bytes())
}

#[derive(Debug)]
struct Session {
    id: Uuid,
    number: i64,
    /// A write of this session may still arrive.
    tainted: bool,
    /// A transaction of it may be open still, and hold up every other write on its documents.
    open: bool,
}

/// The mirror sessions of this process on one cluster.
pub struct Sessions {
    cluster: SharedCluster,
    clock: SharedClock,
    free: Mutex<Vec<Session>>,
    permits: Arc<Semaphore>,
    doubt: Mutex<Doubt>,
}

/// What may still arrive at the cluster, or has arrived and is not in its stream's past yet.
#[derive(Debug, Default)]
struct Doubt {
    /// Tainted sessions.
    tainted: usize,
    /// When the last of them was barred, on the cluster's time line.
    barred_at: Option<Timestamp>,
}

/// The use of one session for one write.
pub struct Borrowed<'a> {
    sessions: &'a Sessions,
    session: Option<Session>,
    settled: bool,
    open: bool,
    _permit: OwnedSemaphorePermit,
}

impl Sessions {
    /// The sessions of `holder` on `cluster`, which is `side`.
    #[must_use]
    pub fn new(holder: &str, side: Side, cluster: SharedCluster, clock: SharedClock) -> Self {
        Self::so_many(SESSIONS, holder, side, cluster, clock)
    }

    /// The same, and how many there are. Its record of authority must say the same number: so many are barred when the
    /// process is taken for dead.
    #[must_use]
    pub fn so_many(count: i32, holder: &str, side: Side, cluster: SharedCluster, clock: SharedClock) -> Self {
        let session =
            |index| Session { id: session_id(holder, side, index), number: 0, tainted: false, open: false };
        let free: Vec<_> = (0..count).map(session).collect();
        let permits = Arc::new(Semaphore::new(free.len()));
        Self { cluster, clock, free: Mutex::new(free), permits, doubt: Mutex::default() }
    }

    /// A session for one write. One whose last write may still arrive is barred first.
    ///
    /// # Errors
    /// What went wrong with the barrier; the session stays tainted.
    pub async fn borrow(&self) -> Result<Borrowed<'_>, String> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|closed| closed.to_string())?;
        let session = self.pick(false);
        let mut borrowed = Borrowed::new(self, session, permit);
        borrowed.bar_if_tainted().await?;
        Ok(borrowed)
    }

    /// One that has left a transaction open, for its barrier ends that; else the least tainted session, or
    /// with `tainted` one that is tainted.
    fn pick(&self, tainted: bool) -> Option<Session> {
        let mut free = self.free.lock();
        let open = free.iter().position(|session| session.open);
        let position = open.or_else(|| free.iter().rposition(|session| session.tainted == tainted));
        match position {
            Some(at) => Some(free.swap_remove(at)),
            None if tainted => None,
            None => free.pop(),
        }
    }

    /// Bars every session whose last write may still arrive. Afterwards, as long as nothing is borrowed, no
    /// mirror write of this process is under way.
    ///
    /// # Errors
    /// What went wrong; some sessions stay tainted.
    pub async fn settle(&self) -> Result<(), String> {
        loop {
            let permit =
                Arc::clone(&self.permits).acquire_owned().await.map_err(|closed| closed.to_string())?;
            let Some(session) = self.pick(true) else { return Ok(()) };
            let mut borrowed = Borrowed::new(self, Some(session), permit);
            borrowed.bar_if_tainted().await?;
        }
    }

    /// Whether nobody can meet a mirror write of unknown outcome here: each is barred, and the cluster's own
    /// stream, whose frontier this is, has passed whatever arrived before that.
    #[must_use]
    pub fn is_readable(&self, frontier: &Frontier) -> bool {
        let mut doubt = self.doubt.lock();
        if doubt.barred_at.is_some_and(|time| frontier.has_passed(time)) {
            doubt.barred_at = None;
        }
        doubt.tainted == 0 && doubt.barred_at.is_none()
    }

    /// Whether any session's last write may still arrive.
    #[must_use]
    pub fn any_tainted(&self) -> bool {
        self.free.lock().iter().any(|session| session.tainted)
    }
}

impl<'a> Borrowed<'a> {
    const fn new(sessions: &'a Sessions, session: Option<Session>, permit: OwnedSemaphorePermit) -> Self {
        Self { sessions, session, settled: true, open: false, _permit: permit }
    }

    async fn bar_if_tainted(&mut self) -> Result<(), String> {
        let Some(session) = self.session.as_mut().filter(|session| session.tainted) else { return Ok(()) };
        session.number += 1;
        let cluster = &*self.sessions.cluster;
        let barred_at = bar(cluster, Layout::of(cluster).await?, session.id, session.number).await?;
        session.tainted = false;
        session.open = false;
        let mut doubt = self.sessions.doubt.lock();
        doubt.tainted = doubt.tainted.saturating_sub(1);
        doubt.barred_at = doubt.barred_at.max(barred_at);
        Ok(())
    }

    /// Adds this session and its next number to a write command. From here until [`Borrowed::settled`] the
    /// write counts as possibly under way.
    pub fn stamp(&mut self, command: &mut RawDocumentBuf) {
        if let Some(session) = self.session.as_mut() {
            session.number += 1;
            command.append(cstr!("lsid"), lsid(session.id));
            command.append(cstr!("txnNumber"), session.number);
            self.settled = false;
        }
    }

    /// What follows is a transaction, open until [`Borrowed::settled`].
    pub const fn begins_transaction(&mut self) {
        self.open = true;
    }

    /// The write's answer is there: nothing of it can arrive any more.
    pub const fn settled(&mut self) {
        self.settled = true;
        self.open = false;
    }

    /// The clock of the sessions, for those who wait with one borrowed.
    #[must_use]
    pub fn clock(&self) -> &SharedClock {
        &self.sessions.clock
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        if let Some(mut session) = self.session.take() {
            if !self.settled && !session.tainted {
                session.tainted = true;
                self.sessions.doubt.lock().tainted += 1;
            }
            session.open |= self.open;
            self.sessions.free.lock().push(session);
        }
    }
}

/// Bars every mirror session of a process that died.
///
/// # Errors
/// Why it is not known to be in force.
pub async fn bar_all(cluster: &SharedCluster, holder: &str, side: Side, sessions: i32) -> Result<(), String> {
    let layout = Layout::of(&**cluster).await?;
    for index in 0..sessions {
        bar(&**cluster, layout, session_id(holder, side, index), i64::MAX).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::cluster::command::{Commands, Reply, Request, SendError};
    use crate::converge::barriers::BARRIERS;
    use async_trait::async_trait;
    use bson::rawdoc;

    /// A cluster that remembers the numbers of the barriers.
    #[derive(Default)]
    struct Barriers(Mutex<Vec<i64>>);

    #[async_trait]
    impl Commands for Barriers {
        async fn run(&self, request: Request) -> Result<Reply, SendError> {
            if request.body.get("isMaster").unwrap().is_some() {
                return Ok(Reply { body: rawdoc! { "ok": 1.0 }, operation_time: None, server: "a:1".into() });
            }
            assert_eq!(request.body.get_str("update").unwrap(), BARRIERS);
            self.0.lock().push(request.body.get_i64("txnNumber").unwrap());
            Ok(Reply { body: rawdoc! { "n": 1, "ok": 1.0 }, operation_time: None, server: "a:1".into() })
        }
    }

    #[tokio::test]
    async fn a_transaction_that_was_left_open_is_ended_by_the_next_write() {
        let cluster = Arc::new(Barriers::default());
        let sessions = Sessions::new("h", Side::New, cluster.clone(), Arc::new(SystemClock));
        let mut write = sessions.borrow().await.unwrap();
        write.stamp(&mut RawDocumentBuf::new());
        drop(write);
        // Only a write that may still arrive: others need not wait for it.
        drop(sessions.borrow().await.unwrap());
        assert!(sessions.any_tainted() && cluster.0.lock().is_empty());

        let mut transaction = sessions.borrow().await.unwrap();
        transaction.stamp(&mut RawDocumentBuf::new());
        transaction.begins_transaction();
        drop(transaction);
        drop(sessions.borrow().await.unwrap());
        assert_eq!(*cluster.0.lock(), [2]);
        // Once ended it is one like the others.
        drop(sessions.borrow().await.unwrap());
        assert_eq!(cluster.0.lock().len(), 1);
        sessions.settle().await.unwrap();
        assert!(!sessions.any_tainted());
    }
}
