//! Choosing a part of something, spread evenly.

/// Which of `count` parts make up `percent` of them; at least one, if there is any. `seed` decides which.
#[must_use]
pub fn sampled(count: usize, percent: f64, seed: u64) -> Vec<usize> {
    if percent >= 100.0 || count == 0 {
        return (0..count).collect();
    }
    #[expect(clippy::cast_precision_loss, reason = "counts of ranges")]
    let wanted = |parts: usize| parts as f64 * percent / 100.0;
    #[expect(clippy::cast_precision_loss, reason = "below 1000")]
    let offset = (seed % 1000) as f64 / 1000.0;
    // One is chosen each time that the sum reaches a whole number.
    let chosen = |index: &usize| (wanted(index + 1) + offset).floor() > (wanted(*index) + offset).floor();
    let mut all: Vec<usize> = (0..count).filter(chosen).collect();
    if all.is_empty() {
        all.push(usize::try_from(seed % count as u64).unwrap_or(0));
    }
    all
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_as_large_as_asked_for(count in 0_usize..5000, percent in 0.01_f64..100.0, seed: u64) {
            let chosen = sampled(count, percent, seed);
            let wanted = count as f64 * percent / 100.0;
            prop_assert!((chosen.len() as f64 - wanted).abs() <= 1.0, "{} of {wanted}", chosen.len());
            prop_assert!(count == 0 || !chosen.is_empty());
            prop_assert!(chosen.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert!(chosen.iter().all(|index| *index < count));
        }
    }

    #[test]
    fn in_the_end_every_part_has_its_turn() {
        let seen: BTreeSet<usize> = (0..1000).flat_map(|seed| sampled(16, 5.0, seed)).collect();
        assert_eq!(seen.len(), 16);
        assert_eq!(sampled(4, 100.0, 9), [0, 1, 2, 3]);
    }
}
