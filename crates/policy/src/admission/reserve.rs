//! Room that is kept free, so that a stream of small tasks cannot starve a large one.

use rigor_queue::heartbeat::{Refusal, Verdict};

use super::{AgentState, Candidate, LlmState, Needs, RESERVE_AFTER_S, VramNeed, explain};

/// Room that is kept for a candidate that was passed over for too long.
pub(super) struct Reservation {
    at: usize,
    memory: bool,
    cpus: bool,
    why: String,
}

impl Reservation {
    pub(super) fn keeps_off(&self, at: usize, candidate: &Candidate) -> Option<Verdict> {
        if at <= self.at {
            return None;
        }
        let (memory, cpus) = match candidate.needs {
            Needs::Cpu { .. } => (false, true),
            Needs::Script { .. } => (true, true),
            Needs::Load { .. } | Needs::Lend { .. } => (true, false),
            Needs::Contended
            | Needs::Elsewhere { .. }
            | Needs::Llm { .. }
            | Needs::Unload { .. } => (false, false),
        };
        let code = match (self.memory && memory, self.cpus && cpus) {
            (true, _) => Refusal::VramShort,
            (false, true) => Refusal::CpuSlotsFull,
            (false, false) => return None,
        };
        Some(Verdict {
            code,
            detail: format!("{}:{} wait: {}", candidate.class, candidate.count, self.why),
        })
    }
}

/// The first candidate that only lacks room, could have it, and was passed over for too long.
pub(super) fn reservation(
    state: &AgentState,
    candidates: &[Candidate],
    judged: &[Option<Verdict>],
) -> Option<Reservation> {
    candidates
        .iter()
        .zip(judged)
        .enumerate()
        .find_map(|(at, (candidate, verdict))| {
            let verdict = verdict.as_ref()?;
            if candidate.passed_over_s < RESERVE_AFTER_S || !could_ever_fit(state, &candidate.needs)
            {
                return None;
            }
            let (memory, cpus) = match verdict.code {
                Refusal::VramShort => (true, false),
                Refusal::CpuSlotsFull => (false, true),
                _ => return None,
            };
            // Memory that the model holds comes free by the brain's decision alone: nothing that
            // this agent holds back would help.
            let model_in_the_way = memory && !matches!(state.llm, LlmState::Cold);
            (!model_in_the_way).then(|| Reservation {
                at,
                memory,
                cpus,
                why: explain::reserved(candidate),
            })
        })
}

fn could_ever_fit(state: &AgentState, needs: &Needs) -> bool {
    let memory = |vram: VramNeed| match (vram, &state.gpu) {
        (VramNeed::Mb(mb), Some(gpu)) => mb <= gpu.budget_mb,
        (VramNeed::Alone, Some(_)) => true,
        (_, None) => false,
    };
    match needs {
        Needs::Cpu { cpus } => *cpus <= state.cpu.total,
        Needs::Script { cpus, vram } => *cpus <= state.cpu.total && memory(*vram),
        Needs::Load { vram, .. } | Needs::Lend { vram, .. } => memory(*vram),
        Needs::Contended | Needs::Elsewhere { .. } | Needs::Llm { .. } | Needs::Unload { .. } => {
            false
        }
    }
}
