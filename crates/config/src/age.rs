//! Lengths of time that may be given in days.

use std::time::Duration;

use jiff::SignedDuration;

/// A duration above zero: whole days such as `30d`, or what other settings take (`12h`, `1h 30m`). A
/// day is 24 hours, whatever a clock on the wall does.
pub fn parse_age(text: &str) -> Option<Duration> {
    const DAY_S: u64 = 24 * 60 * 60;
    let days = text.trim().strip_suffix('d').map(str::trim_end);
    let age = match days.and_then(|days| days.parse::<u64>().ok()) {
        Some(days) => Duration::from_secs(days.checked_mul(DAY_S)?),
        None => Duration::try_from(text.parse::<SignedDuration>().ok()?).ok()?,
    };
    (!age.is_zero()).then_some(age)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_hours() {
        let hours = |hours: u64| Some(Duration::from_secs(hours * 3600));
        assert_eq!(parse_age("30d"), hours(720));
        assert_eq!(parse_age("1 d"), hours(24));
        assert_eq!(parse_age("36h"), hours(36));
        for wrong in ["", "0d", "d", "-3d", "30", "0s", "99999999999999999999d"] {
            assert_eq!(parse_age(wrong), None, "{wrong:?}");
        }
    }
}
