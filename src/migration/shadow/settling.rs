//! Looking at a difference again, on both sides, until it goes or stays.
//!
//! A document that changes to and fro can look the same twice. So between two looks that agree neither change stream
//! may have told of it; what is known by no `_id` counts only while nothing at all changes. Where a reply is computed
//! from documents, these are compared first: a difference between them is told, and names them.

use std::time::Duration;

use super::Shadower;
use super::reading::{Level, Read, Trouble};
use crate::converge::lanes::Touched;
use crate::converge::read::time_now;
use crate::model::key::Key;
use crate::model::side::Side;
use crate::policy::compare::Between;
use crate::policy::shadow::answer::{Answer, Comparison, Difference, Terms, compare};
use crate::policy::shadow::inputs::{Keys, inputs, keys_of, shows_documents};
use crate::policy::shadow::steady::{Circumstances, Known, Steady};
use crate::state::table::MigrationRoute;

/// Looks after which a difference counts as unsettled.
const MOST_LOOKS: u32 = 8;
/// Runs in a row that must each differ from the one before.
const SELF_TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(20);
/// How long one look waits for the frontiers.
const PATIENCE: Duration = Duration::from_secs(10);

/// What has become of a difference.
#[derive(Debug)]
pub(super) enum Settled {
    /// Both say the same by now.
    Gone,
    /// Nothing is on its way that would make it go. What is known by a key are documents, or what is made of them.
    Stays(Vec<Difference>, Keys),
    /// The read differs from itself.
    Nondeterministic,
    /// It cannot be told: it changed at every look, or a cluster did not answer.
    Unsettled,
    /// It cannot be told, as a reply is larger than what is compared.
    TooLarge,
}

/// What a read that could not be looked at has come to: neither the same nor different.
fn concluded(settled: Result<Settled, Trouble>) -> Settled {
    settled.unwrap_or_else(|trouble| match trouble {
        Trouble::Failed => Settled::Unsettled,
        Trouble::TooLarge => Settled::TooLarge,
    })
}

/// What is known of a computed reply by the documents that it is computed from; `None`: nothing, it is looked at itself.
fn by_its_documents(looked: Result<Settled, Trouble>) -> Option<Result<Settled, Trouble>> {
    match looked {
        // They are the same, or too many to be compared.
        Ok(Settled::Gone) | Err(Trouble::TooLarge) => None,
        known => Some(known),
    }
}

/// What held when a look began.
struct Began {
    route: Option<MigrationRoute>,
    touched: Touched,
}

impl Shadower {
    /// Looks again at a read that differed.
    pub(super) async fn settle(&self, read: &Read, terms: &Terms) -> Settled {
        concluded(self.settled(read, terms).await)
    }

    async fn settled(&self, read: &Read, terms: &Terms) -> Result<Settled, Trouble> {
        if shows_documents(&read.name, &read.body, terms.cut.is_some()) {
            return self.looks(read, terms, Keys::Ids).await;
        }
        let documents = Read {
            name: "find".to_owned(),
            namespace: read.namespace.clone(),
            body: inputs(&read.name, &read.body),
            served: read.served,
        };
        match by_its_documents(self.looks(&documents, &Terms::default(), Keys::Ids).await) {
            Some(known) => known,
            None => self.looks(read, terms, keys_of(&read.name, &read.body)).await,
        }
    }

    async fn looks(&self, read: &Read, terms: &Terms, keys: Keys) -> Result<Settled, Trouble> {
        let mut steady = Steady::default();
        let mut before = self.begin();
        for look in 0..MOST_LOOKS {
            self.context.clock.sleep(PAUSE * look).await;
            let now = self.begin();
            let (served, shadow) = self.both(read).await?;
            let found = match compare(&served, &shadow, terms) {
                Comparison::Different(found) => found,
                Comparison::Equal | Comparison::Permuted => return Ok(Settled::Gone),
                Comparison::Untold => return Ok(Settled::Nondeterministic),
            };
            // Whatever this look can have seen is told of from here on.
            let passed = self.pass_frontiers().await;
            let known = self.note(&mut steady, (read, terms), &found, &before, passed);
            before = now;
            if known.open == 0 || look + 1 == MOST_LOOKS && !known.persistent.is_empty() {
                return Ok(Settled::Stays(known.persistent, keys));
            }
        }
        let itself = self.differs_from_itself(read, terms).await?;
        Ok(if itself { Settled::Nondeterministic } else { Settled::Unsettled })
    }

    fn begin(&self) -> Began {
        Began { route: self.context.route(), touched: self.context.converger.lanes.touched() }
    }

    fn note(
        &self,
        steady: &mut Steady,
        (read, terms): (&Read, &Terms),
        found: &[Difference],
        before: &Began,
        passed: bool,
    ) -> Known {
        let now = self.begin();
        let same = before.route.as_ref().zip(now.route.as_ref()).is_some_and(|(before, now)| {
            before.epoch == now.epoch && before.held.is_empty() && now.held.is_empty()
        });
        let authority = |key: Option<&Key>| {
            let route = now.route.as_ref()?;
            key.map_or_else(|| route.sole_authority(), |key| route.authority_of_key(&read.namespace, key))
        };
        let (lanes, namespace) = (&self.context.converger.lanes, read.namespace.as_str());
        let quiet = before.touched == now.touched;
        // Which documents a part holds depends on all others too.
        let by_document = shows_documents(&read.name, &read.body, terms.cut.is_some());
        steady.look(
            found,
            &Circumstances {
                between: Between { same_authority: same, frontier_passed: passed },
                serves: &|key| authority(key).is_none_or(|side| side == read.served),
                busy: &|key| match key.filter(|_| by_document) {
                    Some(key) => {
                        !lanes.rests(namespace, key, &before.touched) || lanes.is_busy(namespace, key)
                    }
                    None => !quiet,
                },
            },
        )
    }

    /// Waits until everything that a look can have seen is worked off.
    async fn pass_frontiers(&self) -> bool {
        let one = async |side: Side| {
            let Ok(time) = time_now(&**self.clusters.get(side)).await else { return false };
            self.context.frontiers.get(side).wait_past(time, &*self.context.clock, PATIENCE).await
        };
        let (old, new) = futures::join!(one(Side::Old), one(Side::New));
        old && new
    }

    /// Runs the read on both sides: first on the mirror, then on the authority, at a time that includes whatever
    /// the mirror can have.
    async fn both(&self, read: &Read) -> Result<(Answer, Answer), Trouble> {
        let route = self.context.route();
        let authority = route.and_then(|route| route.sole_authority()).unwrap_or(read.served);
        let mirror = self.read(read, authority.other(), Level::Majority(None)).await?;
        let now = time_now(&**self.clusters.get(authority)).await.map_err(|_| Trouble::Failed)?;
        let truth = self.read(read, authority, Level::Majority(Some(now))).await?;
        Ok(if authority == read.served { (truth, mirror) } else { (mirror, truth) })
    }

    /// Whether the read differs from itself on the cluster that served it, while nothing is written that could be why.
    async fn differs_from_itself(&self, read: &Read, terms: &Terms) -> Result<bool, Trouble> {
        let touched = self.begin().touched;
        let mut before = self.read(read, read.served, Level::Majority(None)).await?;
        for _ in 0..SELF_TRIES {
            let now = self.read(read, read.served, Level::Majority(None)).await?;
            if !matches!(compare(&before, &now, terms), Comparison::Different(_)) {
                return Ok(false);
            }
            before = now;
        }
        Ok(self.pass_frontiers().await && touched == self.begin().touched)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_that_fails_is_neither_the_same_nor_different() {
        assert!(matches!(concluded(Err(Trouble::Failed)), Settled::Unsettled));
        assert!(matches!(concluded(Err(Trouble::TooLarge)), Settled::TooLarge));
        assert!(matches!(concluded(Ok(Settled::Gone)), Settled::Gone));
    }

    #[test]
    fn a_reply_is_looked_at_itself_where_its_documents_tell_nothing() {
        assert!(by_its_documents(Ok(Settled::Gone)).is_none());
        assert!(by_its_documents(Err(Trouble::TooLarge)).is_none());
        assert!(matches!(by_its_documents(Err(Trouble::Failed)), Some(Err(Trouble::Failed))));
        let stays = by_its_documents(Ok(Settled::Stays(Vec::new(), Keys::Ids)));
        assert!(matches!(stays, Some(Ok(Settled::Stays(..)))));
        assert!(matches!(by_its_documents(Ok(Settled::Unsettled)), Some(Ok(Settled::Unsettled))));
    }
}
