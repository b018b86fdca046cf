//! Sends a write and keeps the books: before it is sent its effects are noted
//! as possible, and with the answer as certain.

use std::future::Future;

use mongodb::error::{Error, Result};

use super::{Done, Worker};
use crate::errors::verdict;
use crate::hot::HotEffect;
use crate::latency::Ending;
use crate::ledger::{Change, Verdict};
use crate::ops::OpKind;
use crate::report::ViolationKind;

/// What an answer says: `None` is as expected.
pub(super) type Mismatch = Option<String>;

/// All effects of one operation.
#[derive(Clone, Debug, Default)]
pub(super) struct Effects {
    pub(super) changes: Vec<Change>,
    pub(super) hot: Vec<(usize, HotEffect)>,
}

impl Effects {
    pub(super) fn of(change: Change) -> Self {
        Self { changes: vec![change], hot: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.changes.len() + self.hot.len()
    }
}

/// The number of writes as the counters have it.
pub(super) fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

impl Worker {
    pub(super) fn begin(&mut self, effects: &Effects, joint: Option<u64>) {
        self.shared.tally.lock().unknown += count(effects.len());
        {
            let mut ledger = self.shared.ledgers[self.id].lock();
            effects.changes.iter().for_each(|change| ledger.begin(change, joint));
        }
        for &(n, effect) in &effects.hot {
            self.shared.hot[n].lock().begin(effect, joint);
        }
    }

    pub(super) fn finish_change(&mut self, change: &Change, verdict: Verdict) {
        self.count_verdict(verdict);
        self.shared.ledgers[self.id].lock().finish(change.key, verdict);
    }

    pub(super) fn finish_hot(&mut self, n: usize, effect: HotEffect, verdict: Verdict) {
        self.count_verdict(verdict);
        self.shared.hot[n].lock().finish(effect, verdict);
        if (effect, verdict) == (HotEffect::Inc, Verdict::Acknowledged) {
            self.hot_incs[n] += 1;
        }
    }

    fn count_verdict(&self, verdict: Verdict) {
        if verdict != Verdict::Unknown {
            let mut tally = self.shared.tally.lock();
            tally.unknown = tally.unknown.saturating_sub(1);
            tally.add(verdict);
        }
    }

    pub(super) fn finish_all(&mut self, effects: &Effects, verdict: Verdict) {
        effects.changes.iter().for_each(|change| self.finish_change(change, verdict));
        effects.hot.iter().for_each(|&(n, effect)| self.finish_hot(n, effect, verdict));
    }

    /// Sends a write whose effects come all or none.
    pub(super) async fn settle(
        &mut self,
        kind: OpKind,
        effects: Effects,
        send: impl Future<Output = Result<Mismatch>>,
    ) -> Done {
        self.settle_with(kind, effects, send, verdict).await
    }

    /// Sends a write to many documents: an error can leave any part of it done.
    pub(super) async fn settle_many(
        &mut self,
        kind: OpKind,
        effects: Effects,
        send: impl Future<Output = Result<Mismatch>>,
    ) -> Done {
        let cautious = |error: &Error| match (verdict(error), crate::errors::code(error)) {
            (Verdict::Failed, None | Some(2 | 9 | 13 | 18 | 59)) => Verdict::Failed,
            _ => Verdict::Unknown,
        };
        self.settle_with(kind, effects, send, cautious).await
    }

    async fn settle_with(
        &mut self,
        kind: OpKind,
        effects: Effects,
        send: impl Future<Output = Result<Mismatch>>,
        judge: impl Fn(&Error) -> Verdict,
    ) -> Done {
        self.begin(&effects, None);
        match send.await {
            Ok(None) => {
                self.finish_all(&effects, Verdict::Acknowledged);
                Done { ending: Ending::Good, writes: count(effects.len()) }
            }
            Ok(Some(mismatch)) => {
                self.wrong_reply(kind, &effects, &mismatch);
                Done { ending: Ending::Good, writes: 0 }
            }
            Err(error) => {
                self.finish_all(&effects, judge(&error));
                self.note(kind, &error);
                Done::ERROR
            }
        }
    }

    /// An answer that cannot be right. The documents stay as unknown.
    pub(super) fn wrong_reply(&self, kind: OpKind, effects: &Effects, mismatch: &str) {
        let names = effects.changes.iter().map(|change| change.key.to_string());
        let names: Vec<_> =
            names.chain(effects.hot.iter().map(|(n, _)| format!("hot-{n}"))).take(3).collect();
        self.violation(ViolationKind::WrongReply, kind, &names.join(", "), mismatch);
    }

    pub(super) fn violation(&self, violation: ViolationKind, kind: OpKind, document: &str, detail: &str) {
        let at = self.shared.start.elapsed().as_secs_f64();
        self.shared.findings.lock().add(violation, document, format!("{kind} at {at:.3} s: {detail}"));
    }
}

/// `None` if the number is as expected.
pub(super) fn expect<T: PartialEq + std::fmt::Display>(what: &str, found: &T, wanted: &T) -> Mismatch {
    (found != wanted).then(|| format!("{what} {found}, expected {wanted}"))
}
