//! Which GPU should hold which model.
//!
//! With W = seconds of queued work for a model on one hot GPU, k = GPUs that are hot or loading
//! with it, and L = seconds to load it: one more GPU pays iff `W/k > 1.5 L` and there are more
//! tasks than slots. From cold, k GPUs take `L + W/k`.

mod gain;
mod leave;
mod reason;
mod record;
mod share;
mod split;
mod view;

use std::collections::BTreeSet;

use rigor_queue::heartbeat::{Health, LlmBeat};

use crate::span::estimate;
pub use gain::{Came, Predicted};
use leave::{cool, make_room, replace};
use reason::{Stop, keep_reason};
pub use record::{POLICY, Record, SCHEMA};
use share::shares;
pub use split::{Lend, Splits, Step};
pub use view::{
    Agent, Decision, Demand, FailedLoad, ModelSeconds, Pending, View, failed_load_wait,
    seconds_left,
};

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

/// Decides which models go where. What starves comes first, then what fits the fewest agents, then
/// the largest backlog.
///
/// Models that are split over several GPUs come before all others: nobody else can use a part of
/// what they need.
pub fn decide(view: &View) -> Vec<Decision> {
    let plan = split::plan(view);
    let others = plan.others(view);
    let mut decisions = plan.decisions;
    decisions.extend(decide_whole(&others));
    decisions.extend(split::yields(view, &others, &decisions));
    decisions
}

/// Decides on the models that one GPU holds whole.
fn decide_whole(view: &View) -> Vec<Decision> {
    let mut decisions = Vec::new();
    let whole = |d: &&Demand| d.queued > 0 && !view.splits.gpus.contains_key(&d.model);
    let mut demands: Vec<&Demand> = view.models.iter().filter(whole).collect();
    // What starves comes first: it was given room, and nobody else may take it.
    let starving = |d: &Demand| {
        if d.starves() { d.waiting_seconds } else { 0.0 }
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
    // Agents that are to load one of them, with its model.
    let given = shares(view, &demands);
    for demand in demands {
        let others = given.iter().filter(|(_, model)| *model != demand.model);
        let taken: Vec<(&str, &str)> = others.copied().collect();
        let way = on_its_way(view, demand);
        let (now, pending) = (way.gpus(), way.pending);
        let reserved = reserved(view, demand);
        let eligible: Vec<&Agent> = way
            .able
            .into_iter()
            .filter(|agent| taken.iter().all(|(name, _)| *name != agent.name))
            .filter(|agent| !reserved.agents.contains(&agent.name.as_str()))
            .collect();
        // Agents that an unclaimed load of any other model will take are not free either.
        let free = eligible
            .len()
            .saturating_sub(view.pending.len() - reserved.loads);
        let eligible = preferred(eligible, demand);
        // The fastest take the loads of it that are asked for already.
        let free = free.min(eligible.len().saturating_sub(pending));
        let spoken_for = eligible.len() - free;
        let (room, kept) = room(view, demand, free, now);
        let loads: Vec<f64> = eligible
            .iter()
            .skip(spoken_for)
            .take(room)
            .map(|agent| agent.load_seconds(demand))
            .collect();
        let (wanted, stop) = useful(demand, now, &loads);
        if wanted > now {
            let count = wanted - now;
            let slowest = loads[count - 1];
            // They race for it: who loads it much more slowly is left out of the race.
            let names: Vec<String> = eligible
                .iter()
                .filter(|agent| agent.load_seconds(demand) <= LOAD_MARGIN * slowest)
                .map(|agent| agent.name.clone())
                .collect();
            let predicted = Predicted::of(demand, now, wanted, slowest);
            decisions.push(Decision::Load {
                model: demand.model.clone(),
                count,
                eligible: names,
                reason: predicted.words(),
                predicted,
            });
        } else if now == 0 {
            decisions.push(make_room(view, demand, &decisions, &taken));
        } else if let Some(unload) =
            replace(view, demand, now, &decisions).filter(|_| stop.is_none() && !kept)
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

/// Where a model is, and where it could go.
struct OnItsWay<'v> {
    /// Agents that hold it or are loading it.
    serving: usize,
    /// Loads of it that somebody will take.
    pending: usize,
    /// Agents that can take a load of it now.
    able: Vec<&'v Agent>,
}

impl OnItsWay<'_> {
    /// k: GPUs that have it or will have it.
    fn gpus(&self) -> usize {
        self.serving + self.pending
    }
}

fn on_its_way<'v>(view: &'v View, demand: &Demand) -> OnItsWay<'v> {
    let model = demand.model.as_str();
    let agents = view.agents.iter();
    let able: Vec<&Agent> = agents
        .filter(|agent| obstacle(agent, model).is_none())
        .collect();
    // A load that nobody can take is none: room has to be made for it first.
    let taken = |load: &&Pending| able.iter().any(|agent| load.may_take(agent));
    let asked = view.pending.iter().filter(|load| load.model == model);
    OnItsWay {
        serving: view
            .agents
            .iter()
            .filter(|agent| serves(agent, model))
            .count(),
        pending: asked.filter(taken).count(),
        able,
    }
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
        let of_it = || view.pending.iter().filter(|load| load.model == model);
        let loads = of_it().count();
        let takers: Vec<&str> = view
            .agents
            .iter()
            .filter(|agent| obstacle(agent, model).is_none())
            .filter(|agent| of_it().any(|load| load.may_take(agent)))
            .map(|agent| agent.name.as_str())
            .collect();
        if takers.len() <= loads {
            reserved.agents.extend(takers);
            reserved.loads += loads;
        }
    }
    reserved
}

/// Who is asked, the fastest first: as long as another one could, neither who runs scripts that
/// leave no room for long nor who has failed to load it.
fn preferred<'v>(mut able: Vec<&'v Agent>, demand: &Demand) -> Vec<&'v Agent> {
    let best = able.iter().map(|agent| rank(agent, demand)).min();
    able.retain(|agent| Some(rank(agent, demand)) == best);
    able.sort_by(|a, b| a.load_seconds(demand).total_cmp(&b.load_seconds(demand)));
    able
}

/// Whether scripts keep an agent from a model for long, and whether it has failed to load it.
fn rank(agent: &Agent, demand: &Demand) -> (bool, bool) {
    let failed = agent.failed_load(&demand.model).is_some();
    (agent.is_blocked_for_long(demand), failed)
}

/// How many GPUs pay, from `now` on, where the further ones take so many seconds to load it, and
/// what ended the count before that.
fn useful(demand: &Demand, now: usize, loads: &[f64]) -> (usize, Option<Stop>) {
    let backlog = demand.backlog_seconds();
    let mut count = now;
    for load in loads {
        if count > 0 {
            if backlog / count as f64 <= LOAD_MARGIN * load {
                let stop = Stop::Work {
                    gpus: count,
                    load_seconds: *load,
                };
                return (count, Some(stop));
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
        let starved = demand.starves();
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
            | LlmBeat::Lent { .. }
            | LlmBeat::Draining { .. }
            | LlmBeat::Unloading { .. }
            | LlmBeat::Failed { .. } => false,
        }
}

/// Whether a load that nobody has taken should be asked for anew: none of those who may take it
/// can, or not for long because of their scripts, and somebody else could.
pub fn is_misplaced(view: &View, model: &str, eligible: &[String]) -> bool {
    // One over several GPUs is withdrawn with its group.
    if view.splits.gpus.contains_key(model) {
        return false;
    }
    let able = |agent: &&Agent| obstacle(agent, model).is_none();
    let (may, others): (Vec<&Agent>, Vec<&Agent>) = view
        .agents
        .iter()
        .filter(able)
        .partition(|agent| eligible.contains(&agent.name));
    let demand = view.models.iter().find(|demand| demand.model == model);
    let soon = |agent: &&Agent| demand.is_none_or(|of| !agent.is_blocked_for_long(of));
    (may.is_empty() && !others.is_empty()) || (!may.iter().any(soon) && others.iter().any(soon))
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
    if let Some(failed) = agent.failed_load(model)
        && failed.retry_in_seconds > 0.0
    {
        return Some(format!(
            "failed to load it {} {}, again in {}: {}",
            failed.times,
            if failed.times == 1 { "time" } else { "times" },
            estimate(failed.retry_in_seconds),
            failed.cause
        ));
    }
    match &agent.llm {
        LlmBeat::Cold | LlmBeat::Failed { .. } => None,
        LlmBeat::Lent { model, to, .. } => Some(format!("lends its GPU to {to} for {model}")),
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
mod ageing;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
