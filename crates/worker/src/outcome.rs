//! How an attempt ended, in words with numbers.

use std::time::Duration;

use jiff::SignedDuration;
use jiff::fmt::friendly::{Designator, Spacing, SpanPrinter};
use rigor_queue::record::{FailureKind, LlmUse, Outcome};

/// Why an attempt failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    pub(crate) reason: String,
    /// The rule by which the executor refused what the task wants.
    pub(crate) blocked_by: Option<&'static str>,
}

impl Failure {
    pub(crate) fn new(kind: FailureKind, reason: impl Into<String>) -> Failure {
        Failure {
            kind,
            reason: reason.into(),
            blocked_by: None,
        }
    }

    /// The executor does not let the task do that.
    pub(crate) fn blocked(reason: impl Into<String>, rule: &'static str) -> Failure {
        Failure {
            blocked_by: Some(rule),
            ..Failure::setup(reason)
        }
    }

    pub(crate) fn setup(reason: impl Into<String>) -> Failure {
        Failure::new(FailureKind::Setup, reason)
    }

    pub(crate) fn missing_requirement(missing: &[String]) -> Failure {
        let reason = format!("required and not there: {}", missing.join(", "));
        Failure::new(FailureKind::MissingRequirement, reason)
    }

    pub(crate) fn missing_product(missing: &[String]) -> Failure {
        let reason = format!("it ended well, but did not produce {}", missing.join(", "));
        Failure::new(FailureKind::MissingProduct, reason)
    }
}

/// How an attempt ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) outcome: Outcome,
    pub(crate) exit_code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) llm: Option<LlmUse>,
}

impl Ended {
    pub(crate) fn well() -> Ended {
        Ended {
            outcome: Outcome::Succeeded,
            exit_code: None,
            signal: None,
            llm: None,
        }
    }

    pub(crate) fn failed(failure: Failure) -> Ended {
        Ended::well().but(failure)
    }

    pub(crate) fn succeeded(&self) -> bool {
        self.outcome == Outcome::Succeeded
    }

    /// The same, but it failed after all.
    pub(crate) fn but(self, failure: Failure) -> Ended {
        let Failure { kind, reason, .. } = failure;
        Ended {
            outcome: Outcome::Failed { kind, reason },
            ..self
        }
    }
}

/// `1h 30m`, `42s`, `3.2s`.
pub(crate) fn words(duration: Duration) -> String {
    /// Below it tenths matter, seconds.
    const COARSE_FROM: u64 = 10;
    if duration.as_secs() < COARSE_FROM {
        let tenths = duration.as_millis() / 100;
        return match tenths % 10 {
            0 => format!("{}s", tenths / 10),
            rest => format!("{}.{rest}s", tenths / 10),
        };
    }
    let whole = SignedDuration::from_secs(i64::try_from(duration.as_secs()).unwrap_or(i64::MAX));
    SpanPrinter::new()
        .designator(Designator::Compact)
        .spacing(Spacing::BetweenUnits)
        .duration_to_string(&whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_people_say_them() {
        for (ms, text) in [
            (0, "0s"),
            (1_000, "1s"),
            (3_260, "3.2s"),
            (42_900, "42s"),
            (1_800_020, "30m"),
            (5_400_000, "1h 30m"),
        ] {
            assert_eq!(words(Duration::from_millis(ms)), text);
        }
    }
}
