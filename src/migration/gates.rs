//! Whether reads and writes may move now: what is measured for the gates, and what stands in the way.

use std::time::Duration;

use super::context::Context;
use super::control::{ControlError, Phase};
use super::engine::Engine;
use super::ramping::conflict;
use super::running::Running;
use super::stored::Stored;
use super::tailer::Health;
use crate::model::side::Side;
use crate::policy::gate::{Measured, blocked_by, may_pass};

/// How long a move waits for obstacles that pass by themselves.
const A_MOMENT: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What the gates looked at, and what they say.
pub(super) struct Gates {
    pub(super) reasons: Vec<String>,
    /// `None`: there was nothing to look at.
    pub(super) measured: Option<Measured>,
    pub(super) unverified: Option<String>,
}

impl Engine {
    /// Everything that stands in the way of more writes on new. There is no force.
    pub(super) fn blocked_for_writes(&self, running: &Running) -> Vec<String> {
        self.gates(running).reasons
    }

    pub(super) fn gates(&self, running: &Running) -> Gates {
        let mut gates = {
            let stored = running.stored.lock();
            let mut gates = gates(running, &stored);
            if self.environment.safeguards.verified && !stored.phase.is_over() && stored.started_at.is_some()
            {
                gates.reasons.extend(gates.unverified.clone());
                gates.reasons.extend(running.distrusted(&stored));
            }
            if !stored.phase.is_over() {
                let unreturned = stored.unreturned.as_ref();
                gates.reasons.extend(unreturned.and_then(|view| view.in_the_way(&stored.name)));
            }
            gates
        };
        if gates.measured.is_some() {
            gates.reasons.extend(self.bypass_in_the_way(running));
        }
        gates
    }

    /// Everything that stands in the way of moving writes back to old.
    pub(super) fn blocked(&self, running: &Running) -> Vec<String> {
        gates(running, &running.stored.lock()).reasons
    }

    /// Everything that stands in the way of more reads on new.
    pub(super) fn blocked_for_reads(&self, running: &Running) -> Vec<String> {
        let stored = running.stored.lock();
        let mut reasons = gates(running, &stored).reasons;
        if self.environment.safeguards.verified {
            reasons.extend(running.distrusted(&stored));
        }
        reasons
    }

    /// The same, of reads that go up by themselves: nobody looks at what a verification left different.
    pub(super) fn blocked_for_reads_of_plans(&self, running: &Running) -> Vec<String> {
        let mut reasons = self.blocked_for_reads(running);
        if self.environment.safeguards.verified {
            reasons.extend(running.unverified(&running.stored.lock()));
        }
        reasons
    }

    /// A stream that is just being opened again, or a lease that is just being renewed, is no reason to refuse what an
    /// operator asks for, a way back least of all: a move waits for a moment whether such obstacles pass.
    ///
    /// # Errors
    /// An abort is asked for.
    pub(super) async fn let_obstacles_pass(&self, running: &Running) -> Result<(), ControlError> {
        let clock = &self.environment.clock;
        let until = clock.now() + A_MOMENT;
        while clock.now() < until {
            let measured = gates(running, &running.stored.lock()).measured;
            if !measured.is_some_and(|measured| may_pass(&measured)) {
                break;
            }
            running.aborting.unless_asked(clock.sleep(LOOK_AGAIN)).await?;
        }
        Ok(())
    }
}

/// The gates that every move up or down must pass.
fn gates(running: &Running, stored: &Stored) -> Gates {
    let unverified = running.unverified(stored);
    let closed = |why: String| Gates { reasons: vec![why], measured: None, unverified: unverified.clone() };
    if stored.phase.is_over() {
        return closed(format!("it is {}", stored.phase));
    }
    let Some(context) = running.parts() else { return closed("it has not started".into()) };
    if context.route().is_some_and(|route| !route.returning.is_empty()) {
        return closed("what only new has acknowledged is yet to be brought back to old".into());
    }
    let measured = measured(running, stored, &context);
    Gates { reasons: blocked_by(&measured), measured: Some(measured), unverified }
}

fn measured(running: &Running, stored: &Stored, context: &Context) -> Measured {
    let leases = context.leases();
    let recheck = stored
        .recheck
        .then(|| "a stream has missed changes: everything is compared again, then it goes on".to_owned());
    let (mut stream_problems, mut streams_waiting) = (Vec::from_iter(recheck), Vec::new());
    for side in Side::BOTH {
        match &*running.health.get(side).lock() {
            Health::Following => {}
            Health::Idle => streams_waiting.push(format!("the change stream of {side} is not followed yet")),
            Health::Waiting(why) => streams_waiting.push(format!("following {side} waits: {why}")),
            Health::CutOff(why) | Health::Failed(why) => {
                stream_problems.push(format!("following {side} failed: {why}"));
            }
        }
    }
    Measured {
        synced: stored.phase == Phase::Synced,
        paused: stored.paused,
        lag_old_to_new: context.frontiers.old.lag_seconds(context.clock.now()),
        lag_new_to_old: context.frontiers.new.lag_seconds(context.clock.now()),
        parked: context.parking.len(),
        leases: (leases.old, leases.new),
        holders: running.watch.problems(),
        stream_problems,
        streams_waiting,
    }
}

pub(super) fn unblocked(reasons: Vec<String>) -> Result<(), ControlError> {
    if reasons.is_empty() {
        return Ok(());
    }
    Err(conflict("blocked", format!("not now: {}", reasons.join("; "))).because(reasons))
}
