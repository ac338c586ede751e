//! Which batches that are over are archived, and which archived ones are removed.
//!
//! Both go by the wall clock, since they outlive every process. One that is set forward archives
//! early, which costs an operator's retry some files to be written again, and nothing else. To
//! remove early cannot be made good: that has to be wanted twice, [`SURE_AFTER`] apart by the
//! monotonic clock, and a clock that was wrong for less removes nothing.

use std::time::Duration;

use jiff::Timestamp;

/// Between the first time that an archive was too old and its removal, at most.
pub const SURE_AFTER: Duration = Duration::from_secs(60 * 60);

/// Whether something that ended then has been over for as long.
pub fn is_over_for(ended: Timestamp, now: Timestamp, least: Duration) -> bool {
    // Of a time to come nothing is over.
    Duration::try_from(now.duration_since(ended)).is_ok_and(|age| age >= least)
}

/// Whether an archived batch is removed, that has been found too old for `seen` by the monotonic
/// clock. `keep`: as rig.toml says; none: nothing is ever removed.
pub fn is_removed(
    ended: Timestamp,
    now: Timestamp,
    keep: Option<Duration>,
    seen: Duration,
) -> bool {
    keep.is_some_and(|keep| is_over_for(ended, now, keep) && seen >= keep.min(SURE_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn hours(ago: i64) -> (Timestamp, Timestamp) {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        (now - jiff::SignedDuration::from_hours(ago), now)
    }

    #[test]
    fn over_for_long_enough() {
        let (ended, now) = hours(2);
        assert!(is_over_for(ended, now, HOUR) && is_over_for(ended, now, 2 * HOUR));
        assert!(!is_over_for(ended, now, 3 * HOUR));
        assert!(!is_over_for(now, ended, HOUR), "the clock was set back");
    }

    #[test]
    fn removed_only_when_that_is_sure() {
        let (ended, now) = hours(48);
        assert!(is_removed(ended, now, Some(24 * HOUR), HOUR));
        assert!(
            !is_removed(ended, now, Some(24 * HOUR), HOUR / 2),
            "the clock may be wrong"
        );
        assert!(!is_removed(ended, now, Some(72 * HOUR), HOUR));
        assert!(!is_removed(ended, now, None, 1000 * HOUR), "kept for ever");
        assert!(
            is_removed(ended, now, Some(HOUR / 60), HOUR / 60),
            "a short time is short"
        );
    }
}
