//! Points in time, as people read them.

/// Unix milliseconds as `2025-01-31 23:59:59Z`.
#[must_use]
pub fn spelled(millis: i64) -> String {
    let seconds = millis.div_euclid(1000);
    let (day, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Civil date from days since 1970-01-01, counting years from March (Howard Hinnant's algorithm).
    let shifted = day + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let date = of_year - (153 * from_march + 2) / 5 + 1;
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{date:02} {hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leap_years_too() {
        assert_eq!(spelled(0), "1970-01-01 00:00:00Z");
        assert_eq!(spelled(1_709_164_799_999), "2024-02-28 23:59:59Z");
        assert_eq!(spelled(1_709_251_200_000), "2024-03-01 00:00:00Z");
    }
}
