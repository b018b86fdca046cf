//! When a ramp may go up: hours of days of the week, and days on which it may not.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub(super) const MINUTE_MS: i64 = 60_000;
const DAY_MINUTES: i64 = 24 * 60;
pub(super) const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// Hours in which it may go up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// `mon` to `sun`.
    pub days: Vec<String>,
    /// `HH:MM`.
    pub from: String,
    /// `HH:MM`, later on the same day; `24:00` is its end.
    pub to: String,
}

/// Days on which it may not, for example before a launch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Freeze {
    /// The first day, `YYYY-MM-DD`.
    pub from: String,
    /// The last day, `YYYY-MM-DD`.
    pub to: String,
}

impl Window {
    /// What makes no sense in it.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let known = |day: &String| DAYS.contains(&day.as_str());
        let fit = !self.days.is_empty() && self.days.iter().all(known);
        let fit = fit && minutes(&self.from).zip(minutes(&self.to)).is_some_and(|(from, to)| from < to);
        (!fit).then(|| {
            "windows: each needs days from mon to sun, and from before to as HH:MM; write one that passes midnight as two"
                .to_owned()
        })
    }

    fn is_open(&self, weekday: usize, minute: i64) -> bool {
        let hours = minutes(&self.from).zip(minutes(&self.to));
        let today = self.days.iter().any(|day| DAYS.get(weekday) == Some(&day.as_str()));
        today && hours.is_some_and(|(from, to)| (from..to).contains(&minute))
    }
}

impl Freeze {
    /// What makes no sense in it.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let fit = day(&self.from).zip(day(&self.to)).is_some_and(|(from, to)| from <= to);
        (!fit).then(|| "freezes: each needs from and to as YYYY-MM-DD, from not after to".to_owned())
    }

    /// From its first minute to the one after its last, counted in UTC since 1970: its days are those of local time.
    pub(super) fn minutes(&self, offset_minutes: i16) -> Option<(i64, i64)> {
        let begin_of = |day: i64| day * DAY_MINUTES - i64::from(offset_minutes);
        Some((begin_of(day(&self.from)?), begin_of(day(&self.to)? + 1)))
    }
}

/// Why it may not go up at `now` (Unix milliseconds); `None`: it may. What makes no sense is closed.
#[must_use]
pub fn closed(windows: &[Window], freezes: &[Freeze], offset_minutes: i16, now: i64) -> Option<String> {
    let in_utc = now.div_euclid(MINUTE_MS);
    let minute = in_utc + i64::from(offset_minutes);
    let (today, of_day) = (minute.div_euclid(DAY_MINUTES), minute.rem_euclid(DAY_MINUTES));
    let holds = |freeze: &&Freeze| {
        freeze.minutes(offset_minutes).is_none_or(|(from, to)| (from..to).contains(&in_utc))
    };
    if let Some(freeze) = freezes.iter().find(holds) {
        return Some(format!("frozen from {} to {}", freeze.from, freeze.to));
    }
    // 1970-01-01 was a Thursday.
    let weekday = usize::try_from((today + 3).rem_euclid(7)).unwrap_or(0);
    let open = windows.is_empty() || windows.iter().any(|window| window.is_open(weekday, of_day));
    (!open).then(|| "outside the windows in which it may go up".to_owned())
}

fn minutes(text: &str) -> Option<i64> {
    let (hours, minutes) = text.split_once(':')?;
    let (hours, minutes): (i64, i64) = (hours.parse().ok()?, minutes.parse().ok()?);
    if !(0..=24).contains(&hours) || !(0..60).contains(&minutes) {
        return None;
    }
    Some(hours * 60 + minutes).filter(|all| *all <= DAY_MINUTES)
}

/// Days since 1970-01-01, of a date that exists.
fn day(text: &str) -> Option<i64> {
    let mut parts = text.split('-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => return None,
    };
    if parts.next().is_some() || !(1..=length).contains(&day) || !(1970..10_000).contains(&year) {
        return None;
    }
    // Counting years from March (Howard Hinnant's algorithm).
    let from_march = (month + 9) % 12;
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * from_march + 2) / 5 + day - 1;
    Some(era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-27, a Friday, at 15:30 UTC.
    const FRIDAY: i64 = 1_795_793_400_000;

    fn window(days: &[&str], from: &str, to: &str) -> Window {
        let days = days.iter().map(|day| (*day).to_owned()).collect();
        Window { days, from: from.into(), to: to.into() }
    }

    fn freeze(from: &str, to: &str) -> Freeze {
        Freeze { from: from.into(), to: to.into() }
    }

    #[test]
    fn windows_are_hours_of_days() {
        let closed = |window: Window, offset| closed(&[window], &[], offset, FRIDAY).is_some();
        assert!(!closed(window(&["fri"], "15:00", "16:00"), 0));
        assert!(closed(window(&["fri"], "15:31", "16:00"), 0));
        assert!(closed(window(&["mon", "thu"], "00:00", "24:00"), 0));
        assert!(!closed(window(&["sat"], "00:00", "24:00"), 9 * 60), "it is Saturday there");
        assert!(closed(window(&["fri"], "16:00", "15:00"), 0));
    }

    #[test]
    fn days_are_frozen_and_nonsense_is_no_yes() {
        let closed = |from, to| closed(&[], &[freeze(from, to)], 0, FRIDAY).is_some();
        assert!(closed("2026-11-27", "2026-11-27"));
        assert!(!closed("2026-11-28", "2026-12-31"));
        assert!(!closed("2024-02-29", "2026-11-26"));
        assert!(closed("2026-02-30", "x"));
        for bad in ["2026-13-01", "2026-02-29", "2026-1", "a-b-c", "2026-11-27-1"] {
            assert!(freeze(bad, "2027-01-01").problem().is_some(), "{bad}");
        }
        assert_eq!(freeze("2024-02-29", "2024-03-01").problem(), None);
        assert!(window(&["fry"], "00:00", "24:00").problem().is_some());
        assert!(window(&[], "00:00", "24:00").problem().is_some());
        for bad in ["24:01", "-1:00", "9:60", "9", "153722867280912931:00"] {
            assert!(window(&["mon"], "00:00", bad).problem().is_some(), "{bad}");
        }
    }

    /// Whichever day it is in UTC.
    #[test]
    fn days_begin_and_end_at_local_midnight() {
        const MINUTE: i64 = 60_000;
        let frozen = |date: &str, offset, now| closed(&[], &[freeze(date, date)], offset, now).is_some();
        for (offset, midnight) in
            [(0, FRIDAY + 510 * MINUTE), (540, FRIDAY - 30 * MINUTE), (-300, FRIDAY + 810 * MINUTE)]
        {
            assert!(frozen("2026-11-27", offset, midnight - 1), "the last moment of Friday at {offset}");
            assert!(!frozen("2026-11-27", offset, midnight), "Saturday has begun at {offset}");
            assert!(frozen("2026-11-28", offset, midnight) && !frozen("2026-11-28", offset, midnight - 1));
            let saturdays = [window(&["sat"], "00:00", "24:00")];
            assert!(closed(&saturdays, &[], offset, midnight).is_none());
            assert!(closed(&saturdays, &[], offset, midnight - 1).is_some());
        }
    }
}
