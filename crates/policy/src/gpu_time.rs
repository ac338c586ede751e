//! Which cause each second of a GPU belongs to.
//!
//! Agents journal changes of their cause, the brain journals since when work waits that agents
//! cannot see. From both follows a cover of any stretch of time: every instant belongs to exactly
//! one span, so the sums are the wall time, to the nanosecond.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use rigor_queue::heartbeat::{Health, Refusal, Verdict};
use rigor_queue::reasons::{Cause, Reason};

use crate::admission::LlmState;

/// What the GPU's time goes into now.
///
/// `gpu_tasks` are script and llm tasks that run; `idle` is why nothing is started on the GPU
/// ([`crate::admission::Decision::idle_gpu`]).
pub fn cause(health: Health, llm: &LlmState, gpu_tasks: usize, idle: Option<&Verdict>) -> Cause {
    if gpu_tasks > 0 {
        return Cause::Running;
    }
    match llm {
        LlmState::Loading { .. } => return Cause::Loading,
        LlmState::Lent { .. } => return Cause::Lent,
        LlmState::Draining { .. } | LlmState::Unloading { .. } => return Cause::Unloading,
        LlmState::Cold | LlmState::Hot { .. } => {}
    }
    let Some(idle) = idle else {
        // Something is being claimed this very moment.
        return Cause::Running;
    };
    match idle.code {
        Refusal::QueueEmpty | Refusal::NoSuitableClass | Refusal::LostRace => Cause::NoWork,
        Refusal::ModelNotLoaded => Cause::ModelNotLoaded,
        Refusal::WrongModel => Cause::WrongModel,
        Refusal::VramShort | Refusal::HoldingModel => Cause::VramShort,
        Refusal::SlotsFull | Refusal::CpuSlotsFull => Cause::SlotsFull,
        Refusal::Thermal | Refusal::Power => Cause::ThermalPower,
        Refusal::Paused | Refusal::Draining => Cause::Paused,
        Refusal::RuntimeFailing => Cause::RuntimeFailing,
        // A backoff is a failed load's, unless the rig's directory itself cannot be used.
        Refusal::Backoff if health == Health::Quarantined => Cause::Quarantined,
        Refusal::Backoff => Cause::RuntimeFailing,
        Refusal::GpuLost => Cause::Quarantined,
    }
}

/// A stretch of time that belongs to one cause.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Its first instant.
    pub from: Timestamp,
    /// The instant after its last.
    pub to: Timestamp,
    /// What the GPU's time went into.
    pub cause: Cause,
    /// The code behind it, where there is one.
    pub code: Option<Refusal>,
    /// With numbers, as of its beginning.
    pub detail: String,
    /// Batches whose script and llm tasks ran.
    pub batches: Vec<String>,
}

impl Span {
    /// How long it is.
    pub fn length(&self) -> SignedDuration {
        self.to.duration_since(self.from)
    }
}

/// Covers `from..to` with spans, in order, without gap or overlap.
///
/// `agent` and `brain` are the journals ([`rigor_queue::reasons::read`] from `from` on). An agent
/// that is dead or does not answer was last seen at `gone`: what follows is [`Cause::AgentDown`],
/// as is what was before its first entry.
pub fn spans(
    agent: &[Reason],
    brain: &[Reason],
    from: Timestamp,
    to: Timestamp,
    gone: Option<Timestamp>,
) -> Vec<Span> {
    let mut agent = in_order(agent);
    if let Some(gone) = gone {
        let last = agent.last().map_or(gone, |last| last.since.max(gone));
        if agent
            .last()
            .is_none_or(|last| last.cause != Cause::AgentDown)
        {
            agent.push(Reason {
                since: last,
                cause: Cause::AgentDown,
                code: None,
                detail: "last seen then".to_owned(),
                batches: Vec::new(),
            });
        }
    }
    let brain = in_order(brain);
    let mut cuts: Vec<Timestamp> = agent
        .iter()
        .chain(&brain)
        .map(|entry| entry.since)
        .filter(|at| *at > from && *at < to)
        .collect();
    cuts.extend([from, to]);
    cuts.sort_unstable();
    cuts.dedup();
    let mut spans: Vec<Span> = Vec::new();
    for pair in cuts.windows(2) {
        let span = joined(at(&agent, pair[0]), at(&brain, pair[0]), pair[0], pair[1]);
        match spans.last_mut() {
            Some(last) if same(last, &span) => last.to = span.to,
            _ => spans.push(span),
        }
    }
    spans
}

/// How long each cause held, over all spans; those that are absent held for no time.
pub fn totals(spans: &[Span]) -> BTreeMap<Cause, SignedDuration> {
    let mut totals = BTreeMap::new();
    for span in spans {
        *totals.entry(span.cause).or_insert(SignedDuration::ZERO) += span.length();
    }
    totals
}

/// Of the running time, how much had a task of that batch.
pub fn running_for(spans: &[Span], batch: &str) -> SignedDuration {
    spans
        .iter()
        .filter(|span| span.cause == Cause::Running)
        .filter(|span| span.batches.iter().any(|of| of == batch))
        .map(Span::length)
        .sum()
}

/// The entries by time. An entry that was written later about an earlier time replaces what was
/// said of that time on: an agent that hung did not know.
fn in_order(entries: &[Reason]) -> Vec<Reason> {
    let mut ordered: Vec<Reason> = Vec::with_capacity(entries.len());
    for entry in entries {
        let mut entry = entry.clone();
        if let Some(last) = ordered.last().filter(|_| entry.cause != Cause::AgentDown) {
            // A clock that was set back must not erase what was before.
            entry.since = entry.since.max(last.since);
        }
        while ordered.last().is_some_and(|last| last.since >= entry.since) {
            ordered.pop();
        }
        ordered.push(entry);
    }
    ordered
}

fn at(entries: &[Reason], moment: Timestamp) -> Option<&Reason> {
    let after = entries.partition_point(|entry| entry.since <= moment);
    entries.get(after.checked_sub(1)?)
}

fn joined(agent: Option<&Reason>, brain: Option<&Reason>, from: Timestamp, to: Timestamp) -> Span {
    let Some(agent) = agent else {
        return Span {
            from,
            to,
            cause: Cause::AgentDown,
            code: None,
            detail: "not started yet".to_owned(),
            batches: Vec::new(),
        };
    };
    // The agent sees an empty queue; the brain knows what is to come.
    let waits =
        brain.filter(|brain| agent.cause == Cause::NoWork && brain.cause == Cause::WaitingDeps);
    Span {
        from,
        to,
        cause: waits.map_or(agent.cause, |brain| brain.cause),
        code: agent.code,
        detail: waits.unwrap_or(agent).detail.clone(),
        batches: agent.batches.clone(),
    }
}

fn same(a: &Span, b: &Span) -> bool {
    (a.cause, a.code, &a.detail, &a.batches) == (b.cause, b.code, &b.detail, &b.batches)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn reason(since: i64, cause: Cause) -> Reason {
        Reason {
            since: second(since),
            cause,
            code: None,
            detail: String::new(),
            batches: if cause == Cause::Running {
                vec!["b".to_owned()]
            } else {
                Vec::new()
            },
        }
    }

    fn brief(spans: &[Span]) -> Vec<(i64, Cause)> {
        spans
            .iter()
            .map(|span| (span.length().as_secs(), span.cause))
            .collect()
    }

    #[test]
    fn an_empty_queue_is_waiting_while_the_brain_knows_of_work_to_come() {
        let agent = [
            reason(10, Cause::Running),
            reason(20, Cause::NoWork),
            reason(60, Cause::Running),
        ];
        let brain = [
            reason(0, Cause::NoWork),
            reason(15, Cause::WaitingDeps),
            reason(50, Cause::NoWork),
        ];
        let spans = spans(&agent, &brain, second(5), second(70), None);
        assert_eq!(
            brief(&spans),
            [
                (5, Cause::AgentDown),
                (10, Cause::Running),
                (30, Cause::WaitingDeps),
                (10, Cause::NoWork),
                (10, Cause::Running)
            ]
        );
        assert_eq!(running_for(&spans, "b").as_secs(), 20);
        assert_eq!(running_for(&spans, "other").as_secs(), 0);
    }

    #[test]
    fn what_the_brain_finds_out_later_replaces_what_the_agent_said() {
        // Hung at 30, found out and killed at 90, back at 100.
        let agent = [
            reason(0, Cause::Running),
            reason(30, Cause::AgentDown),
            reason(100, Cause::NoWork),
        ];
        let mut written = vec![reason(0, Cause::Running), reason(40, Cause::NoWork)];
        written.extend_from_slice(&agent[1..]);
        let spans = spans(&written, &[], second(0), second(110), None);
        assert_eq!(
            brief(&spans),
            [
                (30, Cause::Running),
                (70, Cause::AgentDown),
                (10, Cause::NoWork)
            ]
        );
    }

    #[test]
    fn the_dead_are_down_from_when_they_were_last_seen() {
        let agent = [reason(0, Cause::Running), reason(50, Cause::NoWork)];
        let gone = spans(&agent, &[], second(0), second(100), Some(second(30)));
        assert_eq!(
            brief(&gone),
            [(50, Cause::Running), (50, Cause::AgentDown)],
            "an entry is a sign of life too"
        );
        let known = [reason(0, Cause::Running), reason(20, Cause::AgentDown)];
        let down = spans(&known, &[], second(0), second(100), Some(second(90)));
        assert_eq!(brief(&down), [(20, Cause::Running), (80, Cause::AgentDown)]);
    }

    #[test]
    fn each_refusal_has_its_cause() {
        let idle = |code| Verdict {
            code,
            detail: String::new(),
        };
        let cold = LlmState::Cold;
        let of = |health, code| cause(health, &cold, 0, Some(&idle(code)));
        assert_eq!(of(Health::Healthy, Refusal::Backoff), Cause::RuntimeFailing);
        assert_eq!(
            of(Health::Quarantined, Refusal::Backoff),
            Cause::Quarantined
        );
        assert_eq!(of(Health::Paused, Refusal::Paused), Cause::Paused);
        let busy = cause(Health::Paused, &cold, 1, Some(&idle(Refusal::Paused)));
        assert_eq!(busy, Cause::Running, "what runs runs on");
        let loading = LlmState::Loading {
            model: "m".to_owned(),
            for_s: 1,
        };
        let verdict = idle(Refusal::ModelNotLoaded);
        assert_eq!(
            cause(Health::Healthy, &loading, 0, Some(&verdict)),
            Cause::Loading
        );
    }

    fn journal() -> impl Strategy<Value = Vec<Reason>> {
        let entry = (0i64..1000, 0usize..Cause::ALL.len())
            .prop_map(|(since, cause)| reason(since, Cause::ALL[cause]));
        prop::collection::vec(entry, 0..20)
    }

    proptest! {
        #[test]
        fn every_instant_belongs_to_one_cause(
            agent in journal(),
            brain in journal(),
            from in 0i64..1000,
            length in 1i64..1000,
            gone in prop::option::of(0i64..1000),
        ) {
            let to = from + length;
            let spans = spans(&agent, &brain, second(from), second(to), gone.map(second));
            prop_assert_eq!(spans.first().map(|span| span.from), Some(second(from)));
            prop_assert_eq!(spans.last().map(|span| span.to), Some(second(to)));
            for pair in spans.windows(2) {
                prop_assert_eq!(pair[0].to, pair[1].from);
            }
            let sum: SignedDuration = totals(&spans).into_values().sum();
            prop_assert_eq!(sum, SignedDuration::from_secs(length));
        }
    }
}
