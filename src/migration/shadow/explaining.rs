//! Asking the clusters now and then how they get at what a read is of.

use std::collections::HashMap;
use std::time::Duration;

use bson::RawDocument;
use parking_lot::Mutex;

use super::Shadower;
use super::reading::{LIMIT, Read};
use super::reports::MOST_SHAPES;
use super::view::AccessView;
use crate::cluster::command::Request;
use crate::converge::shards;
use crate::model::side::{PerSide, Side};
use crate::policy::shadow::access::{explain, reach, understood};

/// How often reads of one shape are explained.
const EVERY: Duration = Duration::from_secs(60);
/// How often any read is: an `explain` runs the read once more on each cluster.
const APART: Duration = Duration::from_millis(200);

/// Whose turn it is: one at a time, and each shape seldom.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: HashMap<String, Duration>,
    newest: Option<Duration>,
    busy: bool,
}

/// A turn, which ends when this goes.
pub(super) struct Turn<'t>(&'t Turns);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.0.lock().busy = false;
    }
}

impl Turns {
    /// A turn of `shape`, if it is due.
    fn take(&self, shape: &str, now: Duration) -> Option<Turn<'_>> {
        let mut state = self.0.lock();
        let passed = |since: Option<&Duration>, gap| since.is_none_or(|at| now.saturating_sub(*at) >= gap);
        let known = state.last.get(shape);
        let room = known.is_some() || state.last.len() < MOST_SHAPES;
        if state.busy || !room || !passed(known, EVERY) || !passed(state.newest.as_ref(), APART) {
            return None;
        }
        state.last.insert(shape.to_owned(), now);
        state.newest = Some(now);
        state.busy = true;
        Some(Turn(self))
    }
}

impl Shadower {
    /// How each cluster gets at what `read` is of, if it is the turn of its shape.
    pub(super) async fn explained(&self, read: &Read) -> PerSide<Option<AccessView>> {
        let (shape, _) = super::shape_of(read);
        let Some(_turn) = self.turns.take(&shape, self.context.clock.now()) else {
            return PerSide::default();
        };
        let (old, new) = futures::join!(self.explain_on(read, Side::Old), self.explain_on(read, Side::New));
        PerSide { old, new }
    }

    async fn explain_on(&self, read: &Read, side: Side) -> Option<AccessView> {
        let cluster = &**self.clusters.get(side);
        let millis = i64::try_from(LIMIT.as_millis()).unwrap_or(i64::MAX);
        let request = Request::new(read.namespace.database(), explain(&read.body, millis)).within(LIMIT);
        let reply = cluster.run(request).await;
        let reply =
            reply.inspect_err(|error| tracing::debug!(%error, %side, "a read was not explained")).ok()?;
        let body: &RawDocument = &reply.body;
        let access = understood(body);
        if access.is_none() {
            tracing::debug!(%side, code = body.get_i32("code").ok(), "an explanation was not understood");
        }
        let access = access?;
        let all = match access.shards {
            0 | 1 => access.shards,
            _ => shards::names(cluster).await.map_or(usize::MAX, |names| names.len()),
        };
        Some(AccessView {
            at: self.context.clock.wall_millis(),
            scan: access.scan.as_str().to_owned(),
            documents_examined: access.documents_examined,
            shards: reach(access.shards, all).to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_come_seldom_and_one_by_one() {
        let turns = Turns::default();
        let at = Duration::from_millis;
        let first = turns.take("a", at(0)).unwrap();
        assert!(turns.take("b", at(1000)).is_none(), "one is in work");
        drop(first);
        assert!(turns.take("b", at(100)).is_none(), "too soon after another shape");
        assert!(turns.take("b", at(200)).is_some());
        assert!(turns.take("a", at(59_999)).is_none(), "too soon after itself");
        assert!(turns.take("a", at(60_000)).is_some());
        for shape in 0..MOST_SHAPES {
            drop(turns.take(&shape.to_string(), at(100_000 + 200 * shape as u64)));
        }
        assert_eq!(turns.0.lock().last.len(), MOST_SHAPES, "what is remembered is bounded");
    }
}
