//! The words on an agent's model.

use super::*;

/// Whose runtime has the GPU of an agent that lends it, and what it does with it.
pub(super) fn lent(facts: &Facts, name: &str, model: &str, to: &str) -> String {
    let leader = facts
        .agents
        .iter()
        .filter(|agent| agent.component.name == to)
        .find_map(|agent| agent.component.current());
    let verb = match leader.map(|beat| &beat.llm) {
        Some(LlmBeat::Hot { model: held, .. }) if held == model => "runs",
        Some(LlmBeat::Loading { model: held, .. }) if held == model => "loads",
        _ if name == to => {
            return format!("{name} is kept for {model}: its GPUs are being gathered");
        }
        _ => {
            return format!(
                "{name} lends its GPU to {to}, for {model}: its GPUs are being gathered"
            );
        }
    };
    let gpus = leader.map_or(0, |beat| beat.llm.lenders().len()) + 1;
    format!("{name} lends its GPU to {to}, which {verb} {model} over {gpus} GPUs")
}

/// What the agent's runtime is doing.
pub(super) fn model(facts: &Facts, llm: &LlmBeat) -> Gate {
    match llm {
        LlmBeat::Cold => Gate::new("model", GateState::Info, "none loaded"),
        LlmBeat::Loading { model, since, .. } => Gate::new(
            "model",
            GateState::Info,
            format!("{model} loading since {}", ago(facts, *since)),
        ),
        LlmBeat::Hot {
            model,
            slots,
            since,
            ..
        } => Gate::new(
            "model",
            GateState::Open,
            format!("{model} hot for {}, {slots} slots", ago(facts, *since)),
        ),
        LlmBeat::Lent { model, to, since } => Gate::new(
            "model",
            GateState::Closed,
            format!(
                "its GPU is lent to {to} for {model} since {}",
                ago(facts, *since)
            ),
        ),
        LlmBeat::Draining { model } => {
            Gate::new("model", GateState::Info, format!("{model} draining"))
        }
        LlmBeat::Unloading { model } => {
            Gate::new("model", GateState::Info, format!("{model} unloading"))
        }
        LlmBeat::Failed {
            model,
            cause,
            until,
        } => Gate::new(
            "model",
            GateState::Closed,
            format!(
                "the last load of {model} failed: {cause}; tried again from {} on",
                clock(facts, *until)
            ),
        ),
    }
}
