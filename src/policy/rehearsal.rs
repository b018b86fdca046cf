//! When a rehearsal of load ends by itself: it is there to find out what new can take, not to break it.

/// Errors of new among a hundred repetitions, from which on it ends.
const MOST_ERRORS_PERCENT: u64 = 5;
/// Repetitions of which that can be said.
const ENOUGH: u64 = 20;
/// Seconds that a stream may be behind.
const MOST_LAG: f64 = 10.0;

/// What is known of new while it is rehearsed.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Seen {
    /// Repetitions of late that it answered.
    pub answered: u64,
    /// Repetitions of late that it did not answer in time, or for a reason of its own.
    pub errors: u64,
    /// Inline mirror writes that failed since the rehearsal began.
    pub mirror_failures: u64,
    /// Seconds that the streams are behind; the larger one, where known.
    pub lag: Option<f64>,
}

/// Why it must end now; `None`: it goes on.
#[must_use]
pub fn trouble(seen: &Seen) -> Option<String> {
    let all = seen.answered + seen.errors;
    if all >= ENOUGH && seen.errors * 100 > all * MOST_ERRORS_PERCENT {
        return Some(format!("new failed {} of {all} repetitions", seen.errors));
    }
    if seen.mirror_failures > 0 {
        return Some(format!("{} writes to the mirror failed since it began", seen.mirror_failures));
    }
    let lag = seen.lag.filter(|lag| *lag > MOST_LAG)?;
    Some(format!("the streams are {lag:.0} s behind"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_trouble_ends_it() {
        let well = Seen { answered: 95, errors: 5, mirror_failures: 0, lag: Some(10.0) };
        assert_eq!(trouble(&well), None);
        assert_eq!(trouble(&Seen { answered: 0, errors: 19, lag: None, ..well }), None);
        let bad = [
            Seen { errors: 6, ..well },
            Seen { answered: 0, errors: 20, ..well },
            Seen { mirror_failures: 1, ..well },
            Seen { lag: Some(10.5), ..well },
        ];
        for seen in bad {
            assert!(trouble(&seen).is_some(), "{seen:?}");
        }
    }
}
