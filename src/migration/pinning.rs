//! Pins at work: slots that are held on one cluster go there, and back to their percentage when they are released, each
//! by an ordinary move of these slots.

use std::time::Duration;

use super::context::Context;
use super::control::{ControlError, Patience};
use super::engine::Engine;
use super::key_ranges::RangeView;
use super::moving::Moved;
use super::pins::{
    Cluster, Keys, NOTE, PinCounts, PinList, PinView, Pinned, SetPins, read_held, refused, spelled,
};
use super::ramping::{Parts, Wanted, routed};
use super::running::Running;
use crate::model::side::Side;
use crate::model::slots::SlotSet;
use crate::policy::pins::{Name, Pins, is_in_force, slots_of};
use crate::state::table::MigrationRoute;

impl Engine {
    /// The same, by an operator: who moves a range, or keeps it where it is, does not find its plan moving it again.
    pub(super) async fn pin_by_hand(
        &self,
        running: &Running,
        asked: &SetPins,
    ) -> Result<Pinned, ControlError> {
        let why = format!("its range was pinned to {} by hand", Side::from(asked.to));
        // A way back, and what keeps it there, is meant whether it succeeds or not; a way up only once it is taken.
        let stays = asked.to == Cluster::Old;
        let is_halted = stays && self.halt_plan_of(running, &asked.ranges, &why).await;
        let before = running.range_views();
        let pinned = self.pin(running, asked).await;
        let ranges = if stays { asked.ranges.clone() } else { moved(asked, &before, &running.range_views()) };
        if !is_halted {
            self.halt_plan_of(running, &ranges, &why).await;
        }
        pinned
    }

    /// Holds the slots of keys on a cluster, and moves them there.
    pub(super) async fn pin(&self, running: &Running, asked: &SetPins) -> Result<Pinned, ControlError> {
        let began = self.environment.clock.now();
        let (context, route) = routed(running).await?;
        let keys = read_held(&asked.named(), &route.key_ranges)?;
        let (before, to) = (context.pins(), Side::from(asked.to));
        let next = before.with(&keys, to, context.clock.wall_millis()).map_err(|why| refused(&why))?;
        let slots = slots_of(&keys);
        // Where writes are divided already, what goes back to old asks for nothing that is not so yet.
        let is_divided = route.owned_by_new != SlotSet::ALL && !route.owned_by_new.is_empty();
        let parts = if to == Side::Old && is_divided { Parts::Settled } else { Parts::Allowed };
        if parts == Parts::Allowed {
            running.aborting.unless_asked(self.must_allow_parts(running, &context)).await??;
        }
        let moves = match to {
            Side::New => !slots.minus(&route.owned_by_new).is_empty(),
            Side::Old => slots.meets(&route.owned_by_new),
        };
        if moves {
            self.let_obstacles_pass(running).await?;
            self.must_pass_gates(running, &context, to == Side::New)?;
        }
        let changed = (next != before).then_some(&next);
        let moved = match to {
            Side::New => self.pin_to_new(running, &context, (slots, parts), changed).await,
            Side::Old => self.pin_to_old(running, &context, (slots, parts), changed).await,
        };
        let moved = moved.map_err(|error| half_done(&context, &before, error))?;
        Ok(self.pinned(&context, moved, began))
    }

    /// Reads first; the pins are stored with them, so that a process that follows knows what was meant.
    async fn pin_to_new(
        &self,
        running: &Running,
        context: &Context,
        (slots, parts): (SlotSet, Parts),
        pins: Option<&Pins>,
    ) -> Result<Moved, ControlError> {
        let (_, route) = routed(running).await?;
        self.reads_to(running, context, route.reads_on_new.or(&slots), pins).await?;
        self.move_slots(running, context, route.owned_by_new.or(&slots), parts).await
    }

    /// Writes first; the pins before them.
    async fn pin_to_old(
        &self,
        running: &Running,
        context: &Context,
        (slots, parts): (SlotSet, Parts),
        pins: Option<&Pins>,
    ) -> Result<Moved, ControlError> {
        let (_, route) = routed(running).await?;
        let (owned, read) = (route.owned_by_new.minus(&slots), route.reads_on_new.minus(&slots));
        if owned == route.owned_by_new {
            self.reads_to(running, context, read, pins).await?;
            return Ok(Moved::default());
        }
        self.reads_to(running, context, route.reads_on_new, pins).await?;
        let moved = self.move_slots(running, context, owned, parts).await?;
        self.reads_to(running, context, read, None).await?;
        Ok(moved)
    }

    /// Lets the slots of keys go where the percentages say.
    pub(super) async fn unpin(&self, running: &Running, asked: &Keys) -> Result<Pinned, ControlError> {
        let began = self.environment.clock.now();
        let (context, route) = routed(running).await?;
        let keys = read_held(asked, &route.key_ranges)?;
        let before = context.pins();
        let next = before.without(&keys);
        if next == before {
            return Ok(self.pinned(&context, Moved::default(), began));
        }
        let ranges = were_pinned(&asked.ranges, &running.range_views());
        self.halt_plan_of(running, &ranges, "its range was unpinned by hand").await;
        let (shares, freed) = (context.shares(), before.slots().minus(&next.slots()));
        let writes = shares.released(&route.owned_by_new, &freed);
        // Whatever the percentages show, reads are where the writes are.
        let reads = shares.released(&route.reads_on_new, &freed).or(&writes);
        // The pins go last: until then a process that follows finds them, and what was meant is repeated by a call.
        self.reads_to(running, &context, route.reads_on_new.or(&reads), None).await?;
        let up = self.move_slots(running, &context, route.owned_by_new.or(&writes), Parts::Ask).await?;
        let down = self.move_slots(running, &context, writes, Parts::Settled).await?;
        self.reads_to(running, &context, reads, Some(&next)).await?;
        let moved = Moved {
            pause: up.pause.max(down.pause),
            attempts: up.attempts + down.attempts,
            ended_transactions: 0,
        };
        Ok(self.pinned(&context, moved, began))
    }

    async fn move_slots(
        &self,
        running: &Running,
        context: &Context,
        slots: SlotSet,
        parts: Parts,
    ) -> Result<Moved, ControlError> {
        let wanted = Wanted { slots, patience: Patience::default(), parts };
        self.writes_to(running, context, wanted).await
    }

    fn pinned(&self, context: &Context, moved: Moved, began: Duration) -> Pinned {
        let (pins, route) = (context.pins(), context.route());
        let owned = route.as_ref().map(|route| route.owned_by_new).unwrap_or_default();
        let percent = context.shares().share(&owned, &[]);
        Pinned {
            ramp: self.moved(context, percent, moved, began),
            pins: views(&pins, route.as_ref()),
            note: NOTE.to_owned(),
        }
    }
}

impl Running {
    /// What is pinned.
    pub(super) fn pins(&self) -> PinList {
        let Some(context) = self.parts() else {
            return PinList { pins: Vec::new(), ranges: self.range_views() };
        };
        PinList { pins: views(&context.pins(), context.route().as_ref()), ranges: self.range_views() }
    }

    /// The same in numbers.
    pub(super) fn pin_counts(&self) -> PinCounts {
        let pins = self.pins().pins;
        let count = |holds: &dyn Fn(&&PinView) -> bool| pins.iter().filter(holds).count() as u64;
        PinCounts {
            to_old: count(&|pin| Side::from(pin.to) == Side::Old),
            to_new: count(&|pin| Side::from(pin.to) == Side::New),
            not_in_force: count(&|pin| !pin.in_force),
        }
    }
}

fn views(pins: &Pins, route: Option<&MigrationRoute>) -> Vec<PinView> {
    let of = |pin: &crate::policy::pins::Pin| {
        let slot = pin.held.slot();
        let (key, range) = match pin.held.name() {
            Name::Key(key) => (Some(spelled(key)), None),
            Name::Range(name) => (None, Some(name.clone())),
        };
        let in_force =
            route.is_some_and(|route| is_in_force(pin.to, slot, &route.owned_by_new, &route.reads_on_new));
        PinView { key, range, slot: slot.number(), to: pin.to.into(), in_force, since: pin.since }
    };
    pins.all().iter().map(of).collect()
}

/// Of the ranges that were to be pinned, those that are pinned or served otherwise than before, also by a call that
/// failed half way.
fn moved(asked: &SetPins, before: &[RangeView], after: &[RangeView]) -> Vec<String> {
    let of = |views: &[RangeView], name: &String| {
        let view = views.iter().find(|view| view.range.name == *name)?;
        Some((view.pinned, view.reads, view.writes))
    };
    asked.ranges.iter().filter(|name| of(before, name) != of(after, name)).cloned().collect()
}

/// Of these ranges those that have a pin.
fn were_pinned(ranges: &[String], views: &[RangeView]) -> Vec<String> {
    let has_pin =
        |name: &&String| views.iter().any(|view| view.range.name == **name && view.pinned.is_some());
    ranges.iter().filter(has_pin).cloned().collect()
}

/// Pins are stored before the writes move.
fn half_done(context: &Context, before: &Pins, mut error: ControlError) -> ControlError {
    if context.pins() != *before {
        error
            .detail
            .push_str("; the pins are stored, and in force once the call is repeated, or gone with unpin");
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::key_ranges::{RangeOperations, RangeSpec};

    fn view(name: &str, at: Cluster, pinned: Option<Cluster>) -> RangeView {
        let range = RangeSpec { name: name.to_owned(), from: None, to: None };
        let (reads, writes, operations) = (at, Some(at), RangeOperations::default());
        let (reads_percent, writes_percent) = (0.0, None);
        RangeView { range, slot: 1, reads, writes, reads_percent, writes_percent, pinned, operations }
    }

    /// What moves nothing of what a plan moves leaves it as it is.
    #[test]
    fn ranges_that_a_call_does_not_move_are_told_apart() {
        use Cluster::{New, Old};
        let ranges = vec!["eu".to_owned(), "us".to_owned()];
        let asked = SetPins { keys: Vec::new(), ranges: ranges.clone(), to: New };
        let before = [view("eu", New, Some(New)), view("us", Old, None), view("zz", Old, None)];
        assert_eq!(moved(&asked, &before, &before), [""; 0], "they are there already");
        let after = [view("eu", New, Some(New)), view("us", New, Some(New)), view("zz", New, Some(New))];
        assert_eq!(moved(&asked, &before, &after), ["us"]);
        let half = [view("eu", New, Some(New)), view("us", Old, Some(New)), view("zz", Old, None)];
        assert_eq!(moved(&asked, &before, &half), ["us"], "it is pinned, and not there yet");
        assert_eq!(were_pinned(&ranges, &before), ["eu"]);
    }
}
