//! Why a task runs, does not run yet, or never will.

use super::eta::{longest_chain, sum};
use super::liveness::{Liveness, ago, clock, seconds_between};
use super::*;
use crate::retry::{self, AfterFailure, FailedAttempt};
use crate::span::span;

mod queued;
pub(super) use queued::distance;
pub(super) mod running;

/// The answer about a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskVerdict {
    /// It runs.
    Running,
    /// It will.
    NotYet,
    /// It cannot.
    Never,
    /// Everything is there, and nobody takes it.
    ShouldBeRunning,
    /// It ran, or was given up.
    Over,
}

/// What decides.
struct Decisive {
    verdict: TaskVerdict,
    reason: String,
    words: String,
}

/// Explains a task.
pub fn task(facts: &Facts, task: &TaskFacts) -> Explanation<TaskVerdict> {
    let mut out = Explanation {
        verdict: TaskVerdict::NotYet,
        reason: String::new(),
        summary: String::new(),
        gates: Vec::new(),
        help: Vec::new(),
    };
    attempts(task, &mut out);
    let decisive = match task.lane {
        Lane::Complete | Lane::Failed | Lane::Cancelled => over(facts, task, &mut out),
        Lane::Quarantine => quarantined(task, &mut out),
        Lane::Processing => running::explain(facts, task, &mut out),
        Lane::Waiting => waiting(facts, task, &mut out),
        Lane::Retry => between_attempts(facts, task, &mut out),
        Lane::Queue => queued::explain(facts, task, &mut out),
    };
    out.verdict = decisive.verdict;
    out.reason = decisive.reason;
    out.summary = match decisive.verdict {
        TaskVerdict::Running => decisive.words,
        TaskVerdict::NotYet => format!("not yet: {}", decisive.words),
        TaskVerdict::Never => format!("never: {}", decisive.words),
        TaskVerdict::ShouldBeRunning => format!("should be running: bug: {}", decisive.words),
        TaskVerdict::Over => format!("over: {}", decisive.words),
    };
    out
}

fn decisive(verdict: TaskVerdict, reason: &str, words: impl Into<String>) -> Decisive {
    Decisive {
        verdict,
        reason: reason.to_owned(),
        words: words.into(),
    }
}

fn not_yet(reason: &str, words: impl Into<String>) -> Decisive {
    decisive(TaskVerdict::NotYet, reason, words)
}

/// The attempts that are over, and the retries that are left.
fn attempts(task: &TaskFacts, out: &mut Explanation<TaskVerdict>) {
    for attempt in &task.attempts {
        let took = attempt
            .took
            .map(|took| format!(" after {}", span(took)))
            .unwrap_or_default();
        let reason = attempt
            .reason
            .as_ref()
            .map(|reason| format!(": {reason}"))
            .unwrap_or_default();
        let words = format!("{} on {}{took}{reason}", attempt.outcome, attempt.agent);
        let gate = Gate::new("attempt", GateState::Info, words).of(&attempt.attempt.to_string());
        out.gates.push(gate);
    }
    if !task.lane.is_terminal() && !task.attempts.is_empty() {
        let used = task.charged.min(task.retries);
        let words = format!("{used} of {} used", task.retries);
        out.gates.push(Gate::new("retries", GateState::Info, words));
    }
}

fn over(facts: &Facts, task: &TaskFacts, out: &mut Explanation<TaskVerdict>) -> Decisive {
    let last = task.attempts.last();
    let when = task
        .since
        .map(|since| format!(" {} ago", ago(facts, since)))
        .unwrap_or_default();
    let reason = last
        .and_then(|last| last.reason.as_deref())
        .unwrap_or("no reason was recorded");
    let short = task.id.short();
    if task.lane == Lane::Complete {
        let how = last.map_or_else(String::new, |last| {
            let took = last.took.map(|took| format!(", took {}", span(took)));
            format!(
                " on {}, attempt {}{}",
                last.agent,
                last.attempt,
                took.unwrap_or_default()
            )
        });
        return decisive(
            TaskVerdict::Over,
            "complete",
            format!("complete{when}{how}"),
        );
    }
    printed(task, out);
    if task.attempts.iter().any(|attempt| attempt.took.is_some()) {
        add_help(
            &mut out.help,
            help(format!("rigor logs {short}"), "prints what it printed"),
        );
    }
    add_help(
        &mut out.help,
        help(format!("rigor retry {short}"), "runs it again"),
    );
    if task.lane == Lane::Cancelled {
        let words = format!("cancelled{when}: {reason}");
        return decisive(TaskVerdict::Over, "cancelled", words);
    }
    let tries = count(task.attempts.len() as u64, "attempt");
    let words = format!("failed{when} after {tries}: {reason}");
    decisive(TaskVerdict::Over, "failed", words)
}

fn printed(task: &TaskFacts, out: &mut Explanation<TaskVerdict>) {
    for line in &task.output {
        out.gates
            .push(Gate::new("output", GateState::Info, line.clone()));
    }
}

fn quarantined(task: &TaskFacts, out: &mut Explanation<TaskVerdict>) -> Decisive {
    let reason = task
        .quarantined
        .as_deref()
        .unwrap_or("no reason lies beside it");
    out.gates
        .push(Gate::new("quarantine", GateState::Closed, reason));
    add_help(
        &mut out.help,
        help(
            "rigor tasks --lane quarantine",
            "lists what could not be trusted",
        ),
    );
    let words = format!("its file is in quarantine: {reason}");
    decisive(TaskVerdict::Never, "quarantined", words)
}

/// The brain, the batch and what an operator asked: what holds any task that is not released.
fn brain_and_batch(
    facts: &Facts,
    task: &TaskFacts,
    out: &mut Explanation<TaskVerdict>,
) -> Option<Decisive> {
    let mut first = None;
    match facts.brain.trouble(facts) {
        None => out
            .gates
            .push(Gate::new("brain", GateState::Open, "it runs")),
        Some(trouble) => {
            let words = if matches!(
                facts.brain.liveness(facts),
                Liveness::Never | Liveness::Down
            ) {
                out.help.push(help("rigor up", "starts it"));
                "the brain is not running: nothing is released (rigor up)".to_owned()
            } else {
                format!("{trouble}: nothing is released")
            };
            out.gates
                .push(Gate::new("brain", GateState::Closed, words.clone()));
            first = Some(not_yet("brain_down", words));
        }
    }
    let Some(batch) = &task.batch else {
        return first;
    };
    let cancel = [
        format!("{}.cancel", batch.id),
        format!("{}.cancel", task.id),
    ];
    let (state, closed) = match batch.state {
        BatchState::Submitted => (
            "submitted: the brain has not read it yet".to_owned(),
            Some("submitted"),
        ),
        BatchState::Running => ("running".to_owned(), None),
        BatchState::Held => {
            out.help.push(help(
                format!("rigor release {}", batch.id),
                "lets the batch go on",
            ));
            (
                format!("held by an operator (rigor release {})", batch.id),
                Some("held"),
            )
        }
        BatchState::Complete => ("over: complete".to_owned(), Some("batch_over")),
        BatchState::Failed => ("over: failed".to_owned(), Some("batch_over")),
        BatchState::Cancelled => ("over: cancelled".to_owned(), Some("cancelled")),
    };
    let asked = facts
        .brain_signals
        .iter()
        .any(|signal| cancel.contains(signal));
    let gate_state = if closed.is_some() {
        GateState::Closed
    } else {
        GateState::Open
    };
    let words = if asked {
        format!("{state}; cancelling was asked for and the brain has not done it yet")
    } else {
        state.clone()
    };
    out.gates
        .push(Gate::new("batch", gate_state, words).of(&batch.id));
    match closed {
        Some(code) if first.is_none() || code == "held" => {
            Some(not_yet(code, format!("its batch is {state}")))
        }
        _ => first,
    }
}

fn waiting(facts: &Facts, task: &TaskFacts, out: &mut Explanation<TaskVerdict>) -> Decisive {
    let held = brain_and_batch(facts, task, out);
    let never = never_fits(facts, task, out);
    let Some(batch) = &task.batch else {
        return held.unwrap_or_else(|| not_yet("waiting_deps", "the brain has not released it"));
    };
    let mut dead = None;
    let mut open: Option<(f64, String)> = None;
    let step = batch.steps.iter().find(|step| step.id == task.step);
    for dep in step.map(|step| step.depends_on.as_slice()).unwrap_or(&[]) {
        let Some(dep) = batch.steps.iter().find(|step| step.id == *dep) else {
            continue;
        };
        let (gate, failed) = dependency(facts, task, batch, dep);
        if let Some(why) = failed {
            dead.get_or_insert(format!("its dependency {} failed for good: {why}", dep.id));
        } else if gate.state == GateState::Closed {
            // The one that takes longest decides; unknown counts as longest.
            let takes = gate.eta_s.map_or(f64::INFINITY, |eta| eta as f64);
            if open.as_ref().is_none_or(|(longest, _)| takes > *longest) {
                open = Some((takes, format!("waits for {}: {}", dep.id, gate.words)));
            }
        }
        out.gates.push(gate);
    }
    if let Some(dead) = dead {
        add_help(
            &mut out.help,
            help(
                format!("rigor retry {} --failed", batch.id),
                "runs what failed again",
            ),
        );
        return decisive(TaskVerdict::Never, "dependency_failed", dead);
    }
    if let Some(never) = never {
        return never;
    }
    held.unwrap_or_else(|| match open {
        Some((_, words)) => not_yet("waiting_deps", words),
        None => not_yet(
            "waiting_deps",
            "all that it depends on is done; the brain releases it in a moment",
        ),
    })
}

/// How a dependency stands, and why it failed for good.
fn dependency(
    facts: &Facts,
    task: &TaskFacts,
    batch: &BatchFacts,
    dep: &Step,
) -> (Gate, Option<String>) {
    if let Some(lane) = task.own_items.get(&dep.id) {
        let (state, words, failed) = match lane {
            Some(Lane::Complete) => (GateState::Open, "the same item is done".to_owned(), None),
            Some(lane @ (Lane::Failed | Lane::Cancelled | Lane::Quarantine)) => {
                let words = format!("the same item lies in {lane}");
                (GateState::Closed, words.clone(), Some(words))
            }
            Some(lane) => (
                GateState::Closed,
                format!("the same item lies in {lane}; of all: {}", dep.standing()),
                None,
            ),
            None => (
                GateState::Closed,
                format!("the same item has no task yet; {}", dep.standing()),
                None,
            ),
        };
        return (Gate::new("dependency", state, words).of(&dep.id), failed);
    }
    let failed = dep.problem.clone().or_else(|| {
        // Failures of a few items may be borne; the brain cancels what waits where they are not.
        let all = dep.expanded
            && dep
                .total
                .is_some_and(|total| total > 0 && dep.failed == total);
        all.then(|| dep.standing())
    });
    if dep.is_over() {
        let state = if failed.is_some() {
            GateState::Closed
        } else {
            GateState::Open
        };
        return (
            Gate::new("dependency", state, dep.standing()).of(&dep.id),
            failed,
        );
    }
    let eta = sum(&longest_chain(facts, &batch.steps, dep, false));
    let words = format!("{}; {}", dep.standing(), eta.words());
    let mut gate = Gate::new("dependency", GateState::Closed, words).of(&dep.id);
    gate.eta_s = eta.whole();
    (gate, None)
}

fn never_fits(
    facts: &Facts,
    task: &TaskFacts,
    out: &mut Explanation<TaskVerdict>,
) -> Option<Decisive> {
    let why = facts.outlook.as_ref()?.never.get(&task.shape)?;
    out.gates
        .push(Gate::new("fit", GateState::Closed, why.clone()));
    out.help
        .push(help(format!("rigor cancel {}", task.id.short()), "ends it"));
    Some(decisive(TaskVerdict::Never, "never_fits", why.clone()))
}

fn between_attempts(
    facts: &Facts,
    task: &TaskFacts,
    out: &mut Explanation<TaskVerdict>,
) -> Decisive {
    let held = brain_and_batch(facts, task, out);
    let last = task.attempts.last();
    let failed = FailedAttempt {
        kind: last
            .and_then(|last| last.kind)
            .unwrap_or(FailureKind::WorkerLost),
        charged: task.charged,
        retries: task.retries,
        backoff: task.backoff,
        items: task.items,
        since_end: last
            .and_then(|last| last.ended)
            .map_or(Duration::ZERO, |ended| {
                Duration::from_secs(seconds_between(ended, facts.now))
            }),
        gpu_memory: None,
        budgets_mb: Vec::new(),
    };
    let why = last
        .and_then(|last| last.reason.as_deref())
        .unwrap_or("it left no record");
    let follows = match retry::decide(&failed) {
        // What it had is in its record, which the brain reads.
        _ if failed.kind == FailureKind::OutOfMemory => {
            "the brain tries it again with more memory, or files it".to_owned()
        }
        AfterFailure::Retry { wait, reason } if wait.is_zero() => {
            let tries = reason.split(" in ").next().unwrap_or(&reason);
            format!("{tries} is due now")
        }
        AfterFailure::Retry { wait, reason } => {
            let at = facts.now + jiff::SignedDuration::try_from(wait).unwrap_or_default();
            format!("{reason}, at {}", clock(facts, at))
        }
        AfterFailure::Split { reason }
        | AfterFailure::MoreMemory { reason, .. }
        | AfterFailure::GiveUp { reason }
        | AfterFailure::Cancel { reason } => format!("the brain files it: {reason}"),
    };
    out.gates
        .push(Gate::new("backoff", GateState::Closed, follows.clone()));
    printed(task, out);
    out.help.push(help(
        format!("rigor logs {}", task.id.short()),
        "prints what it printed",
    ));
    held.unwrap_or_else(|| {
        let words = format!("attempt {} failed ({why}); {follows}", task.attempt);
        not_yet("backoff", words)
    })
}
