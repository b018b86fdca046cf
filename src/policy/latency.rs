//! Latencies in buckets: from 16 microseconds to about a minute, four to an octave, and what they say.

/// Buckets to an octave; a bucket is 19 % wide.
const TO_AN_OCTAVE: usize = 4;
/// The first bucket ends at this power of two, in microseconds.
const LOWEST: u32 = 4;
const HIGHEST: u32 = 26;
/// Buckets there are; the last one holds whatever took longer.
pub const BUCKETS: usize = (HIGHEST - LOWEST) as usize * TO_AN_OCTAVE + 2;

/// The bucket of a latency.
#[must_use]
pub fn bucket(micros: u64) -> usize {
    if micros < 1 << LOWEST {
        return 0;
    }
    let power = micros.ilog2();
    if power >= HIGHEST {
        return BUCKETS - 1;
    }
    // The two bits below the highest one.
    let quarter = (micros >> (power - 2)) & 3;
    let quarter = quarter as usize;
    1 + (power - LOWEST) as usize * TO_AN_OCTAVE + quarter
}

/// Where a bucket begins, in microseconds.
#[must_use]
pub fn begin(bucket: usize) -> f64 {
    let Some(above) = bucket.checked_sub(1) else { return 0.0 };
    let (power, quarter) = (above / TO_AN_OCTAVE, above % TO_AN_OCTAVE);
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let begin = (1_u64 << (power + LOWEST as usize)) as f64 * (1.0 + quarter as f64 / 4.0);
    begin
}

/// What was measured in some time.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// How many took how long; those that failed are not among them.
    pub counts: [u64; BUCKETS],
    /// Operations that failed in a way that speaks about the cluster.
    pub errors: u64,
}

impl Default for Measured {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], errors: 0 }
    }
}

impl Measured {
    /// Operations that did not fail.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The share of those that failed; `None` without any.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    pub fn error_rate(&self) -> Option<f64> {
        let all = self.samples() + self.errors;
        (all > 0).then(|| self.errors as f64 / all as f64)
    }

    /// Milliseconds that the `share` of all took at most, in whole microseconds; `None` without samples.
    ///
    /// It is one of them that is asked for: of few the longest, and then no less than that one took. Where in its bucket
    /// one lies is not known: they count as spread evenly up to the bucket's end. Beyond the last bucket's begin all are alike.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    pub fn quantile_ms(&self, share: f64) -> Option<f64> {
        let samples = self.samples() as f64;
        // A product that is a whole number may come out a little above it.
        let wanted = (samples * share - 1e-6).ceil().clamp(1.0, samples.max(1.0));
        let mut below = 0.0;
        for (bucket, count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let count = *count as f64;
            if below + count >= wanted {
                let end = begin((bucket + 1).min(BUCKETS - 1));
                let (from, width) = (begin(bucket), end - begin(bucket));
                return Some((from + width * ((wanted - below) / count)).ceil() / 1000.0);
            }
            below += count;
        }
        None
    }

    /// How many certainly took longer than `limit_ms`.
    #[must_use]
    pub fn above_ms(&self, limit_ms: f64) -> u64 {
        let above = |bucket: usize| begin(bucket) / 1000.0 >= limit_ms;
        self.counts.iter().enumerate().filter(|(bucket, _)| above(*bucket)).map(|(_, count)| count).sum()
    }

    /// Without what was measured before.
    #[must_use]
    pub fn minus(mut self, before: &Self) -> Self {
        self.errors = self.errors.saturating_sub(before.errors);
        for (count, less) in self.counts.iter_mut().zip(&before.counts) {
            *count = count.saturating_sub(*less);
        }
        self
    }

    /// Adds what was measured elsewhere or at another time.
    pub fn add(&mut self, other: &Self) {
        self.errors += other.errors;
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
    }
}

/// Codes with which a server says that it is not there, not fit, or not in time, among those above 10,000, which
/// otherwise tell what is wrong with an expression.
const ABOUT_THE_CLUSTER: [i32; 8] = [10107, 11600, 11602, 13388, 13435, 13436, 14031, 17280];

/// Codes that tell what is wrong with a command, its data or its sender, wherever it is sent.
const ABOUT_THE_COMMAND: [i32; 44] = [
    2, 3, 4, 5, 9, 10, 14, 15, 16, 17, 18, 19, 20, 22, 26, 27, 28, 31, 40, 43, 48, 52, 53, 54, 55, 56, 57,
    59, 66, 67, 68, 72, 73, 85, 86, 93, 112, 115, 121, 165, 166, 168, 225, 251,
];

/// Whether an error with this code speaks about the cluster that gave it. What is not known does.
#[must_use]
pub fn is_about_the_cluster(code: i32) -> bool {
    if code >= 10_000 { ABOUT_THE_CLUSTER.contains(&code) } else { !ABOUT_THE_COMMAND.contains(&code) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn errors_of_the_data_do_not_speak_about_the_cluster() {
        for code in [11000, 11001, 121, 2, 112, 16410, 40415] {
            assert!(!is_about_the_cluster(code), "{code}");
        }
        for code in [0, 1, 6, 13, 50, 64, 89, 91, 262, 10107, 11600, 189, 9001] {
            assert!(is_about_the_cluster(code), "{code}");
        }
    }

    #[test]
    fn quantiles_are_right_within_a_bucket() {
        let mut measured = Measured::default();
        assert_eq!(measured.quantile_ms(0.99), None);
        assert_eq!(measured.error_rate(), None);
        for micros in (100..=10_000).step_by(100) {
            measured.counts[bucket(micros)] += 1;
        }
        for (share, expected) in [(0.5, 5.0), (0.95, 9.5), (0.99, 9.9)] {
            let found = measured.quantile_ms(share).unwrap();
            assert!((found / expected - 1.0).abs() < 0.2, "{share}: {found} for {expected}");
        }
        measured.errors = 100;
        assert_eq!(measured.error_rate(), Some(0.5));
    }

    #[test]
    fn of_few_samples_the_longest_counts() {
        let of = |all: &[u64]| {
            let mut measured = Measured::default();
            all.iter().for_each(|micros| measured.counts[bucket(*micros)] += 1);
            measured
        };
        // 20.47 ms lies at the end of its bucket, 17 ms at the begin.
        for all in [&[20_470][..], &[1000, 20_470], &[17_000, 20_470], &[1000, 1000, 1000, 20_470]] {
            let p99 = of(all).quantile_ms(0.99).unwrap();
            assert!((20.47..=20.48).contains(&p99), "{p99} of {all:?}");
        }
        assert_eq!(of(&[900, 19_900]).quantile_ms(0.5), Some(1.024));
        assert_eq!(of(&[0]).quantile_ms(0.5), Some(0.016));
        // One in a hundred may take longer than p99, two not.
        let many = |slow: usize| {
            of(&[vec![900; 100 - slow], vec![19_900; slow]].concat()).quantile_ms(0.99).unwrap()
        };
        assert!(many(1) < 1.1 && many(2) > 16.0, "{} {}", many(1), many(2));
        let mut merged = of(&[900; 98]);
        merged.add(&of(&[19_900; 2]));
        assert_eq!(merged.quantile_ms(0.99), Some(many(2)));
    }

    proptest! {
        #[test]
        fn no_quantile_is_below_its_bucket(all in prop::collection::vec(0_u64..1 << 26, 1..300), share in 0.0..1.0_f64) {
            let mut measured = Measured::default();
            all.iter().for_each(|micros| measured.counts[bucket(*micros)] += 1);
            let found = measured.quantile_ms(share).unwrap();
            let longest = *all.iter().max().unwrap();
            #[expect(clippy::cast_precision_loss, reason = "small")]
            let longest = longest as f64 / 1000.0;
            prop_assert!(measured.quantile_ms(1.0).unwrap() >= longest);
            prop_assert!(measured.quantile_ms(0.99).unwrap() >= longest || all.len() >= 100);
            #[expect(clippy::cast_precision_loss, reason = "small")]
            let shorter = all.iter().filter(|micros| begin(bucket(**micros)) / 1000.0 <= found).count() as f64;
            prop_assert!(shorter >= share * all.len() as f64 - 1e-3);
        }

        #[test]
        fn every_latency_lies_in_its_bucket(micros in 0_u64..1 << 30) {
            let bucket = bucket(micros);
            #[expect(clippy::cast_precision_loss, reason = "small")]
            let micros = micros as f64;
            prop_assert!(begin(bucket) <= micros);
            prop_assert!(bucket == BUCKETS - 1 || micros < begin(bucket + 1));
        }
    }
}
