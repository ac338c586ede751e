//! The last decision with all that it was made from, and the reasons that follow from it.

use std::collections::BTreeMap;
use std::time::Instant;

use rigor_policy::admission::{self, AgentState, Candidate, Decision, Needs};
use rigor_queue::heartbeat::{Refusal, SHAPES_MOST, Verdict};
use rigor_queue::name::{FileName, Shape};
use rigor_queue::task::Class;

use crate::agent::Agent;

/// A decision, the state and the candidates that it was made from: reasons come from the same.
#[derive(Debug)]
pub(crate) struct Judged {
    pub(crate) state: AgentState,
    pub(crate) candidates: Vec<Candidate>,
    /// The file that stands for each candidate; none for what others hold.
    pub(crate) keys: Vec<Option<(Class, FileName)>>,
    pub(crate) decision: Decision,
}

/// What a heartbeat says of refusals.
#[derive(Debug, Default)]
pub(crate) struct Refused {
    pub(crate) verdicts: BTreeMap<Class, Verdict>,
    pub(crate) shapes: BTreeMap<Shape, Verdict>,
    /// There are more shapes than these.
    pub(crate) cut: bool,
}

impl Judged {
    /// Decides.
    pub(crate) fn of(
        state: AgentState,
        candidates: Vec<Candidate>,
        keys: Vec<Option<(Class, FileName)>>,
    ) -> Judged {
        let decision = admission::decide(&state, &candidates);
        Judged {
            state,
            candidates,
            keys,
            decision,
        }
    }

    /// The model of the first candidate that is refused for want of it, where it names one or the
    /// agent's own will do.
    pub(crate) fn wanted_model(&self) -> Option<&str> {
        let refused = self.candidates.iter().zip(&self.decision.refusals);
        let mut wanting = refused.filter_map(|(candidate, refusal)| {
            let code = refusal.as_ref()?.code;
            match &candidate.needs {
                Needs::Llm { model, min_tier } if wants_model(code) => Some((model, min_tier)),
                _ => None,
            }
        });
        match wanting.next()? {
            (Some(model), _) => Some(model),
            (None, None) => self.state.default_model.as_deref(),
            (None, Some(_)) => None,
        }
    }

    /// Whether anything is refused with that code.
    pub(crate) fn refuses(&self, code: Refusal) -> bool {
        let mut refusals = self.decision.refusals.iter().flatten();
        refusals.any(|refusal| refusal.code == code)
    }

    fn refused(&self) -> Refused {
        let shapes = self.keys.iter().zip(&self.decision.refusals);
        let shapes = shapes.filter_map(|(key, refusal)| Some((key.as_ref()?.1.shape, refusal)));
        Refused {
            verdicts: self.decision.verdicts.clone(),
            cut: self.keys.iter().flatten().count() > SHAPES_MOST,
            shapes: shapes
                .take(SHAPES_MOST)
                .filter_map(|(shape, refusal)| Some((shape, refusal.clone()?)))
                .collect(),
        }
    }
}

/// A model would help.
pub(crate) fn wants_model(code: Refusal) -> bool {
    matches!(code, Refusal::ModelNotLoaded | Refusal::WrongModel)
}

impl Agent {
    /// Whether it is the agent of a GPU, be that readable or not.
    pub(crate) fn has_gpu(&self) -> bool {
        self.port.is_some()
    }

    /// Whether a task of that class is work for what the agent is there for: its GPU, if it has one.
    pub(crate) fn is_main_work(&self, class: Class) -> bool {
        !self.has_gpu() || class != Class::Cpu
    }

    /// Something was claimed or has ended: idleness counts from here, unless it is a task beside
    /// what the agent is there for.
    pub(crate) fn worked(&mut self, class: Class) {
        if self.is_main_work(class) {
            self.last_work = Instant::now();
            self.last_work_at = jiff::Timestamp::now();
        }
    }

    /// Why nothing is claimed, whatever runs; none before the first look at the queue.
    pub(crate) fn nothing_because(&self) -> Option<Verdict> {
        self.refuses_all().or_else(|| {
            let judged = self.judged.as_ref()?;
            judged.decision.idle(&judged.state)
        })
    }

    /// Why nothing is started on the GPU, whatever else is; without a GPU: why nothing is.
    pub(crate) fn gpu_idle_because(&self) -> Option<Verdict> {
        if !self.has_gpu() {
            return self.nothing_because();
        }
        self.refuses_all().or_else(|| {
            let judged = self.judged.as_ref()?;
            let idle = judged.decision.idle_gpu(&judged.state, &judged.candidates);
            idle.map(|verdict| self.or_unheard(verdict))
        })
    }

    /// Why the agent is idle; none while it works. Cpu tasks beside an idle GPU are no work of a
    /// GPU's agent.
    pub(crate) fn idle(&self) -> Option<Verdict> {
        self.idle_by_decision()
            .map(|verdict| self.or_unheard(verdict))
    }

    /// An agent whose heartbeat cannot be written gets no model from the brain: that is why it has
    /// none.
    fn or_unheard(&self, verdict: Verdict) -> Verdict {
        match &self.beat.failing {
            Some(error) if wants_model(verdict.code) => Verdict {
                code: Refusal::Backoff,
                detail: format!(
                    "{}; no model comes while the heartbeat cannot be written: {error}",
                    verdict.detail
                ),
            },
            _ => verdict,
        }
    }

    fn idle_by_decision(&self) -> Option<Verdict> {
        let working = self
            .attempts
            .iter()
            .any(|attempt| self.is_main_work(attempt.class()));
        if working || self.llm.is_busy() {
            None
        } else if self.attempts.len() > 0 {
            self.gpu_idle_because()
        } else {
            self.nothing_because()
        }
    }

    /// The refusal of everything, where the rig's directory or its workers cannot be used.
    fn refuses_all(&self) -> Option<Verdict> {
        self.refusing().map(|trouble| Verdict {
            code: Refusal::Backoff,
            detail: trouble.reason.clone(),
        })
    }

    /// What is refused now, and why. In trouble that is all that is queued: the last decision was
    /// made before it.
    pub(crate) fn refused(&self, now: Instant) -> Refused {
        let Some(verdict) = self.refuses_all() else {
            return self
                .judged
                .as_ref()
                .map_or_else(Refused::default, Judged::refused);
        };
        let queued = self.queues.shapes(now);
        Refused {
            verdicts: self
                .queues
                .counts()
                .into_iter()
                .map(|(class, _)| (class, verdict.clone()))
                .collect(),
            cut: queued.len() > SHAPES_MOST,
            shapes: queued
                .into_iter()
                .take(SHAPES_MOST)
                .map(|shape| (shape, verdict.clone()))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rigor_policy::admission::{LlmState, Slots};
    use rigor_queue::heartbeat::Health;
    use rigor_queue::name::TaskId;

    #[test]
    fn the_first_shapes_are_told_with_their_own_verdicts() {
        let state = AgentState {
            name: "cpu-1".to_owned(),
            health: Health::Healthy,
            ailment: None,
            default_model: None,
            llm: LlmState::Cold,
            failed_loads: Vec::new(),
            cpu: Slots { used: 0, total: 2 },
            gpu: None,
            running: Vec::new(),
        };
        let candidate = |cpus| Candidate {
            class: Class::Cpu,
            count: 1,
            needs: Needs::Cpu { cpus },
            passed_over_s: 0,
        };
        let shapes = SHAPES_MOST as u32 + 1;
        let mut candidates: Vec<Candidate> = (0..shapes).map(|n| candidate(n + 2)).collect();
        let key = |n: u32| {
            let id = TaskId::derive("b", &n.to_string(), None);
            Some((Class::Cpu, FileName::first(5, u64::from(n), Shape(n), id)))
        };
        let mut keys: Vec<_> = (0..shapes).map(key).collect();
        candidates.push(Candidate {
            needs: Needs::Contended,
            ..candidate(1)
        });
        keys.push(None);
        let refused = Judged::of(state, candidates, keys).refused();
        assert!(refused.cut);
        assert_eq!(refused.shapes.len(), SHAPES_MOST - 1);
        assert!(
            !refused.shapes.contains_key(&Shape(0)),
            "it would be claimed"
        );
        assert_eq!(refused.shapes[&Shape(1)].code, Refusal::CpuSlotsFull);
        assert!(refused.shapes[&Shape(3)].detail.contains("needs 5"));
    }
}
