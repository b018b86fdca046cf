//! What can be asked of a comparison of both sides, and what it found.

use bson::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::model::side::{PerSide, Side};

/// Ranges that one comparison reads at once, at most.
pub const MOST_PARALLEL: u8 = 16;

/// By what documents are compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// All their bytes. Only this proves that they are equal.
    #[default]
    Bytes,
    /// A hash that the servers make (`$toHashedIndexKey`, from 5.0 on): documents that are equal stay off the
    /// network. Numbers of another type but the same integer part pass for equal.
    Digest,
}

impl Basis {
    /// As the API names it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Digest => "digest",
        }
    }

    /// What differs and is not seen by it.
    #[must_use]
    pub const fn blind_spots(self) -> &'static [&'static str] {
        match self {
            Self::Bytes => &[],
            Self::Digest => &[
                "numbers of different types with the same value (int 1, long 1, double 1.0, decimal 1)",
                "numbers with the same integer part (1.2 and 1.7)",
                "two documents whose hashes of 64 bits are equal by chance",
            ],
        }
    }
}

/// How both sides are compared. What is left out is as in a full verification.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Verify {
    /// `bytes` or `digest`.
    pub compare: Basis,
    /// Share of the ranges of `_id` that are compared, above 0 up to 100; which ones is another choice each time.
    pub sample_percent: f64,
    /// Make equal what differs.
    pub repair: bool,
    /// Documents read of each side each second; no limit by default.
    pub documents_per_second: Option<f64>,
    /// Megabytes (10^6) read of each side each second; no limit by default.
    pub megabytes_per_second: Option<f64>,
    /// Ranges read at once, 1 to 16; 2 by default.
    pub parallel: u8,
}

impl Default for Verify {
    fn default() -> Self {
        Self {
            compare: Basis::Bytes,
            sample_percent: 100.0,
            repair: true,
            documents_per_second: None,
            megabytes_per_second: None,
            parallel: 2,
        }
    }
}

impl Verify {
    /// Everything, by bytes: what moves and `complete` rest on.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.compare == Basis::Bytes && self.sample_percent >= 100.0
    }

    /// What is wrong with it, each with the way out.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !(self.sample_percent > 0.0 && self.sample_percent <= 100.0) {
            problems
                .push(format!("sample_percent is {}; it is above 0, and 100 at most", self.sample_percent));
        }
        if !(1..=MOST_PARALLEL).contains(&self.parallel) {
            problems.push(format!("parallel is {}; it is 1 to {MOST_PARALLEL}", self.parallel));
        }
        let limits = [
            ("documents_per_second", self.documents_per_second),
            ("megabytes_per_second", self.megabytes_per_second),
        ];
        for (field, limit) in limits {
            if limit.is_some_and(|limit| !(limit > 0.0 && limit.is_finite())) {
                problems.push(format!("{field} must be above 0; leave it out for no limit"));
            }
        }
        problems
    }
}

impl std::fmt::Display for Verify {
    /// As the audit has it: what is not the default.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("verify")?;
        let usual = Self::default();
        if self.compare != usual.compare {
            write!(f, " {}", self.compare.as_str())?;
        }
        if self.sample_percent < usual.sample_percent {
            write!(f, " {} %", self.sample_percent)?;
        }
        if !self.repair {
            f.write_str(" without repair")?;
        }
        Ok(())
    }
}

/// What of one collection was compared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Compared {
    /// `database.collection`.
    pub namespace: String,
    /// Documents read of old.
    pub documents_on_old: u64,
    /// Documents read of new. While writes go on, both are of different moments.
    pub documents_on_new: u64,
    /// Of all documents read of old, in whatever order, as 32 hexadecimal digits. Without writes meanwhile it
    /// is the same on new.
    pub digest_of_old: String,
    /// The same of new.
    pub digest_of_new: String,
    /// Real differences found.
    pub mismatches: u64,
    /// Of those, made equal.
    pub repaired: u64,
}

/// Until which cluster times both sides are proved equal: each document had, on the other side too, what writes
/// up to then made of it where they were decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EqualUpTo {
    /// For what old decides.
    pub old: ClusterTime,
    /// For what new decides.
    pub new: ClusterTime,
}

impl From<PerSide<Timestamp>> for EqualUpTo {
    fn from(times: PerSide<Timestamp>) -> Self {
        Self { old: (*times.get(Side::Old)).into(), new: (*times.get(Side::New)).into() }
    }
}

/// A time of a cluster, as its oplog counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterTime {
    /// Unix seconds.
    pub seconds: u32,
    /// Which one in that second.
    pub increment: u32,
}

impl From<Timestamp> for ClusterTime {
    fn from(time: Timestamp) -> Self {
        Self { seconds: time.time, increment: time.increment }
    }
}

impl std::fmt::Display for ClusterTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.seconds, self.increment)
    }
}

/// A comparison of both sides. Writes move to new only after a full one, by bytes, that went through.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Verification {
    /// How it compares.
    pub asked: Verify,
    /// It is still running.
    pub running: bool,
    /// A stream missed changes after it began: it does not count any more.
    pub outdated: bool,
    /// The collections that it covers.
    pub namespaces: Vec<String>,
    /// Documents compared.
    pub compared_documents: u64,
    /// Documents to compare, by the servers' counts.
    pub total_documents: u64,
    /// Documents each second, while it runs; null until that is known.
    pub documents_per_second: Option<f64>,
    /// Until its end at the present rate; null until that is known, and after the end.
    pub remaining_seconds: Option<f64>,
    /// Real differences found.
    pub mismatches: u64,
    /// Of those, made equal.
    pub repaired: u64,
    /// Unix milliseconds when it began.
    pub started_at: Option<i64>,
    /// Unix milliseconds when it ended.
    pub finished_at: Option<i64>,
    /// Why it stopped early, if it did.
    pub failure: Option<String>,
    /// Each collection by itself.
    pub collections: Vec<Compared>,
    /// Until when equality is proved; null until then, where differences are left, and where only a part was
    /// compared.
    pub equal_up_to: Option<EqualUpTo>,
}

impl Verification {
    /// Rate and time left, with `before` compared when this process began `seconds` ago.
    #[expect(clippy::cast_precision_loss, reason = "rates for people")]
    pub(super) fn set_pace(&mut self, before: u64, seconds: f64) {
        let rate = (self.compared_documents.saturating_sub(before)) as f64 / seconds;
        if !rate.is_finite() || rate <= 0.0 {
            return;
        }
        let left = self.total_documents.saturating_sub(self.compared_documents);
        self.documents_per_second = Some(rate);
        self.remaining_seconds = Some(left as f64 / rate);
    }

    /// Real differences that were not made equal.
    #[must_use]
    pub const fn left(&self) -> u64 {
        self.mismatches.saturating_sub(self.repaired)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_all_by_bytes_is_full() {
        assert!(Verify::default().is_full());
        assert!(!Verify { compare: Basis::Digest, ..Verify::default() }.is_full());
        assert!(!Verify { sample_percent: 99.9, ..Verify::default() }.is_full());
        assert!(Verify { repair: false, ..Verify::default() }.is_full());
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        assert!(Verify::default().problems().is_empty());
        let bad = Verify {
            sample_percent: f64::NAN,
            documents_per_second: Some(0.0),
            megabytes_per_second: Some(-1.0),
            parallel: 0,
            ..Verify::default()
        };
        let problems = bad.problems();
        for field in ["sample_percent", "documents_per_second", "megabytes_per_second", "parallel"] {
            assert!(problems.iter().any(|problem| problem.starts_with(field)), "{field}: {problems:?}");
        }
        assert_eq!(problems.len(), 4);
    }

    #[test]
    fn the_audit_says_what_is_not_usual() {
        assert_eq!(Verify::default().to_string(), "verify");
        let some = Verify { compare: Basis::Digest, sample_percent: 5.0, repair: false, ..Verify::default() };
        assert_eq!(some.to_string(), "verify digest 5 % without repair");
    }
}
