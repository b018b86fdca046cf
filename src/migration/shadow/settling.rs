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
use crate::policy::shadow::inputs::{inputs, shows_documents};
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
    /// Nothing is on its way that would make it go.
    Stays(Vec<Difference>),
    /// The read differs from itself.
    Nondeterministic,
    /// It cannot be told: it changed at every look, or a cluster did not answer.
    Unsettled,
}

/// What held when a look began.
struct Began {
    route: Option<MigrationRoute>,
    touched: Touched,
}

impl Shadower {
    /// Looks again at a read that differed.
    pub(super) async fn settle(&self, read: &Read, terms: &Terms) -> Settled {
        match self.settled(read, terms).await {
            Ok(settled) => settled,
            Err(Trouble::Failed | Trouble::TooLarge) => Settled::Unsettled,
        }
    }

    async fn settled(&self, read: &Read, terms: &Terms) -> Result<Settled, Trouble> {
        if shows_documents(&read.name, &read.body, terms.cut) {
            return self.looks(read, terms).await;
        }
        let documents = Read {
            name: "find".to_owned(),
            namespace: read.namespace.clone(),
            body: inputs(&read.name, &read.body),
            served: read.served,
        };
        match self.looks(&documents, &Terms::default()).await? {
            // What it is computed from is the same: is its reply?
            Settled::Gone => self.looks(read, terms).await,
            settled => Ok(settled),
        }
    }

    async fn looks(&self, read: &Read, terms: &Terms) -> Result<Settled, Trouble> {
        let mut steady = Steady::default();
        let mut before = self.begin();
        for look in 0..MOST_LOOKS {
            self.context.clock.sleep(PAUSE * look).await;
            let now = self.begin();
            let (served, shadow) = self.both(read).await?;
            let Comparison::Different(found) = compare(&served, &shadow, terms) else {
                return Ok(Settled::Gone);
            };
            // Whatever this look can have seen is told of from here on.
            let passed = self.pass_frontiers().await;
            let known = self.note(&mut steady, read, &found, &before, passed);
            before = now;
            if known.open == 0 || look + 1 == MOST_LOOKS && !known.persistent.is_empty() {
                return Ok(Settled::Stays(known.persistent));
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
        read: &Read,
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
        let by_document = shows_documents(&read.name, &read.body, false);
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

    async fn differs_from_itself(&self, read: &Read, terms: &Terms) -> Result<bool, Trouble> {
        let mut before = self.read(read, read.served, Level::Majority(None)).await?;
        for _ in 0..SELF_TRIES {
            let now = self.read(read, read.served, Level::Majority(None)).await?;
            if !matches!(compare(&before, &now, terms), Comparison::Different(_)) {
                return Ok(false);
            }
            before = now;
        }
        Ok(true)
    }
}
