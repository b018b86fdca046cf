//! Whether a plan may go up when the one before it may not: who puts one in the place of another does not drop its
//! windows and freezes in passing.

use super::calendar::{DAYS, MINUTE_MS, closed};
use super::ramp_plan::Plan;

const WEEK_MINUTES: i64 = 7 * 24 * 60;

/// What `after` drops of the windows and freezes of `before` at `now` (Unix milliseconds), in words; empty is nothing.
///
/// Both may be written otherwise, in other time zones too, as long as it may go up at no time at which it could not.
/// A freeze that is over is not missed.
#[must_use]
pub fn dropped(before: &Plan, after: &Plan, now: i64) -> Vec<String> {
    let mut dropped: Vec<_> = opened(before, after).into_iter().collect();
    let spans = after.freezes.iter().filter_map(|freeze| freeze.minutes(after.utc_offset_minutes));
    let mut spans: Vec<_> = spans.collect();
    spans.sort_unstable();
    let is_kept = |(from, to): (i64, i64)| {
        let mut open_from = from.max(now.div_euclid(MINUTE_MS));
        for (from, to) in &spans {
            if *from <= open_from {
                open_from = open_from.max(*to);
            }
        }
        open_from >= to
    };
    let lost = before
        .freezes
        .iter()
        .filter(|freeze| !freeze.minutes(before.utc_offset_minutes).is_some_and(is_kept));
    dropped.extend(
        lost.map(|freeze| {
            format!("freezes: {} to {} would not be frozen as a whole", freeze.from, freeze.to)
        }),
    );
    dropped
}

/// The first minute of a week at which the windows of `after` are open, and those of `before` are not.
fn opened(before: &Plan, after: &Plan) -> Option<String> {
    if before.windows.is_empty() {
        return None;
    }
    let is_open = |plan: &Plan, minute| {
        closed(&plan.windows, &[], plan.utc_offset_minutes, minute * MINUTE_MS).is_none()
    };
    // The clock began on a Thursday; a week begins on a Monday.
    let minute = (0..WEEK_MINUTES).map(|minute| minute + 4 * 24 * 60);
    let first = minute.into_iter().find(|&minute| is_open(after, minute) && !is_open(before, minute))?;
    let day = usize::try_from((first / (24 * 60) + 3) % 7).unwrap_or(0);
    let (hour, minute) = (first / 60 % 24, first % 60);
    Some(format!(
        "windows: it could go up on {} at {hour:02}:{minute:02} (UTC), outside those of the plan before",
        DAYS[day]
    ))
}

#[cfg(test)]
mod tests {
    use super::super::calendar::{Freeze, Window};
    use super::*;

    /// 2026-11-27, a Friday, at 15:30 UTC.
    const FRIDAY: i64 = 1_795_793_400_000;

    fn windows(each: &[(&[&str], &str, &str)]) -> Plan {
        let window = |(days, from, to): &(&[&str], &str, &str)| Window {
            days: days.iter().map(|day| (*day).to_owned()).collect(),
            from: (*from).to_owned(),
            to: (*to).to_owned(),
        };
        Plan { windows: each.iter().map(window).collect(), ..Plan::default() }
    }

    fn freezes(each: &[(&str, &str)]) -> Plan {
        let freeze = |(from, to): &(&str, &str)| Freeze { from: (*from).to_owned(), to: (*to).to_owned() };
        Plan { freezes: each.iter().map(freeze).collect(), ..Plan::default() }
    }

    #[test]
    fn windows_may_be_narrowed_and_not_widened_or_left_out() {
        let before = windows(&[(&["mon", "tue"], "09:00", "15:00")]);
        let narrower = windows(&[(&["tue"], "09:00", "12:00"), (&["tue"], "12:00", "15:00")]);
        assert_eq!(dropped(&before, &before, FRIDAY), Vec::<String>::new());
        assert_eq!(dropped(&before, &narrower, FRIDAY), Vec::<String>::new());
        assert_eq!(dropped(&Plan::default(), &before, FRIDAY), Vec::<String>::new());
        let wider = [
            (Plan::default(), "mon at 00:00"),
            (windows(&[(&["mon"], "09:00", "15:01")]), "mon at 15:00"),
            (windows(&[(&["sun"], "09:00", "15:00")]), "sun at 09:00"),
            (Plan { utc_offset_minutes: 60, ..before.clone() }, "mon at 08:00"),
        ];
        for (after, first) in wider {
            let why = dropped(&before, &after, FRIDAY);
            assert!(why.len() == 1 && why[0].starts_with("windows") && why[0].contains(first), "{why:?}");
        }
        let elsewhere = windows(&[(&["mon", "tue"], "10:00", "16:00")]);
        let elsewhere = Plan { utc_offset_minutes: 60, ..elsewhere };
        assert_eq!(dropped(&before, &elsewhere, FRIDAY), Vec::<String>::new(), "the same, written elsewhere");
    }

    #[test]
    fn freezes_may_be_added_and_not_shortened_or_left_out() {
        let before = freezes(&[("2026-12-20", "2027-01-03")]);
        for kept in [
            before.clone(),
            freezes(&[("2026-12-01", "2027-01-10")]),
            freezes(&[("2026-12-28", "2027-01-03"), ("2026-12-20", "2026-12-27")]),
        ] {
            assert_eq!(dropped(&before, &kept, FRIDAY), Vec::<String>::new());
        }
        for lost in [
            Plan::default(),
            freezes(&[("2026-12-21", "2027-01-03")]),
            freezes(&[("2026-12-20", "2027-01-02")]),
            freezes(&[("2026-12-20", "2026-12-25"), ("2026-12-27", "2027-01-03")]),
            Plan { utc_offset_minutes: 60, ..before.clone() },
        ] {
            let why = dropped(&before, &lost, FRIDAY);
            assert!(why.len() == 1 && why[0].starts_with("freezes: 2026-12-20 to 2027-01-03"), "{why:?}");
        }
    }

    #[test]
    fn a_freeze_that_is_over_is_not_missed() {
        assert_eq!(
            dropped(&freezes(&[("2026-11-01", "2026-11-26")]), &Plan::default(), FRIDAY),
            Vec::<String>::new()
        );
        let today = freezes(&[("2026-11-01", "2026-11-27")]);
        assert_eq!(dropped(&today, &Plan::default(), FRIDAY).len(), 1);
        assert_eq!(dropped(&today, &freezes(&[("2026-11-27", "2026-11-27")]), FRIDAY), Vec::<String>::new());
    }
}
