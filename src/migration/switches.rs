//! What an operator can switch off while a migration runs, and on again: for all that it moves, or for one collection.

use bson::doc;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::control::{ControlError, Refusal};
use super::engine::{Engine, no_new, unavailable};
use super::ramping::conflict;
use super::running::Running;
use super::stored::Stored;
use crate::model::namespace::Namespace;
use crate::model::pattern::Pattern;
use crate::model::slots::SlotSet;
use crate::state::record::AuthorityRecord;
use crate::state::switched::Off;

/// What is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Switches {
    /// Writes bring the mirror up to date at once. Off, the streams alone do, and a read goes to the authority until they
    /// have.
    pub inline_mirror: bool,
    /// Reads go where their percentage says. Off, each goes to its authority; the percentage stays.
    pub read_routing: bool,
    /// Reads are sampled and compared, by the share that is set.
    #[serde(default = "on")]
    pub shadow: bool,
    /// Comparisons make equal what they find different. Off, they tell it.
    #[serde(default = "on")]
    pub repair: bool,
    /// Ramps by plan go up. Off, for everything or for any collection, a plan takes no step up; it still comes down when
    /// a gate is broken.
    #[serde(default = "on")]
    pub plan: bool,
    /// Collections for which something is off.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<NamespaceSwitches>,
}

/// What is on for one collection; what is off for everything is off for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NamespaceSwitches {
    /// `database.collection`.
    pub namespace: String,
    /// As for everything.
    pub inline_mirror: bool,
    /// As for everything.
    pub read_routing: bool,
    /// As for everything.
    pub shadow: bool,
    /// As for everything.
    pub repair: bool,
    /// Whether the plan of the migration, which moves all its collections, may take a step up with this one.
    #[serde(default = "on")]
    pub plan: bool,
}

const fn on() -> bool {
    true
}

impl Default for Switches {
    fn default() -> Self {
        let namespaces = Vec::new();
        Self { inline_mirror: true, read_routing: true, shadow: true, repair: true, plan: true, namespaces }
    }
}

/// What is to be on; what is left out stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetSwitches {
    /// For this collection alone, as `database.collection`; left out, for all that the migration moves. What is off for
    /// everything cannot be switched on for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "shop.orders")]
    pub namespace: Option<String>,
    /// Whether writes bring the mirror up to date at once, or the streams alone do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inline_mirror: Option<bool>,
    /// Whether reads go where their percentage says, or each to its authority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_routing: Option<bool>,
    /// Whether reads are sampled and compared, as far as a share is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<bool>,
    /// Whether comparisons make equal what they find different, or only tell it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repair: Option<bool>,
    /// Whether ramps by plan go up. Off for one collection it holds the plan of the migration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<bool>,
}

impl SetSwitches {
    const fn all(&self) -> [(&'static str, Option<bool>); 5] {
        [
            ("inline-mirror", self.inline_mirror),
            ("read-routing", self.read_routing),
            ("shadow", self.shadow),
            ("repair", self.repair),
            ("plan", self.plan),
        ]
    }
}

impl std::fmt::Display for SetSwitches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("switch")?;
        for (name, on) in self.all() {
            if let Some(on) = on {
                write!(f, " {name} {}", if on { "on" } else { "off" })?;
            }
        }
        self.namespace.iter().try_for_each(|namespace| write!(f, " for {namespace}"))
    }
}

/// What is off besides the routing of reads, as stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredOff {
    /// For which collections mirrors are left to the streams; for all of them, see `Stored::inline_off`.
    #[serde(default)]
    pub inline_mirror: Off,
    /// Reads are not compared.
    #[serde(default)]
    pub shadow: Off,
    /// Comparisons only tell.
    #[serde(default)]
    pub repair: Off,
    /// Plans take no step up.
    #[serde(default)]
    pub plan: Off,
}

impl Stored {
    fn inline_off(&self) -> Off {
        Off { all: self.inline_off, ..self.off.inline_mirror.clone() }
    }
}

impl Engine {
    /// Switches, and says how everything stands then.
    pub(super) async fn switch(
        &self,
        running: &Running,
        asked: &SetSwitches,
    ) -> Result<Switches, ControlError> {
        let invalid = |detail: String| ControlError::new(Refusal::Invalid, "invalid-switches", detail);
        if asked.all().iter().all(|(_, on)| on.is_none()) {
            let detail = "name what to switch: inline_mirror, read_routing, shadow, repair or plan, each true or false";
            return Err(invalid(detail.to_owned()));
        }
        let phase = running.stored.lock().phase;
        if phase.is_over() {
            return Err(conflict("wrong-phase", format!("it is {phase}; nothing is switched any more")));
        }
        let namespace = asked.namespace.as_deref().map(|name| running.one_of(name).map_err(invalid));
        let namespace = namespace.transpose()?;
        if asked.inline_mirror == Some(false) {
            must_not_be_divided(running)?;
        }
        if let Some(on) = asked.read_routing {
            switch_reads(running, namespace.as_ref(), on).await?;
        }
        let SetSwitches { inline_mirror: inline, shadow, repair, plan, .. } = *asked;
        if inline.or(shadow).or(repair).or(plan).is_some() {
            let namespace = namespace.as_ref();
            let change = |stored: &mut Stored| {
                if let Some(on) = inline {
                    let mut off = stored.inline_off();
                    off.switch(namespace, on);
                    (stored.inline_off, off.all) = (off.all, false);
                    stored.off.inline_mirror = off;
                }
                shadow.into_iter().for_each(|on| stored.off.shadow.switch(namespace, on));
                repair.into_iter().for_each(|on| stored.off.repair.switch(namespace, on));
                plan.into_iter().for_each(|on| stored.off.plan.switch(namespace, on));
            };
            let stored = running.change_stored(self.environment.state()?, change).await;
            stored.map_err(|error| unavailable(error.to_string()))?;
            running.apply_switches();
        }
        Ok(running.switches())
    }
}

fn must_not_be_divided(running: &Running) -> Result<(), ControlError> {
    let route = running.parts().and_then(|context| context.route());
    let divided =
        route.is_some_and(|route| !route.owned_by_new.is_empty() && route.owned_by_new != SlotSet::ALL);
    if divided {
        let detail = "writes are divided: a read that meets both clusters would wait for the streams at every \
                      write; bring the writes to 0 or 100 first";
        return Err(conflict("writes-divided", detail));
    }
    Ok(())
}

/// In force by the records, like the percentage itself: a process that follows goes by it from its first read on.
async fn switch_reads(
    running: &Running,
    namespace: Option<&Namespace>,
    on: bool,
) -> Result<(), ControlError> {
    let not_started = || conflict("wrong-phase", "it has not started; no reads move yet");
    let context = running.parts().ok_or_else(not_started)?;
    let route = context.route().ok_or_else(no_new)?;
    let mut wanted = (*route.reads_off).clone();
    wanted.switch(namespace, on);
    if *route.reads_off == wanted {
        return Ok(());
    }
    let is_there = |record: &AuthorityRecord| record.reads_off() == wanted;
    let names: Vec<&String> = wanted.namespaces.iter().collect();
    let fields = doc! { "reads_off": wanted.all, "reads_off_for": names };
    context.put_in_force(fields, !on, is_there).await
}

impl Running {
    /// A collection of it, by name.
    fn one_of(&self, name: &str) -> Result<Namespace, String> {
        let is_known = |namespace: &Namespace| match self.parts() {
            Some(context) => context.scope.contains(namespace),
            None => self.specs().iter().any(|spec| !Pattern::is_meant(spec) && spec == name),
        };
        let namespace = Namespace::parse(name).filter(is_known);
        namespace.ok_or_else(|| format!("{name} is no collection of this migration"))
    }

    /// How everything stands.
    pub(super) fn switches(&self) -> Switches {
        let route = self.parts().and_then(|context| context.route());
        let reads = route.map(|route| (*route.reads_off).clone()).unwrap_or_default();
        let stored = self.stored.lock();
        shown(&stored.inline_off(), &reads, &stored.off)
    }

    /// Why plans take no step up, if they do not: for what an operator has switched them off.
    pub(super) fn plan_is_off(&self) -> Option<String> {
        let stored = self.stored.lock();
        let Off { all, namespaces } = &stored.off.plan;
        let names = || namespaces.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let what = if *all { "everything".to_owned() } else { names() };
        let (name, of) = (&stored.name, namespaces.first().filter(|_| !all));
        let of = of.map_or(String::new(), |namespace| format!(" --namespace {namespace}"));
        (*all || !namespaces.is_empty()).then(|| {
            format!("plans are switched off for {what}: reshard migrate switch {name} --plan on{of}")
        })
    }

    /// Lets everybody know.
    pub(super) fn apply_switches(&self) {
        let (inline, off) = {
            let stored = self.stored.lock();
            (stored.inline_off(), stored.off.clone())
        };
        self.repair_off.set(off.repair);
        if let Some(active) = &*self.active.lock() {
            active.inline_off.set(inline);
            active.shadow_off.set(off.shadow);
        }
    }
}

fn shown(inline: &Off, reads: &Off, off: &StoredOff) -> Switches {
    let StoredOff { shadow, repair, plan, .. } = off;
    let mut named: Vec<&String> =
        [inline, reads, shadow, repair, plan].iter().flat_map(|off| &off.namespaces).collect();
    named.sort();
    named.dedup();
    let of = |namespace: &String| NamespaceSwitches {
        namespace: namespace.clone(),
        inline_mirror: !inline.is_for(namespace),
        read_routing: !reads.is_for(namespace),
        shadow: !shadow.is_for(namespace),
        repair: !repair.is_for(namespace),
        plan: !plan.is_for(namespace),
    };
    Switches {
        inline_mirror: !inline.all,
        read_routing: !reads.all,
        shadow: !shadow.all,
        repair: !repair.all,
        plan: !plan.all,
        namespaces: named.into_iter().map(of).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_off_for_one_collection_is_shown_with_it() {
        let none = Off::default();
        assert_eq!(shown(&none, &none, &StoredOff::default()), Switches::default());
        let some = Off { all: false, namespaces: ["shop.orders".to_owned()].into() };
        let all = Off { all: true, namespaces: Default::default() };
        let off = StoredOff { repair: all, plan: some.clone(), ..StoredOff::default() };
        let switches = shown(&none, &some, &off);
        assert!(switches.read_routing && switches.plan && !switches.repair && switches.namespaces.len() == 1);
        let orders = &switches.namespaces[0];
        assert!(orders.inline_mirror && !orders.read_routing && orders.shadow && !orders.repair);
        assert!(!orders.plan);
    }

    #[test]
    fn a_switch_reads_in_the_audit() {
        let mut asked = SetSwitches { read_routing: Some(false), ..SetSwitches::default() };
        assert_eq!(asked.to_string(), "switch read-routing off");
        (asked.namespace, asked.repair) = (Some("shop.orders".into()), Some(true));
        assert_eq!(asked.to_string(), "switch read-routing off repair on for shop.orders");
    }
}
