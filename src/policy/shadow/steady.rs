//! Whether a difference between two replies stays, from looks at both sides while writes go on.

use std::collections::HashMap;

use super::answer::{Difference, Kind};
use crate::model::key::Key;
use crate::policy::compare::{Between, Look, Verdict, judge};

/// Looks in a row that must find the same, after the first one.
pub const CONFIRMATIONS: u32 = 2;

/// What makes a difference this one: a document is known by its `_id`, anything else by what it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Identity {
    Document(Key),
    Other(Kind, Option<u128>, Option<u128>),
}

fn identity(one: &Difference) -> Identity {
    match (&one.key, one.kind) {
        (Some(key), Kind::Missing | Kind::Extra | Kind::Changed) => Identity::Document(key.clone()),
        _ => Identity::Other(one.kind, one.served, one.shadow),
    }
}

/// What may not count at a look.
pub struct Circumstances<'a> {
    /// Everything up to the look before was worked off; the same cluster owns the documents.
    pub between: Between,
    /// Whether what was served is the authority's, for a document or (without a key) for all of them.
    pub serves: &'a dyn Fn(Option<&Key>) -> bool,
    /// The document has changed since the look before, or is being written; without a key: anything.
    pub busy: &'a dyn Fn(Option<&Key>) -> bool,
}

/// What all looks so far have come to.
#[derive(Debug, Default)]
pub struct Steady(HashMap<Identity, (Look, u32)>);

/// What is known after a look.
#[derive(Debug, PartialEq)]
pub struct Known {
    /// Differences that stay.
    pub persistent: Vec<Difference>,
    /// So many cannot be told yet.
    pub open: usize,
}

impl Steady {
    /// Takes the differences that one look found. The same must be found, by both sides and with the frontier
    /// between, [`CONFIRMATIONS`] times after it was first seen; whatever has gone or changed begins anew.
    pub fn look(&mut self, found: &[Difference], now: &Circumstances<'_>) -> Known {
        let before = std::mem::take(&mut self.0);
        let mut known = Known { persistent: Vec::new(), open: 0 };
        for one in found {
            let (look, identity) = (oriented(one, now), identity(one));
            // An error is no document that could be written just then: found again and again, it stays.
            let busy = one.kind != Kind::Error && (now.busy)(one.key.as_ref());
            let seen = before.get(&identity).map_or(0, |(first, seen)| {
                let real = matches!(judge(*first, look, now.between), Verdict::Real(_));
                if real && !busy { seen + 1 } else { 0 }
            });
            if seen >= CONFIRMATIONS {
                known.persistent.push(one.clone());
            } else {
                known.open += 1;
            }
            self.0.insert(identity, (look, seen));
        }
        known
    }
}

fn oriented(one: &Difference, now: &Circumstances<'_>) -> Look {
    if (now.serves)(one.key.as_ref()) {
        Look { authority: one.served, mirror: one.shadow }
    } else {
        Look { authority: one.shadow, mirror: one.served }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::canonical::key_of;
    use bson::raw::RawBsonRef;

    fn difference(id: i32, served: u128, shadow: Option<u128>) -> Difference {
        let kind = if shadow.is_none() { Kind::Missing } else { Kind::Changed };
        Difference { kind, key: key_of(RawBsonRef::Int32(id)), fields: vec![], served: Some(served), shadow }
    }

    fn look(steady: &mut Steady, found: &[Difference], passed: bool, busy: bool) -> (usize, usize) {
        let between = Between { same_authority: true, frontier_passed: passed };
        let now = Circumstances { between, serves: &|_| true, busy: &|_| busy };
        let known = steady.look(found, &now);
        (known.persistent.len(), known.open)
    }

    #[test]
    fn what_stays_counts_after_enough_looks() {
        let mut steady = Steady::default();
        let same = [difference(1, 7, None)];
        assert_eq!(look(&mut steady, &same, false, false), (0, 1), "the first look has none before it");
        assert_eq!(look(&mut steady, &same, true, false), (0, 1));
        assert_eq!(look(&mut steady, &same, true, false), (1, 0));
    }

    #[test]
    fn what_changes_goes_or_is_written_begins_anew() {
        let same = [difference(1, 7, Some(8))];
        let others: [(&[Difference], bool, bool); 5] = [
            (&[difference(1, 9, Some(8))], true, false),
            (&[difference(1, 7, None)], true, false),
            (&[], true, false),
            (&same, false, false),
            (&same, true, true),
        ];
        for (other, passed, busy) in others {
            let mut steady = Steady::default();
            look(&mut steady, &same, true, false);
            look(&mut steady, &same, true, false);
            assert_eq!(look(&mut steady, other, passed, busy).0, 0);
            assert_eq!(look(&mut steady, &same, true, false).0, 0, "{other:?} {passed} {busy}");
        }
    }

    #[test]
    fn each_document_is_judged_by_itself() {
        let mut steady = Steady::default();
        let rests = difference(1, 7, None);
        for hot in 0..CONFIRMATIONS {
            let found = [rests.clone(), difference(2, u128::from(hot), Some(99))];
            assert_eq!(look(&mut steady, &found, true, false), (0, 2));
        }
        let found = [rests, difference(2, 50, Some(99))];
        assert_eq!(look(&mut steady, &found, true, false), (1, 1));
    }

    #[test]
    fn an_error_of_one_side_alone_stays_whatever_is_written_meanwhile() {
        let mut steady = Steady::default();
        let error = Difference { kind: Kind::Error, key: None, ..difference(1, 7, Some(8)) };
        let found = [error];
        for _ in 0..CONFIRMATIONS {
            assert_eq!(look(&mut steady, &found, true, true), (0, 1));
        }
        assert_eq!(look(&mut steady, &found, true, true), (1, 0));
    }

    #[test]
    fn nothing_counts_across_a_move() {
        let mut steady = Steady::default();
        let same = [difference(1, 7, None)];
        let between = Between { same_authority: false, frontier_passed: true };
        let now = Circumstances { between, serves: &|_| true, busy: &|_| false };
        for _ in 0..5 {
            assert_eq!(steady.look(&same, &now).persistent, []);
        }
    }
}
