//! How long a step of a plan takes still.

use super::liveness::Liveness;
use super::*;
use crate::placement::TASK_SECONDS_PRIOR;
use crate::span::estimate;

/// An estimate with how it was made.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Eta {
    /// Seconds; none: unknown.
    pub(super) seconds: Option<f64>,
    /// How it was computed, or why not.
    pub(super) how: String,
}

impl Step {
    /// Items that are not over; one that is not expanded counts as one.
    pub(super) fn left(&self) -> u64 {
        let over = self.done + self.failed + self.cancelled;
        match self.total {
            Some(total) => total.saturating_sub(over),
            None => u64::from(self.problem.is_none()),
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.problem.is_some() || (self.expanded && self.left() == 0)
    }

    /// `480/500 done, 3 running, 17 queued, 2 failed`.
    pub(super) fn standing(&self) -> String {
        if let Some(problem) = &self.problem {
            return problem.clone();
        }
        let Some(total) = self.total else {
            return if self.foreach {
                "its items are not known yet".to_owned()
            } else {
                "not started".to_owned()
            };
        };
        let queued = self.released.saturating_sub(self.running);
        let waiting = self.left().saturating_sub(self.released + self.retry);
        let mut words = vec![format!("{}/{total} done", self.done)];
        for (number, what) in [
            (self.running, "running"),
            (queued, "queued"),
            (waiting, "waiting"),
            (self.retry, "to be tried again"),
            (self.failed, "failed"),
            (self.cancelled, "cancelled"),
        ] {
            if number > 0 {
                words.push(format!("{number} {what}"));
            }
        }
        words.join(", ")
    }

    /// How many of its items run at once, and how that was counted.
    fn width(&self, facts: &Facts) -> (u64, String) {
        let alive = || {
            facts
                .agents
                .iter()
                .filter(|agent| agent.component.liveness(facts) == Liveness::Fresh)
                .filter_map(|agent| Some((agent, agent.component.current()?)))
        };
        let (slots, what) = match self.class {
            Some(Class::Cpu) => {
                let slots = alive().map(|(_, beat)| u64::from(beat.cpu_slots.1)).sum();
                (slots, "CPU slot")
            }
            Some(Class::Llm) => {
                let slots: u64 = alive().map(|(_, beat)| u64::from(beat.llm_slots.1)).sum();
                if slots > 0 {
                    (slots, "model slot")
                } else {
                    (alive().filter(|(agent, _)| agent.gpu).count() as u64, "GPU")
                }
            }
            Some(Class::Script) => (alive().filter(|(agent, _)| agent.gpu).count() as u64, "GPU"),
            Some(Class::Meta | Class::Brain) | None => (1, "slot"),
        };
        let slots = slots.max(self.running);
        (slots, count(slots, what))
    }

    /// How long its own items take, as things are.
    pub(super) fn eta(&self, facts: &Facts, assume: bool) -> Eta {
        let left = self.left();
        if left == 0 || self.problem.is_some() {
            return Eta {
                seconds: Some(0.0),
                how: "nothing left".to_owned(),
            };
        }
        let (slots, on) = self.width(facts);
        if slots == 0 {
            return Eta {
                seconds: None,
                how: format!("unknown: no agent that is alive serves {}", self.id),
            };
        }
        let (each, origin) = match self.measured {
            Some((seconds, runs)) => (seconds, format!("measured over {}", count(runs, "run"))),
            None if assume => (TASK_SECONDS_PRIOR, "assumed".to_owned()),
            None => {
                return Eta {
                    seconds: None,
                    how: format!("unknown: nothing measured for {}", self.id),
                };
            }
        };
        let rounds = left.div_ceil(slots) as f64;
        Eta {
            seconds: Some(rounds * each),
            how: format!("{left} left x {} {origin}, on {on}", estimate(each)),
        }
    }
}

/// The steps in front of and with `last` that take longest together, the first first.
pub(super) fn longest_chain<'s>(
    facts: &Facts,
    steps: &'s [Step],
    last: &'s Step,
    assume: bool,
) -> Vec<(&'s Step, Eta)> {
    // Each step is gone through once however many paths lead to it; a plan has no cycles, and one
    // that is made up ends at the bound.
    let mut best = BTreeMap::new();
    chain(facts, steps, last, assume, steps.len(), &mut best);
    let mut path = Vec::new();
    let mut next = Some(last.id.as_str());
    while let Some(step) = next.and_then(|id| steps.iter().find(|step| step.id == id)) {
        if path.len() > steps.len() {
            break;
        }
        if !step.is_over() {
            path.push((step, step.eta(facts, assume)));
        }
        next = best.get(step.id.as_str()).and_then(|(_, before)| *before);
    }
    path.reverse();
    path
}

type Best<'s> = BTreeMap<&'s str, (f64, Option<&'s str>)>;

fn chain<'s>(
    facts: &Facts,
    steps: &'s [Step],
    step: &'s Step,
    assume: bool,
    depth: usize,
    best: &mut Best<'s>,
) -> f64 {
    if let Some((seconds, _)) = best.get(step.id.as_str()) {
        return *seconds;
    }
    let own = step
        .eta(facts, assume)
        .seconds
        .unwrap_or(TASK_SECONDS_PRIOR);
    let mut before = None;
    let mut longest = 0.0;
    for dep in &step.depends_on {
        let Some(dep) = steps.iter().find(|other| other.id == *dep) else {
            continue;
        };
        if dep.is_over() || depth == 0 {
            continue;
        }
        let seconds = chain(facts, steps, dep, assume, depth - 1, best);
        if before.is_none() || seconds > longest {
            (before, longest) = (Some(dep.id.as_str()), seconds);
        }
    }
    best.insert(&step.id, (own + longest, before));
    own + longest
}

/// The estimate for a whole chain.
pub(super) fn sum(chain: &[(&Step, Eta)]) -> Eta {
    let mut seconds = 0.0;
    for (_, eta) in chain {
        match eta.seconds {
            Some(more) => seconds += more,
            None => return eta.clone(),
        }
    }
    let how: Vec<String> = chain
        .iter()
        .map(|(step, eta)| {
            if chain.len() > 1 {
                format!("{}: {}", step.id, eta.how)
            } else {
                eta.how.clone()
            }
        })
        .collect();
    Eta {
        seconds: Some(seconds),
        how: how.join("; "),
    }
}

impl Eta {
    /// `about 12m (20 left x 36s ...)`, or why it is unknown.
    pub(super) fn words(&self) -> String {
        match self.seconds {
            Some(seconds) => format!("about {} ({})", estimate(seconds), self.how),
            None => format!("ETA {}", self.how),
        }
    }

    pub(super) fn whole(&self) -> Option<u64> {
        self.seconds.map(|seconds| seconds.ceil() as u64)
    }
}
