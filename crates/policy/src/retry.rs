//! What follows a failed attempt, and when.

use std::time::Duration;

use rigor_queue::record::FailureKind;
use rigor_queue::task::Backoff;

/// What is known of a failed attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct FailedAttempt {
    /// How it failed.
    pub kind: FailureKind,
    /// Attempts charged to the task before this one.
    pub charged: u32,
    /// Attempts after the first that may be charged.
    pub retries: u32,
    /// The task's backoff.
    pub backoff: Backoff,
    /// Items in the task; over 1 with `batch_size`.
    pub items: usize,
    /// How long ago the attempt ended.
    pub since_end: Duration,
}

/// What is to be done, with the reason in words.
#[derive(Clone, Debug, PartialEq)]
pub enum AfterFailure {
    /// Another attempt.
    Retry {
        /// From now.
        wait: Duration,
        /// `attempt 2 of 3 in 10s`.
        reason: String,
    },
    /// Each item becomes a task of its own, so that one bad item fails alone.
    Split {
        /// Why.
        reason: String,
    },
    /// It has failed.
    GiveUp {
        /// Why there is no further attempt.
        reason: String,
    },
    /// Somebody ended it.
    Cancel {
        /// Who.
        reason: String,
    },
}

/// Decides what follows a failed attempt.
///
/// The wait before charged attempt n+1 is `first_s * 2^n`, at most `most_s`. A prompt that does
/// not fit is the same prompt next time, so it is not tried again.
pub fn decide(failed: &FailedAttempt) -> AfterFailure {
    let charged = failed.charged + 1;
    match failed.kind {
        FailureKind::Aborted => {
            return AfterFailure::Cancel {
                reason: "aborted by request".to_owned(),
            };
        }
        FailureKind::PromptTooLong if failed.items <= 1 => {
            return AfterFailure::GiveUp {
                reason: "a longer wait does not shorten the prompt: not retried".to_owned(),
            };
        }
        FailureKind::Plan | FailureKind::Quarantined => {
            return AfterFailure::GiveUp {
                reason: "another attempt cannot mend it".to_owned(),
            };
        }
        FailureKind::PromptTooLong
        | FailureKind::ExitCode
        | FailureKind::Signal
        | FailureKind::Timeout
        | FailureKind::Silent
        | FailureKind::Stuck
        | FailureKind::MissingRequirement
        | FailureKind::MissingProduct
        | FailureKind::LlmError
        | FailureKind::WorkerLost
        | FailureKind::Setup
        | FailureKind::LoadFailed => {}
    }
    let too_long = failed.kind == FailureKind::PromptTooLong;
    if failed.items > 1 && (too_long || charged >= failed.retries.max(1)) {
        return AfterFailure::Split {
            reason: format!(
                "attempt {charged} failed; its {} items are tried one by one",
                failed.items
            ),
        };
    }
    if charged > failed.retries {
        return AfterFailure::GiveUp {
            reason: format!("{charged} of {} attempts failed", failed.retries + 1),
        };
    }
    let doubled = 2u64
        .saturating_pow(charged - 1)
        .saturating_mul(failed.backoff.first_s);
    let backoff = Duration::from_secs(doubled.min(failed.backoff.most_s));
    let wait = backoff.saturating_sub(failed.since_end);
    AfterFailure::Retry {
        wait,
        reason: format!(
            "attempt {} of {} in {}s",
            charged + 1,
            failed.retries + 1,
            wait.as_secs_f64().ceil()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(kind: FailureKind, charged: u32) -> FailedAttempt {
        FailedAttempt {
            kind,
            charged,
            retries: 2,
            backoff: Backoff {
                first_s: 10,
                most_s: 15,
            },
            items: 1,
            since_end: Duration::ZERO,
        }
    }

    #[test]
    fn waits_double_up_to_the_most_and_then_it_ends() {
        let waits: Vec<Option<u64>> = (0..3)
            .map(
                |charged| match decide(&failed(FailureKind::ExitCode, charged)) {
                    AfterFailure::Retry { wait, .. } => Some(wait.as_secs()),
                    AfterFailure::GiveUp { .. } => None,
                    other => panic!("{other:?}"),
                },
            )
            .collect();
        assert_eq!(waits, [Some(10), Some(15), None]);
    }

    #[test]
    fn time_that_passed_counts() {
        let late = FailedAttempt {
            since_end: Duration::from_secs(60),
            ..failed(FailureKind::Timeout, 0)
        };
        assert!(matches!(
            decide(&late),
            AfterFailure::Retry {
                wait: Duration::ZERO,
                ..
            }
        ));
    }

    #[test]
    fn what_cannot_get_better_is_not_tried_again() {
        for kind in [
            FailureKind::PromptTooLong,
            FailureKind::Plan,
            FailureKind::Quarantined,
        ] {
            assert!(
                matches!(decide(&failed(kind, 0)), AfterFailure::GiveUp { .. }),
                "{kind:?}"
            );
        }
        assert!(matches!(
            decide(&failed(FailureKind::Aborted, 0)),
            AfterFailure::Cancel { .. }
        ));
        assert!(
            matches!(
                decide(&failed(FailureKind::Stuck, 0)),
                AfterFailure::Retry { .. }
            ),
            "nobody asked for its end but the rig's own rule"
        );
    }

    #[test]
    fn the_last_retry_of_a_group_splits_it() {
        let group = |charged| FailedAttempt {
            items: 5,
            ..failed(FailureKind::ExitCode, charged)
        };
        assert!(matches!(decide(&group(0)), AfterFailure::Retry { .. }));
        assert!(matches!(decide(&group(1)), AfterFailure::Split { .. }));
        let never = FailedAttempt {
            retries: 0,
            ..group(0)
        };
        assert!(matches!(decide(&never), AfterFailure::Split { .. }));
    }
}
