//! What an operator can switch off while a migration runs, and on again.

use std::sync::atomic::Ordering;

use bson::doc;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::control::{ControlError, Refusal};
use super::engine::{Engine, no_new, unavailable};
use super::ramping::conflict;
use super::running::Running;
use crate::model::slots::SlotSet;
use crate::state::record::AuthorityRecord;

/// What is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Switches {
    /// Writes bring the mirror up to date at once. Off, the streams alone do, and a read goes to the authority until they
    /// have.
    pub inline_mirror: bool,
    /// Reads go where their percentage says. Off, each goes to its authority; the percentage stays.
    pub read_routing: bool,
}

impl Default for Switches {
    fn default() -> Self {
        Self { inline_mirror: true, read_routing: true }
    }
}

/// What is to be on; what is left out stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetSwitches {
    /// Whether writes bring the mirror up to date at once, or the streams alone do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inline_mirror: Option<bool>,
    /// Whether reads go where their percentage says, or each to its authority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_routing: Option<bool>,
}

impl std::fmt::Display for SetSwitches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("switch")?;
        for (name, on) in [("inline-mirror", self.inline_mirror), ("read-routing", self.read_routing)] {
            if let Some(on) = on {
                write!(f, " {name} {}", if on { "on" } else { "off" })?;
            }
        }
        Ok(())
    }
}

impl Engine {
    /// Switches, and says how everything stands then.
    pub(super) async fn switch(
        &self,
        running: &Running,
        asked: SetSwitches,
    ) -> Result<Switches, ControlError> {
        if asked == SetSwitches::default() {
            let detail = "name what to switch: inline_mirror or read_routing, each true or false";
            return Err(ControlError::new(Refusal::Invalid, "invalid-switches", detail));
        }
        let phase = running.stored.lock().phase;
        if phase.is_over() {
            return Err(conflict("wrong-phase", format!("it is {phase}; nothing is switched any more")));
        }
        if let Some(on) = asked.read_routing {
            switch_reads(running, on).await?;
        }
        if let Some(on) = asked.inline_mirror {
            self.switch_inline(running, on).await?;
        }
        Ok(running.switches())
    }

    async fn switch_inline(&self, running: &Running, on: bool) -> Result<(), ControlError> {
        let route = running.parts().and_then(|context| context.route());
        let divided =
            route.is_some_and(|route| !route.owned_by_new.is_empty() && route.owned_by_new != SlotSet::ALL);
        if !on && divided {
            let detail = "writes are divided: a read that meets both clusters would wait for the streams at every \
                          write; bring the writes to 0 or 100 first";
            return Err(conflict("writes-divided", detail));
        }
        let state = self.environment.state()?;
        let stored = running.change_stored(state, |stored| stored.inline_off = !on).await;
        stored.map_err(|error| unavailable(error.to_string()))?;
        running.apply_switches();
        Ok(())
    }
}

/// In force by the records, like the percentage itself: a process that follows goes by it from its first read on.
async fn switch_reads(running: &Running, on: bool) -> Result<(), ControlError> {
    let not_started = || conflict("wrong-phase", "it has not started; no reads move yet");
    let context = running.parts().ok_or_else(not_started)?;
    if context.route().ok_or_else(no_new)?.reads_off != on {
        return Ok(());
    }
    let is_there = |record: &AuthorityRecord| record.reads_off != on;
    context.put_in_force(doc! { "reads_off": !on }, !on, is_there).await
}

impl Running {
    /// How everything stands.
    pub(super) fn switches(&self) -> Switches {
        let route = self.parts().and_then(|context| context.route());
        Switches {
            inline_mirror: !self.stored.lock().inline_off,
            read_routing: !route.is_some_and(|route| route.reads_off),
        }
    }

    /// Lets the data plane know.
    pub(super) fn apply_switches(&self) {
        let off = self.stored.lock().inline_off;
        if let Some(active) = &*self.active.lock() {
            active.inline_off.store(off, Ordering::Relaxed);
        }
    }
}
