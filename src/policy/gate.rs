//! Whether reads or writes may move: every gate measured and passed. Unknown is no.

/// What the gates look at. `None` is unknown.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measured {
    /// The phase is `synced`.
    pub synced: bool,
    /// An operator has halted it.
    pub paused: bool,
    /// Seconds behind, old to new.
    pub lag_old_to_new: Option<f64>,
    /// Seconds behind, new to old.
    pub lag_new_to_old: Option<f64>,
    /// Keys that cannot be made equal now.
    pub parked: usize,
    /// Leases held, old and new.
    pub leases: (bool, bool),
    /// Holders that are not done with, each with the reason.
    pub holders: Vec<String>,
    /// What the streams say is wrong, and stays so.
    pub stream_problems: Vec<String>,
    /// Why streams do not go on just now; they are tried again.
    pub streams_waiting: Vec<String>,
}

/// A stream further behind than this many seconds does not get authority moved on it.
pub const MOST_LAG_SECONDS: f64 = 5.0;

/// Everything that stands in the way, in words; empty is go.
#[must_use]
pub fn blocked_by(measured: &Measured) -> Vec<String> {
    let mut reasons = Vec::new();
    let mut no = |is_blocked: bool, why: String| {
        if is_blocked {
            reasons.push(why);
        }
    };
    no(!measured.synced, "the copy is not finished and followed closely yet (phase is not synced)".into());
    no(measured.paused, "it is paused; resume it first".into());
    for (name, lag) in [("old to new", measured.lag_old_to_new), ("new to old", measured.lag_new_to_old)] {
        match lag {
            None => no(true, format!("the lag from {name} is not known")),
            Some(lag) => no(
                lag > MOST_LAG_SECONDS,
                format!("the lag from {name} is {lag:.0} s, more than {MOST_LAG_SECONDS:.0} s"),
            ),
        }
    }
    no(measured.parked > 0, format!("{} keys cannot be made equal; see conflicts", measured.parked));
    no(!measured.leases.0, "the old cluster does not grant the lease to write".into());
    no(!measured.leases.1, "the new cluster does not grant the lease to write".into());
    let streams = measured.stream_problems.iter().chain(&measured.streams_waiting);
    for why in measured.holders.iter().chain(streams) {
        no(true, why.clone());
    }
    reasons
}

/// Whether something stands in the way, and nothing but what may have passed in a moment: streams that are opened again,
/// leases that are renewed, a short lag.
#[must_use]
pub fn may_pass(measured: &Measured) -> bool {
    let passed = Measured {
        lag_old_to_new: Some(0.0),
        lag_new_to_old: Some(0.0),
        leases: (true, true),
        streams_waiting: Vec::new(),
        ..measured.clone()
    };
    !blocked_by(measured).is_empty() && blocked_by(&passed).is_empty()
}

/// What is known of the last full comparison of both sides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// It has not ended.
    pub running: bool,
    /// It has ended.
    pub ended: bool,
    /// A stream missed changes after it began.
    pub outdated: bool,
    /// Why it did not go through.
    pub failure: Option<String>,
    /// Real differences that it found.
    pub mismatches: u64,
    /// Of those, made equal.
    pub repaired: u64,
    /// When it began, Unix milliseconds.
    pub began: Option<i64>,
}

impl Comparison {
    const fn left(&self) -> u64 {
        self.mismatches.saturating_sub(self.repaired)
    }
}

/// Why both sides cannot be taken for equal, with the way out; `None`: a full comparison since the end of the
/// copy went through and left no difference, nor has a comparison of a `part` since then.
#[must_use]
pub fn unverified(migration: &str, last: Option<&Comparison>, part: Option<&Comparison>) -> Option<String> {
    let verify = format!("reshard migrate verify {migration} --wait");
    let never =
        format!("no full verification has gone through since the end of the copy; after that, run: {verify}");
    let Some(last) = last else { return Some(never) };
    match &last.failure {
        _ if last.running => {
            Some(format!("a verification is running, and counts when it has gone through; wait: {verify}"))
        }
        _ if last.outdated => {
            Some(format!("a stream has missed changes since the last verification began; run: {verify}"))
        }
        Some(why) => Some(format!("the last verification did not go through ({why}); run: {verify}")),
        None if !last.ended => Some(never),
        None if last.left() > 0 => Some(format!(
            "the last verification left {} differences; see mismatches, then run: {verify}",
            last.left()
        )),
        None => part.filter(|part| part.left() > 0 && part.began > last.began).map(|part| {
            format!(
                "a part that was compared after the last full verification has {} differences; see mismatches, then \
                 run: {verify}",
                part.left()
            )
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Measured {
        Measured {
            synced: true,
            lag_old_to_new: Some(0.0),
            lag_new_to_old: Some(1.0),
            leases: (true, true),
            ..Measured::default()
        }
    }

    #[test]
    fn every_gate_blocks_by_itself() {
        assert!(blocked_by(&good()).is_empty());
        let bad = [
            Measured { synced: false, ..good() },
            Measured { paused: true, ..good() },
            Measured { lag_old_to_new: None, ..good() },
            Measured { lag_new_to_old: Some(60.0), ..good() },
            Measured { parked: 1, ..good() },
            Measured { leases: (true, false), ..good() },
            Measured { holders: vec!["x".into()], ..good() },
            Measured { stream_problems: vec!["x".into()], ..good() },
            Measured { streams_waiting: vec!["x".into()], ..good() },
        ];
        for measured in bad {
            assert_eq!(blocked_by(&measured).len(), 1, "{measured:?}");
        }
        assert!(!blocked_by(&Measured::default()).is_empty());
    }

    #[test]
    fn what_may_pass_is_waited_for_only_where_nothing_else_is_in_the_way() {
        assert!(!may_pass(&good()), "nothing is in the way");
        let passing = [
            Measured { lag_old_to_new: None, ..good() },
            Measured { lag_new_to_old: Some(60.0), ..good() },
            Measured { leases: (false, true), ..good() },
            Measured { streams_waiting: vec!["x".into()], ..good() },
        ];
        for measured in passing {
            assert!(may_pass(&measured), "{measured:?}");
            let stays = Measured { parked: 1, ..measured };
            assert!(!may_pass(&stays), "{stays:?}");
        }
        assert!(!may_pass(&Measured { stream_problems: vec!["x".into()], ..good() }));
    }

    #[test]
    fn only_a_comparison_that_went_through_and_left_nothing_is_a_yes() {
        let through = Comparison { ended: true, ..Comparison::default() };
        assert_eq!(unverified("m", Some(&through), None), None);
        let repaired = Comparison { mismatches: 3, repaired: 3, ..through.clone() };
        assert_eq!(unverified("m", Some(&repaired), None), None);
        let bad = [
            (None, "no full verification"),
            (Some(Comparison::default()), "no full verification"),
            (Some(Comparison { running: true, ..through.clone() }), "is running"),
            (Some(Comparison { outdated: true, ..through.clone() }), "missed changes"),
            (Some(Comparison { failure: Some("old is away".into()), ..through.clone() }), "old is away"),
            (Some(Comparison { mismatches: 3, repaired: 1, ..through.clone() }), "left 2 differences"),
        ];
        for (last, words) in bad {
            let why = unverified("m", last.as_ref(), None).unwrap();
            assert!(why.contains(words) && why.contains("reshard migrate verify m --wait"), "{why}");
        }
        let full = Comparison { began: Some(5), ..through };
        let part = |began| Comparison { mismatches: 2, began: Some(began), ..full.clone() };
        assert_eq!(unverified("m", Some(&full), Some(&part(4))), None);
        let why = unverified("m", Some(&full), Some(&part(6))).unwrap();
        assert!(why.contains("2 differences"), "{why}");
        let repaired = Comparison { repaired: 2, ..part(6) };
        assert_eq!(unverified("m", Some(&full), Some(&repaired)), None);
    }
}
