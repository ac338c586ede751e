//! Who gets the GPUs that are free, where several models wait for them.

use super::{Agent, Demand, View, obstacle, on_its_way, rank, room, useful};

/// Which free GPUs are meant for which of `demands`: agent and model. One after the other goes to
/// the model with the most queued work for each GPU that it has; before that, each that has none
/// gets its first one, however little its work is. That load has to be whoever waits, and later it
/// would cost an unload, and a second load of what had taken the GPU meanwhile.
pub(super) fn shares<'v>(view: &'v View, demands: &[&'v Demand]) -> Vec<(&'v str, &'v str)> {
    let mut free: Vec<&Agent> = view.agents.iter().collect();
    // An unclaimed load takes one too.
    for load in &view.pending {
        let taker = |agent: &&Agent| load.may_take(agent) && obstacle(agent, &load.model).is_none();
        if let Some(at) = free.iter().position(taker) {
            free.remove(at);
        }
    }
    let mut gpus: Vec<usize> = demands
        .iter()
        .map(|demand| on_its_way(view, demand).gpus())
        .collect();
    let mut given = Vec::new();
    loop {
        let next = demands
            .iter()
            .zip(&gpus)
            .enumerate()
            .filter_map(|(at, (demand, gpus))| {
                let taker = takes_next(view, demands, &free, demand, *gpus)?;
                Some((at, taker, demand.backlog_seconds() / *gpus as f64))
            })
            // Of equals the first: they come in the order in which they are served.
            .reduce(|most, other| if other.2 > most.2 { other } else { most });
        let Some((at, taker, _)) = next else {
            return given;
        };
        gpus[at] += 1;
        given.push((taker, demands[at].model.as_str()));
        free.retain(|agent| agent.name != taker);
    }
}

/// Of the free agents the one that a model should have, if one more than `gpus` pays: of those that
/// the fewest others could use as well, the one that loads it fastest.
fn takes_next<'v>(
    view: &View,
    demands: &[&Demand],
    free: &[&'v Agent],
    demand: &Demand,
    gpus: usize,
) -> Option<&'v str> {
    let able: Vec<&Agent> = free
        .iter()
        .copied()
        .filter(|agent| obstacle(agent, &demand.model).is_none())
        .collect();
    if room(view, demand, able.len(), gpus).0 == 0 {
        return None;
    }
    let good = |agent: &Agent, of: &Demand| {
        obstacle(agent, &of.model).is_none() && rank(agent, of) == (false, false)
    };
    let wanted = |agent: &Agent| demands.iter().filter(|of| good(agent, of)).count();
    let taker = able.into_iter().min_by(|a, b| {
        let seconds = |agent: &Agent| agent.load_seconds(demand);
        rank(a, demand)
            .cmp(&rank(b, demand))
            .then_with(|| wanted(a).cmp(&wanted(b)))
            .then_with(|| seconds(a).total_cmp(&seconds(b)))
    })?;
    let pays = useful(demand, gpus, &[taker.load_seconds(demand)]).0 > gpus;
    pays.then_some(taker.name.as_str())
}
