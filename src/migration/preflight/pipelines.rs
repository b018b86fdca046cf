//! Pipelines that applications have sent, and cannot while a collection moves.

use crate::migration::control::PreflightReport;
use crate::model::namespace::Namespace;
use crate::state::pipelines::{Pair, Use};

use super::findings::Findings;

impl PreflightReport {
    /// With what pipelines that were `seen` do to collections of which some are `moving`.
    #[must_use]
    pub fn with_pipelines(self, seen: &[(Pair, u64)], moving: &[Namespace]) -> Self {
        let mut findings = Findings(self.findings);
        for (Pair { own, other, used }, times) in seen {
            let moves = [own, other].map(|one| moving.contains(one));
            let seen = format!("seen {times} times since this process began");
            match (used, moves) {
                (_, [false, false]) => {}
                (Use::Written, [_, true]) => findings.limit(
                    "pipeline-writes",
                    other.as_str(),
                    format!("$out, $merge or mapReduce on {own} writes into it ({seen}): refused while it moves"),
                    "write it with insert, update or delete meanwhile",
                ),
                (_, [true, true]) => findings.limit(
                    "used-together",
                    own.as_str(),
                    format!("a pipeline on it reads {other}, too ({seen}): refused while reads or writes are divided"),
                    "move both in one step, 0 to 100; or read them one after the other meanwhile",
                ),
                (_, [true, false] | [false, true]) => findings.limit(
                    "used-together",
                    if moves[0] { own } else { other }.as_str(),
                    format!(
                        "a pipeline uses {own} and {other} ({seen}): refused as soon as new serves one and old the other"
                    ),
                    "move both in one migration, or send the pipeline's parts one by one",
                ),
            }
        }
        findings.report()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_moves_is_told_and_what_is_written_as_such() {
        let [a, b, c] = ["a", "b", "c"].map(|name| Namespace::new("d", name));
        let pair = |own: &Namespace, other: &Namespace, used| {
            (Pair { own: own.clone(), other: other.clone(), used }, 3)
        };
        let seen = [
            pair(&a, &b, Use::Written),
            pair(&b, &a, Use::Written),
            pair(&a, &c, Use::Joined),
            pair(&b, &c, Use::Joined),
        ];
        let told = |moving: &[Namespace]| -> Vec<(String, String)> {
            let report = Findings::default().report().with_pipelines(&seen, moving);
            assert!(report.ok, "it may start");
            report.findings.into_iter().map(|finding| (finding.code, finding.namespace)).collect()
        };
        let found = |code: &str, of: &str| (code.to_owned(), format!("d.{of}"));
        assert_eq!(told(&[]), []);
        assert_eq!(
            told(std::slice::from_ref(&a)),
            [found("used-together", "a"), found("pipeline-writes", "a"), found("used-together", "a")]
        );
        assert_eq!(
            told(&[a.clone(), c.clone()])[2..],
            [found("used-together", "a"), found("used-together", "c")]
        );
    }
}
