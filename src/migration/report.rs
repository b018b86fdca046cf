//! What comparisons have proved of a migration, as a document to be kept.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;

use super::control::{Mismatch, Phase, Verification};

/// Differences that a report lists.
pub const MOST_LISTED: usize = 100;

/// Whether both sides are equal, as far as that is proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Conclusion {
    /// Everything was compared by bytes, and nothing differs.
    Equal,
    /// Differences are left.
    Different,
    /// Not all was compared, or not yet: it is not known.
    NotProved,
}

impl Conclusion {
    /// In words.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Different => "different",
            Self::NotProved => "not proved",
        }
    }
}

/// The clusters of a migration, by the identities that they were given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Identities {
    /// Of old.
    pub old: String,
    /// Of new.
    pub new: String,
}

/// What comparisons have proved of a migration.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct VerificationReport {
    /// The migration's name.
    pub migration: String,
    /// Unix milliseconds when this was made.
    pub made_at: i64,
    /// The version of reshard that made it.
    pub made_by: String,
    /// Where the migration was in its life.
    pub phase: Phase,
    /// The clusters.
    pub clusters: Identities,
    /// Whether both sides are equal.
    pub conclusion: Conclusion,
    /// Why it is no proof, or what is left; each with the way out.
    pub reasons: Vec<String>,
    /// The last full comparison by bytes.
    pub verification: Option<Verification>,
    /// The last comparison of a part, or by digests.
    pub spot_check: Option<Verification>,
    /// What the last comparison of each kind does not see.
    pub blind_spots: Vec<String>,
    /// Differences found, newest first, at most 100.
    pub mismatches: Vec<Mismatch>,
    /// SHA-256 of this report as JSON with this field empty: whoever keeps it elsewhere can tell whether it was
    /// changed.
    pub fingerprint: String,
}

impl VerificationReport {
    /// With its fingerprint.
    #[must_use]
    pub fn sealed(mut self) -> Self {
        self.fingerprint = String::new();
        let json = serde_json::to_vec(&self).unwrap_or_default();
        self.fingerprint = Sha256::digest(&json).iter().map(|byte| format!("{byte:02x}")).collect();
        self
    }
}

/// What the comparisons say together; `lacking` is why the full one proves nothing.
#[must_use]
pub fn conclude(
    full: Option<&Verification>,
    part: Option<&Verification>,
    lacking: Option<String>,
) -> (Conclusion, Vec<String>) {
    let left = |of: Option<&Verification>| of.map_or(0, Verification::left);
    let Some(lacking) = lacking else {
        if full.is_some_and(|full| full.equal_up_to.is_some()) {
            return (Conclusion::Equal, Vec::new());
        }
        let why = "the streams had not reached the end of the comparison; verify again when they keep up";
        return (Conclusion::NotProved, vec![why.to_owned()]);
    };
    let conclusion = if left(full) + left(part) > 0 { Conclusion::Different } else { Conclusion::NotProved };
    (conclusion, vec![lacking])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::control::{ClusterTime, EqualUpTo};

    fn full(mismatches: u64, repaired: u64, proved: bool) -> Verification {
        let time = ClusterTime { seconds: 1, increment: 2 };
        let equal_up_to = proved.then_some(EqualUpTo { old: time, new: time });
        Verification { mismatches, repaired, equal_up_to, ..Verification::default() }
    }

    #[test]
    fn unknown_is_not_equal() {
        assert_eq!(conclude(Some(&full(1, 1, true)), None, None).0, Conclusion::Equal);
        assert_eq!(conclude(Some(&full(0, 0, false)), None, None).0, Conclusion::NotProved);
        assert_eq!(conclude(None, None, Some("never".into())).0, Conclusion::NotProved);
        let (conclusion, reasons) = conclude(Some(&full(2, 1, false)), None, Some("1 left".into()));
        assert_eq!((conclusion, reasons), (Conclusion::Different, vec!["1 left".to_owned()]));
        let part = full(1, 0, false);
        assert_eq!(conclude(None, Some(&part), Some("x".into())).0, Conclusion::Different);
    }

    #[test]
    fn a_changed_report_has_another_fingerprint() {
        let report = VerificationReport {
            migration: "m".into(),
            made_at: 1,
            made_by: "1".into(),
            phase: Phase::Synced,
            clusters: Identities::default(),
            conclusion: Conclusion::Equal,
            reasons: Vec::new(),
            verification: None,
            spot_check: None,
            blind_spots: Vec::new(),
            mismatches: Vec::new(),
            fingerprint: String::new(),
        };
        let sealed = report.sealed();
        assert_eq!(sealed.fingerprint.len(), 64);
        assert_eq!(sealed.clone().sealed().fingerprint, sealed.fingerprint);
        let changed = VerificationReport { made_at: 2, ..sealed.clone() }.sealed();
        assert_ne!(changed.fingerprint, sealed.fingerprint);
    }
}
