//! The state of a replica set: its primary, what the majority has, and, after a failover, the member that does
//! not know yet that it was deposed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bson::Timestamp;
use reshard::cluster::command::ServerId;

use super::connections::Connections;
use super::cursor::Cursors;
use super::log::{Entry, Op};
use super::sessions::{Sessions, Statement};
use super::store::Store;
use crate::executor::{Executor, ProcessId};
use crate::rng::Rng;

/// A member that takes writes.
pub(crate) struct Member {
    /// Its address.
    pub(crate) server: ServerId,
    /// The term in which it was elected.
    pub(crate) term: u32,
    /// What it has applied.
    pub(crate) store: Store,
    /// Its sessions.
    pub(crate) sessions: Sessions,
    /// What the majority may not have yet.
    pub(crate) tail: VecDeque<Entry>,
    /// The time of its last entry.
    pub(crate) applied: Timestamp,
}

impl Member {
    /// Makes a change.
    pub(crate) fn append(&mut self, time: Timestamp, part: u32, op: Op, statement: Option<Statement>) {
        self.push(Entry { time, part, op, statement: statement.map(Arc::new) });
    }

    fn push(&mut self, entry: Entry) {
        self.store.apply(&entry.op);
        if let Some(statement) = &entry.statement {
            self.sessions.remember(statement);
        }
        self.applied = entry.time;
        self.tail.push_back(entry);
    }
}

/// What a majority of the members has; it is never undone.
#[derive(Clone)]
pub(crate) struct Majority {
    /// The documents.
    pub(crate) store: Store,
    /// The sessions, as far as they are durable.
    pub(crate) sessions: Sessions,
    /// The time of its last entry.
    pub(crate) time: Timestamp,
}

/// A deposed primary that still answers.
pub(crate) struct Stale {
    /// The member with writes that will be lost.
    pub(crate) member: Member,
    /// What it knows of the majority.
    pub(crate) majority: Majority,
}

/// The cluster's time line.
pub(crate) struct ClusterClock {
    /// The highest time given out.
    pub(crate) time: Timestamp,
    /// Seconds since the epoch when the world began.
    pub(crate) base: u32,
    /// The virtual time, in seconds.
    pub(crate) seconds: u32,
}

impl ClusterClock {
    /// The next time.
    pub(crate) fn tick(&mut self) -> Timestamp {
        let wall = self.base + self.seconds;
        self.time = if wall > self.time.time {
            Timestamp { time: wall, increment: 1 }
        } else {
            Timestamp { time: self.time.time, increment: self.time.increment + 1 }
        };
        self.time
    }
}

/// Which member a command runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The primary.
    Primary,
    /// The member that was primary.
    Stale,
}

/// Is told the `appName` of a writer, the member, and the change.
pub(crate) type Observer = Arc<dyn Fn(&str, Place, &Entry) + Send + Sync>;

/// Everything about one replica set.
pub(crate) struct State {
    pub(crate) rng: Rng,
    pub(crate) clock: ClusterClock,
    pub(crate) servers: Vec<ServerId>,
    pub(crate) primary: Member,
    pub(crate) majority: Majority,
    pub(crate) stale: Option<Stale>,
    /// What the majority has, in order.
    pub(crate) log: VecDeque<Entry>,
    /// Streams cannot start before this.
    pub(crate) log_start: Timestamp,
    pub(crate) cursors: Cursors,
    pub(crate) connections: Connections,
    /// The highest term of which each process has heard.
    pub(crate) views: BTreeMap<ProcessId, u32>,
    /// Nothing becomes majority.
    pub(crate) commits_held: bool,
    pub(crate) commit_scheduled: bool,
    /// Sees every change that a command makes, and who sent it.
    pub(crate) observer: Option<Observer>,
    /// Entries that failovers undid.
    pub(crate) rolled_back: Vec<Entry>,
    /// Retried statements are named in replies, as from 6.0.
    pub(crate) names_retries: bool,
    /// Writes without a write concern wait for the majority, as from 5.0.
    pub(crate) default_majority: bool,
}

impl State {
    /// An empty replica set.
    pub(crate) fn new(name: &str, nodes: u32, base: u32, rng: Rng, executor: Executor) -> Self {
        let servers: Vec<ServerId> = (0..nodes).map(|node| format!("{name}-{node}:27017").into()).collect();
        let start = Timestamp { time: base, increment: 1 };
        let primary = Member {
            server: servers[0].clone(),
            term: 1,
            store: Store::default(),
            sessions: Sessions::default(),
            tail: VecDeque::new(),
            applied: start,
        };
        Self {
            rng,
            clock: ClusterClock { time: start, base, seconds: 0 },
            servers,
            primary,
            majority: Majority { store: Store::default(), sessions: Sessions::default(), time: start },
            stale: None,
            log: VecDeque::new(),
            log_start: start,
            cursors: Cursors::default(),
            connections: Connections::new(executor),
            views: BTreeMap::new(),
            commits_held: false,
            commit_scheduled: false,
            observer: None,
            rolled_back: Vec::new(),
            names_retries: true,
            default_majority: false,
        }
    }

    /// The member at `place`.
    pub(crate) fn member(&self, place: Place) -> &Member {
        match (place, &self.stale) {
            (Place::Stale, Some(stale)) => &stale.member,
            _ => &self.primary,
        }
    }

    /// What the member at `place` knows of the majority.
    pub(crate) fn majority(&self, place: Place) -> &Majority {
        match (place, &self.stale) {
            (Place::Stale, Some(stale)) => &stale.majority,
            _ => &self.majority,
        }
    }

    /// The parts that a write needs.
    pub(crate) fn writer(&mut self, place: Place) -> (&mut Member, &mut ClusterClock, &mut Rng) {
        let member = match (place, &mut self.stale) {
            (Place::Stale, Some(stale)) => &mut stale.member,
            _ => &mut self.primary,
        };
        (member, &mut self.clock, &mut self.rng)
    }

    /// Which member has `term`, if it still answers.
    pub(crate) fn place_of(&self, term: u32) -> Option<Place> {
        if self.primary.term == term {
            return Some(Place::Primary);
        }
        self.stale.as_ref().filter(|stale| stale.member.term == term).map(|_| Place::Stale)
    }

    /// An entry that changes nothing, so that time goes on.
    pub(crate) fn noop(&mut self) -> Timestamp {
        let time = self.clock.tick();
        self.primary.append(time, 0, Op::Noop, None);
        time
    }

    /// The majority gets the first `count` entries of the tail, and the rest of a transaction with them.
    pub(crate) fn commit(&mut self, count: usize) {
        let mut left = count;
        while let Some(entry) = self.primary.tail.front() {
            if left == 0 && entry.time != self.majority.time {
                break;
            }
            left = left.saturating_sub(1);
            let entry = self.primary.tail.pop_front().unwrap();
            self.majority.store.apply(&entry.op);
            if let Some(statement) = &entry.statement {
                self.majority.sessions.remember(statement);
            }
            self.majority.time = entry.time;
            self.log.push_back(entry);
        }
    }

    /// Another member becomes primary. It has the first `kept` entries of the tail; the others are undone.
    /// The former primary goes on answering if `leave_stale`.
    pub(crate) fn failover(&mut self, kept: usize, leave_stale: bool) {
        let term = self.primary.term + 1;
        let server = self.servers[term as usize % self.servers.len()].clone();
        let mut member = Member {
            server,
            term,
            store: self.majority.store.clone(),
            sessions: self.majority.sessions.clone(),
            tail: VecDeque::new(),
            applied: self.majority.time,
        };
        for (index, entry) in self.primary.tail.iter().enumerate() {
            if index < kept || entry.time == member.applied {
                member.push(entry.clone());
            } else {
                self.rolled_back.push(entry.clone());
            }
        }
        let former = std::mem::replace(&mut self.primary, member);
        let stale = Stale { member: former, majority: self.majority.clone() };
        self.stale = (leave_stale && stale.member.server != self.primary.server).then_some(stale);
        self.cursors.clear();
        self.noop();
    }

    /// Forgets the log before `time`, as a full oplog does.
    pub(crate) fn truncate_log(&mut self, time: Timestamp) {
        self.log_start = self.log_start.max(time);
        while self.log.front().is_some_and(|entry| entry.time < time) {
            self.log.pop_front();
        }
    }
}
