//! How lengths of time are said: `40s`, `12m`, `1h 30m`.

use std::time::Duration;

use jiff::SignedDuration;

/// From so many seconds on, seconds are left out.
const MINUTES_FROM_S: i64 = 600;

/// A length of time that was measured, cut down to what matters: seconds are left out from ten
/// minutes on.
pub fn span(length: Duration) -> String {
    span_s(length.as_secs())
}

/// As [`span`], of seconds.
pub fn span_s(seconds: u64) -> String {
    whole(i64::try_from(seconds).unwrap_or(i64::MAX), 0)
}

/// So many of something: `1 task`, `2 tasks`.
pub fn count(number: usize, noun: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{s}")
}

/// `1 task waits`, `2 tasks wait`.
pub(crate) fn tasks_wait(number: usize) -> String {
    let s = if number == 1 { "s" } else { "" };
    format!("{} wait{s}", count(number, "task"))
}

/// A length of time that is reckoned, rounded to what matters; below ten seconds to a tenth.
pub fn estimate(seconds: f64) -> String {
    let seconds = if seconds.is_finite() {
        seconds.max(0.0)
    } else {
        0.0
    };
    if seconds < 9.95 {
        let tenths = format!("{seconds:.1}");
        return format!("{}s", tenths.strip_suffix(".0").unwrap_or(&tenths));
    }
    whole(seconds.round() as i64, 30)
}

fn whole(seconds: i64, round_up_from: i64) -> String {
    let shown = if seconds >= MINUTES_FROM_S {
        let rounded = seconds.saturating_add(round_up_from);
        rounded - rounded % 60
    } else {
        seconds
    };
    format!("{:#}", SignedDuration::from_secs(shown))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measured_lengths_are_cut_and_reckoned_ones_are_rounded() {
        let said = [0, 40, 60, 75, 599, 600, 779, 5400, 5459].map(|s| span(Duration::from_secs(s)));
        assert_eq!(
            said,
            [
                "0s", "40s", "1m", "1m 15s", "9m 59s", "10m", "12m", "1h 30m", "1h 30m"
            ]
        );
        let said = [0.0, 2.34, 3.0, 9.99, 40.2, 873.0, 2540.0].map(estimate);
        assert_eq!(said, ["0s", "2.3s", "3s", "10s", "40s", "15m", "42m"]);
        assert_eq!(estimate(f64::NAN), "0s");
    }
}
