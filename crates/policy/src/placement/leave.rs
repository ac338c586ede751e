//! Models that leave: for another model, or for scripts.

use rigor_queue::heartbeat::LlmBeat;

use super::{Agent, Decision, Demand, STARVED_AFTER_LOADS, View, obstacle, room, useful};
use crate::span::{count, estimate, tasks_wait};

/// Takes an agent whose model nothing needs, if one more GPU pays although that model has to be
/// unloaded first, and loaded again where the next stage needs it, and if scripts leave that GPU
/// to it then.
pub(super) fn replace(
    view: &View,
    demand: &Demand,
    now: usize,
    so_far: &[Decision],
) -> Option<Decision> {
    // One at a time: what is on its way out will be cold soon.
    if view
        .agents
        .iter()
        .any(|agent| agent.alive && (is_leaving(agent) || is_freed(agent, so_far)))
    {
        return None;
    }
    if room(view, demand, 1, now).0 == 0 {
        return None;
    }
    let holders = view.agents.iter().filter_map(|agent| {
        let LlmBeat::Hot { model, .. } = &agent.llm else {
            return None;
        };
        let free = agent.could_hold(&demand.model)
            && agent.llm_running == 0
            && *model != demand.model
            && queued(view, model) == 0;
        let loads = if view.upcoming.contains(model) {
            2.0
        } else {
            1.0
        };
        free.then(|| (agent, model, loads * agent.load_seconds(demand)))
    });
    let (agent, model, costs) = holders.min_by(|a, b| a.2.total_cmp(&b.2))?;
    if useful(demand, now, &[costs]).0 == now {
        return None;
    }
    Some(Decision::Unload {
        agent: agent.name.clone(),
        next: Some(demand.model.clone()),
        reason: format!(
            "nothing is queued for {model}, and {} for {} are {} of work on {now}",
            count(demand.queued, "task"),
            demand.model,
            estimate(demand.backlog_seconds() / now.max(1) as f64),
        ),
    })
}

/// Nobody is free for a model that nobody holds: take an agent whose model is not needed, or, when
/// the work has waited long, one whose model is. `taken` are agents that will load another model,
/// with it.
pub(super) fn make_room(
    view: &View,
    demand: &Demand,
    so_far: &[Decision],
    taken: &[(&str, &str)],
) -> Decision {
    let keep = |reason: String| Decision::Keep {
        model: demand.model.clone(),
        reason,
    };
    let could: Vec<&Agent> = view
        .agents
        .iter()
        .filter(|agent| agent.could_hold(&demand.model))
        .collect();
    // One at a time, or a single task would empty every GPU while the first one drains.
    let leaves = |agent: &&&Agent| is_leaving(agent) || is_freed(agent, so_far);
    if let Some(agent) = could.iter().find(leaves) {
        return keep(format!("{} is being freed", agent.name));
    }
    let needed = |agent: &Agent| agent.llm.model().map_or(0, |model| queued(view, model));
    let comes_back = |agent: &Agent| {
        let held = agent.llm.model();
        held.is_some_and(|model| view.upcoming.contains(model))
    };
    let holds_another = |agent: &&&Agent| matches!(&agent.llm, LlmBeat::Hot { model, .. } if *model != demand.model);
    let candidate = could
        .iter()
        .filter(holds_another)
        .filter(|agent| needed(agent) == 0 || (demand.starves() && agent.resides_for().is_none()))
        .min_by_key(|agent| {
            let running = agent.llm_running;
            (needed(agent), comes_back(agent), running, &agent.name)
        });
    // What scripts would take then is not freed for it.
    if let Some(agent) = candidate.filter(|_| room(view, demand, 1, 0).0 > 0) {
        return Decision::Unload {
            agent: agent.name.clone(),
            next: Some(demand.model.clone()),
            reason: format!(
                "{} for {} and no agent is free; {} has {} for {}",
                tasks_wait(demand.queued),
                demand.model,
                agent.name,
                count(needed(agent), "queued task"),
                agent.llm.model().unwrap_or("its model"),
            ),
        };
    }
    let waits: Vec<String> = could
        .iter()
        .filter_map(|agent| waits_for(view, demand, agent, taken))
        .collect();
    if !waits.is_empty() {
        let turn = match demand.turn_in_seconds() {
            0.0 => "its turn is next".to_owned(),
            seconds => format!("at most {} until its turn", estimate(seconds)),
        };
        return keep(format!("waits for {} ({turn})", waits.join(" or ")));
    }
    let why: Vec<String> = view
        .agents
        .iter()
        .filter_map(|agent| {
            let why = obstacle(agent, &demand.model)?;
            Some(format!("{} {why}", agent.name))
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

/// What an agent that could hold the model does first: `gpu-1, which has 50 tasks for a`.
fn waits_for(
    view: &View,
    demand: &Demand,
    agent: &Agent,
    taken: &[(&str, &str)],
) -> Option<String> {
    let name = &agent.name;
    let words = match &agent.llm {
        LlmBeat::Hot { model, .. } | LlmBeat::Loading { model, .. } => {
            let tasks = queued(view, model);
            match agent.resides_for() {
                Some(seconds) if demand.starves() && tasks > 0 => format!(
                    "{name}, which has just loaded {model} and keeps it for {} yet",
                    estimate(seconds)
                ),
                _ if tasks == 0 && view.scripts_queued > 0 => format!(
                    "{name}, which is kept for {}",
                    count(view.scripts_queued, "queued script task")
                ),
                _ => format!("{name}, which has {} for {model}", count(tasks, "task")),
            }
        }
        LlmBeat::Lent { model, to, .. } => {
            format!("{name}, which lends its GPU to {to} for {model}")
        }
        LlmBeat::Cold | LlmBeat::Failed { .. } => {
            let given = taken.iter().find(|(taker, _)| taker == name);
            let asked = || view.pending.first().map(|load| load.model.as_str());
            match given.map(|(_, model)| *model).or_else(asked) {
                Some(model) => format!("{name}, which is to load {model}"),
                None => format!(
                    "{name}, which is kept for {}",
                    count(view.scripts_queued, "queued script task")
                ),
            }
        }
        // It is being freed, which was looked at before.
        LlmBeat::Draining { .. } | LlmBeat::Unloading { .. } => return None,
    };
    Some(words)
}

pub(super) fn queued(view: &View, model: &str) -> usize {
    let demand = view.models.iter().find(|demand| demand.model == model);
    demand.map_or(0, |demand| demand.queued)
}

pub(super) fn is_leaving(agent: &Agent) -> bool {
    matches!(
        agent.llm,
        LlmBeat::Draining { .. } | LlmBeat::Unloading { .. }
    )
}

/// It was just decided to free it.
fn is_freed(agent: &Agent, so_far: &[Decision]) -> bool {
    so_far
        .iter()
        .any(|decision| matches!(decision, Decision::Unload { agent: of, .. } if *of == agent.name))
}

/// Frees models that keep queued scripts out: those that nothing needs, and, when scripts have
/// waited long enough, one that is needed. Elsewhere a model stays: the next stage may need it, and
/// a GPU without work is no better for being empty.
pub(super) fn cool(view: &View, so_far: &[Decision]) -> Vec<Decision> {
    if view.scripts_queued == 0 {
        return Vec::new();
    }
    let unloading = |agent: &Agent| is_freed(agent, so_far);
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
            next: None,
            reason: format!(
                "{} for memory and nothing is queued for {model}",
                tasks_wait(view.scripts_queued).replace("task", "script task")
            ),
        })
        .collect();
    // One at a time: what is on its way out, or cold, will take them.
    let room_comes = !unneeded.is_empty()
        || view
            .agents
            .iter()
            .any(|agent| agent.alive && (unloading(agent) || is_leaving(agent)));
    if room_comes {
        return unneeded;
    }
    // What nothing is queued for ends its last tasks and goes then.
    let load_seconds =
        |model: &str| demand(model).map_or(f64::INFINITY, |demand| demand.load_seconds);
    let least = blocking
        .into_iter()
        .filter(|(agent, model)| {
            view.scripts_waiting_seconds > STARVED_AFTER_LOADS * load_seconds(model)
                && agent.resides_for().is_none()
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
            next: None,
            reason: format!(
                "script tasks have waited {} for memory, more than {STARVED_AFTER_LOADS} loads of {model} ({})",
                estimate(view.scripts_waiting_seconds),
                estimate(STARVED_AFTER_LOADS * load_seconds(model)),
            ),
        })
        .into_iter()
        .collect()
}
