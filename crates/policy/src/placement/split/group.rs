//! The groups that agents and queued tasks show.

use std::collections::BTreeSet;

use rigor_queue::heartbeat::LlmBeat;

use super::super::leave::is_leaving;
use super::super::{Agent, View};
use super::Lend;

/// A split model, its leader, and who shows that it lends to it or was asked to.
pub(super) struct Group<'v> {
    pub(super) model: &'v str,
    pub(super) to: &'v str,
    pub(super) leader: Option<&'v Agent>,
    pub(super) lent: Vec<&'v Agent>,
    pub(super) asked: Vec<&'v Lend>,
    pub(super) loads: bool,
}

impl<'v> Group<'v> {
    /// The leader has the model, or is about to.
    pub(super) fn runs(&self) -> Option<&'v Agent> {
        let runs = |agent: &&Agent| matches!(&agent.llm, LlmBeat::Hot { model, .. } | LlmBeat::Loading { model, .. } if model == self.model);
        self.leader.filter(|agent| agent.alive).filter(runs)
    }

    pub(super) fn leaves(&self) -> bool {
        self.leader.is_some_and(|agent| {
            agent.alive && is_leaving(agent) && agent.llm.model() == Some(self.model)
        })
    }

    /// Its leader is kept for it: without that the group is what is left of one that ran.
    pub(super) fn is_gathering(&self) -> bool {
        self.lent.iter().any(|agent| agent.name == self.to)
            || self.asked.iter().any(|lend| lend.agent == self.to)
    }

    pub(super) fn members(&self) -> BTreeSet<&'v str> {
        let lent = self.lent.iter().map(|agent| agent.name.as_str());
        lent.chain(self.asked.iter().map(|lend| lend.agent.as_str()))
            .collect()
    }
}

pub(super) fn groups(view: &View) -> Vec<Group<'_>> {
    let mut keys: BTreeSet<(&str, &str)> = BTreeSet::new();
    for agent in view.agents.iter().filter(|agent| agent.alive) {
        match &agent.llm {
            LlmBeat::Lent { model, to, .. } => drop(keys.insert((model, to))),
            LlmBeat::Hot { model, .. }
            | LlmBeat::Loading { model, .. }
            | LlmBeat::Draining { model }
            | LlmBeat::Unloading { model }
                if view.splits.gpus.contains_key(model) || !agent.llm.lenders().is_empty() =>
            {
                keys.insert((model, &agent.name));
            }
            _ => {}
        }
    }
    let asked = view.splits.lends.iter();
    keys.extend(asked.map(|lend| (lend.model.as_str(), lend.to.as_str())));
    let loads = view.splits.loads.iter();
    keys.extend(loads.map(|(on, model)| (model.as_str(), on.as_str())));
    let group = |(model, to)| {
        Group {
        model,
        to,
        leader: view.agents.iter().find(|agent| agent.name == to),
        lent: view
            .agents
            .iter()
            .filter(|agent| agent.alive)
            .filter(|agent| matches!(&agent.llm, LlmBeat::Lent { model: of, to: whom, .. } if of == model && whom == to))
            .collect(),
        // One that shows already that it does is not waited for.
        asked: view
            .splits
            .lends
            .iter()
            .filter(|lend| lend.model == model && lend.to == to)
            .filter(|lend| {
                !view.agents.iter().any(|agent| {
                    agent.alive && agent.name == lend.agent && matches!(&agent.llm, LlmBeat::Lent { model: of, to: whom, .. } if of == model && whom == to)
                })
            })
            .collect(),
        loads: view.splits.loads.iter().any(|(on, of)| on == to && of == model),
    }
    };
    keys.into_iter().map(group).collect()
}
