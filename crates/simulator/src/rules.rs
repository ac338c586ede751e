//! The placement that is measured, and two others that it has to beat. Admission is the same for
//! all: it follows from the memory and the slots.

use rigor_policy::placement::{self, Agent, Decision, Demand, Predicted, View};
use rigor_queue::heartbeat::{Health, LlmBeat};

/// A placement policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// Rigor's own.
    Rigor,
    /// One GPU holds a model, whatever waits: what the founding run did.
    OneHot,
    /// Every free GPU loads the model with the longest queue, at once.
    Greedy,
}

impl Rules {
    /// All, ours first.
    pub const ALL: [Rules; 3] = [Rules::Rigor, Rules::OneHot, Rules::Greedy];

    /// As it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Rules::Rigor => "rigor",
            Rules::OneHot => "one hot GPU",
            Rules::Greedy => "greedy",
        }
    }

    pub(crate) fn decide(self, view: &View) -> Vec<Decision> {
        match self {
            Rules::Rigor => placement::decide(view),
            Rules::OneHot => one_hot(view),
            Rules::Greedy => greedy(view),
        }
    }
}

fn one_hot(view: &View) -> Vec<Decision> {
    let Some(wanted) = longest(view, |_| 0) else {
        return Vec::new();
    };
    let holder = view.agents.iter().find(|agent| agent.llm != LlmBeat::Cold);
    match holder {
        None if view.pending.is_empty() => view
            .agents
            .iter()
            .find(|agent| is_free(agent, wanted))
            .map(|agent| load(wanted, agent))
            .into_iter()
            .collect(),
        Some(agent) => unload_unneeded(view, agent).into_iter().collect(),
        None => Vec::new(),
    }
}

fn greedy(view: &View) -> Vec<Decision> {
    let mut decisions: Vec<Decision> = Vec::new();
    let mut given: Vec<(String, String)> = Vec::new();
    let free = view
        .agents
        .iter()
        .filter(|agent| agent.llm == LlmBeat::Cold);
    // Loads that were asked for and not taken yet are for the first of the free.
    for agent in free.skip(view.pending.len()) {
        let holders = |model: &str| {
            let hot = view
                .agents
                .iter()
                .filter(|agent| agent.llm.model() == Some(model));
            hot.count() + given.iter().filter(|(_, of)| of == model).count()
        };
        if let Some(demand) = longest(view, holders).filter(|demand| is_free(agent, demand)) {
            given.push((agent.name.clone(), demand.model.clone()));
            decisions.push(load(demand, agent));
        }
    }
    if decisions.is_empty() {
        let holding = view.agents.iter();
        decisions.extend(holding.filter_map(|agent| unload_unneeded(view, agent)));
    }
    decisions
}

/// The model with the most tasks for each GPU that has it, itself counted.
fn longest(view: &View, holders: impl Fn(&str) -> usize) -> Option<&Demand> {
    let share = |demand: &Demand| demand.queued as f64 / (holders(&demand.model) + 1) as f64;
    view.models
        .iter()
        .filter(|demand| demand.queued > 0)
        .max_by(|a, b| share(a).total_cmp(&share(b)))
}

fn is_free(agent: &Agent, demand: &Demand) -> bool {
    agent.alive
        && agent.health == Health::Healthy
        && agent.llm == LlmBeat::Cold
        && !agent.cannot.iter().any(|(model, _)| *model == demand.model)
}

fn load(demand: &Demand, agent: &Agent) -> Decision {
    Decision::Load {
        model: demand.model.clone(),
        count: 1,
        eligible: vec![agent.name.clone()],
        predicted: Predicted::default(),
        reason: String::new(),
    }
}

/// Frees a model that nothing is queued for while something else waits.
fn unload_unneeded(view: &View, agent: &Agent) -> Option<Decision> {
    let LlmBeat::Hot { model, .. } = &agent.llm else {
        return None;
    };
    let queued = |demand: &&Demand| demand.queued > 0;
    let needed = view
        .models
        .iter()
        .filter(queued)
        .any(|it| it.model == *model);
    let others = view.models.iter().filter(queued).count() > 0;
    let scripts = agent.scripts_blocked && view.scripts_queued > 0;
    (!needed && agent.llm_running == 0 && (others || scripts)).then(|| Decision::Unload {
        agent: agent.name.clone(),
        next: None,
        reason: String::new(),
    })
}
