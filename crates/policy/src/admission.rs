//! Which candidate an agent admits, and why it refuses the others.
//!
//! | health | LLM | claims, in this order |
//! |---|---|---|
//! | healthy | hot | meta, llm, script (only beside the model), cpu |
//! | healthy | lent | meta, cpu |
//! | healthy | anything else | meta, script (not while a model moves), cpu |
//! | constrained | any | meta (no loads), cpu |
//! | paused | any | meta that names this agent alone |
//! | draining, quarantined | any | the unload of this agent's model |
//!
//! Within a class the claim order decides, with one exception to "the first that fits": what was
//! passed over for [`RESERVE_AFTER_S`] keeps later tasks off the resource that it lacks, so that a
//! stream of small tasks cannot starve a large one.
//!
//! CPU slots bound `cpu` and `script` tasks. An `llm` task mostly waits for the model's server and
//! is bounded by that server's slots.

mod explain;
mod lend;
mod memory;
#[cfg(test)]
mod properties;
mod reserve;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use rigor_queue::heartbeat::{Health, Refusal, Verdict};
use rigor_queue::task::Class;

/// A candidate that was refused only for lack of room for this long, seconds, reserves it.
pub const RESERVE_AFTER_S: u64 = 30;

/// All that admission looks at of an agent.
#[derive(Clone, Debug)]
pub struct AgentState {
    /// The agent's name.
    pub name: String,
    /// Its health.
    pub health: Health,
    /// Why it is not healthy, with the numbers; must be there unless it is.
    pub ailment: Option<Verdict>,
    /// The model it loads for tasks that name none.
    pub default_model: Option<String>,
    /// Its LLM runtime.
    pub llm: LlmState,
    /// Models whose last load failed here.
    pub failed_loads: Vec<FailedLoad>,
    /// CPU slots.
    pub cpu: Slots,
    /// Its GPU; none for a CPU-only agent.
    pub gpu: Option<GpuState>,
    /// What runs, for refusals that name who takes the room.
    pub running: Vec<Running>,
}

/// Slots in use and in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slots {
    /// In use.
    pub used: u32,
    /// In all.
    pub total: u32,
}

impl Slots {
    fn free(self) -> u32 {
        self.total.saturating_sub(self.used)
    }
}

/// What the LLM runtime is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LlmState {
    /// No model in VRAM.
    Cold,
    /// On its way in.
    Loading {
        /// Catalogue id.
        model: String,
        /// Since when, seconds.
        for_s: u64,
    },
    /// In VRAM and proven to answer.
    Hot {
        /// Catalogue id.
        model: String,
        /// Its capability.
        tier: u32,
        /// Requests at once.
        slots: Slots,
    },
    /// Its GPU is kept for the runtime of another agent.
    Lent {
        /// Catalogue id.
        model: String,
        /// The agent whose runtime uses it.
        to: String,
    },
    /// Running requests end, no new ones start.
    Draining {
        /// Catalogue id.
        model: String,
    },
    /// On its way out.
    Unloading {
        /// Catalogue id.
        model: String,
    },
}

/// A model whose last load failed, and when it may be tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedLoad {
    /// Catalogue id.
    pub model: String,
    /// The runtime's own cause.
    pub cause: String,
    /// The rest of the backoff, seconds; 0: it may be tried.
    pub retry_in_s: u64,
}

/// The memory of the agent's GPU, MiB.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GpuState {
    /// What tasks and models may use in all.
    pub budget_mb: u64,
    /// What can be leased now.
    pub available_mb: u64,
    /// Leased to tasks and the model.
    pub leased_mb: u64,
    /// Who else holds memory, in words: `5100 MB held by ollama (pid 2210)`.
    pub foreign: Option<String>,
    /// Script tasks that run.
    pub scripts: u32,
    /// The most script tasks at once, where there is a limit.
    pub script_slots: Option<u32>,
    /// The task that has the GPU to itself, because nobody knows yet what it needs.
    pub alone: Option<String>,
    /// Who has ended and whose memory is not seen to be back yet: nothing is measured until then.
    pub settling: Option<String>,
    /// Why it takes half as much at once as it could: `78C is within 5C of the limit 80C`.
    pub near_limit: Option<String>,
}

/// A task that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its class.
    pub class: Class,
    /// Its id, short.
    pub label: String,
    /// Since when, seconds.
    pub for_s: u64,
}

/// Queued tasks of one shape: all are admitted or refused alike.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Their class.
    pub class: Class,
    /// How many are queued.
    pub count: usize,
    /// What they need.
    pub needs: Needs,
    /// How long this agent has refused them for lack of room alone, seconds.
    pub passed_over_s: u64,
}

/// What a task needs.
#[derive(Clone, Debug, PartialEq)]
pub enum Needs {
    /// All of these names are locked or were just taken by other agents.
    Contended,
    /// Only these agents may run it, and none of them is this one.
    Elsewhere {
        /// The agents.
        on: Vec<String>,
    },
    /// CPU slots.
    Cpu {
        /// How many.
        cpus: u32,
    },
    /// CPU slots and GPU memory.
    Script {
        /// How many slots.
        cpus: u32,
        /// How much memory.
        vram: VramNeed,
    },
    /// A model in VRAM.
    Llm {
        /// Catalogue id; none: the agent's own.
        model: Option<String>,
        /// The lowest capability that will do.
        min_tier: Option<u32>,
    },
    /// `load_llm`.
    Load {
        /// Catalogue id.
        model: String,
        /// Agents that may take it.
        eligible: Vec<String>,
        /// Past its time.
        expired: bool,
        /// What the model takes.
        vram: VramNeed,
    },
    /// `lend_gpu`.
    Lend {
        /// The agent whose GPU is lent.
        agent: String,
        /// The agent whose runtime uses it.
        to: String,
        /// Catalogue id.
        model: String,
        /// Past its time.
        expired: bool,
        /// What the model takes of this GPU.
        vram: VramNeed,
    },
    /// `unload_llm`.
    Unload {
        /// The agent whose model goes.
        agent: String,
    },
}

/// GPU memory, MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VramNeed {
    /// So much.
    Mb(u64),
    /// Not known yet: it runs alone on its GPU.
    Alone,
}

/// What an agent does next.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// The candidate to claim, by its place in the list.
    pub admit: Option<usize>,
    /// Why not, for each class of which nothing is admitted.
    pub verdicts: BTreeMap<Class, Verdict>,
    /// Why not, for each candidate; none: it could be claimed.
    pub refusals: Vec<Option<Verdict>>,
}

impl Decision {
    /// Why the agent claims nothing: the verdict on its most preferred class, of those that it
    /// could serve. None where it claims something.
    pub fn idle(&self, state: &AgentState) -> Option<Verdict> {
        if self.admit.is_some() {
            return None;
        }
        Some(self.reason(state, &Class::ALL))
    }

    /// Why the agent starts nothing on its GPU, whatever else it does: as [`Decision::idle`], of
    /// script and llm tasks alone. Where those need a load, the refusal of that load is the reason.
    /// None where it claims something for the GPU.
    pub fn idle_gpu(&self, state: &AgentState, candidates: &[Candidate]) -> Option<Verdict> {
        let admitted = self.admit.and_then(|at| candidates.get(at));
        if admitted.is_some_and(|candidate| candidate.class != Class::Cpu) {
            return None;
        }
        let waits_for_model = self.verdicts.get(&Class::Llm).is_some_and(|verdict| {
            matches!(verdict.code, Refusal::ModelNotLoaded | Refusal::WrongModel)
        });
        let classes: &[Class] = if waits_for_model {
            &[Class::Meta, Class::Script, Class::Llm]
        } else {
            &[Class::Script, Class::Llm]
        };
        Some(self.reason(state, classes))
    }

    fn reason(&self, state: &AgentState, classes: &[Class]) -> Verdict {
        // A load or unload that is for somebody else is nothing that this agent is idle for.
        let others = |class: Class, verdict: &Verdict| {
            class == Class::Meta && verdict.code == Refusal::NoSuitableClass
        };
        let mut ordered: Vec<(usize, &Verdict)> = self
            .verdicts
            .iter()
            .filter(|(class, verdict)| classes.contains(class) && !others(**class, verdict))
            .map(|(class, verdict)| (rank(state, *class), verdict))
            .collect();
        ordered.sort_by_key(|(rank, _)| *rank);
        explain::merge(ordered.iter().map(|(_, verdict)| *verdict)).unwrap_or_else(|| Verdict {
            code: Refusal::QueueEmpty,
            detail: "nothing queued".to_owned(),
        })
    }
}

/// The classes that the agent takes in its state, most preferred first.
pub fn preferred(state: &AgentState) -> &'static [Class] {
    match (state.health, &state.llm) {
        (Health::Healthy, _) if state.gpu.is_none() => &[Class::Meta, Class::Cpu],
        (Health::Healthy, LlmState::Hot { .. }) => {
            &[Class::Meta, Class::Llm, Class::Script, Class::Cpu]
        }
        (Health::Healthy, _) => &[Class::Meta, Class::Script, Class::Cpu],
        (Health::Constrained, _) => &[Class::Meta, Class::Cpu],
        (Health::Paused | Health::Draining | Health::Quarantined, _) => &[Class::Meta],
    }
}

/// Chooses among the candidates, which come in claim order.
pub fn decide(state: &AgentState, candidates: &[Candidate]) -> Decision {
    let judged: Vec<Option<Verdict>> = candidates
        .iter()
        .map(|candidate| refusal(state, candidates, candidate))
        .collect();
    let reserved = reserve::reservation(state, candidates, &judged);
    let judged: Vec<Option<Verdict>> = judged
        .into_iter()
        .enumerate()
        .map(|(at, verdict)| verdict.or_else(|| reserved.as_ref()?.keeps_off(at, &candidates[at])))
        .collect();
    let admit = (0..candidates.len())
        .filter(|at| judged[*at].is_none())
        .min_by_key(|at| (rank(state, candidates[*at].class), *at));
    let mut verdicts = BTreeMap::new();
    for class in Class::ALL {
        let of_class = || (0..candidates.len()).filter(|at| candidates[*at].class == class);
        if of_class().any(|at| judged[at].is_none()) {
            continue;
        }
        if let Some(verdict) = explain::merge(of_class().filter_map(|at| judged[at].as_ref())) {
            verdicts.insert(class, verdict);
        }
    }
    Decision {
        admit,
        verdicts,
        refusals: judged,
    }
}

fn rank(state: &AgentState, class: Class) -> usize {
    let order = preferred(state);
    order
        .iter()
        .position(|of| *of == class)
        .unwrap_or(order.len() + class as usize)
}

/// Why the agent does not take it now; none: it would.
fn refusal(state: &AgentState, all: &[Candidate], candidate: &Candidate) -> Option<Verdict> {
    match &candidate.needs {
        Needs::Contended => Some(explain::contended(candidate)),
        Needs::Elsewhere { on } => Some(explain::elsewhere(candidate, on)),
        Needs::Unload { agent } => unload_refusal(state, agent),
        Needs::Load {
            model,
            eligible,
            expired,
            vram,
        } => load_refusal(state, model, eligible, *expired, *vram),
        Needs::Lend {
            agent,
            to,
            model,
            expired,
            vram,
        } => lend::refusal(state, agent, (model, to), *expired, *vram),
        Needs::Cpu { cpus } => unfit(state, candidate).or_else(|| cpu_refusal(state, *cpus)),
        Needs::Script { cpus, vram } => unfit(state, candidate)
            .or_else(|| memory::vram_refusal(state, all, candidate, *vram))
            .or_else(|| cpu_refusal(state, *cpus)),
        Needs::Llm { model, min_tier } => unfit(state, candidate)
            .or_else(|| llm_refusal(state, candidate, model.as_deref(), *min_tier)),
    }
}

/// The agent's health or its lack of a GPU forbids the whole class.
fn unfit(state: &AgentState, candidate: &Candidate) -> Option<Verdict> {
    if state.health != Health::Healthy && !preferred(state).contains(&candidate.class) {
        return Some(explain::ailment(state));
    }
    (candidate.class != Class::Cpu && state.gpu.is_none()).then(|| explain::no_gpu(candidate))
}

fn unload_refusal(state: &AgentState, agent: &str) -> Option<Verdict> {
    if agent != state.name {
        return Some(explain::meta_elsewhere("unload_llm", &[agent.to_owned()]));
    }
    match &state.llm {
        // Nothing to unload is success: the claim says so.
        LlmState::Hot { .. } | LlmState::Lent { .. } | LlmState::Cold => None,
        LlmState::Loading { .. } | LlmState::Draining { .. } | LlmState::Unloading { .. } => {
            Some(explain::runtime_busy(&state.llm))
        }
    }
}

fn load_refusal(
    state: &AgentState,
    model: &str,
    eligible: &[String],
    expired: bool,
    vram: VramNeed,
) -> Option<Verdict> {
    if !eligible.contains(&state.name) || state.gpu.is_none() {
        return Some(explain::meta_elsewhere("load_llm", eligible));
    }
    let asked_by_name = eligible.len() == 1;
    match state.health {
        Health::Healthy => {}
        Health::Paused if asked_by_name => {}
        Health::Paused | Health::Constrained | Health::Draining | Health::Quarantined => {
            return Some(explain::ailment(state));
        }
    }
    if expired {
        return Some(explain::expired(model));
    }
    match &state.llm {
        LlmState::Cold => {}
        // Nothing is left to do but to say so.
        LlmState::Hot { model: loaded, .. } if loaded == model && asked_by_name => return None,
        LlmState::Hot { model: loaded, .. } if loaded == model => {
            return Some(explain::already_loaded(model));
        }
        // The memory was leased when it was kept.
        LlmState::Lent { model: of, to } if of == model && *to == state.name => return None,
        LlmState::Lent { model: of, to } => return Some(lend::occupied(model, of, to)),
        LlmState::Hot { model: loaded, .. } => return Some(explain::occupied(model, loaded)),
        LlmState::Loading { .. } | LlmState::Draining { .. } | LlmState::Unloading { .. } => {
            return Some(explain::runtime_busy(&state.llm));
        }
    }
    let failed = state
        .failed_loads
        .iter()
        .find(|failed| failed.model == model);
    if let Some(failed) = failed.filter(|failed| failed.retry_in_s > 0) {
        return Some(explain::backoff(failed));
    }
    let gpu = state.gpu.as_ref()?;
    // What it takes is measured, and must not be mixed with what another gives back meanwhile.
    let fits = match vram {
        VramNeed::Mb(mb) => gpu.alone.is_none() && gpu.settling.is_none() && mb <= gpu.available_mb,
        VramNeed::Alone => memory::alone_now(gpu),
    };
    (!fits).then(|| explain::vram(state, gpu, &format!("load of {model}"), vram, None))
}

fn cpu_refusal(state: &AgentState, cpus: u32) -> Option<Verdict> {
    (cpus > state.cpu.free()).then(|| explain::cpu_slots(state, cpus))
}

fn llm_refusal(
    state: &AgentState,
    candidate: &Candidate,
    model: Option<&str>,
    min_tier: Option<u32>,
) -> Option<Verdict> {
    if let LlmState::Lent { model, to } = &state.llm {
        return Some(lend::not_here(state, candidate, model, to));
    }
    let LlmState::Hot {
        model: loaded,
        tier,
        slots,
    } = &state.llm
    else {
        return Some(explain::not_loaded(state, candidate, model, min_tier));
    };
    if !serves(state, loaded, *tier, model, min_tier) {
        return Some(explain::wrong_model(
            state, candidate, model, min_tier, loaded, *tier,
        ));
    }
    let gpu = state.gpu.as_ref();
    let allowed = gpu.map_or(slots.total, |gpu| gpu.slots(slots.total));
    (slots.used >= allowed).then(|| explain::llm_slots(state, *slots, allowed))
}

/// Whether the loaded model will do for a task that asks for `model` and `min_tier`.
fn serves(
    state: &AgentState,
    loaded: &str,
    tier: u32,
    model: Option<&str>,
    min_tier: Option<u32>,
) -> bool {
    let named = match (model, min_tier, &state.default_model) {
        (Some(model), _, _) => model == loaded,
        // A tier without a name asks for any model that is capable enough.
        (None, Some(_), _) | (None, None, None) => true,
        (None, None, Some(default)) => default == loaded,
    };
    named && min_tier.is_none_or(|least| tier >= least)
}
