//! Which tasks are stuck, what is said of them, and when they are ended.
//!
//! A task is stuck when it has been processing for `stuck_after` and quiet for as long: no output,
//! no CPU time of its processes, no work of its GPU. A long task that works is not stuck. Only its
//! own `timeout` or `kill_if_silent`, or the rig's `stuck.abort_after`, ends it.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rigor_queue::heartbeat::RunningBeat;

use crate::span::span;

/// The settings of the rig.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// A task that is processing and quiet this long is stuck.
    pub stuck_after: Duration,
    /// It is aborted when it has been stuck this long; none: never.
    pub abort_after: Option<Duration>,
    /// From the abort to the kill, and from the kill to asking for help.
    pub abort_grace: Duration,
}

/// A running task, as its agent's heartbeat has it.
#[derive(Clone, Copy, Debug)]
pub struct Task<'a> {
    /// The agent.
    pub agent: &'a str,
    /// What the heartbeat says.
    pub beat: &'a RunningBeat,
    /// When the heartbeat was written, by its own clock. What came after is not known.
    pub seen: Timestamp,
    /// How long ago that was, by the monotonic clock.
    pub age: Duration,
    /// It is so old that it proves nothing of now.
    pub stale: bool,
}

impl Task<'_> {
    /// How long ago something of the heartbeat was.
    fn since(&self, then: Timestamp) -> Duration {
        between(then, self.seen) + self.age
    }
}

/// What was said of an attempt and done to it before.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Past {
    /// How long it had been quiet when that was last said.
    pub said: Option<Duration>,
    /// When it was asked to end.
    pub aborted: Option<Instant>,
    /// When it was killed.
    pub killed: Option<Instant>,
    /// Help was asked for.
    pub escalated: bool,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask it to end.
    Abort,
    /// Kill its processes.
    Kill,
    /// It cannot be ended: ask for help.
    Escalate,
}

/// A stuck task.
#[derive(Clone, Debug, PartialEq)]
pub struct Stuck {
    /// How long it has been processing.
    pub elapsed: Duration,
    /// How long it has been quiet, as far as is known.
    pub quiet: Duration,
    /// What will end it, in words.
    pub end: String,
    /// The line about it, if it is time to say one.
    pub line: Option<String>,
    /// What is to be done, if anything.
    pub action: Option<Action>,
    /// Why, for whoever is told to do it and for the record of the attempt.
    pub reason: String,
}

/// Judges one task. `None`: it is not stuck, and nothing was done to it that must be followed up.
///
/// Quiet is what its agent has seen: a stale heartbeat makes nobody quieter, and a task of an
/// agent that does not answer is left to the rule for hung agents.
pub fn judge(
    task: &Task<'_>,
    past: &Past,
    now: Instant,
    limits: &Limits,
    zone: &TimeZone,
) -> Option<Stuck> {
    let beat = task.beat;
    let elapsed = task.since(beat.since);
    let quiet = between(beat.active_at.max(beat.since), task.seen);
    let is_stuck = elapsed >= limits.stuck_after && quiet >= limits.stuck_after;
    if !is_stuck && past.aborted.is_none() {
        return None;
    }
    let action = action(task, past, now, limits, quiet);
    let end = end(task, past, now, limits, quiet);
    let signs = signs(beat, zone);
    let reason = match (action, past.aborted) {
        (Some(Action::Kill), Some(at)) => format!(
            "stuck: still there {} after it was asked to end",
            span(now - at)
        ),
        (Some(Action::Escalate), Some(at)) => format!(
            "stuck: asked to end {} ago and killed since, and still there",
            span(now - at)
        ),
        _ => format!(
            "stuck: processing {}, quiet {} ({signs})",
            span(elapsed),
            span(quiet)
        ),
    };
    let due = is_stuck && past.said.is_none_or(|said| quiet >= said * 2);
    let line = due.then(|| {
        let known = if task.stale {
            format!(", as of its agent's last heartbeat {} ago", span(task.age))
        } else {
            String::new()
        };
        let short = beat.id.short();
        format!(
            "{} ({short}) on {}, processing {}, quiet {} ({signs}{known}); {end}. See: rigor logs {short}",
            beat.name,
            task.agent,
            span(elapsed),
            span(quiet),
        )
    });
    Some(Stuck {
        elapsed,
        quiet,
        end,
        line,
        action,
        reason,
    })
}

fn action(
    task: &Task<'_>,
    past: &Past,
    now: Instant,
    limits: &Limits,
    quiet: Duration,
) -> Option<Action> {
    // An agent that does not answer cannot carry anything out.
    if task.stale {
        return None;
    }
    match (past.aborted, past.killed) {
        (None, _) => limits
            .abort_after
            .is_some_and(|after| quiet >= limits.stuck_after + after)
            .then_some(Action::Abort),
        (Some(at), None) => (now - at >= limits.abort_grace).then_some(Action::Kill),
        (Some(_), Some(at)) => {
            (!past.escalated && now - at >= limits.abort_grace).then_some(Action::Escalate)
        }
    }
}

/// What will end it, the soonest first.
fn end(task: &Task<'_>, past: &Past, now: Instant, limits: &Limits, quiet: Duration) -> String {
    let left = |limit: Duration, used: Duration| limit.saturating_sub(used);
    match (past.aborted, past.killed) {
        (_, Some(at)) => return format!("killed {} ago and still there", span(now - at)),
        (Some(at), None) => {
            let since = now - at;
            return format!(
                "asked to end {} ago, killed in {}",
                span(since),
                span(left(limits.abort_grace, since))
            );
        }
        (None, None) => {}
    }
    let beat = task.beat;
    let seconds = Duration::from_secs;
    let timeout = beat.timeout_s.map(|limit| {
        let rest = left(seconds(limit), task.since(beat.since));
        (rest, format!("its timeout ends it in {}", span(rest)))
    });
    let silent = beat.kill_if_silent_s.map(|limit| {
        let since = beat.output_at.unwrap_or(beat.since);
        let rest = left(seconds(limit), task.since(since));
        (
            rest,
            format!("its kill_if_silent ends it in {}", span(rest)),
        )
    });
    let abort = limits.abort_after.map(|after| {
        let rest = left(limits.stuck_after + after, quiet);
        (
            rest,
            format!("stuck.abort_after aborts it in {}", span(rest)),
        )
    });
    [timeout, silent, abort]
        .into_iter()
        .flatten()
        .min_by_key(|(rest, _)| *rest)
        .map_or_else(
            || "nothing will stop it (no timeout)".to_owned(),
            |(_, words)| words,
        )
}

/// `no output since 21:44:02, CPU 0%, GPU 0%`
fn signs(beat: &RunningBeat, zone: &TimeZone) -> String {
    let mut signs = match beat.output_at {
        Some(at) => format!(
            "no output since {}",
            at.to_zoned_datetime(zone.clone()).strftime("%H:%M:%S")
        ),
        None => "no output at all".to_owned(),
    };
    for (what, percent) in [("CPU", beat.cpu_percent), ("GPU", beat.gpu_percent)] {
        if let Some(percent) = percent {
            signs.push_str(&format!(", {what} {percent}%"));
        }
    }
    signs
}

fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use rigor_queue::name::TaskId;
    use rigor_queue::task::Class;

    use super::*;

    const LIMITS: Limits = Limits {
        stuck_after: Duration::from_secs(300),
        abort_after: None,
        abort_grace: Duration::from_secs(120),
    };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn beat(active_at: i64) -> RunningBeat {
        RunningBeat {
            id: TaskId::derive("b", "add_topics", Some("7")),
            attempt: 1,
            name: "add_topics_7".to_owned(),
            batch: "b".to_owned(),
            class: Class::Llm,
            since: at(0),
            active_at: at(active_at),
            output_at: Some(at(active_at)),
            cpu_percent: Some(0),
            gpu_percent: Some(0),
            timeout_s: None,
            kill_if_silent_s: None,
        }
    }

    /// The same moment by the monotonic clock.
    fn steady(second: u64) -> Instant {
        static ZERO: LazyLock<Instant> = LazyLock::new(Instant::now);
        *ZERO + Duration::from_secs(second)
    }

    fn judged(beat: &RunningBeat, past: Past, now: u32, limits: Limits) -> Option<Stuck> {
        let task = Task {
            agent: "gpu-1",
            beat,
            seen: at(now.into()),
            age: Duration::ZERO,
            stale: false,
        };
        judge(&task, &past, steady(now.into()), &limits, &TimeZone::UTC)
    }

    #[test]
    fn the_line_says_where_how_long_which_signs_and_what_will_end_it() {
        let quiet = beat(2);
        let stuck = judged(&quiet, Past::default(), 362, LIMITS).unwrap();
        let short = quiet.id.short();
        assert_eq!(
            stuck.line.unwrap(),
            format!(
                "add_topics_7 ({short}) on gpu-1, processing 6m 2s, quiet 6m (no output since 00:00:02, CPU 0%, GPU 0%); nothing will stop it (no timeout). See: rigor logs {short}"
            )
        );
        assert_eq!(stuck.action, None, "by default nothing is ended");
    }

    #[test]
    fn a_long_task_that_works_is_not_stuck_and_neither_is_a_young_quiet_one() {
        assert_eq!(judged(&beat(700), Past::default(), 720, LIMITS), None);
        assert_eq!(judged(&beat(0), Past::default(), 299, LIMITS), None);
        assert!(judged(&beat(0), Past::default(), 300, LIMITS).is_some());
    }

    #[test]
    fn it_is_said_once_and_again_on_doubling() {
        let said = |seconds, now| {
            let past = Past {
                said: Some(Duration::from_secs(seconds)),
                ..Past::default()
            };
            judged(&beat(0), past, now, LIMITS).unwrap().line.is_some()
        };
        assert!(!said(300, 599));
        assert!(said(300, 600));
        assert!(!said(600, 1199));
    }

    #[test]
    fn the_soonest_end_is_named() {
        let mut task = beat(0);
        task.timeout_s = Some(1200);
        let end =
            |task: &RunningBeat, limits| judged(task, Past::default(), 480, limits).unwrap().end;
        assert_eq!(end(&task, LIMITS), "its timeout ends it in 12m");
        let aborting = Limits {
            abort_after: Some(Duration::from_secs(420)),
            ..LIMITS
        };
        assert_eq!(end(&task, aborting), "stuck.abort_after aborts it in 4m");
        task.kill_if_silent_s = Some(600);
        assert_eq!(end(&task, aborting), "its kill_if_silent ends it in 2m");
    }

    #[test]
    fn abort_then_kill_then_help_each_once() {
        let limits = Limits {
            abort_after: Some(Duration::from_secs(60)),
            ..LIMITS
        };
        let action = |past, now| judged(&beat(0), past, now, limits).unwrap().action;
        let mut past = Past::default();
        assert_eq!(action(past, 359), None);
        assert_eq!(action(past, 360), Some(Action::Abort));
        past.aborted = Some(steady(360));
        assert_eq!(action(past, 479), None);
        assert_eq!(action(past, 480), Some(Action::Kill));
        past.killed = Some(steady(480));
        assert_eq!(action(past, 599), None);
        assert_eq!(action(past, 600), Some(Action::Escalate));
        past.escalated = true;
        assert_eq!(action(past, 9000), None);
    }

    /// SIGTERM may make it print: what was asked to end is followed up all the same.
    #[test]
    fn a_sign_of_life_after_the_abort_does_not_save_it() {
        let limits = Limits {
            abort_after: Some(Duration::ZERO),
            ..LIMITS
        };
        let past = Past {
            aborted: Some(steady(300)),
            ..Past::default()
        };
        let stuck = judged(&beat(410), past, 420, limits).unwrap();
        assert_eq!(stuck.action, Some(Action::Kill));
        assert_eq!(
            stuck.reason,
            "stuck: still there 2m after it was asked to end"
        );
        assert_eq!(stuck.line, None, "it is not quiet");
    }

    #[test]
    fn a_stale_heartbeat_makes_nobody_quieter_and_nothing_is_done_on_it() {
        let limits = Limits {
            abort_after: Some(Duration::ZERO),
            ..LIMITS
        };
        let quiet = beat(0);
        let task = |seen| Task {
            agent: "gpu-1",
            beat: &quiet,
            seen: at(seen),
            age: Duration::from_secs(1000 - seen as u64),
            stale: true,
        };
        let judge = |seen| {
            judge(
                &task(seen),
                &Past::default(),
                steady(1000),
                &limits,
                &TimeZone::UTC,
            )
        };
        assert_eq!(
            judge(200),
            None,
            "it was quiet for 200s, and then nobody looked"
        );
        let stuck = judge(400).unwrap();
        assert_eq!(stuck.action, None);
        assert!(
            stuck
                .line
                .unwrap()
                .contains("as of its agent's last heartbeat 10m ago"),
        );
    }
}
