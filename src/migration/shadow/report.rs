//! What is known of one query shape: how often its reads were compared, and what they came to.

use std::collections::BTreeMap;
use std::time::Duration;

use bson::Bson;
use bson::raw::RawBson;
use serde::{Deserialize, Serialize};

use super::reading::Read;
use super::view::{AccessView, Example, ExampleField, LatencyView};
use crate::model::side::{PerSide, Side};
use crate::policy::fields::{FieldDifference, FieldKind};
use crate::policy::latency::{Measured, bucket};
use crate::policy::shadow::answer::{Difference, Kind};
use crate::policy::shadow::inputs::Keys;

/// Examples kept of one shape: the newest.
const MOST_EXAMPLES: usize = 5;
/// Places of a document that an example shows.
const MOST_PLACES: usize = 10;
/// A longer value, `_id` or query is cut off.
const MOST_TEXT: usize = 200;

/// What was seen of a read on each side, where it ran.
#[derive(Debug, Clone, Default)]
pub(super) struct Look {
    /// How long it took.
    pub(super) took: PerSide<Option<Duration>>,
    /// How the cluster gets at its documents, if it was asked.
    pub(super) access: PerSide<Option<AccessView>>,
}

/// How the comparison of one read ended.
#[derive(Debug, Clone)]
pub(super) enum Ended {
    Equal,
    Permuted,
    /// It differed, and no longer does.
    Transient,
    /// It differs for good.
    Different(Vec<Difference>, Keys),
    Nondeterministic,
    Unsettled,
    Failed,
}

/// Times of reads, counted by `policy::latency`'s buckets; those at the end that count nothing are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Latencies(Vec<i64>);

impl Latencies {
    fn add(&mut self, took: Duration) {
        let bucket = bucket(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        if self.0.len() <= bucket {
            self.0.resize(bucket + 1, 0);
        }
        self.0[bucket] += 1;
    }

    fn merge(&mut self, others: &Self) {
        if self.0.len() < others.0.len() {
            self.0.resize(others.0.len(), 0);
        }
        self.0.iter_mut().zip(&others.0).for_each(|(count, more)| *count += more);
    }

    pub(super) fn view(&self) -> LatencyView {
        let mut measured = Measured::default();
        for (count, stored) in measured.counts.iter_mut().zip(&self.0) {
            *count = stored.unsigned_abs();
        }
        LatencyView {
            samples: self.0.iter().sum(),
            p50_ms: measured.quantile_ms(0.5),
            p95_ms: measured.quantile_ms(0.95),
            p99_ms: measured.quantile_ms(0.99),
        }
    }
}

/// What is stored of a shape. Numbers add up, so that what several processes find makes one report.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct ShapeReport {
    pub(super) shape: String,
    pub(super) namespace: String,
    pub(super) command: String,
    pub(super) query: String,
    pub(super) runs: i64,
    pub(super) equal: i64,
    pub(super) permuted: i64,
    pub(super) transient: i64,
    pub(super) different: i64,
    pub(super) nondeterministic: i64,
    pub(super) unsettled: i64,
    pub(super) failed: i64,
    pub(super) differences: BTreeMap<String, i64>,
    pub(super) first_seen: Option<i64>,
    pub(super) last_seen: Option<i64>,
    pub(super) examples: Vec<Example>,
    pub(super) latency: PerSide<Latencies>,
    pub(super) access: PerSide<Option<AccessView>>,
}

impl ShapeReport {
    /// Adds one read.
    pub(super) fn note(&mut self, read: &Read, look: Look, ended: Ended, now: i64, shows_values: bool) {
        let count = match &ended {
            Ended::Equal => &mut self.equal,
            Ended::Permuted => &mut self.permuted,
            Ended::Transient => &mut self.transient,
            Ended::Different(..) => &mut self.different,
            Ended::Nondeterministic => &mut self.nondeterministic,
            Ended::Unsettled => &mut self.unsettled,
            Ended::Failed => &mut self.failed,
        };
        *count += 1;
        self.runs += 1;
        for side in Side::BOTH {
            if let Some(took) = look.took.get(side) {
                self.latency.get_mut(side).add(*took);
            }
        }
        self.see(&look.access);
        if let Ended::Different(differences, keys) = ended {
            self.first_seen = Some(self.first_seen.unwrap_or(now));
            self.last_seen = Some(now);
            for difference in &differences {
                for kind in kinds(difference, read.served) {
                    *self.differences.entry(kind.to_owned()).or_default() += 1;
                }
            }
            let shown = differences.iter().take(MOST_EXAMPLES);
            let shows = Shows { values: shows_values, keys: shows_values || keys == Keys::Ids };
            self.add_examples(shown.map(|one| example(one, read.served, now, shows)).collect());
        }
    }

    /// Adds what others have found.
    pub(super) fn merge(&mut self, others: &Self) {
        if self.runs == 0 {
            *self = others.clone();
            return;
        }
        self.add_counts(others);
        for (kind, more) in &others.differences {
            *self.differences.entry(kind.clone()).or_default() += more;
        }
        self.first_seen = [self.first_seen, others.first_seen].into_iter().flatten().min();
        self.last_seen = self.last_seen.max(others.last_seen);
        self.add_examples(others.examples.clone());
        for side in Side::BOTH {
            self.latency.get_mut(side).merge(others.latency.get(side));
        }
        self.see(&others.access);
    }

    /// The newest explanation of each side stays.
    fn see(&mut self, others: &PerSide<Option<AccessView>>) {
        for side in Side::BOTH {
            let (known, other) = (self.access.get_mut(side), others.get(side));
            let age = |access: &Option<AccessView>| access.as_ref().map(|access| access.at);
            if age(other) > age(known) {
                known.clone_from(other);
            }
        }
    }

    pub(super) fn add_counts(&mut self, others: &Self) {
        for (count, more) in [
            (&mut self.runs, others.runs),
            (&mut self.equal, others.equal),
            (&mut self.permuted, others.permuted),
            (&mut self.transient, others.transient),
            (&mut self.different, others.different),
            (&mut self.nondeterministic, others.nondeterministic),
            (&mut self.unsettled, others.unsettled),
            (&mut self.failed, others.failed),
        ] {
            *count += more;
        }
    }

    /// The newest of each document stay.
    fn add_examples(&mut self, newer: Vec<Example>) {
        self.examples.retain(|one| !newer.iter().any(|newer| newer.key == one.key && newer.kind == one.kind));
        self.examples.extend(newer);
        let too_many = self.examples.len().saturating_sub(MOST_EXAMPLES);
        self.examples.drain(..too_many);
    }
}

/// How reports name a difference: missing is what new lacks, whichever cluster served the read.
fn kinds(one: &Difference, served: Side) -> Vec<&'static str> {
    let old_served = served == Side::Old;
    match one.kind {
        Kind::Changed => {
            let mut kinds: Vec<_> = one.fields.iter().map(|field| field_kind(field.kind, served)).collect();
            kinds.sort_unstable();
            kinds.dedup();
            kinds
        }
        Kind::Missing if !old_served => vec![Kind::Extra.as_str()],
        Kind::Extra if !old_served => vec![Kind::Missing.as_str()],
        kind => vec![kind.as_str()],
    }
}

fn field_kind(kind: FieldKind, served: Side) -> &'static str {
    let kind = match (kind, served) {
        (FieldKind::Missing, Side::New) => FieldKind::Extra,
        (FieldKind::Extra, Side::New) => FieldKind::Missing,
        (kind, _) => kind,
    };
    kind.as_str()
}

/// What may be seen in an example.
#[derive(Clone, Copy)]
struct Shows {
    values: bool,
    /// What differences are known by.
    keys: bool,
}

fn example(one: &Difference, served: Side, at: i64, shows: Shows) -> Example {
    let kind = match one.kind {
        Kind::Changed => Kind::Changed.as_str(),
        _ => kinds(one, served).first().copied().unwrap_or_default(),
    };
    // The code of an error is no value of anybody's.
    let values = shows.values || one.kind == Kind::Error;
    let fields = one.fields.iter().take(MOST_PLACES).map(|field| place(field, served, values));
    let key = one.key.as_ref().filter(|_| shows.values || shows.keys && one.kind != Kind::Values);
    Example {
        at,
        kind: kind.to_owned(),
        served_by: served.as_str().to_owned(),
        key: key.map(|key| cut(&crate::migration::bypass::shown(key))),
        fields: fields.collect(),
    }
}

fn place(field: &FieldDifference, served: Side, shows_values: bool) -> ExampleField {
    let shown = |value: &Option<RawBson>| value.as_ref().map(|value| value_text(value, shows_values));
    let (of_served, of_shadow) = (shown(&field.served), shown(&field.shadow));
    let (old, new) = if served == Side::Old { (of_served, of_shadow) } else { (of_shadow, of_served) };
    ExampleField { path: cut(&field.path), kind: field_kind(field.kind, served).to_owned(), old, new }
}

/// A value, or its type alone.
fn value_text(value: &RawBson, shows_values: bool) -> String {
    if shows_values && let Ok(value) = Bson::try_from(value.clone()) {
        return cut(&value.into_canonical_extjson().to_string());
    }
    format!("{:?}", value.element_type())
}

pub(super) fn cut(text: &str) -> String {
    match text.char_indices().nth(MOST_TEXT) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
