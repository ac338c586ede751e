//! Models that leave: for another model, or for scripts.

use rigor_queue::heartbeat::{Health, LlmBeat};

use super::{Agent, Decision, Demand, STARVED_AFTER_LOADS, View, obstacle, useful};
use crate::span::estimate;

/// Takes an agent whose model nothing needs, if one more GPU pays although that model has to be
/// unloaded first, and loaded again where the next stage needs it.
pub(super) fn replace(view: &View, demand: &Demand, now: usize) -> Option<Decision> {
    let leaving = |agent: &Agent| {
        matches!(
            agent.llm,
            LlmBeat::Draining { .. } | LlmBeat::Unloading { .. }
        )
    };
    // One at a time: what is on its way out will be cold soon.
    if view
        .agents
        .iter()
        .any(|agent| agent.alive && leaving(agent))
    {
        return None;
    }
    let holder = view.agents.iter().find_map(|agent| {
        let LlmBeat::Hot { model, .. } = &agent.llm else {
            return None;
        };
        let unneeded = view
            .models
            .iter()
            .all(|of| of.model != *model || of.queued == 0);
        let free = agent.alive
            && agent.health == Health::Healthy
            && agent.llm_running == 0
            && *model != demand.model
            && agent.cannot.iter().all(|(of, _)| *of != demand.model);
        (unneeded && free).then_some((agent, model))
    });
    let (agent, model) = holder?;
    let loads = if view.upcoming.contains(model) {
        2.0
    } else {
        1.0
    };
    let costs = Demand {
        load_seconds: demand.load_seconds * loads,
        ..demand.clone()
    };
    if useful(&costs, now, now + 1).0 == now {
        return None;
    }
    Some(Decision::Unload {
        agent: agent.name.clone(),
        reason: format!(
            "nothing is queued for {model}, and {} tasks for {} are {} of work on {now}",
            demand.queued,
            demand.model,
            estimate(demand.backlog_seconds() / now.max(1) as f64),
        ),
    })
}

/// Nobody is free for a model that nobody holds: take an agent whose model is not needed, or, when
/// the work has waited long, one whose model is.
pub(super) fn make_room(view: &View, demand: &Demand) -> Decision {
    let coming = view.agents.iter().find(|agent| {
        agent.alive
            && agent.health == Health::Healthy
            && agent.cannot.iter().all(|(of, _)| *of != demand.model)
            && matches!(
                agent.llm,
                LlmBeat::Draining { .. } | LlmBeat::Unloading { .. }
            )
    });
    // One at a time, or a single task would empty every GPU while the first one drains.
    if let Some(agent) = coming {
        return Decision::Keep {
            model: demand.model.clone(),
            reason: format!("{} is being freed for it", agent.name),
        };
    }
    let could = |agent: &&Agent| {
        agent.alive
            // One that is too hot would give its model away and could not load another.
            && agent.health == Health::Healthy
            && matches!(&agent.llm, LlmBeat::Hot { model, .. } if *model != demand.model)
            && !agent.cannot.iter().any(|(of, _)| *of == demand.model)
    };
    let needed = |agent: &Agent| {
        let held = agent.llm.model();
        view.models
            .iter()
            .find(|other| Some(other.model.as_str()) == held)
            .map_or(0, |d| d.queued)
    };
    let starved = demand.waiting_seconds > STARVED_AFTER_LOADS * demand.load_seconds;
    let candidate = view
        .agents
        .iter()
        .filter(could)
        .min_by_key(|agent| (needed(agent), agent.llm_running, agent.name.clone()));
    match candidate {
        Some(agent) if needed(agent) == 0 || starved => Decision::Unload {
            agent: agent.name.clone(),
            reason: format!(
                "{} tasks wait for {} and no agent is free; {} has {} queued tasks for {}",
                demand.queued,
                demand.model,
                agent.name,
                needed(agent),
                agent.llm.model().unwrap_or("its model"),
            ),
        },
        _ => {
            let why: Vec<String> = view
                .agents
                .iter()
                .map(|agent| {
                    let why = obstacle(agent, &demand.model).unwrap_or_else(|| {
                        match view.pending.first() {
                            Some(load) => format!("about to load {}", load.model),
                            None if view.scripts_queued == 0 => {
                                "is to load another model".to_owned()
                            }
                            None => format!("kept for {} queued script tasks", view.scripts_queued),
                        }
                    });
                    format!("{} {why}", agent.name)
                })
                .collect();
            Decision::Stranded {
                model: demand.model.clone(),
                reason: if why.is_empty() {
                    "there is no agent with a GPU".to_owned()
                } else {
                    why.join(", ")
                },
            }
        }
    }
}

/// Frees models that keep queued scripts out: those that nothing needs, and, when scripts have
/// waited long enough, one that is needed. Elsewhere a model stays: the next stage may need it, and
/// a GPU without work is no better for being empty.
pub(super) fn cool(view: &View, so_far: &[Decision]) -> Vec<Decision> {
    if view.scripts_queued == 0 {
        return Vec::new();
    }
    let unloading = |agent: &Agent| {
        so_far.iter().any(
            |decision| matches!(decision, Decision::Unload { agent: of, .. } if *of == agent.name),
        )
    };
    let demand = |model: &str| view.models.iter().find(|demand| demand.model == model);
    let blocking: Vec<(&Agent, &str)> = view
        .agents
        .iter()
        .filter(|agent| agent.alive && agent.scripts_blocked && !unloading(agent))
        .filter_map(|agent| match &agent.llm {
            LlmBeat::Hot { model, .. } => Some((agent, model.as_str())),
            _ => None,
        })
        .collect();
    let unneeded: Vec<Decision> = blocking
        .iter()
        .filter(|(agent, model)| {
            agent.llm_running == 0 && demand(model).is_none_or(|demand| demand.queued == 0)
        })
        .map(|(agent, model)| Decision::Unload {
            agent: agent.name.clone(),
            reason: format!(
                "{} script tasks wait for memory and nothing is queued for {model}",
                view.scripts_queued
            ),
        })
        .collect();
    // One at a time: what is on its way out, or cold, will take them.
    let room_comes = !unneeded.is_empty()
        || view.agents.iter().any(|agent| {
            agent.alive
                && (unloading(agent)
                    || matches!(
                        agent.llm,
                        LlmBeat::Draining { .. } | LlmBeat::Unloading { .. }
                    ))
        });
    if room_comes {
        return unneeded;
    }
    // What nothing is queued for ends its last tasks and goes then.
    let load_seconds =
        |model: &str| demand(model).map_or(f64::INFINITY, |demand| demand.load_seconds);
    let least = blocking
        .into_iter()
        .filter(|(_, model)| {
            view.scripts_waiting_seconds > STARVED_AFTER_LOADS * load_seconds(model)
        })
        .min_by(|(a, held_by_a), (b, held_by_b)| {
            let backlog = |model| demand(model).map_or(0.0, Demand::backlog_seconds);
            backlog(held_by_a)
                .total_cmp(&backlog(held_by_b))
                .then_with(|| a.llm_running.cmp(&b.llm_running))
                .then_with(|| a.name.cmp(&b.name))
        });
    least
        .map(|(agent, model)| Decision::Unload {
            agent: agent.name.clone(),
            reason: format!(
                "script tasks have waited {} for memory, more than {STARVED_AFTER_LOADS} loads of {model} ({})",
                estimate(view.scripts_waiting_seconds),
                estimate(STARVED_AFTER_LOADS * load_seconds(model)),
            ),
        })
        .into_iter()
        .collect()
}
