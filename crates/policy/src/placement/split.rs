//! Models that are split over the GPUs of several agents.
//!
//! One agent, the *leader*, runs the model; the others, the *lenders*, keep their GPUs free for it.
//! A group is gathered first: every member, the leader too, is asked to lend its GPU, leases its
//! share of the memory and says so in its heartbeat. Only when all of them do is the load asked for,
//! so that all GPUs are reserved or none is used.
//!
//! Deadlock cannot arise: one group at a time is being gathered, by one brain, and a group that is
//! not complete in time is given back whole. Everything is read from what agents show and from the
//! tasks that are queued, so a brain that starts anew goes on where the last one was.
//!
//! Nothing starves beyond the ageing bound of [`STARVED_AFTER_LOADS`](super::STARVED_AFTER_LOADS): a split model that has waited
//! so long takes GPUs whose models are needed, and gives its own to others that have.

mod gather;
mod group;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use rigor_queue::heartbeat::{Health, LlmBeat};
use serde::{Deserialize, Serialize};

pub(super) use gather::yields;
use gather::{begin, candidates};
use group::{Group, groups};

use super::leave::queued;
use super::{Agent, Decision, ModelSeconds, View, obstacle};
use crate::span::count;

/// What is known of split models beyond what agents show.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Splits {
    /// The models of the catalogue that are split, and over how many GPUs each.
    pub gpus: BTreeMap<String, u32>,
    /// Lends that were asked for and are not over.
    pub lends: Vec<Lend>,
    /// Loads over several GPUs that were asked for and are not over: the leader and the model.
    pub loads: Vec<(String, String)>,
    /// Models that are not gathered for again yet, as the last try was not complete in time, and
    /// for how long.
    pub resting: Vec<ModelSeconds>,
}

/// A lend that was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lend {
    /// Whose GPU.
    pub agent: String,
    /// The leader.
    pub to: String,
    /// Catalogue id.
    pub model: String,
    /// Its time is over.
    pub overdue: bool,
}

/// What should be done about a model that is split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// Ask these agents to lend their GPUs.
    Lend {
        /// Catalogue id.
        model: String,
        /// The leader.
        to: String,
        /// Who is asked; the leader may be among them.
        agents: Vec<String>,
        /// The GPUs of the whole group.
        gpus: u32,
        /// With numbers.
        reason: String,
    },
    /// Ask the leader for the load: all GPUs are reserved.
    Load {
        /// Catalogue id.
        model: String,
        /// The leader.
        on: String,
        /// The others of the group.
        lenders: Vec<String>,
    },
    /// Take back lends and loads of a group that nobody has taken yet.
    Withdraw {
        /// Catalogue id.
        model: String,
        /// The leader.
        to: String,
        /// It was not complete in time: it is not tried again at once.
        late: bool,
        /// In words.
        reason: String,
    },
}

impl Step {
    /// In one line.
    pub fn words(&self) -> String {
        match self {
            Step::Lend {
                model,
                to,
                agents,
                reason,
                ..
            } => format!("gather {} for {model} on {to}: {reason}", agents.join(", ")),
            Step::Load { model, on, lenders } => {
                format!(
                    "load {model} on {on} over its GPU and {}",
                    lenders.join(", ")
                )
            }
            Step::Withdraw {
                model, to, reason, ..
            } => format!("give up gathering for {model} on {to}: {reason}"),
        }
    }
}

/// Decisions on split models, and the agents that no other model may have.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) decisions: Vec<Decision>,
    /// Agent, model, leader.
    kept: Vec<(String, String, String)>,
}

impl Plan {
    /// What the other models are placed on.
    pub(super) fn others<'v>(&self, view: &'v View) -> Cow<'v, View> {
        let split = |model: &str| view.splits.gpus.contains_key(model);
        if self.kept.is_empty() && !view.pending.iter().any(|load| split(&load.model)) {
            return Cow::Borrowed(view);
        }
        let mut others = view.clone();
        others.pending.retain(|load| !split(&load.model));
        for (name, model, to) in &self.kept {
            let agent = others.agents.iter_mut().find(|agent| agent.name == *name);
            if let Some(agent) = agent.filter(|agent| !matches!(agent.llm, LlmBeat::Lent { .. })) {
                agent.llm = LlmBeat::Lent {
                    model: model.clone(),
                    to: to.clone(),
                    since: jiff::Timestamp::UNIX_EPOCH,
                };
            }
        }
        Cow::Owned(others)
    }

    fn keep(&mut self, agent: &str, group: &Group<'_>) {
        self.kept.push((
            agent.to_owned(),
            group.model.to_owned(),
            group.to.to_owned(),
        ));
    }

    fn unload(&mut self, agent: &str, next: Option<&str>, reason: String) {
        self.decisions.push(Decision::Unload {
            agent: agent.to_owned(),
            next: next.map(str::to_owned),
            reason,
        });
    }

    fn step(&mut self, step: Step) {
        self.decisions.push(Decision::Split { step });
    }

    fn say(&mut self, model: &str, reason: String) {
        self.decisions.push(Decision::Keep {
            model: model.to_owned(),
            reason,
        });
    }
}

/// Decides on the models that are split.
pub(super) fn plan(view: &View) -> Plan {
    let mut plan = Plan::default();
    let groups = groups(view);
    let held: BTreeSet<&str> = groups
        .iter()
        .filter(|group| group.runs().is_some() || group.leaves())
        .map(|group| group.model)
        .collect();
    let mut gathering = false;
    for group in &groups {
        if let Some(leader) = group.runs() {
            running(view, group, leader, &mut plan);
        } else if group.leaves() {
            for agent in &group.lent {
                plan.keep(&agent.name, group);
            }
        } else {
            let why = broken(view, group, gathering || held.contains(group.model))
                .or_else(|| better(view, &groups, group));
            match why {
                None => gather(view, &groups, group, &mut plan),
                Some((reason, late)) => give_back(group, &reason, late, &mut plan),
            }
            // What is given back is seen to be free first.
            gathering = true;
        }
    }
    if !gathering {
        begin(view, &groups, &mut plan);
    }
    plan
}

/// A model that is loaded, or on its way in: everybody who lends has to be there.
fn running(view: &View, group: &Group<'_>, leader: &Agent, plan: &mut Plan) {
    let lenders = leader.llm.lenders();
    let mut gone =
        (leader.health == Health::Quarantined).then(|| format!("{} is quarantined", leader.name));
    let mut again = Vec::new();
    for name in lenders {
        plan.keep(name, group);
        let agent = view.agents.iter().find(|agent| agent.name == *name);
        let asked = group.asked.iter().find(|lend| lend.agent == *name);
        match agent {
            Some(agent) if agent.alive && agent.health != Health::Quarantined => match &agent.llm {
                LlmBeat::Lent { model, to, .. } if model == group.model && to == group.to => {}
                // It was started anew.
                LlmBeat::Cold | LlmBeat::Failed { .. } => match asked {
                    None => again.push(name.clone()),
                    Some(lend) if lend.overdue => {
                        gone = Some(format!("{name} did not lend its GPU again in time"));
                    }
                    Some(_) => {}
                },
                other => {
                    let what = other.model().unwrap_or("another model");
                    gone = Some(format!("{name} is {} with {what}", other.as_str()));
                }
            },
            Some(agent) if agent.alive => gone = Some(format!("{name} is quarantined")),
            _ => gone = Some(format!("{name} is not running")),
        }
    }
    for agent in &group.lent {
        if !lenders.contains(&agent.name) {
            let reason = format!("{} runs {} without it", group.to, group.model);
            plan.unload(&agent.name, None, reason);
        }
    }
    let over = if lenders.is_empty() {
        String::new()
    } else {
        format!(" over its GPU and {}", lenders.join(", "))
    };
    match gone {
        Some(why) => {
            // One that loads is unloaded when that has ended.
            if matches!(leader.llm, LlmBeat::Hot { .. }) {
                let reason = format!("{} runs{over}, and {why}", group.model);
                plan.unload(&leader.name, None, reason);
            }
        }
        None if again.is_empty() => {}
        None => plan.step(Step::Lend {
            model: group.model.to_owned(),
            to: group.to.to_owned(),
            reason: format!("{} has the model over them", group.to),
            gpus: lenders.len() as u32 + 1,
            agents: again,
        }),
    }
    if queued(view, group.model) > 0 {
        let state = leader.llm.as_str();
        plan.say(group.model, format!("it is {state} on {}{over}", group.to));
    }
}

/// Why a group that does not run is not waited for, and whether that is for its time alone.
fn broken(view: &View, group: &Group<'_>, another: bool) -> Option<(String, bool)> {
    let never = |why: String| Some((why, false));
    if !group.is_gathering() {
        return never(format!("{} does not have {}", group.to, group.model));
    }
    if !view.splits.gpus.contains_key(group.model) || queued(view, group.model) == 0 {
        return never(format!("nothing needs {} any more", group.model));
    }
    if another {
        return never("one group is gathered at a time".to_owned());
    }
    for name in group.members() {
        let agent = view.agents.iter().find(|agent| agent.name == name);
        if !agent.is_some_and(|agent| agent.could_hold(group.model)) {
            let why = agent.and_then(|agent| obstacle(agent, group.model));
            let why = why.unwrap_or_else(|| "not there any more".to_owned());
            return never(format!("{name} is out: {why}"));
        }
    }
    let late = group.asked.iter().find(|lend| lend.overdue)?;
    Some((
        format!("{} could not lend its GPU in time", late.agent),
        true,
    ))
}

/// Whom a group waits for whose scripts leave no room for long, while others are free.
fn better(view: &View, groups: &[Group<'_>], group: &Group<'_>) -> Option<(String, bool)> {
    let demand = view.models.iter().find(|of| of.model == group.model)?;
    let agent = |name: &str| view.agents.iter().find(|agent| agent.name == name);
    let blocked: Vec<&str> = group
        .asked
        .iter()
        .map(|lend| lend.agent.as_str())
        .filter(|name| agent(name).is_some_and(|agent| agent.is_blocked_for_long(demand)))
        .collect();
    let free = gather::candidates(view, groups, demand)
        .into_iter()
        .filter(|agent| matches!(agent.llm, LlmBeat::Cold) && !agent.is_blocked_for_long(demand))
        .count();
    (!blocked.is_empty() && free >= blocked.len()).then(|| {
        let names = blocked.join(", ");
        (
            format!("scripts keep {names} for long, and other GPUs are free"),
            false,
        )
    })
}

fn give_back(group: &Group<'_>, reason: &str, late: bool, plan: &mut Plan) {
    for agent in &group.lent {
        plan.keep(&agent.name, group);
        plan.unload(&agent.name, None, reason.to_owned());
    }
    if late || group.loads || !group.asked.is_empty() {
        plan.step(Step::Withdraw {
            model: group.model.to_owned(),
            to: group.to.to_owned(),
            late,
            reason: reason.to_owned(),
        });
    }
}

/// A group that is being gathered: loads when it is complete, else sees to what it lacks.
fn gather(view: &View, groups: &[Group<'_>], group: &Group<'_>, plan: &mut Plan) {
    let gpus = view.splits.gpus.get(group.model).copied().unwrap_or(2);
    let mut members = group.members();
    members.insert(group.to);
    for name in &members {
        plan.keep(name, group);
    }
    let named: Vec<&str> = members.iter().copied().collect();
    plan.say(
        group.model,
        format!(
            "{} of {gpus} GPUs are ready for it ({})",
            group.lent.len(),
            named.join(", ")
        ),
    );
    let lacks = (gpus as usize).saturating_sub(members.len());
    if lacks > 0 || !group.members().contains(group.to) {
        let Some(demand) = view.models.iter().find(|of| of.model == group.model) else {
            return;
        };
        let more = candidates(view, groups, demand);
        let more: Vec<&Agent> = more
            .into_iter()
            .filter(|agent| !members.contains(agent.name.as_str()))
            .take(lacks)
            .collect();
        if more.len() < lacks {
            return give_back(
                group,
                "nobody can take the place of who is missing",
                false,
                plan,
            );
        }
        for agent in &more {
            plan.keep(&agent.name, group);
        }
        return plan.step(Step::Lend {
            model: group.model.to_owned(),
            to: group.to.to_owned(),
            agents: more.iter().map(|agent| agent.name.clone()).collect(),
            gpus,
            reason: "the group is not complete".to_owned(),
        });
    }
    for lend in &group.asked {
        let agent = view.agents.iter().find(|agent| agent.name == lend.agent);
        if let Some(LlmBeat::Hot { model, .. }) = agent.map(|agent| &agent.llm) {
            let reason = format!(
                "{} is gathered over {gpus} GPUs; queued for {model}: {}",
                group.model,
                count(queued(view, model), "task")
            );
            plan.unload(&lend.agent, Some(group.model), reason);
        }
    }
    if group.asked.is_empty() && !group.loads {
        let others = group.lent.iter().filter(|agent| agent.name != group.to);
        plan.step(Step::Load {
            model: group.model.to_owned(),
            on: group.to.to_owned(),
            lenders: others.map(|agent| agent.name.clone()).collect(),
        });
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;
