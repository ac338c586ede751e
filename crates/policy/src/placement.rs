//! Which GPU should hold which model.
//!
//! With W = seconds of queued work for a model on one hot GPU, k = GPUs that are hot or loading
//! with it, and L = seconds to load it: one more GPU pays iff `W/k > 1.5 L` and there are more
//! tasks than slots. From cold, k GPUs take `L + W/k`.

use rigor_queue::heartbeat::{Health, LlmBeat};

/// A further load must save this many times what it costs: the estimates of W and L are averages.
pub const LOAD_MARGIN: f64 = 1.5;
/// Seconds assumed for an llm task of which none was measured.
pub const TASK_SECONDS_PRIOR: f64 = 20.0;
/// Bytes per second at which a model is assumed to reach the GPU before a load was measured: a
/// SATA SSD.
pub const LOAD_BYTES_PER_SECOND_PRIOR: f64 = 500e6;
/// Seconds that starting a runtime is assumed to take besides reading the model.
pub const LOAD_SECONDS_PRIOR: f64 = 2.0;
/// A model that work waits for takes an agent from another one after so many load times, so that
/// a stream of work for one model cannot starve the others.
pub const STARVED_AFTER_LOADS: f64 = 10.0;

/// What the decision is made from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// Models for which work is queued or running, or that an agent holds.
    pub models: Vec<Demand>,
    /// The agents with a GPU.
    pub agents: Vec<Agent>,
    /// Loads that were asked for and that no agent has taken yet.
    pub pending: Vec<Pending>,
    /// Script tasks that are queued.
    pub scripts_queued: usize,
    /// Seconds of script work queued, on one GPU.
    pub script_seconds: f64,
}

/// Work for one model.
#[derive(Clone, Debug, PartialEq)]
pub struct Demand {
    /// Catalogue id.
    pub model: String,
    /// Tasks queued.
    pub queued: usize,
    /// Seconds a task takes (measured, or the prior).
    pub task_seconds: f64,
    /// Whether that was measured.
    pub measured: bool,
    /// Requests an agent serves at once.
    pub slots: u32,
    /// Seconds to load it (measured, or the prior).
    pub load_seconds: f64,
    /// How long work has been queued for it without interruption, seconds.
    pub waiting_seconds: f64,
}

impl Demand {
    /// W: seconds of queued work on one hot GPU.
    pub fn backlog_seconds(&self) -> f64 {
        self.queued as f64 * self.task_seconds / f64::from(self.slots.max(1))
    }
}

/// One agent with a GPU.
#[derive(Clone, Debug, PartialEq)]
pub struct Agent {
    /// Its name.
    pub name: String,
    /// Its lock is held.
    pub alive: bool,
    /// As its heartbeat says.
    pub health: Health,
    /// Why it is not healthy: `84C >= 80C`.
    pub health_reason: Option<String>,
    /// As its heartbeat says.
    pub llm: LlmBeat,
    /// llm tasks it runs now.
    pub llm_running: u32,
    /// It refuses queued script tasks because of the model that it holds.
    pub scripts_blocked: bool,
    /// Why it cannot hold a model, by model; models not named here it can hold.
    pub cannot: Vec<(String, String)>,
    /// Its failed load may not be tried again yet (the model).
    pub backing_off: Option<String>,
}

/// A load that no agent has taken yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Pending {
    /// Catalogue id.
    pub model: String,
}

/// What should be done, with the reason in words.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Ask for `count` loads, each to be taken by one of `eligible`.
    Load {
        /// Catalogue id.
        model: String,
        /// How many.
        count: usize,
        /// Agents that may take one.
        eligible: Vec<String>,
        /// With numbers.
        reason: String,
    },
    /// Ask an agent to free its model.
    Unload {
        /// The agent.
        agent: String,
        /// With numbers.
        reason: String,
    },
    /// Work waits and nobody can hold its model.
    Stranded {
        /// Catalogue id.
        model: String,
        /// Agent by agent.
        reason: String,
    },
}

/// Decides which models go where. Models with the largest backlog come first.
pub fn decide(view: &View) -> Vec<Decision> {
    let mut decisions = Vec::new();
    let mut taken: Vec<&str> = Vec::new();
    let mut demands: Vec<&Demand> = view.models.iter().filter(|d| d.queued > 0).collect();
    // What starves comes first: it was given room, and nobody else may take it.
    let starving = |d: &Demand| {
        let starves = d.waiting_seconds > STARVED_AFTER_LOADS * d.load_seconds;
        if starves { d.waiting_seconds } else { 0.0 }
    };
    demands.sort_by(|a, b| {
        starving(b)
            .total_cmp(&starving(a))
            .then_with(|| b.backlog_seconds().total_cmp(&a.backlog_seconds()))
            .then_with(|| a.model.cmp(&b.model))
    });
    let pending_total = view.pending.len();
    for demand in demands {
        let hot = view
            .agents
            .iter()
            .filter(|agent| serves(agent, &demand.model))
            .count();
        let pending = view
            .pending
            .iter()
            .filter(|load| load.model == demand.model)
            .count();
        let now = hot + pending;
        let eligible: Vec<&Agent> = view
            .agents
            .iter()
            .filter(|agent| !taken.contains(&agent.name.as_str()))
            .filter(|agent| obstacle(agent, &demand.model).is_none())
            .collect();
        // Agents that an unclaimed load of any model will take are not free.
        let free = eligible.len().saturating_sub(pending_total);
        let wanted = useful(demand, now, now + room(view, demand, free, now));
        if wanted > now {
            let count = wanted - now;
            let names: Vec<String> = eligible.iter().map(|agent| agent.name.clone()).collect();
            taken.extend(eligible.iter().take(count).map(|agent| agent.name.as_str()));
            decisions.push(Decision::Load {
                model: demand.model.clone(),
                count,
                eligible: names,
                reason: load_reason(demand, now, wanted),
            });
        } else if now == 0 {
            decisions.push(make_room(view, demand));
        }
    }
    decisions.extend(cool(view, &decisions));
    decisions
}

/// How many GPUs pay, from `now` up to `most`.
fn useful(demand: &Demand, now: usize, most: usize) -> usize {
    let backlog = demand.backlog_seconds();
    let mut count = now;
    while count < most {
        let pays = count == 0
            || (backlog / count as f64 > LOAD_MARGIN * demand.load_seconds
                && demand.queued > count * demand.slots.max(1) as usize);
        if !pays {
            break;
        }
        count += 1;
    }
    count
}

/// How many of `free` agents may be heated without taking from scripts more than it gives: the
/// last cold agent is left to queued scripts, and another one only goes while the llm backlog per
/// hot GPU is the longer one.
fn room(view: &View, demand: &Demand, free: usize, now: usize) -> usize {
    if view.scripts_queued == 0 {
        return free;
    }
    let backlog = demand.backlog_seconds();
    let mut heated = 0;
    while heated < free {
        let cold = free - heated;
        let hot = now + heated;
        let only_gpu = view.agents.iter().filter(|agent| agent.alive).count() <= 1;
        let starved = demand.waiting_seconds > STARVED_AFTER_LOADS * demand.load_seconds;
        let last = cold == 1;
        let longer = hot == 0 || backlog / hot as f64 > view.script_seconds / cold as f64;
        if (last && hot > 0) || (last && only_gpu && !starved) || !longer {
            break;
        }
        heated += 1;
    }
    heated
}

fn serves(agent: &Agent, model: &str) -> bool {
    agent.alive
        && match &agent.llm {
            LlmBeat::Hot { model: held, .. } | LlmBeat::Loading { model: held, .. } => {
                held == model
            }
            LlmBeat::Cold
            | LlmBeat::Draining { .. }
            | LlmBeat::Unloading { .. }
            | LlmBeat::Failed { .. } => false,
        }
}

/// Why an agent cannot take a load of the model now.
fn obstacle(agent: &Agent, model: &str) -> Option<String> {
    if !agent.alive {
        return Some("not running".to_owned());
    }
    match agent.health {
        Health::Healthy => {}
        Health::Constrained | Health::Paused | Health::Draining | Health::Quarantined => {
            let state = agent.health.as_str();
            return Some(match &agent.health_reason {
                Some(reason) => format!("{state} ({reason})"),
                None => state.to_owned(),
            });
        }
    }
    if let Some((_, why)) = agent.cannot.iter().find(|(of, _)| of == model) {
        return Some(why.clone());
    }
    match &agent.llm {
        LlmBeat::Cold => None,
        LlmBeat::Failed {
            model: of, cause, ..
        } if agent.backing_off.as_deref() == Some(of) && of == model => {
            Some(format!("backing off after a failed load: {cause}"))
        }
        LlmBeat::Failed { .. } => None,
        held @ (LlmBeat::Hot { .. }
        | LlmBeat::Loading { .. }
        | LlmBeat::Draining { .. }
        | LlmBeat::Unloading { .. }) => Some(format!(
            "{} with {}",
            held.as_str(),
            held.model().unwrap_or("a model")
        )),
    }
}

/// Nobody is free for a model that nobody holds: take an agent whose model is not needed, or, when
/// the work has waited long, one whose model is.
fn make_room(view: &View, demand: &Demand) -> Decision {
    let could = |agent: &&Agent| {
        agent.alive
            && matches!(agent.health, Health::Healthy | Health::Constrained)
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

/// Frees models that nothing needs where they keep queued scripts out. Elsewhere a model stays: the
/// next stage may need it, and a GPU without work is no better for being empty.
fn cool(view: &View, so_far: &[Decision]) -> Vec<Decision> {
    let mut decisions = Vec::new();
    for agent in &view.agents {
        let LlmBeat::Hot { model, .. } = &agent.llm else {
            continue;
        };
        let unloading = so_far.iter().any(
            |decision| matches!(decision, Decision::Unload { agent: of, .. } if *of == agent.name),
        );
        let queued = view
            .models
            .iter()
            .find(|d| d.model == *model)
            .map_or(0, |d| d.queued);
        if !agent.alive || unloading || queued > 0 || agent.llm_running > 0 {
            continue;
        }
        if agent.scripts_blocked && view.scripts_queued > 0 {
            decisions.push(Decision::Unload {
                agent: agent.name.clone(),
                reason: format!(
                    "{} script tasks wait for memory and nothing is queued for {model}",
                    view.scripts_queued
                ),
            });
        }
    }
    decisions
}

fn load_reason(demand: &Demand, now: usize, wanted: usize) -> String {
    let backlog = demand.backlog_seconds();
    let load = demand.load_seconds;
    let source = if demand.measured {
        "measured"
    } else {
        "assumed"
    };
    let before = now.max(1) as f64;
    format!(
        "{} tasks x {:.1}s ({source}) / {} slots = {:.0}s on one GPU, load {:.1}s: {:.0}s on {}, {:.0}s on {wanted}",
        demand.queued,
        demand.task_seconds,
        demand.slots,
        backlog,
        load,
        backlog / before + if now == 0 { load } else { 0.0 },
        now.max(1),
        load + backlog / wanted as f64,
    )
}

#[cfg(test)]
mod tests;
