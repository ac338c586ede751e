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
    /// As its heartbeat says.
    pub llm: LlmBeat,
    /// Seconds since its model last had work; 0 while it has.
    pub model_idle_seconds: f64,
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
    demands.sort_by(|a, b| {
        b.backlog_seconds().total_cmp(&a.backlog_seconds()).then_with(|| a.model.cmp(&b.model))
    });
    let pending_total = view.pending.len();
    for demand in demands {
        let hot = view.agents.iter().filter(|agent| serves(agent, &demand.model)).count();
        let pending = view.pending.iter().filter(|load| load.model == demand.model).count();
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
            LlmBeat::Hot { model: held, .. } | LlmBeat::Loading { model: held, .. } => held == model,
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
        Health::Healthy | Health::Constrained => {}
        Health::Paused | Health::Draining | Health::Quarantined => {
            return Some(agent.health.as_str().to_owned());
        }
    }
    if let Some((_, why)) = agent.cannot.iter().find(|(of, _)| of == model) {
        return Some(why.clone());
    }
    match &agent.llm {
        LlmBeat::Cold => None,
        LlmBeat::Failed { model: of, cause, .. } if agent.backing_off.as_deref() == Some(of) && of == model => {
            Some(format!("backing off after a failed load: {cause}"))
        }
        LlmBeat::Failed { .. } => None,
        held @ (LlmBeat::Hot { .. }
        | LlmBeat::Loading { .. }
        | LlmBeat::Draining { .. }
        | LlmBeat::Unloading { .. }) => {
            Some(format!("{} with {}", held.as_str(), held.model().unwrap_or("a model")))
        }
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
        view.models.iter().find(|other| Some(other.model.as_str()) == held).map_or(0, |d| d.queued)
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
                        format!("kept for {} queued script tasks", view.scripts_queued)
                    });
                    format!("{} {why}", agent.name)
                })
                .collect();
            Decision::Stranded {
                model: demand.model.clone(),
                reason: if why.is_empty() { "there is no agent with a GPU".to_owned() } else { why.join(", ") },
            }
        }
    }
}

/// Frees models that nothing needs: at once where they keep queued scripts out, else after as
/// long as a load takes.
fn cool(view: &View, so_far: &[Decision]) -> Vec<Decision> {
    let mut decisions = Vec::new();
    for agent in &view.agents {
        let LlmBeat::Hot { model, .. } = &agent.llm else { continue };
        let unloading = so_far
            .iter()
            .any(|decision| matches!(decision, Decision::Unload { agent: of, .. } if *of == agent.name));
        let queued = view.models.iter().find(|d| d.model == *model).map_or(0, |d| d.queued);
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
    let source = if demand.measured { "measured" } else { "assumed" };
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
mod tests {
    use super::*;

    fn agent(name: &str, llm: LlmBeat) -> Agent {
        Agent {
            name: name.to_owned(),
            alive: true,
            health: Health::Healthy,
            llm,
            model_idle_seconds: 0.0,
            llm_running: 0,
            scripts_blocked: false,
            cannot: Vec::new(),
            backing_off: None,
        }
    }

    fn hot(model: &str) -> LlmBeat {
        LlmBeat::Hot {
            model: model.to_owned(),
            slots: 1,
            load_ms: 40_000,
            since: jiff_epoch(),
        }
    }

    fn jiff_epoch() -> jiff::Timestamp {
        jiff::Timestamp::UNIX_EPOCH
    }

    fn demand(model: &str, queued: usize) -> Demand {
        Demand {
            model: model.to_owned(),
            queued,
            task_seconds: 20.0,
            measured: true,
            slots: 1,
            load_seconds: 40.0,
            waiting_seconds: 0.0,
        }
    }

    fn three_cold() -> Vec<Agent> {
        ["gpu-1", "gpu-2", "gpu-4"].map(|name| agent(name, LlmBeat::Cold)).to_vec()
    }

    fn loads(view: &View) -> Vec<(String, usize, usize)> {
        decide(view)
            .into_iter()
            .filter_map(|decision| match decision {
                Decision::Load { model, count, eligible, .. } => Some((model, count, eligible.len())),
                Decision::Unload { .. } | Decision::Stranded { .. } => None,
            })
            .collect()
    }

    /// The founding run: 125 tasks of 20 s, a load of 40 s, three GPUs: all three are heated.
    #[test]
    fn the_founding_run_heats_every_gpu() {
        let view = View {
            models: vec![demand("m", 125)],
            agents: three_cold(),
            ..View::default()
        };
        assert_eq!(loads(&view), [("m".to_owned(), 3, 3)]);
        let Decision::Load { reason, .. } = &decide(&view)[0] else { panic!() };
        assert_eq!(
            reason,
            "125 tasks x 20.0s (measured) / 1 slots = 2500s on one GPU, load 40.0s: 2540s on 1, 873s on 3"
        );
    }

    #[test]
    fn a_short_backlog_heats_one() {
        let view = View { models: vec![demand("m", 3)], agents: three_cold(), ..View::default() };
        assert_eq!(loads(&view), [("m".to_owned(), 1, 3)]);
    }

    #[test]
    fn what_is_hot_loading_or_asked_for_is_not_asked_for_again() {
        let mut agents = three_cold();
        agents[0].llm = hot("m");
        agents[1].llm = LlmBeat::Loading { model: "m".to_owned(), since: jiff_epoch() };
        let view = View {
            models: vec![demand("m", 125)],
            agents,
            pending: vec![Pending { model: "m".to_owned() }],
            ..View::default()
        };
        assert_eq!(decide(&view), []);
    }

    #[test]
    fn no_more_gpus_than_slots_can_use() {
        let many_slots = Demand { slots: 8, task_seconds: 1000.0, ..demand("m", 8) };
        let view = View { models: vec![many_slots], agents: three_cold(), ..View::default() };
        assert_eq!(loads(&view), [("m".to_owned(), 1, 3)]);
    }

    #[test]
    fn an_agent_that_cannot_is_left_out_and_named_when_nobody_can() {
        let mut agents = three_cold();
        agents[0].health = Health::Paused;
        agents[1].alive = false;
        let view = View { models: vec![demand("m", 125)], agents: agents.clone(), ..View::default() };
        assert_eq!(loads(&view), [("m".to_owned(), 1, 1)]);
        agents[2].llm = LlmBeat::Failed {
            model: "m".to_owned(),
            cause: "no such file".to_owned(),
            until: jiff_epoch(),
        };
        agents[2].backing_off = Some("m".to_owned());
        let view = View { models: vec![demand("m", 125)], agents, ..View::default() };
        let Decision::Stranded { reason, .. } = &decide(&view)[0] else { panic!() };
        assert_eq!(
            reason,
            "gpu-1 paused, gpu-2 not running, gpu-4 backing off after a failed load: no such file"
        );
    }

    #[test]
    fn queued_scripts_keep_the_last_cold_gpu_but_not_all() {
        let view = View {
            models: vec![demand("m", 125)],
            agents: three_cold(),
            scripts_queued: 50,
            script_seconds: 100.0,
            ..View::default()
        };
        assert_eq!(loads(&view), [("m".to_owned(), 2, 3)]);
    }

    #[test]
    fn one_gpu_finishes_its_scripts_first_unless_the_model_is_starved() {
        let view = |waiting_seconds| View {
            models: vec![Demand { waiting_seconds, ..demand("m", 125) }],
            agents: vec![agent("gpu-1", LlmBeat::Cold)],
            scripts_queued: 5,
            script_seconds: 100.0,
            ..View::default()
        };
        assert_eq!(loads(&view(0.0)), []);
        assert_eq!(loads(&view(401.0)), [("m".to_owned(), 1, 1)]);
    }

    #[test]
    fn a_model_that_nobody_needs_makes_room_for_one_that_somebody_does() {
        let view = View {
            models: vec![demand("b", 5)],
            agents: vec![agent("gpu-1", hot("a"))],
            ..View::default()
        };
        assert!(matches!(&decide(&view)[..], [Decision::Unload { agent, .. }] if agent == "gpu-1"));
    }

    #[test]
    fn two_needed_models_swap_only_after_a_long_wait() {
        let view = |waiting_seconds| View {
            models: vec![demand("a", 50), Demand { waiting_seconds, ..demand("b", 5) }],
            agents: vec![agent("gpu-1", hot("a"))],
            ..View::default()
        };
        assert!(matches!(&decide(&view(100.0))[..], [Decision::Stranded { .. }]));
        assert!(matches!(&decide(&view(401.0))[..], [Decision::Unload { .. }]));
    }

    #[test]
    fn an_idle_model_yields_to_scripts_that_it_blocks_but_not_while_it_runs() {
        let view = |llm_running| {
            let mut holder = agent("gpu-1", hot("a"));
            holder.scripts_blocked = true;
            holder.llm_running = llm_running;
            View { agents: vec![holder], scripts_queued: 3, script_seconds: 60.0, ..View::default() }
        };
        assert!(matches!(&decide(&view(0))[..], [Decision::Unload { .. }]));
        assert_eq!(decide(&view(1)), []);
    }
}
