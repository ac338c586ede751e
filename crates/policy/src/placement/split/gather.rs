//! Which GPUs a split model gets, and who goes for it.

use rigor_queue::heartbeat::LlmBeat;

use super::super::leave::{is_leaving, queued};
use super::super::{Agent, Decision, Demand, View, obstacle, serves};
use super::{Group, Plan, Step};
use crate::span::{count, estimate, tasks_wait};

/// Begins to gather for the split model that has waited longest, if there are GPUs for one.
pub(super) fn begin(view: &View, groups: &[Group<'_>], plan: &mut Plan) {
    let mut demands: Vec<(&Demand, u32)> = view
        .models
        .iter()
        .filter(|demand| demand.queued > 0)
        .filter(|demand| groups.iter().all(|group| group.model != demand.model))
        .filter_map(|demand| Some((demand, *view.splits.gpus.get(&demand.model)?)))
        .collect();
    let waited = |of: &Demand| {
        if of.starves() {
            of.waiting_seconds
        } else {
            0.0
        }
    };
    demands.sort_by(|(a, _), (b, _)| {
        waited(b)
            .total_cmp(&waited(a))
            .then_with(|| b.backlog_seconds().total_cmp(&a.backlog_seconds()))
            .then_with(|| a.model.cmp(&b.model))
    });
    let mut begun = false;
    for (demand, gpus) in demands {
        let model = &demand.model;
        let rest = view.splits.resting.iter().find(|rest| rest.model == *model);
        if let Some(rest) = rest {
            let left = estimate(rest.seconds);
            plan.say(
                model,
                format!("its GPUs could not be gathered in time; tried again in {left}"),
            );
            continue;
        }
        if begun {
            plan.say(
                model,
                "GPUs are gathered for another model first".to_owned(),
            );
            continue;
        }
        let could: Vec<&Agent> = view
            .agents
            .iter()
            .filter(|of| of.could_hold(model))
            .collect();
        if could.len() < gpus as usize {
            plan.decisions
                .push(stranded(view, demand, gpus, could.len()));
            continue;
        }
        let mut chosen = candidates(view, groups, demand);
        let alive = view.agents.iter().filter(|agent| agent.alive).count();
        let scripts = view.scripts_queued > 0 && alive <= gpus as usize && !demand.starves();
        if chosen.len() < gpus as usize || scripts {
            if !scripts {
                make_room(view, groups, demand, gpus, plan);
            }
            plan.say(model, waits(view, demand, gpus, chosen.len(), scripts));
            continue;
        }
        chosen.truncate(gpus as usize);
        begun = true;
        gather_first(view, demand, gpus, &chosen, plan);
    }
}

fn gather_first(view: &View, demand: &Demand, gpus: u32, chosen: &[&Agent], plan: &mut Plan) {
    let leader = chosen.iter().min_by(|a, b| {
        let seconds = |of: &Agent| of.load_seconds(demand);
        seconds(a)
            .total_cmp(&seconds(b))
            .then_with(|| a.name.cmp(&b.name))
    });
    let Some(leader) = leader else { return };
    let mut words = vec![format!(
        "{} for it, {} of work",
        tasks_wait(demand.queued),
        estimate(demand.backlog_seconds())
    )];
    for agent in chosen {
        plan.kept.push((
            agent.name.clone(),
            demand.model.clone(),
            leader.name.clone(),
        ));
        if let LlmBeat::Hot { model, .. } = &agent.llm {
            let tasks = queued(view, model);
            words.push(format!(
                "{} frees {model} ({} queued)",
                agent.name,
                count(tasks, "task")
            ));
        }
    }
    let mut agents: Vec<String> = chosen.iter().map(|agent| agent.name.clone()).collect();
    // The leader first: it stands for the group.
    agents.sort_by_key(|name| (*name != leader.name, name.clone()));
    let reason = words.join(", ");
    plan.say(
        &demand.model,
        format!("{} are gathered for it: {reason}", agents.join(", ")),
    );
    plan.step(Step::Lend {
        model: demand.model.clone(),
        to: leader.name.clone(),
        agents,
        gpus,
        reason,
    });
}

/// Agents that may be asked for the model, the cheapest first: cold ones, then what nothing needs,
/// and what is needed only for a model that has waited long.
pub(super) fn candidates<'v>(
    view: &'v View,
    groups: &[Group<'_>],
    demand: &Demand,
) -> Vec<&'v Agent> {
    let in_group = |agent: &Agent| {
        groups.iter().any(|group| {
            let runs = group.runs().is_some() || group.leaves();
            group.members().contains(agent.name.as_str())
                || (runs && group.to == agent.name)
                || group
                    .runs()
                    .is_some_and(|leader| leader.llm.lenders().contains(&agent.name))
        })
    };
    let cost = |agent: &Agent| match &agent.llm {
        LlmBeat::Cold | LlmBeat::Failed { .. } => Some((0, 0)),
        LlmBeat::Draining { .. } | LlmBeat::Unloading { .. } => Some((1, 0)),
        LlmBeat::Hot { model, .. } => {
            let tasks = queued(view, model);
            let stays = agent.resides_for().is_some();
            if tasks == 0 && agent.llm_running == 0 {
                let again = u8::from(view.upcoming.contains(model));
                Some((2 + again, 0))
            } else {
                (demand.starves() && !stays).then_some((4, tasks))
            }
        }
        LlmBeat::Loading { .. } | LlmBeat::Lent { .. } => None,
    };
    let mut able: Vec<_> = view
        .agents
        .iter()
        .filter(|agent| agent.could_hold(&demand.model) && !in_group(agent))
        .filter_map(|agent| Some((cost(agent)?, agent.is_blocked_for_long(demand), agent)))
        .collect();
    able.sort_by_key(|(cost, blocked, agent)| (*cost, *blocked, agent.name.as_str()));
    let mut able: Vec<&Agent> = able.into_iter().map(|(_, _, agent)| agent).collect();
    // Loads that were asked for take a cold one each, and so will what has waited longer.
    let single = |model: &str| !view.splits.gpus.contains_key(model);
    for load in view.pending.iter().filter(|load| single(&load.model)) {
        let taker = |agent: &&Agent| load.may_take(agent) && agent.could_hold(&load.model);
        if let Some(at) = able.iter().position(taker) {
            able.remove(at);
        }
    }
    let starving = view
        .models
        .iter()
        .filter(|of| of.queued > 0 && of.starves() && of.waiting_seconds >= demand.waiting_seconds);
    for model in starving
        .map(|of| of.model.as_str())
        .filter(|model| single(model))
    {
        if let Some(at) = able.iter().position(|agent| agent.could_hold(model)) {
            able.remove(at);
        }
    }
    able
}

/// Other groups have the GPUs: the one that is needed least goes, if nothing needs it or the
/// model has waited long enough.
fn make_room(view: &View, groups: &[Group<'_>], demand: &Demand, gpus: u32, plan: &mut Plan) {
    if groups.iter().any(Group::leaves) {
        return;
    }
    let lends = |agent: &Agent| {
        groups.iter().any(|group| {
            group.runs().is_some_and(|leader| {
                leader.name == agent.name || leader.llm.lenders().contains(&agent.name)
            })
        })
    };
    let outside = view
        .agents
        .iter()
        .filter(|agent| agent.could_hold(&demand.model) && !lends(agent))
        .count();
    let goes = |leader: &&Agent| {
        let needed = queued(view, leader.llm.model().unwrap_or_default()) > 0;
        (!needed && leader.llm_running == 0)
            || (demand.starves() && outside < gpus as usize && leader.resides_for().is_none())
    };
    let leader = groups
        .iter()
        .filter_map(Group::runs)
        .filter(|leader| matches!(leader.llm, LlmBeat::Hot { .. }))
        .filter(goes)
        .min_by_key(|leader| {
            (
                queued(view, leader.llm.model().unwrap_or_default()),
                &leader.name,
            )
        });
    if let Some(leader) = leader {
        let reason = format!(
            "{} for {}, which needs {gpus} GPUs",
            tasks_wait(demand.queued),
            demand.model
        );
        plan.unload(&leader.name, Some(&demand.model), reason);
    }
}

/// A model that only GPUs of groups could hold has waited long enough: one of the groups goes.
pub(in crate::placement) fn yields(
    view: &View,
    others: &View,
    so_far: &[Decision],
) -> Option<Decision> {
    let lent = |agent: &&Agent| matches!(agent.llm, LlmBeat::Lent { .. });
    let unloads = so_far
        .iter()
        .any(|of| matches!(of, Decision::Unload { .. }));
    if unloads
        || view
            .agents
            .iter()
            .any(|agent| agent.alive && is_leaving(agent))
    {
        return None;
    }
    let mut starving = others.models.iter().filter(|demand| {
        demand.queued > 0
            && demand.starves()
            && !view.splits.gpus.contains_key(&demand.model)
            && view
                .agents
                .iter()
                .all(|agent| !serves(agent, &demand.model))
    });
    starving.find_map(|demand| {
        let (inside, outside): (Vec<&Agent>, Vec<&Agent>) = others
            .agents
            .iter()
            .filter(|agent| agent.could_hold(&demand.model))
            .partition(lent);
        let to = inside.iter().find_map(|agent| match &agent.llm {
            LlmBeat::Lent { to, .. } => Some(to),
            _ => None,
        })?;
        let leader = view.agents.iter().find(|agent| agent.name == *to)?;
        let goes = outside.is_empty()
            && matches!(leader.llm, LlmBeat::Hot { .. })
            && leader.resides_for().is_none();
        goes.then(|| Decision::Unload {
            agent: leader.name.clone(),
            next: Some(demand.model.clone()),
            reason: format!(
                "{} for {}, which only {} could hold",
                tasks_wait(demand.queued),
                demand.model,
                inside
                    .iter()
                    .map(|of| of.name.as_str())
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
        })
    })
}

fn stranded(view: &View, demand: &Demand, gpus: u32, could: usize) -> Decision {
    let why = view
        .agents
        .iter()
        .filter(|agent| !agent.could_hold(&demand.model));
    let why: Vec<String> = why
        .filter_map(|agent| {
            Some(format!(
                "{} {}",
                agent.name,
                obstacle(agent, &demand.model)?
            ))
        })
        .collect();
    let why = match why.as_slice() {
        [] => "there are no more agents with a GPU".to_owned(),
        why => why.join(", "),
    };
    Decision::Stranded {
        model: demand.model.clone(),
        reason: format!("it needs {gpus} GPUs and {could} could have it: {why}"),
    }
}

fn waits(view: &View, demand: &Demand, gpus: u32, free: usize, scripts: bool) -> String {
    let turn = match demand.turn_in_seconds() {
        0.0 => "its turn is next".to_owned(),
        seconds => format!("at most {} until its turn", estimate(seconds)),
    };
    if scripts {
        let tasks = count(view.scripts_queued, "queued script task");
        return format!("needs {gpus} GPUs, which are kept for {tasks} ({turn})");
    }
    format!("needs {gpus} GPUs at once, {free} can be had now ({turn})")
}
