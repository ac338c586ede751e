//! Whether a script has room on the GPU, in slots and in memory.

use rigor_queue::heartbeat::Verdict;

use super::{AgentState, Candidate, GpuState, LlmState, VramNeed, explain};

impl GpuState {
    /// How many of `slots` may be in use: half of them close to a limit, and one at least.
    pub(super) fn slots(&self, slots: u32) -> u32 {
        match self.near_limit {
            Some(_) => (slots / 2).max(1).min(slots),
            None => slots,
        }
    }
}

/// Why a script does not run beside what is on the GPU.
pub(super) fn vram_refusal(
    state: &AgentState,
    all: &[Candidate],
    candidate: &Candidate,
    vram: VramNeed,
) -> Option<Verdict> {
    let gpu = state.gpu.as_ref()?;
    // A script that comes and goes would falsify the memory that a load or an unload is proven by.
    match &state.llm {
        LlmState::Cold | LlmState::Hot { .. } => {}
        // Nor does the agent see when the model moves that it lends its GPU for.
        LlmState::Lent { .. }
        | LlmState::Loading { .. }
        | LlmState::Draining { .. }
        | LlmState::Unloading { .. } => {
            return Some(explain::model_moves(candidate, &state.llm));
        }
    }
    // Where there is no limit of their own, CPU slots bound them, and half of those close to a limit.
    let slots = match (gpu.script_slots, &gpu.near_limit) {
        (None, Some(_)) => Some(state.cpu.total),
        (slots, _) => slots,
    };
    if let Some(slots) = slots.filter(|slots| gpu.scripts >= gpu.slots(*slots)) {
        return Some(explain::script_slots(state, gpu, slots));
    }
    let fits = match vram {
        VramNeed::Mb(mb) => gpu.alone.is_none() && mb <= gpu.available_mb,
        VramNeed::Alone => alone_now(gpu) && !matches!(state.llm, LlmState::Hot { .. }),
    };
    if fits {
        return None;
    }
    let what = format!("script:{}", candidate.count);
    if let LlmState::Hot { model, slots, .. } = &state.llm {
        let queued: usize = all
            .iter()
            .filter(|other| explain::keeps_model(state, other, model))
            .map(|other| other.count)
            .sum();
        if queued > 0 || slots.used > 0 {
            return Some(explain::holding(
                gpu, &what, vram, model, queued, slots.used,
            ));
        }
    }
    let model = match &state.llm {
        LlmState::Hot { model, .. } => Some(model.as_str()),
        _ => None,
    };
    Some(explain::vram(state, gpu, &what, vram, model))
}

/// Whether a task of unknown need could have the GPU to itself.
pub(super) fn alone_now(gpu: &GpuState) -> bool {
    gpu.settling.is_none() && gpu.scripts == 0 && gpu.leased_mb == 0 && gpu.available_mb > 0
}
