//! Lengths of time in words.

use std::time::Duration;

/// A length of time as people write it, in the two largest units that say something: `500 ms`, `1.5 s`,
/// `1 min 30 s`, `7 days`.
#[must_use]
pub fn spoken(time: Duration) -> String {
    let millis = time.as_millis();
    if time.is_zero() {
        return "0 s".to_owned();
    }
    if millis < 1000 {
        return format!("{} ms", millis.max(1));
    }
    let tenths = (millis + 50) / 100;
    if tenths < 600 {
        return if tenths.is_multiple_of(10) {
            format!("{} s", tenths / 10)
        } else {
            format!("{}.{} s", tenths / 10, tenths % 10)
        };
    }
    let whole = (millis + 500) / 1000;
    let days = whole / 86_400;
    let of_days = format!("{days} day{}", if days == 1 { "" } else { "s" });
    let units = [
        (days, of_days),
        (whole / 3_600 % 24, format!("{} h", whole / 3_600 % 24)),
        (whole / 60 % 60, format!("{} min", whole / 60 % 60)),
        (whole % 60, format!("{} s", whole % 60)),
    ];
    let largest = units.iter().position(|(count, _)| *count > 0).unwrap_or(units.len() - 1);
    let said = units.into_iter().skip(largest).take(2).filter(|(count, _)| *count > 0);
    said.map(|(_, text)| text).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_as_people_write_them() {
        let told = |millis| spoken(Duration::from_millis(millis));
        assert_eq!([told(0), told(500), told(1_000), told(1_540)], ["0 s", "500 ms", "1 s", "1.5 s"]);
        assert_eq!([told(30_000), told(59_960), told(90_000)], ["30 s", "1 min", "1 min 30 s"]);
        assert_eq!([told(3_600_000), told(5_400_000)], ["1 h", "1 h 30 min"]);
        assert_eq!([told(86_400_000), told(7 * 86_400_000)], ["1 day", "7 days"]);
        assert_eq!(told(90_000_000), "1 day 1 h");
        assert_eq!(spoken(Duration::from_nanos(1)), "1 ms");
    }
}
