//! The words of a refusal: its code and its numbers.

use rigor_queue::heartbeat::{Refusal, Verdict};
use rigor_queue::task::Class;

use crate::span::span_s;

use super::{
    AgentState, Candidate, FailedLoad, GpuState, LlmState, Needs, Running, Slots, VramNeed,
};

/// So many that take the room are named, the others counted.
const NAMED_MOST: usize = 3;

fn verdict(code: Refusal, detail: String) -> Verdict {
    Verdict { code, detail }
}

/// The verdict on several candidates: the first one's code (of those that this agent could serve,
/// if there are any), and the details of all that share it.
pub(super) fn merge<'v>(verdicts: impl Iterator<Item = &'v Verdict> + Clone) -> Option<Verdict> {
    let serves = |verdict: &&Verdict| verdict.code != Refusal::NoSuitableClass;
    let first = verdicts
        .clone()
        .find(serves)
        .or_else(|| verdicts.clone().next())?;
    let mut details: Vec<&str> = Vec::new();
    for verdict in verdicts.filter(|verdict| verdict.code == first.code) {
        if !details.contains(&verdict.detail.as_str()) {
            details.push(&verdict.detail);
        }
    }
    let more = details.len().saturating_sub(NAMED_MOST);
    details.truncate(NAMED_MOST);
    let mut detail = details.join("; ");
    if more > 0 {
        detail.push_str(&format!("; and {more} more"));
    }
    Some(verdict(first.code, detail))
}

pub(super) fn contended(candidate: &Candidate) -> Verdict {
    let detail = format!("{}:{} claimed by others", candidate.class, candidate.count);
    verdict(Refusal::LostRace, detail)
}

pub(super) fn elsewhere(candidate: &Candidate, on: &[String]) -> Verdict {
    let detail = format!(
        "{}:{} only for {}",
        candidate.class,
        candidate.count,
        on.join(", ")
    );
    verdict(Refusal::NoSuitableClass, detail)
}

pub(super) fn meta_elsewhere(kind: &str, agents: &[String]) -> Verdict {
    verdict(
        Refusal::NoSuitableClass,
        format!("{kind} is for {}", agents.join(", ")),
    )
}

pub(super) fn no_gpu(candidate: &Candidate) -> Verdict {
    let detail = format!(
        "{}:{} need a GPU, this agent has none",
        candidate.class, candidate.count
    );
    verdict(Refusal::NoSuitableClass, detail)
}

/// The agent's own reason for not being healthy.
pub(super) fn ailment(state: &AgentState) -> Verdict {
    state.ailment.clone().unwrap_or_else(|| {
        let code = match state.health {
            rigor_queue::heartbeat::Health::Paused => Refusal::Paused,
            rigor_queue::heartbeat::Health::Quarantined => Refusal::GpuLost,
            rigor_queue::heartbeat::Health::Draining => Refusal::Draining,
            rigor_queue::heartbeat::Health::Constrained
            | rigor_queue::heartbeat::Health::Healthy => Refusal::NoSuitableClass,
        };
        verdict(code, format!("the agent is {}", state.health.as_str()))
    })
}

pub(super) fn runtime_busy(llm: &LlmState) -> Verdict {
    verdict(
        Refusal::SlotsFull,
        format!("one load or unload at a time: {}", llm_words(llm)),
    )
}

pub(super) fn expired(model: &str) -> Verdict {
    verdict(
        Refusal::NoSuitableClass,
        format!("load of {model} is past its time"),
    )
}

pub(super) fn already_loaded(model: &str) -> Verdict {
    verdict(
        Refusal::NoSuitableClass,
        format!("{model} is loaded here already"),
    )
}

pub(super) fn occupied(model: &str, loaded: &str) -> Verdict {
    verdict(
        Refusal::WrongModel,
        format!("load of {model} needs a cold GPU, {loaded} is loaded"),
    )
}

pub(super) fn backoff(failed: &FailedLoad) -> Verdict {
    let detail = format!(
        "{} failed to load ({}); tried again in {}",
        failed.model,
        failed.cause,
        span_s(failed.retry_in_s)
    );
    verdict(Refusal::Backoff, detail)
}

pub(super) fn model_moves(candidate: &Candidate, llm: &LlmState) -> Verdict {
    let detail = format!("script:{} wait: {}", candidate.count, llm_words(llm));
    verdict(Refusal::HoldingModel, detail)
}

pub(super) fn script_slots(state: &AgentState, gpu: &GpuState, slots: u32) -> Verdict {
    slots_full(state, gpu.scripts, slots, gpu.slots(slots), Class::Script)
}

pub(super) fn llm_slots(state: &AgentState, slots: Slots, allowed: u32) -> Verdict {
    slots_full(state, slots.used, slots.total, allowed, Class::Llm)
}

fn slots_full(state: &AgentState, used: u32, total: u32, allowed: u32, class: Class) -> Verdict {
    let mut detail = format!("{used}/{allowed}{}", takers(state, &[class]));
    let near = state.gpu.as_ref().and_then(|gpu| gpu.near_limit.as_ref());
    if let Some(near) = near.filter(|_| allowed < total) {
        detail.push_str(&format!("; {allowed} of {total} slots while {near}"));
    }
    verdict(Refusal::SlotsFull, detail)
}

pub(super) fn cpu_slots(state: &AgentState, cpus: u32) -> Verdict {
    let Slots { used, total } = state.cpu;
    let mut detail = format!(
        "{used}/{total}{}",
        takers(state, &[Class::Cpu, Class::Script])
    );
    if cpus > total {
        detail.push_str(&format!(
            ", a task needs {cpus}, which this agent never has"
        ));
    } else if cpus > 1 {
        detail.push_str(&format!(", a task needs {cpus}"));
    }
    verdict(Refusal::CpuSlotsFull, detail)
}

/// A task that the loaded model serves, or would once a slot is free.
pub(super) fn keeps_model(state: &AgentState, candidate: &Candidate, loaded: &str) -> bool {
    match (&candidate.needs, &state.llm) {
        (Needs::Llm { model, min_tier }, LlmState::Hot { tier, .. }) => {
            super::serves(state, loaded, *tier, model.as_deref(), *min_tier)
        }
        _ => false,
    }
}

pub(super) fn holding(
    gpu: &GpuState,
    what: &str,
    vram: VramNeed,
    model: &str,
    queued: usize,
    running: u32,
) -> Verdict {
    let detail = format!(
        "{what} {}, have {}MB beside {model}, kept by {queued} queued and {running} running llm tasks",
        need(vram),
        gpu.available_mb
    );
    verdict(Refusal::HoldingModel, detail)
}

pub(super) fn vram(
    state: &AgentState,
    gpu: &GpuState,
    what: &str,
    vram: VramNeed,
    model: Option<&str>,
) -> Verdict {
    let mut detail = format!(
        "{what} {}, have {}MB of {}MB",
        // A load is one, tasks are some.
        if what.starts_with("load of") {
            need(vram).replacen("need", "needs", 1)
        } else {
            need(vram)
        },
        gpu.available_mb,
        gpu.budget_mb
    );
    match vram {
        VramNeed::Mb(mb) if mb > gpu.budget_mb => {
            detail.push_str(&format!(
                ", short by {}MB: never fits here",
                mb - gpu.budget_mb
            ));
        }
        VramNeed::Mb(mb) if mb > gpu.available_mb => {
            detail.push_str(&format!(", short by {}MB", mb - gpu.available_mb));
        }
        VramNeed::Mb(_) | VramNeed::Alone => {}
    }
    if let Some(settling) = &gpu.settling {
        detail.push_str(&format!(
            "; the memory of {settling}, which has ended, is not seen to be back yet"
        ));
    }
    if let Some(alone) = &gpu.alone {
        detail.push_str(&format!(
            "; {alone} runs alone until its memory is measured"
        ));
    } else if gpu.scripts > 0 {
        detail.push_str(&format!(
            "; {} running{}",
            gpu.scripts,
            takers(state, &[Class::Script])
        ));
    }
    if let Some(foreign) = &gpu.foreign {
        detail.push_str(&format!("; {foreign}"));
    }
    if let Some(model) = model {
        detail.push_str(&format!("; {model} is loaded and nothing needs it"));
    }
    verdict(Refusal::VramShort, detail)
}

pub(super) fn not_loaded(
    state: &AgentState,
    candidate: &Candidate,
    model: Option<&str>,
    min_tier: Option<u32>,
) -> Verdict {
    let wanted = wanted(state, model, min_tier);
    let what = format!("llm:{} need {wanted}", candidate.count);
    match &state.llm {
        LlmState::Loading { .. } | LlmState::Draining { .. } | LlmState::Unloading { .. } => {
            verdict(
                Refusal::ModelNotLoaded,
                format!("{what}; {}", llm_words(&state.llm)),
            )
        }
        LlmState::Cold | LlmState::Hot { .. } | LlmState::Lent { .. } => {
            let name = model.or(state.default_model.as_deref());
            match state
                .failed_loads
                .iter()
                .find(|failed| Some(failed.model.as_str()) == name)
            {
                Some(failed) => {
                    let detail = format!("{what}, whose runtime failed here ({})", failed.cause);
                    verdict(Refusal::RuntimeFailing, detail)
                }
                None => verdict(Refusal::ModelNotLoaded, what),
            }
        }
    }
}

pub(super) fn wrong_model(
    state: &AgentState,
    candidate: &Candidate,
    model: Option<&str>,
    min_tier: Option<u32>,
    loaded: &str,
    tier: u32,
) -> Verdict {
    let wanted = wanted(state, model, min_tier);
    let detail = format!(
        "llm:{} need {wanted}, {loaded} (tier {tier}) is loaded",
        candidate.count
    );
    verdict(Refusal::WrongModel, detail)
}

/// Why later tasks wait for this one.
pub(super) fn reserved(candidate: &Candidate) -> String {
    let what = match &candidate.needs {
        Needs::Script {
            cpus,
            vram: VramNeed::Mb(mb),
        } => format!("{mb}MB and {cpus} CPU slots"),
        Needs::Script {
            vram: VramNeed::Alone,
            ..
        } => "a GPU to itself".to_owned(),
        Needs::Cpu { cpus } => format!("{cpus} CPU slots"),
        Needs::Load { model, .. } | Needs::Lend { model, .. } => format!("room for {model}"),
        Needs::Contended | Needs::Elsewhere { .. } | Needs::Llm { .. } | Needs::Unload { .. } => {
            "room".to_owned()
        }
    };
    format!(
        "an earlier {} task needs {what} and has waited {}",
        candidate.class,
        span_s(candidate.passed_over_s)
    )
}

fn wanted(state: &AgentState, model: Option<&str>, min_tier: Option<u32>) -> String {
    match (model, min_tier, &state.default_model) {
        (Some(model), None, _) => model.to_owned(),
        (Some(model), Some(tier), _) => format!("{model} of tier {tier}"),
        (None, Some(tier), _) => format!("a model of tier {tier}"),
        (None, None, Some(default)) => default.clone(),
        (None, None, None) => "a model".to_owned(),
    }
}

fn need(vram: VramNeed) -> String {
    match vram {
        VramNeed::Mb(mb) => format!("need {mb}MB"),
        VramNeed::Alone => "need the GPU alone until measured".to_owned(),
    }
}

fn llm_words(llm: &LlmState) -> String {
    match llm {
        LlmState::Cold => "no model is loaded".to_owned(),
        LlmState::Loading { model, for_s } => format!("{model} is loading for {}", span_s(*for_s)),
        LlmState::Hot { model, .. } => format!("{model} is loaded"),
        LlmState::Lent { model, to } => format!("the GPU is lent to {to} for {model}"),
        LlmState::Draining { model } => format!("{model} is draining"),
        LlmState::Unloading { model } => format!("{model} is unloading"),
    }
}

/// ` (a1b2c3d4 for 12m, ...)`, longest first.
fn takers(state: &AgentState, classes: &[Class]) -> String {
    let mut running: Vec<&Running> = state
        .running
        .iter()
        .filter(|running| classes.contains(&running.class))
        .collect();
    if running.is_empty() {
        return String::new();
    }
    running.sort_by_key(|running| std::cmp::Reverse(running.for_s));
    let named: Vec<String> = running
        .iter()
        .take(NAMED_MOST)
        .map(|running| format!("{} for {}", running.label, span_s(running.for_s)))
        .collect();
    let more = match running.len().saturating_sub(NAMED_MOST) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(" ({}{more})", named.join(", "))
}
