//! Numbers in words for people.

/// Seconds.
pub fn span(seconds: f64) -> String {
    // The sum of no numbers is -0.0, which would be written so.
    let seconds = seconds + 0.0;
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

/// The first `most` of some names, which may have commas, and how many more there are.
pub fn some_of(names: &[impl AsRef<str>], most: usize) -> String {
    let named: Vec<&str> = names.iter().take(most).map(AsRef::as_ref).collect();
    match names.len() - named.len() {
        0 => named.join("; "),
        more => format!("{} and {more} more", named.join("; ")),
    }
}

/// Bytes.
pub fn size(bytes: u64) -> String {
    let units = ["B", "KB", "MB", "GB", "TB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// Seconds since 1970 as `2026-11-24 20:25`, UTC.
pub fn date(seconds: u64) -> String {
    let (mut days, of_day) = (seconds / 86_400, seconds % 86_400);
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let mut month = 0;
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    format!("{year}-{:02}-{:02} {:02}:{:02}", month + 1, days + 1, of_day / 3600, of_day / 60 % 60)
}

/// Rows of a table: the first column to the left, the others to the right, two spaces between.
pub fn table(rows: &[Vec<String>]) -> String {
    let n_columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| Some(row.get(column)?.chars().count())).max().unwrap_or(0);
    let widths: Vec<usize> = (0..n_columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let rest = row.iter().zip(&widths).skip(1).map(|(cell, width)| format!("  {cell:>width$}"));
        let first = row.first().map(String::as_str).unwrap_or_default();
        let line = format!("{first:<0$}", widths[0]) + &rest.collect::<String>();
        format!("{}\n", line.trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_names_some_are_told() {
        assert_eq!(some_of(&["a", "b", "c", "d", "e"], 5), "a; b; c; d; e");
        assert_eq!(some_of(&["a", "b", "c", "d", "e", "f", "g"], 5), "a; b; c; d; e and 2 more");
    }

    #[test]
    fn spans_are_never_negative() {
        let spans = [std::iter::empty::<f64>().sum(), 59.4, 59.6, 3600.0].map(span);
        assert_eq!(spans, ["0.0 s", "59.4 s", "1 min 0 s", "1 h 0 min"]);
    }

    /// date -u -d @SECONDS '+%F %H:%M'
    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00"),
            (951_782_399, "2000-02-28 23:59"),
            (951_782_400, "2000-02-29 00:00"),
            (1_709_251_199, "2024-02-29 23:59"),
            (1_709_251_200, "2024-03-01 00:00"),
            (1_795_551_908, "2026-11-24 20:25"),
            (4_107_542_400, "2100-03-01 00:00"),
        ] {
            assert_eq!(date(seconds), expected);
        }
    }
}
