//! Zones and chunks: where the parts of a sharded collection are to lie.

use std::cmp::Ordering;

use bson::{Bson, Document};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::order::compare_all;
use super::shard_key::ShardKey;

/// A range of the shard key, and the shards that its documents lie on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Zone {
    /// Its name.
    pub zone: String,
    /// The first key of the range: every field of the shard key, in its order; `{"$minKey": 1}` is the lowest.
    #[schema(value_type = Object, example = json!({ "region": "eu", "order_id": { "$minKey": 1 } }))]
    pub min: Document,
    /// The first key beyond the range; `{"$maxKey": 1}` is the highest.
    #[schema(value_type = Object, example = json!({ "region": "eu", "order_id": { "$maxKey": 1 } }))]
    pub max: Document,
    /// The shards of the zone, by name.
    pub shards: Vec<String>,
}

/// A [`Zone`] as it is stored: lists, since servers before 5.0 store no names with dots.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredZone {
    zone: String,
    min: Vec<(String, Bson)>,
    max: Vec<(String, Bson)>,
    shards: Vec<String>,
}

impl From<Zone> for StoredZone {
    fn from(Zone { zone, min, max, shards }: Zone) -> Self {
        Self { zone, min: min.into_iter().collect(), max: max.into_iter().collect(), shards }
    }
}

impl From<StoredZone> for Zone {
    fn from(StoredZone { zone, min, max, shards }: StoredZone) -> Self {
        Self { zone, min: min.into_iter().collect(), max: max.into_iter().collect(), shards }
    }
}

impl Zone {
    fn bounds(&self) -> (Vec<Bson>, Vec<Bson>) {
        (values(&self.min), values(&self.max))
    }

    /// Whether both are one range of one zone; shards do not count.
    #[must_use]
    pub fn same_range(&self, other: &Self) -> bool {
        let ((min, max), (other_min, other_max)) = (self.bounds(), other.bounds());
        self.zone == other.zone && equal(&min, &other_min) && equal(&max, &other_max)
    }

    fn overlaps(&self, other: &Self) -> bool {
        let ((min, max), (other_min, other_max)) = (self.bounds(), other.bounds());
        below(&min, &other_max) && below(&other_min, &max)
    }

    fn holds(&self, chunk: &Chunk) -> bool {
        let (min, max) = self.bounds();
        !below(&chunk.min, &min) && !below(&max, &chunk.max)
    }
}

fn values(bound: &Document) -> Vec<Bson> {
    bound.values().cloned().collect()
}

fn below(one: &[Bson], other: &[Bson]) -> bool {
    compare_all(one, other) == Ordering::Less
}

fn equal(one: &[Bson], other: &[Bson]) -> bool {
    compare_all(one, other) == Ordering::Equal
}

/// Everything that is wrong with `zones` of a collection sharded by `key` on a cluster with these shards,
/// where `there` are the ranges that the collection has already; in words.
#[must_use]
pub fn problems(key: &ShardKey, zones: &[Zone], shards: &[String], there: &[Zone]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut sound = Vec::new();
    for zone in zones {
        let before = problems.len();
        let of = format!("zone {:?}", zone.zone);
        if zone.zone.is_empty() {
            problems.push("a zone has no name: give \"zone\"".to_owned());
        }
        if zone.shards.is_empty() {
            problems.push(format!("{of} names no shard: give \"shards\""));
        }
        for unknown in zone.shards.iter().filter(|shard| !shards.contains(shard)) {
            problems.push(format!("{of}: new has no shard {unknown:?}, only {}", shards.join(", ")));
        }
        let bounds = [("min", &zone.min), ("max", &zone.max)];
        let wrong =
            bounds.iter().filter_map(|(name, bound)| Some(format!("{of}: {name} {}", misfit(key, bound)?)));
        problems.extend(wrong);
        let fits = bounds.iter().all(|(_, bound)| misfit(key, bound).is_none());
        if fits && !below(&values(&zone.min), &values(&zone.max)) {
            problems.push(format!("{of}: min {} is not below max {}", zone.min, zone.max));
        }
        if fits && problems.len() == before {
            sound.push(zone);
        }
    }
    for (index, zone) in sound.iter().enumerate() {
        for other in sound[index + 1..].iter().filter(|other| zone.overlaps(other)) {
            problems.push(format!("zone {:?} and zone {:?} overlap", zone.zone, other.zone));
        }
        for other in there.iter().filter(|other| zone.overlaps(other) && !zone.same_range(other)) {
            problems.push(format!(
                "zone {:?} overlaps zone {:?}, which the collection has on new already",
                zone.zone, other.zone
            ));
        }
    }
    problems
}

/// What is wrong with a bound of a range.
fn misfit(key: &ShardKey, bound: &Document) -> Option<String> {
    let fields: Vec<(&str, bool)> = key.fields().collect();
    let lacking: Vec<&str> =
        fields.iter().map(|(path, _)| *path).filter(|path| !bound.contains_key(path)).collect();
    if !lacking.is_empty() {
        return Some(format!("lacks {} of the shard key {}", lacking.join(", "), key.pattern()));
    }
    if !bound.keys().map(String::as_str).eq(fields.iter().map(|(path, _)| *path)) {
        return Some(format!("{bound} must have the fields of the shard key {} in its order", key.pattern()));
    }
    let hashed = fields.iter().find(|(_, hashed)| *hashed).map(|(path, _)| *path)?;
    match bound.get(hashed) {
        Some(Bson::Int32(_) | Bson::Int64(_) | Bson::MinKey | Bson::MaxKey) => None,
        _ => Some(format!(
            "gives {hashed} a value, and that field is hashed: use a whole number, $minKey or $maxKey"
        )),
    }
}

/// A chunk as it lies.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunk {
    /// The first key, its values in order.
    pub min: Vec<Bson>,
    /// The first key beyond.
    pub max: Vec<Bson>,
    /// Where it is.
    pub shard: String,
}

/// Where to cut a collection into about `wanted` parts, in order: at quantiles of `samples` (values of the
/// fields before a hashed one, in order), and wherever a zone begins or ends.
#[must_use]
pub fn cuts(key: &ShardKey, samples: &[Vec<Bson>], wanted: usize, zones: &[Zone]) -> Vec<Vec<Bson>> {
    let mut cuts: Vec<Vec<Bson>> = Vec::new();
    if key.begins_hashed() {
        cuts.extend(hashes(wanted).map(|hash| key.fill(&[hash])));
    } else {
        let quantiles: Vec<&Vec<Bson>> =
            (1..wanted).filter_map(|number| samples.get(number * samples.len() / wanted)).collect();
        for run in quantiles.chunk_by(|one, other| equal(one, other)) {
            cuts.push(key.fill(run[0]));
            // One value for several parts: a hash after it divides them.
            if key.fields().any(|(_, hashed)| hashed) {
                cuts.extend(hashes(run.len() + 1).map(|hash| key.fill(&[&run[0][..], &[hash]].concat())));
            }
        }
    }
    cuts.extend(zones.iter().flat_map(|zone| [values(&zone.min), values(&zone.max)]));
    let all = |values: &[Bson], end: &Bson| values.iter().all(|value| value == end);
    cuts.retain(|cut| !all(cut, &Bson::MinKey) && !all(cut, &Bson::MaxKey));
    cuts.sort_by(|one, other| compare_all(one, other));
    cuts.dedup_by(|one, other| equal(one, other));
    cuts
}

/// The hashes that cut all there are into `parts`.
fn hashes(parts: usize) -> impl Iterator<Item = Bson> {
    let parts = i128::try_from(parts).unwrap_or(1).max(1);
    let cut = move |number: i128| i128::from(i64::MIN) + (number << 64) / parts;
    (1..parts).filter_map(move |number| i64::try_from(cut(number)).ok()).map(Bson::Int64)
}

/// What a document counts for in [`weights`]: so much that it can be divided.
const ONE: u64 = 1 << 20;

/// About how much lies in each of `chunks`, in order of their bounds, by `samples`.
#[must_use]
pub fn weights(key: &ShardKey, samples: &[Vec<Bson>], chunks: &[Chunk]) -> Vec<u64> {
    if key.begins_hashed() {
        return chunks.iter().map(width).collect();
    }
    let mut weights = vec![0; chunks.len()];
    for sample in samples {
        let fields = key.fields().count();
        let lowest = key.fill(sample);
        let highest: Vec<Bson> =
            sample.iter().cloned().chain(std::iter::repeat(Bson::MaxKey)).take(fields).collect();
        let first = chunks.partition_point(|chunk| !below(&lowest, &chunk.max));
        let beyond = chunks.partition_point(|chunk| !below(&highest, &chunk.min)).max(first + 1);
        let beyond = beyond.min(chunks.len());
        let share = ONE / u64::try_from(beyond.saturating_sub(first)).unwrap_or(1).max(1);
        weights[first.min(beyond)..beyond].iter_mut().for_each(|weight| *weight += share);
    }
    weights
}

/// How many hashes a chunk has, roughly.
fn width(chunk: &Chunk) -> u64 {
    let hash = |value: Option<&Bson>| match value {
        Some(Bson::Int64(hash)) => i128::from(*hash),
        Some(Bson::Int32(hash)) => i128::from(*hash),
        Some(Bson::MaxKey) => i128::from(i64::MAX),
        _ => i128::from(i64::MIN),
    };
    u64::try_from((hash(chunk.max.first()) - hash(chunk.min.first())) >> 20).unwrap_or(0)
}

/// The shard that each chunk is to lie on: one of its zone where it is in one, and so that all have about
/// the same weight. Whoever has a chunk keeps it where that makes no difference.
#[must_use]
pub fn places(chunks: &[Chunk], weights: &[u64], shards: &[String], zones: &[Zone]) -> Vec<String> {
    let mut order: Vec<usize> = (0..chunks.len()).collect();
    let weight = |index: usize| weights.get(index).copied().unwrap_or(0);
    // The heaviest first, and those first that have the least choice.
    let zone_of = |index: usize| zones.iter().find(|zone| zone.holds(&chunks[index]));
    let choice = |index: usize| zone_of(index).map_or(usize::MAX, |zone| zone.shards.len());
    order.sort_by_key(|index| (choice(*index), std::cmp::Reverse(weight(*index))));
    let mut loads: Vec<(u64, usize)> = vec![(0, 0); shards.len()];
    let mut places: Vec<String> = chunks.iter().map(|chunk| chunk.shard.clone()).collect();
    for index in order {
        let zone = zone_of(index);
        let allowed = |shard: &String| zone.is_none_or(|zone| zone.shards.contains(shard));
        let candidates = (0..shards.len()).filter(|shard| allowed(&shards[*shard]));
        let stays = |shard: usize| shards[shard] != chunks[index].shard;
        let lightest = candidates.min_by_key(|shard| (loads[*shard], stays(*shard)));
        let Some(shard) = lightest else { continue };
        loads[shard].0 += weight(index);
        loads[shard].1 += 1;
        places[index].clone_from(&shards[shard]);
    }
    places
}

/// The shard with the least data; of equal ones the first by name.
#[must_use]
pub fn least_loaded(shards: &[String], sizes: &[(String, u64)]) -> Option<String> {
    let size =
        |shard: &str| -> u64 { sizes.iter().filter(|(name, _)| name == shard).map(|(_, size)| *size).sum() };
    shards.iter().min_by_key(|shard| (size(shard), (*shard).clone())).cloned()
}

/// Whether a chunk begins there already.
#[must_use]
pub fn is_bound(chunks: &[Chunk], cut: &[Bson]) -> bool {
    chunks.iter().any(|chunk| equal(&chunk.min, cut))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::doc;

    fn key(pattern: Document) -> ShardKey {
        ShardKey::parse(&pattern).unwrap()
    }

    fn zone(name: &str, min: Document, max: Document, shards: &[&str]) -> Zone {
        Zone { zone: name.into(), min, max, shards: shards.iter().map(|shard| (*shard).to_owned()).collect() }
    }

    fn names(of: &[&str]) -> Vec<String> {
        of.iter().map(|name| (*name).to_owned()).collect()
    }

    fn chunks(of: &ShardKey, cuts: &[Vec<Bson>], shard: &str) -> Vec<Chunk> {
        let highest: Vec<Bson> = of.fields().map(|_| Bson::MaxKey).collect();
        let mins = std::iter::once(of.fill(&[])).chain(cuts.iter().cloned());
        let maxes = cuts.iter().cloned().chain([highest]);
        mins.zip(maxes).map(|(min, max)| Chunk { min, max, shard: shard.into() }).collect()
    }

    #[test]
    fn everything_wrong_with_zones_is_told_at_once() {
        let by = key(doc! { "region": 1, "n": 1 });
        let all = |from: &str, to: &str| {
            (doc! { "region": from, "n": Bson::MinKey }, doc! { "region": to, "n": Bson::MinKey })
        };
        let ((eu, us), (fr, _)) = (all("eu", "us"), all("fr", "us"));
        let zones = [
            zone("eu", eu.clone(), us.clone(), &["s0"]),
            zone("fr", fr, us.clone(), &["s1"]),
            zone("back", us.clone(), eu.clone(), &["s0"]),
            zone("short", doc! { "region": "x" }, doc! { "n": 1, "region": "y" }, &["s9"]),
            zone("", eu, us, &[]),
        ];
        let found = problems(&by, &zones, &names(&["s0", "s1"]), &[]);
        let told = [
            "no name",
            "names no shard",
            "no shard \"s9\"",
            "min lacks n",
            "in its order",
            "is not below max",
        ];
        for part in told.into_iter().chain(["\"eu\" and zone \"fr\" overlap"]) {
            assert_eq!(
                found.iter().filter(|problem| problem.contains(part)).count(),
                1,
                "{part}: {found:#?}"
            );
        }
        assert_eq!(found.len(), 7, "{found:#?}");
        assert_eq!(problems(&by, &zones[..1], &names(&["s0"]), &zones[..1]), <[String; 0]>::default());
        assert_eq!(problems(&by, &zones[..1], &names(&["s0"]), &zones[1..2]).len(), 1);
    }

    #[test]
    fn a_hashed_field_is_bounded_by_hashes() {
        let by = key(doc! { "a": 1, "b": "hashed" });
        let low = doc! { "a": 1, "b": Bson::MinKey };
        let good = zone("z", low.clone(), doc! { "a": 1, "b": 5 }, &["s"]);
        assert!(problems(&by, &[good], &names(&["s"]), &[]).is_empty());
        let bad = zone("z", low, doc! { "a": 1, "b": "text" }, &["s"]);
        assert!(problems(&by, &[bad], &names(&["s"]), &[])[0].contains("is hashed"));
    }

    #[test]
    fn adjacent_zones_do_not_overlap() {
        let by = key(doc! { "a": 1 });
        let zones = [
            zone("x", doc! { "a": 0 }, doc! { "a": 5.0 }, &["s"]),
            zone("y", doc! { "a": 5 }, doc! { "a": 9 }, &["s"]),
        ];
        assert!(problems(&by, &zones, &names(&["s"]), &[]).is_empty());
    }

    #[test]
    fn zones_read_from_json_and_back_and_are_stored_without_dotted_names() {
        let json = r#"{"zone":"eu","min":{"a.b":{"$minKey":1}},"max":{"a.b":"m"},"shards":["s0"]}"#;
        let zone: Zone = serde_json::from_str(json).unwrap();
        assert_eq!(zone.min, doc! { "a.b": Bson::MinKey });
        assert_eq!(serde_json::to_string(&zone).unwrap(), json);
        let stored = bson::serialize_to_document(&StoredZone::from(zone.clone())).unwrap();
        assert!(matches!(stored.get("min"), Some(Bson::Array(_))), "{stored}");
        assert_eq!(Zone::from(bson::deserialize_from_document::<StoredZone>(stored).unwrap()), zone);
    }

    #[test]
    fn cuts_are_quantiles_and_the_bounds_of_zones() {
        let by = key(doc! { "a": 1, "b": 1 });
        let samples: Vec<Vec<Bson>> = (0..100).map(|n| vec![Bson::Int32(n), Bson::Int32(0)]).collect();
        let at = |a: i32, b: Bson| vec![Bson::Int32(a), b];
        let zones = [zone("z", doc! { "a": 10, "b": Bson::MinKey }, doc! { "a": 50, "b": 0.0 }, &["s"])];
        let found = cuts(&by, &samples, 4, &zones);
        let zero = || Bson::Int32(0);
        assert_eq!(found, [at(10, Bson::MinKey), at(25, zero()), at(50, zero()), at(75, zero())]);
    }

    #[test]
    fn one_value_before_a_hash_is_cut_by_hashes() {
        let by = key(doc! { "region": 1, "id": "hashed" });
        let samples = vec![vec![Bson::from("eu")]; 100];
        let found = cuts(&by, &samples, 4, &[]);
        assert_eq!(found.len(), 4, "{found:?}");
        assert_eq!(found[0], vec![Bson::from("eu"), Bson::MinKey]);
        assert_eq!(found[2], vec![Bson::from("eu"), Bson::Int64(0)]);
        let parts = chunks(&by, &found, "s0");
        let weights = weights(&by, &samples, &parts);
        assert_eq!((weights[0], weights[1]), (0, weights[2]), "{weights:?}");
        let hashed = key(doc! { "id": "hashed" });
        assert_eq!(cuts(&hashed, &[], 2, &[]), [[Bson::Int64(0)]]);
    }

    #[test]
    fn shards_get_about_the_same_and_zones_are_kept() {
        let by = key(doc! { "a": 1 });
        let samples: Vec<Vec<Bson>> = (0..1000).map(|n| vec![Bson::Int32(n)]).collect();
        let zones = [zone("low", doc! { "a": Bson::MinKey }, doc! { "a": 300 }, &["s1"])];
        let shards = names(&["s0", "s1", "s2"]);
        let parts = chunks(&by, &cuts(&by, &samples, 12, &zones), "s0");
        let weights = weights(&by, &samples, &parts);
        let places = places(&parts, &weights, &shards, &zones);
        for (chunk, place) in parts.iter().zip(&places) {
            assert!(!zones[0].holds(chunk) || place == "s1", "{chunk:?} on {place}");
        }
        for shard in &shards {
            let load: u64 = weights.iter().zip(&places).filter(|(_, at)| *at == shard).map(|(w, _)| w).sum();
            assert!(load < 400 * ONE, "{shard}: {}", load / ONE);
        }
    }

    #[test]
    fn the_emptiest_shard_is_chosen() {
        let shards = names(&["b", "a", "c"]);
        let sizes = [("a".to_owned(), 5), ("b".to_owned(), 1), ("b".to_owned(), 1), ("c".to_owned(), 2)];
        assert_eq!(least_loaded(&shards, &sizes).as_deref(), Some("b"));
        assert_eq!(least_loaded(&shards, &[]).as_deref(), Some("a"));
    }
}
