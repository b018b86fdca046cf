//! Numbers, times and tables as people like to read them.

pub(super) use crate::model::instant::spelled as time;
pub(super) use crate::model::number::grouped as count;

/// How something ended, and after how long.
pub(super) fn ended(result: &str, elapsed_ms: Option<u64>) -> String {
    elapsed_ms.map_or_else(|| result.to_owned(), |millis| format!("{result} ({millis} ms)"))
}

/// Bytes with a unit, in powers of 1000.
pub(super) fn bytes(number: f64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = number.max(0.0);
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let places = usize::from(unit > 0 && value < 100.0);
    format!("{value:.places$} {}", units[unit])
}

/// Seconds in the two largest units that say something.
pub(super) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "unknown".to_owned();
    }
    if seconds < 10.0 {
        return format!("{:.1} s", seconds.max(0.0));
    }
    let whole = std::time::Duration::from_secs_f64(seconds.min(1e15).round()).as_secs();
    let (days, hours, minutes, rest) = (whole / 86_400, whole / 3_600 % 24, whole / 60 % 60, whole % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest} s"),
        (0, 0, _) => format!("{minutes} min {rest} s"),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// Which part of `all` is `part`, from 0 to 100; 100 when there is nothing.
pub(super) fn percent(part: u64, all: u64) -> u64 {
    if all == 0 { 100 } else { (u128::from(part.min(all)) * 100 / u128::from(all)).try_into().unwrap_or(100) }
}

/// A bar of 20 characters.
pub(super) fn bar(percent: u64) -> String {
    let full = usize::try_from(percent.min(100) / 5).unwrap_or(0);
    format!("[{}{}]", "#".repeat(full), "-".repeat(20 - full))
}

/// Rows below `titles`, each column as wide as its widest cell.
pub(super) fn table<const N: usize>(titles: [&str; N], rows: Vec<[String; N]>) -> String {
    let titles = titles.map(str::to_owned);
    let width = |column: usize| {
        rows.iter().chain([&titles]).map(|row| row[column].chars().count()).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut out = String::new();
    for row in [&titles].into_iter().chain(&rows) {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        out.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!([count(0), count(999), count(1_234_567)], ["0", "999", "1,234,567"]);
        assert_eq!([bytes(0.0), bytes(1_500.0), bytes(250e6)], ["0 B", "1.5 kB", "250 MB"]);
        assert_eq!([percent(1, 3), percent(5, 0), percent(9, 3)], [33, 100, 100]);
        assert_eq!(bar(51), "[##########----------]");
    }

    #[test]
    fn times() {
        assert_eq!([duration(0.25), duration(59.6), duration(61.0)], ["0.2 s", "1 min 0 s", "1 min 1 s"]);
        assert_eq!([duration(3_700.0), duration(90_000.0)], ["1 h 1 min", "1 d 1 h"]);
    }

    #[test]
    fn tables_are_aligned() {
        let rows = vec![["orders".to_owned(), "5 %".to_owned()], ["ä".to_owned(), "100 %".to_owned()]];
        assert_eq!(table(["NAME", "READS"], rows), "NAME    READS\norders  5 %\nä       100 %\n");
    }
}
