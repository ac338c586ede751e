//! Which GPU should hold which model.
//!
//! With W = seconds of queued work for a model on one hot GPU, k = GPUs that are hot or loading
//! with it, and L = seconds to load it: one more GPU pays iff `W/k > 1.5 L` and there are more
//! tasks than slots. From cold, k GPUs take `L + W/k`.

mod leave;
mod reason;

use std::collections::BTreeSet;

use rigor_queue::heartbeat::{Health, LlmBeat};

use leave::{cool, make_room, replace};
use reason::{Stop, keep_reason, load_reason};

/// A further load must save this many times what it costs: the estimates of W and L are averages.
pub const LOAD_MARGIN: f64 = 1.5;
/// Seconds assumed for an llm task of which none was measured.
pub const TASK_SECONDS_PRIOR: f64 = 20.0;
/// Bytes per second at which a model is assumed to reach the GPU before a load was measured: a
/// SATA SSD.
pub const LOAD_BYTES_PER_SECOND_PRIOR: f64 = 500e6;
/// Seconds that starting a runtime is assumed to take besides reading the model.
pub const LOAD_SECONDS_PRIOR: f64 = 2.0;
/// The ageing bound: what no GPU serves takes one from other work after so many load times, so that
/// a stream of work for one model starves neither another model nor scripts. Taking it and giving
/// it back costs two loads, so at most a tenth of the time goes into that.
pub const STARVED_AFTER_LOADS: f64 = 20.0;

/// What the decision is made from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// Models for which work is queued or running, or that an agent holds.
    pub models: Vec<Demand>,
    /// The agents with a GPU.
    pub agents: Vec<Agent>,
    /// Loads that were asked for and that no agent has taken yet.
    pub pending: Vec<Pending>,
    /// Models that tasks need which still wait for others.
    pub upcoming: BTreeSet<String>,
    /// Script tasks that are queued.
    pub scripts_queued: usize,
    /// Seconds of script work queued, on one GPU.
    pub script_seconds: f64,
    /// The longest that script tasks of one kind have been queued while every agent that could
    /// ever hold them refused them for want of memory, seconds.
    pub scripts_waiting_seconds: f64,
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
    /// Why it is not healthy, with the code: `thermal (84C >= 80C)`.
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
    /// It is where it should be, or on its way there: nothing is done.
    Keep {
        /// Catalogue id.
        model: String,
        /// The comparison that decided, with its numbers.
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

/// Decides which models go where. What starves comes first, then what fits the fewest agents, then
/// the largest backlog.
pub fn decide(view: &View) -> Vec<Decision> {
    let mut decisions = Vec::new();
    // Agents that will take a load that was just decided on, with its model.
    let mut taken: Vec<(&str, &str)> = Vec::new();
    let mut demands: Vec<&Demand> = view.models.iter().filter(|d| d.queued > 0).collect();
    // What starves comes first: it was given room, and nobody else may take it.
    let starving = |d: &Demand| {
        let starves = d.waiting_seconds > STARVED_AFTER_LOADS * d.load_seconds;
        if starves { d.waiting_seconds } else { 0.0 }
    };
    // A model that fits one GPU alone must not find a smaller one there.
    let fits = |d: &Demand| {
        let can = |agent: &&Agent| agent.alive && agent.cannot.iter().all(|(of, _)| *of != d.model);
        view.agents.iter().filter(can).count()
    };
    demands.sort_by(|a, b| {
        starving(b)
            .total_cmp(&starving(a))
            .then_with(|| fits(a).cmp(&fits(b)))
            .then_with(|| b.backlog_seconds().total_cmp(&a.backlog_seconds()))
            .then_with(|| a.model.cmp(&b.model))
    });
    for demand in demands {
        let asked = |model: &str| {
            view.pending
                .iter()
                .filter(|load| load.model == model)
                .count()
        };
        let serving = view
            .agents
            .iter()
            .filter(|agent| serves(agent, &demand.model))
            .count();
        let able: Vec<&Agent> = view
            .agents
            .iter()
            .filter(|agent| obstacle(agent, &demand.model).is_none())
            .collect();
        // A load that nobody can take is none: room has to be made for it first.
        let pending = if able.is_empty() {
            0
        } else {
            asked(&demand.model)
        };
        let now = serving + pending;
        let reserved = reserved(view, demand);
        let eligible: Vec<&Agent> = able
            .into_iter()
            .filter(|agent| taken.iter().all(|(name, _)| *name != agent.name))
            .filter(|agent| !reserved.agents.contains(&agent.name.as_str()))
            .collect();
        // Agents that an unclaimed load of any other model will take are not free either.
        let free = eligible
            .len()
            .saturating_sub(view.pending.len() - reserved.loads);
        let (room, kept) = room(view, demand, free, now);
        let (wanted, stop) = useful(demand, now, now + room);
        if wanted > now {
            let count = wanted - now;
            let names: Vec<String> = eligible.iter().map(|agent| agent.name.clone()).collect();
            let takers = eligible.iter().take(count);
            taken.extend(takers.map(|agent| (agent.name.as_str(), demand.model.as_str())));
            decisions.push(Decision::Load {
                model: demand.model.clone(),
                count,
                eligible: names,
                reason: load_reason(demand, now, wanted),
            });
        } else if now == 0 {
            decisions.push(make_room(view, demand));
        } else if let Some(unload) = replace(view, demand, now).filter(|_| stop.is_none() && !kept)
        {
            decisions.push(unload);
        } else {
            let stop = stop.unwrap_or(if kept { Stop::Scripts } else { Stop::NoAgent });
            decisions.push(Decision::Keep {
                model: demand.model.clone(),
                reason: keep_reason(view, demand, &taken, pending, stop),
            });
        }
    }
    decisions.extend(cool(view, &decisions));
    decisions
}

/// Agents that loads of other models need, because nobody else can take those.
struct Reserved<'v> {
    agents: BTreeSet<&'v str>,
    /// How many loads those are.
    loads: usize,
}

fn reserved<'v>(view: &'v View, demand: &Demand) -> Reserved<'v> {
    let mut reserved = Reserved {
        agents: BTreeSet::new(),
        loads: 0,
    };
    let others: BTreeSet<&str> = view
        .pending
        .iter()
        .map(|load| load.model.as_str())
        .filter(|model| *model != demand.model)
        .collect();
    for model in others {
        let loads = view
            .pending
            .iter()
            .filter(|load| load.model == model)
            .count();
        let takers: Vec<&str> = view
            .agents
            .iter()
            .filter(|agent| obstacle(agent, model).is_none())
            .map(|agent| agent.name.as_str())
            .collect();
        if takers.len() <= loads {
            reserved.agents.extend(takers);
            reserved.loads += loads;
        }
    }
    reserved
}

/// How many GPUs pay, from `now` up to `most`, and what ended the count before that.
fn useful(demand: &Demand, now: usize, most: usize) -> (usize, Option<Stop>) {
    let backlog = demand.backlog_seconds();
    let mut count = now;
    while count < most {
        if count > 0 {
            if backlog / count as f64 <= LOAD_MARGIN * demand.load_seconds {
                return (count, Some(Stop::Work { gpus: count }));
            }
            if demand.queued <= count * demand.slots.max(1) as usize {
                return (count, Some(Stop::Slots { gpus: count }));
            }
        }
        count += 1;
    }
    (count, None)
}

/// How many of `free` agents may be heated without taking from scripts more than it gives: the
/// last cold agent is left to queued scripts, and another one only goes while the llm backlog per
/// hot GPU is the longer one. Also, whether scripts kept one.
fn room(view: &View, demand: &Demand, free: usize, now: usize) -> (usize, bool) {
    if view.scripts_queued == 0 {
        return (free, false);
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
    (heated, heated < free)
}

fn serves(agent: &Agent, model: &str) -> bool {
    // What a paused or too hot agent holds serves nobody.
    agent.alive
        && agent.health == Health::Healthy
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

/// Whether a load that nobody has taken should be asked for anew: none of those who may take it
/// can, and somebody else could.
pub fn is_misplaced(view: &View, model: &str, eligible: &[String]) -> bool {
    let able = |agent: &&Agent| obstacle(agent, model).is_none();
    let (may, others): (Vec<&Agent>, Vec<&Agent>) = view
        .agents
        .iter()
        .filter(able)
        .partition(|agent| eligible.contains(&agent.name));
    may.is_empty() && !others.is_empty()
}

/// Why an agent cannot take a load of the model now.
fn obstacle(agent: &Agent, model: &str) -> Option<String> {
    if !agent.alive {
        return Some("not running".to_owned());
    }
    match agent.health {
        Health::Healthy => {}
        Health::Constrained | Health::Paused | Health::Draining | Health::Quarantined => {
            let reason = agent.health_reason.clone();
            return Some(reason.unwrap_or_else(|| agent.health.as_str().to_owned()));
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

#[cfg(test)]
mod tests;
