//! `migrate pin …`, `rollback`, `switch`: what is held, brought back or switched off.

use std::fmt::Write;

use clap::{Subcommand, ValueEnum};
use hyper::http::Method;
use serde_json::{Value, json};

use super::client::segment;
use super::failure::Failure;
use super::human::{count, table, time};
use super::migrate::{Session, path};
use crate::admin::Rollback;
use crate::migration::control::{
    AcknowledgeUnreturned, Cluster, CountByCluster, Keys, PinCounts, PinList, PinView, Pinned, Ramp,
    RangeView, SetPins, SetSwitches, Switches, Unreturned, UnreturnedList, UnreturnedState, UnreturnedView,
    WithoutNew,
};

#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Return all writes, then all reads, to old, and remove pins to new
    Rollback {
        name: String,
        /// Only these, as by pinning them to old: _ids, or values of the route key, in JSON ('"acme"', 7); what lies in
        /// their slots goes along
        #[arg(long = "key", value_name = "JSON", value_parser = key)]
        keys: Vec<Value>,
        /// Only these ranges, as by pinning them to old; nothing else goes along
        #[arg(long = "range", value_name = "NAME")]
        ranges: Vec<String>,
        /// While new is away: what only new has acknowledged is named, and brought back when it is there again; refused
        /// as long as new answers
        #[arg(long, value_name = "REASON")]
        without_new: Option<String>,
    },
    /// What only new may have acknowledged when everything was rolled back without it, and what has become of it
    Unreturned {
        name: String,
        /// Only documents after this one: what the page before ends with
        #[arg(long, value_name = "ID")]
        after: Option<String>,
        /// At most so many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: Option<u16>,
        /// Those that both have written were looked at: they do not stand in the way of moving writes to new any more
        #[arg(long, value_name = "REASON", conflicts_with_all = ["after", "limit"])]
        acknowledge: Option<String>,
    },
    /// Hold reads and writes of keys or ranges on one cluster, whatever percentages say, and move them there
    #[command(group = clap::ArgGroup::new("held").required(true).multiple(true))]
    Pin {
        name: String,
        /// _ids, or values of the route key, in JSON: '"acme"', 7, '{"$oid": "..."}'. Each takes along what lies in
        /// its slot, about a thousandth of every collection
        #[arg(value_name = "KEY", group = "held", value_parser = key)]
        keys: Vec<Value>,
        /// A range of the migration, by name, with nothing but the keys within; may be repeated
        #[arg(long = "range", value_name = "NAME", group = "held")]
        ranges: Vec<String>,
        /// The cluster
        #[arg(long, value_enum)]
        to: Side,
    },
    /// Let keys and ranges go where the percentages say
    #[command(group = clap::ArgGroup::new("freed").required(true).multiple(true))]
    Unpin {
        name: String,
        /// As they were pinned, in JSON
        #[arg(value_name = "KEY", group = "freed", value_parser = key)]
        keys: Vec<Value>,
        /// A range, by name: it is on new when all writes are, and else on old; may be repeated
        #[arg(long = "range", value_name = "NAME", group = "freed")]
        ranges: Vec<String>,
    },
    /// What is pinned, and where ranges are
    Pins { name: String },
    /// Switch a part of the data plane off, and on again
    #[command(group = clap::ArgGroup::new("switches").required(true).multiple(true))]
    Switch {
        name: String,
        /// Whether writes bring the mirror up to date at once, or the streams alone do
        #[arg(long, value_name = "on|off", group = "switches", value_parser = switch)]
        inline_mirror: Option<bool>,
        /// Whether reads go where their percentage says, or each to its authority
        #[arg(long, value_name = "on|off", group = "switches", value_parser = switch)]
        read_routing: Option<bool>,
        /// Whether reads are sampled and compared, as far as a share is set
        #[arg(long, value_name = "on|off", group = "switches", value_parser = switch)]
        shadow: Option<bool>,
        /// Whether verifications make equal what they find different, or only tell it
        #[arg(long, value_name = "on|off", group = "switches", value_parser = switch)]
        repair: Option<bool>,
        /// Whether ramps by plan go up; off for one collection it holds the plan, which still comes down by itself
        #[arg(long, value_name = "on|off", group = "switches", value_parser = switch)]
        plan: Option<bool>,
        /// For this collection alone
        #[arg(long, value_name = "DB.COLLECTION")]
        namespace: Option<String>,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Side {
    Old,
    New,
}

/// Reads a key in JSON.
fn key(text: &str) -> Result<Value, String> {
    serde_json::from_str(text)
        .map_err(|_| format!("a key is written in JSON; a text in quotes: '\"{text}\"'"))
}

/// Reads `on` or `off`.
fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("write on or off".to_owned()),
    }
}

pub(super) async fn run(session: &Session, action: Action) -> Result<(), Failure> {
    match action {
        Action::Unreturned { name, acknowledge: Some(reason), .. } => {
            let asked = json!(AcknowledgeUnreturned { reason });
            let path = path(&name, "unreturned/acknowledge");
            session.show(Method::POST, &path, Some(asked), returning).await.map(drop)
        }
        Action::Unreturned { name, after, limit, .. } => {
            let after = after.map(|after| format!("after={}", segment(&after)));
            let query: Vec<String> =
                after.into_iter().chain(limit.map(|limit| format!("limit={limit}"))).collect();
            session.look(&format!("{}?{}", path(&name, "unreturned"), query.join("&")), unreturned).await
        }
        Action::Rollback { name, keys, ranges, without_new: None }
            if keys.is_empty() && ranges.is_empty() =>
        {
            session.show(Method::POST, &path(&name, "rollback"), None, rollback).await.map(drop)
        }
        Action::Rollback { name, keys, ranges, without_new } => {
            let asked = json!(Rollback {
                keys: (!keys.is_empty()).then_some(keys),
                ranges: (!ranges.is_empty()).then_some(ranges),
                without_new: without_new.map(|reason| WithoutNew { reason }),
            });
            let said = |answer: &Ramp| rolled_back(&name, &asked, answer);
            session.show(Method::POST, &path(&name, "rollback"), Some(asked.clone()), said).await.map(drop)
        }
        Action::Pin { name, keys, ranges, to } => {
            let to = match to {
                Side::Old => Cluster::Old,
                Side::New => Cluster::New,
            };
            let asked = json!(SetPins { keys, ranges, to });
            session.show(Method::PUT, &path(&name, "pins"), Some(asked), pinned).await.map(drop)
        }
        Action::Unpin { name, keys, ranges } => {
            let asked = json!(Keys { keys, ranges });
            session.show(Method::DELETE, &path(&name, "pins"), Some(asked), pinned).await.map(drop)
        }
        Action::Pins { name } => session.look(&path(&name, "pins"), list).await,
        Action::Switch { name, inline_mirror, read_routing, shadow, repair, plan, namespace } => {
            let asked = json!(SetSwitches { namespace, inline_mirror, read_routing, shadow, repair, plan });
            session.show(Method::PUT, &path(&name, "switches"), Some(asked), switched).await.map(drop)
        }
    }
}

fn pinned(answer: &Pinned) -> String {
    let Pinned { ramp, pins, note } = answer;
    format!("{}\n{}\n{note}", timed("in force everywhere", ramp), listed(pins).trim_end())
}

fn list(list: &PinList) -> String {
    let pins = listed(&list.pins);
    if list.ranges.is_empty() { pins } else { format!("{}\n\n{}", pins.trim_end(), ranges(&list.ranges)) }
}

const fn called(cluster: Cluster) -> &'static str {
    match cluster {
        Cluster::Old => "old",
        Cluster::New => "new",
    }
}

/// Where ranges are.
fn ranges(all: &[RangeView]) -> String {
    let rows = all.iter().map(|view| {
        let bound = |value: &Option<Value>| value.as_ref().map_or(String::new(), Value::to_string);
        let writes = view.writes.map_or("in move", called);
        [
            view.range.name.clone(),
            format!("{}..{}", bound(&view.range.from), bound(&view.range.to)),
            called(view.reads).to_owned(),
            writes.to_owned(),
            view.pinned.map_or("", called).to_owned(),
            by_cluster(view.operations.reads),
            by_cluster(view.operations.writes),
        ]
    });
    table(["RANGE", "KEYS", "READS", "WRITES", "PINNED TO", "READ", "WRITTEN"], rows.collect())
}

fn by_cluster(counted: CountByCluster) -> String {
    format!("{} on old, {} on new", count(counted.old), count(counted.new))
}

/// Where ranges are, in one line.
pub(super) fn where_ranges_are(all: &[RangeView]) -> Option<String> {
    let of = |view: &RangeView| {
        let writes = view.writes.map_or("in move", called);
        let pinned = if view.pinned.is_some() { " (pinned)" } else { "" };
        format!("{} on {writes}{pinned}", view.range.name)
    };
    (!all.is_empty()).then(|| all.iter().map(of).collect::<Vec<_>>().join(", "))
}

fn listed(pins: &[PinView]) -> String {
    if pins.is_empty() {
        return "Nothing is pinned.".to_owned();
    }
    let rows = pins.iter().map(|pin| {
        let named = match (&pin.key, &pin.range) {
            (None, Some(range)) => format!("range {range}"),
            (key, _) => key.clone().unwrap_or_default(),
        };
        let in_force = if pin.in_force { "yes" } else { "no: pin it again, or unpin it" };
        [named, pin.slot.to_string(), called(pin.to).to_owned(), in_force.to_owned(), time(pin.since)]
    });
    table(["KEY", "SLOT", "ON", "IN FORCE", "SINCE"], rows.collect())
}

/// How everything is switched.
pub(super) fn switched(switches: &Switches) -> String {
    let word = |on: bool| if on { "on" } else { "off" };
    let mut out = format!(
        "inline mirror {}, read routing {}, shadow reads {}, repair {}, plans {}",
        word(switches.inline_mirror),
        word(switches.read_routing),
        word(switches.shadow),
        word(switches.repair),
        word(switches.plan)
    );
    for of in &switches.namespaces {
        let parts = [
            ("inline mirror", of.inline_mirror),
            ("read routing", of.read_routing),
            ("shadow reads", of.shadow),
            ("repair", of.repair),
            ("plans", of.plan),
        ];
        let off: Vec<&str> = parts.iter().filter(|(_, on)| !on).map(|(name, _)| *name).collect();
        let _ = write!(out, "; for {}: {} off", of.namespace, off.join(" and "));
    }
    out
}

fn rollback(answer: &Ramp) -> String {
    let removed = match answer.removed_pins {
        0 => String::new(),
        pins => format!("; {pins} pins to new were removed"),
    };
    timed("old serves all reads and writes", answer) + &removed
}

/// Of some keys and ranges, or without new.
fn rolled_back(name: &str, asked: &Value, answer: &Ramp) -> String {
    let is_part = asked.get("keys").or_else(|| asked.get("ranges")).is_some();
    let back = if is_part { rollback_of_keys(answer) } else { rollback(answer) };
    let Some(named) = answer.unreturned else { return back };
    let rest =
        if answer.all_named { "" } else { "; there may be more, which are named when new is there again" };
    format!(
        "{back}\nof {} documents only new may have the last acknowledged write{rest}: see unreturned {name}. They come \
         back when new is there again",
        count(named)
    )
}

fn unreturned(list: &UnreturnedList) -> String {
    if list.documents.is_empty() {
        return "Nothing was rolled back without new, or nothing is named.".to_owned();
    }
    let row = |it: &Unreturned| {
        let why = it.why.clone().unwrap_or_default();
        [it.namespace.clone(), it.key.clone(), it.state.replace('_', " "), why]
    };
    let rows = table(["COLLECTION", "KEY", "STATE", "WHY"], list.documents.iter().map(row).collect());
    let next = list.next.as_ref().map(|next| format!("There are more: --after {next}\n"));
    rows + &next.unwrap_or_default()
}

/// How far bringing back is, in a line.
pub(super) fn returning(view: &UnreturnedView) -> String {
    let state = match view.state {
        UnreturnedState::WaitingForNew => "rolled back without new, which is waited for",
        UnreturnedState::BringingBack => "new is there: bringing back what only it has",
        UnreturnedState::Done => "what only new had is back",
    };
    let counts =
        [(view.named, "named"), (view.brought_back, "brought back"), (view.conflicts, "changed on both")];
    let counts: Vec<String> =
        counts.iter().map(|(number, what)| format!("{} {what}", count(number.unsigned_abs()))).collect();
    let more = if view.all_named { "" } else { " (not all could be named)" };
    let problem = view.problem.as_ref().map_or(String::new(), |why| format!("; {why}"));
    let known = view.acknowledged.as_ref().map_or(String::new(), |why| format!("; acknowledged: {why}"));
    format!("{state}: {}{more}{problem}{known}", counts.join(", "))
}

fn rollback_of_keys(answer: &Ramp) -> String {
    timed("old serves what was named, which is pinned to it", answer)
}

fn timed(what: &str, answer: &Ramp) -> String {
    let Ramp { epoch, elapsed_ms, pause_ms, .. } = answer;
    format!("{what} (epoch {epoch}) after {elapsed_ms} ms; writes were held {pause_ms} ms")
}

/// How much is pinned.
pub(super) fn counts(pins: &PinCounts) -> String {
    let mut out = format!("{} to old, {} to new", count(pins.to_old), count(pins.to_new));
    if pins.not_in_force > 0 {
        let _ = write!(out, "; {} not in force yet, see pins", count(pins.not_in_force));
    }
    out
}
