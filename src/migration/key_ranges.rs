//! Ranges of route keys: how an operator declares them, and where they are.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::pins::Cluster;
use super::running::Running;
use crate::model::side::{PerSide, Side};
use crate::policy::key_ranges::{KeyRange, KeyRanges};
use crate::policy::pins::Name;

/// Keys that move together, alone, and by name: `_id`s, or values of the route key where a collection has one, in all
/// collections of the migration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RangeSpec {
    /// Letters, digits, `-` and `_`, at most 64.
    pub name: String,
    /// The first key that belongs to it, in extended JSON: a whole number, a text, an object id, a date or binary data
    /// (a UUID). Left out, it begins with the lowest of the kind of `to`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>, example = json!("eu-"))]
    pub from: Option<serde_json::Value>,
    /// The first key that no longer belongs to it, of the same kind; numbers of all types are one kind. Left out, it ends
    /// with the highest of the kind of `from`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>, example = json!("eu."))]
    pub to: Option<serde_json::Value>,
}

/// A range, and where it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RangeView {
    /// As it was declared.
    #[serde(flatten)]
    pub range: RangeSpec,
    /// Its slot, which holds nothing else.
    pub slot: u16,
    /// The cluster that serves its reads, as far as percentages and pins say.
    pub reads: Cluster,
    /// The cluster that has authority over its documents; null in the middle of a move.
    pub writes: Option<Cluster>,
    /// The same as a share: 0 or 100.
    #[serde(default)]
    pub reads_percent: f64,
    /// The same for its writes; null in the middle of a move.
    #[serde(default)]
    pub writes_percent: Option<f64>,
    /// Where it is pinned; null where it is not: it is on old then, until all writes go to new.
    pub pinned: Option<Cluster>,
    /// What named a key of it since the process began, by cluster.
    #[serde(default)]
    pub operations: RangeOperations,
}

/// Operations that named a key of a range.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RangeOperations {
    /// Reads.
    pub reads: CountByCluster,
    /// Documents that acknowledged writes have named.
    pub writes: CountByCluster,
}

/// How many went to each cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CountByCluster {
    /// To old.
    pub old: u64,
    /// To new.
    pub new: u64,
}

impl From<PerSide<u64>> for CountByCluster {
    fn from(PerSide { old, new }: PerSide<u64>) -> Self {
        Self { old, new }
    }
}

/// Reads what is to be declared.
///
/// # Errors
/// In words, everything that is wrong with it.
pub(super) fn declared(specs: &[RangeSpec]) -> Result<Vec<KeyRange>, Vec<String>> {
    let mut wrong = Vec::new();
    let mut bound = |name: &str, value: &Option<serde_json::Value>| {
        let read = value.clone().map(bson::Bson::try_from).transpose();
        read.unwrap_or_else(|error| {
            wrong.push(format!("{name}: {error}"));
            None
        })
    };
    let read = |spec: &RangeSpec| KeyRange {
        name: spec.name.clone(),
        from: bound(&spec.name, &spec.from),
        to: bound(&spec.name, &spec.to),
    };
    let ranges: Vec<KeyRange> = specs.iter().map(read).collect();
    if wrong.is_empty() { KeyRanges::new(ranges.clone()).map(|_| ranges) } else { Err(wrong) }
}

fn spec_of(range: &KeyRange) -> RangeSpec {
    let shown = |value: &Option<bson::Bson>| value.clone().map(bson::Bson::into_relaxed_extjson);
    RangeSpec { name: range.name.clone(), from: shown(&range.from), to: shown(&range.to) }
}

impl Running {
    /// Its ranges, as declared.
    pub(super) fn key_ranges(&self) -> KeyRanges {
        KeyRanges::new(self.stored.lock().ranges.clone()).unwrap_or_default()
    }

    /// Its ranges, and where each is.
    pub(super) fn range_views(&self) -> Vec<RangeView> {
        let context = self.parts();
        let route = context.as_ref().and_then(|context| context.route());
        let ranges =
            route.as_ref().map_or_else(|| self.key_ranges().into(), |route| route.key_ranges.clone());
        if ranges.is_empty() {
            return Vec::new();
        }
        let active = self.active.lock().clone();
        let layout = ranges.layout();
        let percent = |on_new: bool| if on_new { 100.0 } else { 0.0 };
        let pins = context.map(|context| context.pins()).unwrap_or_default();
        let of = |range: &KeyRange| {
            let slot = ranges.named(&range.name)?;
            let is_named = |name: &Name| matches!(name, Name::Range(name) if *name == range.name);
            let pin = pins.all().iter().find(|pin| is_named(pin.held.name()));
            let on_new = route.as_ref().is_some_and(|route| route.reads_on_new.contains(slot));
            let writes = route.as_ref().map_or(Some(Side::Old), |route| route.authority(slot));
            let counted = active.as_ref().map(|active| active.range_counts.counted(layout, slot));
            let counted = counted.unwrap_or_default();
            let counted = RangeOperations { reads: counted.reads.into(), writes: counted.writes.into() };
            Some(RangeView {
                range: spec_of(range),
                slot: slot.number(),
                reads: if on_new { Cluster::New } else { Cluster::Old },
                writes: writes.map(Cluster::from),
                reads_percent: percent(on_new),
                writes_percent: writes.map(|side| percent(side == Side::New)),
                operations: counted,
                pinned: pin.map(|pin| pin.to.into()),
            })
        };
        ranges.all().iter().filter_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(name: &str, from: serde_json::Value, to: serde_json::Value) -> RangeSpec {
        RangeSpec { name: name.to_owned(), from: Some(from), to: Some(to) }
    }

    #[test]
    fn ranges_are_read_from_extended_json_and_shown_so() {
        let specs = [
            spec("eu", json!("eu-"), json!("eu.")),
            spec(
                "ids",
                json!({ "$oid": "600000000000000000000000" }),
                json!({ "$oid": "700000000000000000000000" }),
            ),
            RangeSpec { to: None, ..spec("late", json!(1000), json!(0)) },
        ];
        let ranges = declared(&specs).unwrap();
        assert_eq!(ranges.iter().map(spec_of).collect::<Vec<_>>(), specs);
        let wrong = declared(&[spec("a", json!({ "$oid": "x" }), json!(1)), spec("b", json!(1), json!(1))]);
        assert_eq!(wrong.unwrap_err().len(), 1);
        assert!(declared(&[spec("b", json!([1]), json!(1))]).unwrap_err()[0].contains("is no bound"));
    }
}
