//! One cluster's time line: what was written when, and whose an event on it is.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bson::Timestamp;

use super::{By, LOST_FOR, Touched, Verdict, Writing, ZERO};
use crate::model::key::Key;
use crate::model::namespace::Namespace;

/// Of the keys remembered so many may be such that their last event may come at any time.
const MOST_LOST: usize = 100_000;
/// Spans remembered of writes that named no key, for each collection and cluster.
pub(super) const MOST_SPANS: usize = 512;

/// One cluster's time line.
pub(super) struct Line {
    pub(super) heard: Timestamp,
    pub(super) keys: HashMap<u128, Touch>,
    pub(super) spans: HashMap<Namespace, Spans>,
    /// Size of `keys` after it was last cleared out.
    pub(super) cleared_to: usize,
    /// Where the stream was then.
    pub(super) cleared_at: Timestamp,
    /// Events below this have been judged.
    pub(super) judged: Timestamp,
    /// Later events can be judged; `None`: none.
    pub(super) from: Option<Timestamp>,
    /// Writes that could not be remembered: those under way, and the newest time of the others.
    pub(super) uncounted: usize,
    pub(super) forgotten: Option<Timestamp>,
    pub(super) lost: usize,
    /// More was lost than can be remembered.
    pub(super) blind: bool,
    /// It is not known to be a replica set: a router may answer before a shard has ended.
    pub(super) is_router: bool,
    pub(super) numbers: u64,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            heard: ZERO,
            keys: HashMap::new(),
            spans: HashMap::new(),
            cleared_to: 0,
            cleared_at: ZERO,
            judged: ZERO,
            from: None,
            uncounted: 0,
            forgotten: None,
            lost: 0,
            blind: false,
            is_router: true,
            numbers: 0,
        }
    }
}

/// Seconds by which an event may lie before or after its write's times where a router is: while chunks move it sends
/// writes again, and answers for an attempt other than the one that was executed.
const SLACK_OF_ROUTERS: u32 = 60;

/// What was done to one key.
pub(super) struct Touch {
    pub(super) since: Timestamp,
    pub(super) until: Timestamp,
    pub(super) under_way: u32,
    /// An answer did not come.
    pub(super) lost: bool,
    /// The same of a mirror write, numbered: until it is barred.
    pub(super) lost_on_mirror: Option<u64>,
}

#[derive(Default)]
pub(super) struct Spans {
    pub(super) under_way: HashMap<u64, Timestamp>,
    pub(super) done: VecDeque<(Timestamp, Timestamp)>,
    pub(super) lost: Option<(Timestamp, Duration)>,
}

impl Line {
    pub(super) fn has_room(&mut self, more: usize, limit: usize) -> bool {
        if self.keys.len() + more > limit && self.cleared_at < self.judged {
            self.forget_keys();
        }
        self.keys.len() + more <= limit
    }

    pub(super) fn clear_out(&mut self) {
        let judged = self.judged;
        for spans in self.spans.values_mut() {
            spans.done.retain(|(_, until)| *until >= judged);
        }
        if self.keys.len() > 2 * self.cleared_to + 1024 {
            self.forget_keys();
        }
    }

    fn forget_keys(&mut self) {
        let judged = self.judged;
        self.keys.retain(|_, touch| {
            touch.under_way > 0 || touch.lost || touch.lost_on_mirror.is_some() || touch.until >= judged
        });
        (self.cleared_to, self.cleared_at) = (self.keys.len(), judged);
    }

    pub(super) fn judge(&self, namespace: &Namespace, key: &Key, time: Timestamp, now: Duration) -> Verdict {
        let touched =
            self.keys.get(&key.fingerprint_in(namespace)).is_some_and(|touch| touch.accounts_for(time));
        let spans = self.spans.get(namespace);
        if time < self.judged || touched || spans.is_some_and(|spans| spans.account_for(time)) {
            return Verdict::Own;
        }
        let is_known = spans.is_none_or(|spans| !spans.may_have_lost(time, now))
            && self.from.is_some_and(|from| time > from)
            && self.uncounted == 0
            && self.forgotten.is_none_or(|forgotten| time > forgotten)
            && !self.blind;
        if is_known { Verdict::Foreign } else { Verdict::Unknown }
    }

    /// From when on events of a write can be that begins after `heard`.
    pub(super) fn since(&self, heard: Timestamp) -> Timestamp {
        if self.is_router {
            Timestamp { time: heard.time.saturating_sub(SLACK_OF_ROUTERS), ..heard }
        } else {
            heard
        }
    }

    /// Until when events of a write can be that was answered at `time`.
    fn until(&self, time: Timestamp) -> Timestamp {
        if self.is_router {
            Timestamp { time: time.time.saturating_add(SLACK_OF_ROUTERS), ..time }
        } else {
            time
        }
    }

    pub(super) fn close(&mut self, writing: &Writing, how: &End<'_>, now: Duration) {
        if let End::At(time) | End::On(_, time) = how
            && writing.by != By::ConnectionsApart
        {
            self.heard = self.heard.max(*time);
        }
        let how = &match how {
            End::At(time) => End::At(self.until(*time)),
            End::On(keys, time) => End::On(keys, self.until(*time)),
            // Nothing by that answer.
            End::Nothing if self.is_router => End::At(self.until(self.heard)),
            End::Nothing => End::Nothing,
            End::Lost => End::Lost,
        };
        match &writing.touched {
            Touched::Keys(keys) => {
                for key in keys {
                    self.close_key(*key, writing.by == By::MirrorSession, how);
                }
            }
            Touched::Whole(namespace, number) => {
                self.close_whole(namespace, *number, writing.since, how, now)
            }
            Touched::Uncounted => {
                self.uncounted = self.uncounted.saturating_sub(1);
                match how {
                    End::At(time) | End::On(_, time) => self.forgotten = self.forgotten.max(Some(*time)),
                    End::Nothing => {}
                    End::Lost => self.blind = true,
                }
            }
        }
        self.blind |= self.lost > MOST_LOST;
    }

    fn close_key(&mut self, key: u128, on_mirror: bool, how: &End<'_>) {
        let number = self.numbers + 1;
        let Some(touch) = self.keys.get_mut(&key) else { return };
        touch.under_way = touch.under_way.saturating_sub(1);
        let was_lost = touch.lost || touch.lost_on_mirror.is_some();
        match how {
            End::At(time) | End::On(_, time) => touch.until = touch.until.max(*time),
            End::Nothing => {}
            End::Lost if on_mirror => {
                touch.lost_on_mirror = Some(number);
                self.numbers = number;
            }
            End::Lost => touch.lost = true,
        }
        self.lost += usize::from(!was_lost && (touch.lost || touch.lost_on_mirror.is_some()));
        if touch.under_way == 0 && touch.until == ZERO && !touch.lost && touch.lost_on_mirror.is_none() {
            self.keys.remove(&key);
        }
    }

    fn close_whole(
        &mut self,
        namespace: &Namespace,
        number: u64,
        since: Timestamp,
        how: &End<'_>,
        now: Duration,
    ) {
        let Some(spans) = self.spans.get_mut(namespace) else { return };
        spans.under_way.remove(&number);
        match how {
            End::Nothing => {}
            End::At(time) => spans.push(since, *time),
            End::Lost => {
                let before = spans.lost.map_or(since, |(before, _)| before);
                spans.lost = Some((before.min(since), now));
            }
            End::On(keys, time) => {
                for key in *keys {
                    let new = Touch { since, until: ZERO, under_way: 0, lost: false, lost_on_mirror: None };
                    let touch = self.keys.entry(key.fingerprint_in(namespace)).or_insert(new);
                    touch.since = touch.since.min(since);
                    touch.until = touch.until.max(*time);
                }
            }
        }
    }
}

impl Touch {
    fn accounts_for(&self, time: Timestamp) -> bool {
        let open = self.under_way > 0 || self.lost || self.lost_on_mirror.is_some();
        time >= self.since && (open || time <= self.until)
    }
}

impl Spans {
    fn push(&mut self, since: Timestamp, until: Timestamp) {
        match self.done.back_mut() {
            Some(last) if since <= last.1 && last.0 <= until => {
                *last = (last.0.min(since), last.1.max(until));
            }
            _ => self.done.push_back((since, until)),
        }
        if self.done.len() > MOST_SPANS
            && let (Some(first), Some(second)) = (self.done.pop_front(), self.done.pop_front())
        {
            self.done.push_front((first.0.min(second.0), first.1.max(second.1)));
        }
    }

    fn account_for(&self, time: Timestamp) -> bool {
        self.under_way.values().any(|since| time >= *since)
            || self.done.iter().any(|(since, until)| *since <= time && time <= *until)
    }

    fn may_have_lost(&self, time: Timestamp, now: Duration) -> bool {
        self.lost.is_some_and(|(since, at)| time >= since && now.saturating_sub(at) <= LOST_FOR)
    }
}

/// How a write has ended.
pub(super) enum End<'a> {
    At(Timestamp),
    On(&'a [Key], Timestamp),
    Nothing,
    Lost,
}
