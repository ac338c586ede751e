//! A GPU that is kept for a model that another agent's runtime splits over several GPUs.

use rigor_queue::heartbeat::{Health, Refusal, Verdict};

use super::memory::alone_now;
use super::{AgentState, Candidate, LlmState, VramNeed, explain};

/// Why `agent` does not keep its GPU for `of` (the model and the agent that runs it); none: it
/// would.
pub(super) fn refusal(
    state: &AgentState,
    agent: &str,
    of: (&str, &str),
    expired: bool,
    vram: VramNeed,
) -> Option<Verdict> {
    let (model, to) = of;
    if agent != state.name || state.gpu.is_none() {
        return Some(explain::meta_elsewhere("lend_gpu", &[agent.to_owned()]));
    }
    if state.health != Health::Healthy {
        return Some(explain::ailment(state));
    }
    if expired {
        return Some(explain::expired(model));
    }
    match &state.llm {
        LlmState::Cold => {}
        // Nothing is left to do but to say so.
        LlmState::Lent {
            model: of,
            to: whom,
        } if of == model && whom == to => return None,
        LlmState::Lent {
            model: of,
            to: whom,
        } => return Some(occupied(model, of, whom)),
        LlmState::Hot { model: loaded, .. } => return Some(explain::occupied(model, loaded)),
        LlmState::Loading { .. } | LlmState::Draining { .. } | LlmState::Unloading { .. } => {
            return Some(explain::runtime_busy(&state.llm));
        }
    }
    let gpu = state.gpu.as_ref()?;
    let fits = match vram {
        VramNeed::Mb(mb) => gpu.alone.is_none() && gpu.settling.is_none() && mb <= gpu.available_mb,
        VramNeed::Alone => alone_now(gpu),
    };
    (!fits).then(|| explain::vram(state, gpu, &format!("load of {model}"), vram, None))
}

/// The GPU is kept for another model, or for another agent.
pub(super) fn occupied(model: &str, of: &str, to: &str) -> Verdict {
    Verdict {
        code: Refusal::WrongModel,
        detail: format!("load of {model} needs a cold GPU, this one is lent to {to} for {of}"),
    }
}

/// An agent that lends its GPU serves no model itself.
pub(super) fn not_here(
    state: &AgentState,
    candidate: &Candidate,
    model: &str,
    to: &str,
) -> Verdict {
    let what = format!("llm:{} wait", candidate.count);
    let detail = if *to == state.name {
        format!("{what}: the GPUs for {model} are being gathered")
    } else {
        format!("{what}: the GPU is lent to {to}, which runs {model}")
    };
    Verdict {
        code: Refusal::ModelNotLoaded,
        detail,
    }
}
