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
    AcknowledgeUnreturned, Cluster, Keys, PinCounts, PinList, PinView, Pinned, Ramp, SetPins, SetSwitches,
    Switches, Unreturned, UnreturnedList, UnreturnedState, UnreturnedView, WithoutNew,
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
        /// Everything, while new is away: what only new has acknowledged is named, and brought back when it is there
        /// again; refused as long as new answers
        #[arg(long, value_name = "REASON", conflicts_with = "keys")]
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
    /// Hold reads and writes of keys on one cluster, whatever percentages say, and move them there
    Pin {
        name: String,
        /// _ids, or values of the route key, in JSON: '"acme"', 7, '{"$oid": "..."}'. Each takes along what lies in
        /// its slot, about a thousandth of every collection
        #[arg(value_name = "KEY", required = true, value_parser = key)]
        keys: Vec<Value>,
        /// The cluster
        #[arg(long, value_enum)]
        to: Side,
    },
    /// Let keys go where the percentages say
    Unpin {
        name: String,
        /// As they were pinned, in JSON
        #[arg(value_name = "KEY", required = true, value_parser = key)]
        keys: Vec<Value>,
    },
    /// What is pinned
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
        Action::Rollback { name, without_new: Some(reason), .. } => {
            let asked = json!(Rollback { keys: None, without_new: Some(WithoutNew { reason }) });
            let path = path(&name, "rollback");
            let said = |answer: &Ramp| rollback_without_new(&name, answer);
            session.show(Method::POST, &path, Some(asked), said).await.map(drop)
        }
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
        Action::Rollback { name, keys, .. } if keys.is_empty() => {
            session.show(Method::POST, &path(&name, "rollback"), None, rollback).await.map(drop)
        }
        Action::Rollback { name, keys, .. } => {
            let asked = json!(Rollback { keys: Some(keys), without_new: None });
            let path = path(&name, "rollback");
            session.show(Method::POST, &path, Some(asked), rollback_of_keys).await.map(drop)
        }
        Action::Pin { name, keys, to } => {
            let to = match to {
                Side::Old => Cluster::Old,
                Side::New => Cluster::New,
            };
            let asked = json!(SetPins { keys, to });
            session.show(Method::PUT, &path(&name, "pins"), Some(asked), pinned).await.map(drop)
        }
        Action::Unpin { name, keys } => {
            let asked = json!(Keys { keys });
            session.show(Method::DELETE, &path(&name, "pins"), Some(asked), pinned).await.map(drop)
        }
        Action::Pins { name } => session.look(&path(&name, "pins"), list).await,
        Action::Switch { name, inline_mirror, read_routing } => {
            let asked = json!(SetSwitches { inline_mirror, read_routing });
            session.show(Method::PUT, &path(&name, "switches"), Some(asked), switched).await.map(drop)
        }
    }
}

fn pinned(answer: &Pinned) -> String {
    let Pinned { ramp, pins, note } = answer;
    format!("{}\n{}\n{note}", timed("in force everywhere", ramp), listed(pins).trim_end())
}

fn list(list: &PinList) -> String {
    listed(&list.pins)
}

fn listed(pins: &[PinView]) -> String {
    if pins.is_empty() {
        return "Nothing is pinned.".to_owned();
    }
    let rows = pins.iter().map(|pin| {
        let to = match pin.to {
            Cluster::Old => "old",
            Cluster::New => "new",
        };
        let in_force = if pin.in_force { "yes" } else { "no: pin it again, or unpin it" };
        [pin.key.clone(), pin.slot.to_string(), to.to_owned(), in_force.to_owned(), time(pin.since)]
    });
    table(["KEY", "SLOT", "ON", "IN FORCE", "SINCE"], rows.collect())
}

/// How everything is switched.
pub(super) fn switched(switches: &Switches) -> String {
    let word = |on: bool| if on { "on" } else { "off" };
    format!("inline mirror {}, read routing {}", word(switches.inline_mirror), word(switches.read_routing))
}

fn rollback(answer: &Ramp) -> String {
    let removed = match answer.removed_pins {
        0 => String::new(),
        pins => format!("; {pins} pins to new were removed"),
    };
    timed("old serves all reads and writes", answer) + &removed
}

fn rollback_without_new(name: &str, answer: &Ramp) -> String {
    let named = answer.unreturned.unwrap_or(0);
    let rest =
        if answer.all_named { "" } else { "; there may be more, which are named when new is there again" };
    format!(
        "{}\nof {} documents only new may have the last acknowledged write{rest}: see unreturned {name}. They come \
         back when new is there again",
        rollback(answer),
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
    timed("old serves these keys, which are pinned to it", answer)
}

fn timed(what: &str, answer: &Ramp) -> String {
    let Ramp { epoch, elapsed_ms, pause_ms, .. } = answer;
    format!("{what} (epoch {epoch}) after {elapsed_ms} ms; writes were held {pause_ms} ms")
}

/// How much is pinned.
pub(super) fn counts(pins: &PinCounts) -> String {
    let mut out = format!("{} keys to old, {} to new", count(pins.to_old), count(pins.to_new));
    if pins.not_in_force > 0 {
        let _ = write!(out, "; {} not in force yet, see pins", count(pins.not_in_force));
    }
    out
}
