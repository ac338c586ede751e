//! What follows a failed attempt, and when.

use std::time::Duration;

use rigor_queue::record::{FailureKind, GpuMemory, RaisedNeed};
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
    /// Where it ran out of GPU memory: what it had.
    pub gpu_memory: Option<GpuMemory>,
    /// What tasks may use of each GPU that it may run on, MiB, as far as that is known.
    pub budgets_mb: Vec<u64>,
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
    /// Another attempt at once, not charged, that gets more GPU memory.
    MoreMemory {
        /// What it needs from now on.
        need: RaisedNeed,
        /// With what it had.
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

/// Attempts after the first for what the kernel killed for want of main memory.
const OOM_RETRIES: u32 = 1;

/// Decides what follows a failed attempt.
///
/// The wait before charged attempt n+1 is `first_s * 2^n`, at most `most_s`. A prompt that does
/// not fit is the same prompt next time, so it is not tried again.
///
/// Who ran out of GPU memory gets more of it first, in steps that are not charged: 1.5 times what it
/// had, then a GPU to itself, then one of a larger budget where there is one. Each step asks for
/// more than the last, so they end: then it has failed, with its items tried one by one where it has
/// several. A task of `retries: 0` runs once, whatever happens.
///
/// What the kernel killed for want of main memory asks for as much the next time: several items are
/// tried one by one at once, which each need less; one is tried once more at most, since it may have
/// been others who took the memory.
pub fn decide(failed: &FailedAttempt) -> AfterFailure {
    let charged = failed.charged + 1;
    if let (FailureKind::OutOfMemory, Some(had)) = (failed.kind, failed.gpu_memory) {
        return after_shortage(failed, had);
    }
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
        | FailureKind::LoadFailed
        | FailureKind::OomKilled
        // What it had is not known (it had no lease): as any other failure.
        | FailureKind::OutOfMemory => {}
    }
    let needs_less = matches!(
        failed.kind,
        FailureKind::PromptTooLong | FailureKind::OomKilled
    );
    if failed.items > 1 && (needs_less || charged >= failed.retries.max(1)) {
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
    if failed.kind == FailureKind::OomKilled && charged > OOM_RETRIES {
        return AfterFailure::GiveUp {
            reason: "the same work needs the same memory: not tried again".to_owned(),
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

/// A task that ran out of what it had gets so much more, percent.
const RAISE_PERCENT: u64 = 50;

/// The need of a task that ran out of `leased_mb` of a GPU with `budget_mb`, MiB: half as much
/// again, at most the whole budget.
pub fn raised_mb(leased_mb: u64, budget_mb: u64) -> u64 {
    (leased_mb + (leased_mb * RAISE_PERCENT).div_ceil(100)).min(budget_mb)
}

fn after_shortage(failed: &FailedAttempt, had: GpuMemory) -> AfterFailure {
    let GpuMemory {
        leased_mb,
        budget_mb,
        raised,
        ..
    } = had;
    let had = match leased_mb {
        Some(mb) => format!("it had {mb}MB of {budget_mb}MB"),
        None => format!("it had all {budget_mb}MB of a GPU"),
    };
    if failed.retries == 0 {
        return AfterFailure::GiveUp {
            reason: format!("{had}, and it may run only once (retries: 0)"),
        };
    }
    if let Some(mb) = leased_mb {
        let more = raised_mb(mb, budget_mb);
        return if !raised && more > mb {
            AfterFailure::MoreMemory {
                need: RaisedNeed::Mb { mb: more },
                reason: format!("tried again with {more}MB, not charged"),
            }
        } else {
            AfterFailure::MoreMemory {
                need: RaisedNeed::Alone { budget_mb },
                reason: "tried again alone on a GPU, not charged".to_owned(),
            }
        };
    }
    let larger = failed.budgets_mb.iter().filter(|of| **of > budget_mb).min();
    if let Some(&larger) = larger {
        return AfterFailure::MoreMemory {
            need: RaisedNeed::Alone { budget_mb: larger },
            reason: format!("tried again alone on a GPU of {larger}MB, not charged"),
        };
    }
    if failed.items > 1 {
        return AfterFailure::Split {
            reason: format!(
                "{had}, and no GPU has more; its {} items are tried one by one",
                failed.items
            ),
        };
    }
    AfterFailure::GiveUp {
        reason: format!("{had}, and no GPU that it may run on has more: out_of_memory"),
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
            gpu_memory: None,
            budgets_mb: Vec::new(),
        }
    }

    fn short(leased_mb: Option<u64>, raised: bool) -> FailedAttempt {
        FailedAttempt {
            gpu_memory: Some(GpuMemory {
                leased_mb,
                budget_mb: 4000,
                raised,
                next: None,
            }),
            budgets_mb: vec![4000, 9000, 20000, 2000],
            ..failed(FailureKind::OutOfMemory, 0)
        }
    }

    #[test]
    fn who_ran_out_of_memory_gets_more_then_a_gpu_then_a_larger_one() {
        let need = |of: &FailedAttempt| match decide(of) {
            AfterFailure::MoreMemory { need, .. } => Some(need),
            AfterFailure::GiveUp { .. } => None,
            other => panic!("{other:?}"),
        };
        let alone = |budget_mb| Some(RaisedNeed::Alone { budget_mb });
        assert_eq!(
            need(&short(Some(1001), false)),
            Some(RaisedNeed::Mb { mb: 1502 })
        );
        assert_eq!(
            need(&short(Some(3900), false)),
            Some(RaisedNeed::Mb { mb: 4000 })
        );
        assert_eq!(need(&short(Some(4000), false)), alone(4000));
        assert_eq!(need(&short(Some(1502), true)), alone(4000));
        assert_eq!(need(&short(None, true)), alone(9000));
        assert_eq!(
            need(&short(None, false)),
            alone(9000),
            "alone from the start"
        );
        let smaller_only = FailedAttempt {
            budgets_mb: vec![4000, 2000],
            ..short(None, true)
        };
        assert_eq!(need(&smaller_only), None);
        let AfterFailure::GiveUp { reason } = decide(&smaller_only) else {
            panic!();
        };
        assert_eq!(
            reason,
            "it had all 4000MB of a GPU, and no GPU that it may run on has more: out_of_memory"
        );
        let group = FailedAttempt {
            items: 3,
            ..smaller_only
        };
        assert!(matches!(decide(&group), AfterFailure::Split { .. }));
        let once = FailedAttempt {
            retries: 0,
            ..short(Some(1000), false)
        };
        assert_eq!(need(&once), None);
    }

    #[test]
    fn more_memory_is_not_charged_and_ends() {
        // On the worst of rigs: every step runs out, on a GPU that just suffices for it.
        let budgets: Vec<u64> = vec![2000, 4000, 9000, 20000];
        let (mut leased_mb, mut budget_mb, mut raised) = (Some(500), 2000, false);
        let mut steps = 0;
        loop {
            let after = decide(&FailedAttempt {
                gpu_memory: Some(GpuMemory {
                    leased_mb,
                    budget_mb,
                    raised,
                    next: None,
                }),
                budgets_mb: budgets.clone(),
                charged: 2,
                ..failed(FailureKind::OutOfMemory, 0)
            });
            raised = true;
            match after {
                AfterFailure::MoreMemory {
                    need: RaisedNeed::Mb { mb },
                    ..
                } => leased_mb = Some(mb),
                AfterFailure::MoreMemory {
                    need: RaisedNeed::Alone { budget_mb: least },
                    ..
                } => {
                    leased_mb = None;
                    budget_mb = *budgets.iter().find(|of| **of >= least).unwrap();
                }
                AfterFailure::GiveUp { .. } => break,
                other => panic!("{other:?}"),
            }
            steps += 1;
            assert!(steps <= 2 + budgets.len(), "{leased_mb:?} {budget_mb}");
        }
        assert_eq!(steps, 5, "1.5 times, alone on each of four");
    }

    #[test]
    fn without_a_lease_it_is_a_failure_like_any() {
        let unknown = failed(FailureKind::OutOfMemory, 0);
        assert!(matches!(decide(&unknown), AfterFailure::Retry { .. }));
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
    fn who_was_killed_for_want_of_memory_is_tried_once_more_or_in_parts() {
        let killed = |charged| FailedAttempt {
            retries: 9,
            ..failed(FailureKind::OomKilled, charged)
        };
        assert!(matches!(decide(&killed(0)), AfterFailure::Retry { .. }));
        let AfterFailure::GiveUp { reason } = decide(&killed(1)) else {
            panic!("it would be killed for ever");
        };
        assert!(reason.contains("the same memory"), "{reason}");
        let group = FailedAttempt {
            items: 5,
            ..killed(0)
        };
        assert!(matches!(decide(&group), AfterFailure::Split { .. }));
        let once = FailedAttempt {
            retries: 0,
            ..killed(0)
        };
        assert!(matches!(decide(&once), AfterFailure::GiveUp { .. }));
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
