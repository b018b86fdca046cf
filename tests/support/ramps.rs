//! What ramps by plan have decided.

use reshard::migration::control::{RampDecision, Verdict};

/// Whether a gate was broken at a look.
pub(crate) fn has_broken(one: &RampDecision, gate: &str) -> bool {
    one.gates.iter().any(|known| known.name == gate && known.verdict == Verdict::Broken)
}

/// Looks at broken gates that it took until `down`, the one that brought it down among them; `all` is newest first.
///
/// A hold is recorded when its gates say something else than before, so that the first look at broken gates always is;
/// the looks in between need not be, and are told by their numbers.
pub(crate) fn looks_until(down: &RampDecision, all: &[RampDecision]) -> i64 {
    let is_broken = |one: &&RampDecision| one.gates.iter().any(|gate| gate.verdict == Verdict::Broken);
    let before = all.iter().filter(|one| one.number < down.number);
    let in_a_row = before.take_while(|one| is_broken(one) && one.act == "hold");
    let first = in_a_row.last().unwrap_or(down);
    down.look - first.look + 1
}
