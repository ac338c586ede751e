//! The words of a decision: the numbers of the comparison that decided.

use super::*;
use crate::span::{count, estimate};

/// What ended the count of GPUs that pay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Stop {
    /// The work on so many GPUs is not worth another load.
    Work { gpus: usize, load_seconds: f64 },
    /// So many GPUs have a slot for every task.
    Slots { gpus: usize },
    /// What is free is kept for scripts.
    Scripts,
    /// Nobody else can take it.
    NoAgent,
}

/// Why a model that is somewhere, or on its way, goes nowhere else.
pub(super) fn keep_reason(
    view: &View,
    demand: &Demand,
    taken: &[(&str, &str)],
    pending: usize,
    stop: Stop,
) -> String {
    let names = |wanted: fn(&LlmBeat) -> bool| -> Vec<&str> {
        let of = view
            .agents
            .iter()
            .filter(|agent| serves(agent, &demand.model) && wanted(&agent.llm));
        of.map(|agent| agent.name.as_str()).collect()
    };
    let hot = names(|llm| matches!(llm, LlmBeat::Hot { .. }));
    let loading = names(|llm| matches!(llm, LlmBeat::Loading { .. }));
    let mut where_it_is = Vec::new();
    if !hot.is_empty() {
        let only = if loading.is_empty() && pending == 0 {
            " only"
        } else {
            ""
        };
        where_it_is.push(format!("the brain keeps it on {}{only}", hot.join(", ")));
    }
    if !loading.is_empty() {
        where_it_is.push(format!("a load is on its way on {}", loading.join(", ")));
    }
    match pending {
        0 => {}
        1 => where_it_is.push("a load was asked for".to_owned()),
        more => where_it_is.push(format!("{more} loads were asked for")),
    }
    let place = where_it_is.join(", ");
    let others: Vec<&Agent> = view
        .agents
        .iter()
        .filter(|agent| !serves(agent, &demand.model))
        .collect();
    if others.is_empty() {
        return format!("{}: no GPU is left", place.replace(" only", ""));
    }
    let free: Vec<&str> = others
        .iter()
        .filter(|agent| obstacle(agent, &demand.model).is_none())
        .map(|agent| agent.name.as_str())
        .filter(|name| taken.iter().all(|(taker, _)| taker != name))
        .collect();
    let why = match stop {
        Stop::Work { gpus, load_seconds } => {
            let load = estimate(load_seconds);
            let share = match gpus {
                1 => String::new(),
                more => format!(" / {more} GPUs"),
            };
            let backlog = demand.backlog_seconds();
            let less = backlog / (gpus as f64) < LOAD_MARGIN * load_seconds;
            let sign = if less { "<" } else { "<=" };
            let work = estimate(backlog);
            format!("{work} of work{share} {sign} {LOAD_MARGIN} x {load} load")
        }
        Stop::Slots { gpus } => format!(
            "as many GPUs as slots need: {} tasks <= {gpus} x {} slots",
            demand.queued, demand.slots
        ),
        Stop::Scripts => format!(
            "{} {} kept for {} ({})",
            free.join(", "),
            if free.len() == 1 { "is" } else { "are" },
            count(view.scripts_queued, "queued script task"),
            estimate(view.script_seconds)
        ),
        Stop::NoAgent if free.is_empty() => "no other agent can take it".to_owned(),
        Stop::NoAgent if pending > 0 => format!("only {} may take it", free.join(" or ")),
        Stop::NoAgent => format!("{} is to load another model", free.join(", ")),
    };
    let mut obstacles: Vec<String> = others
        .iter()
        .filter_map(|agent| {
            Some(format!(
                "{} {}",
                agent.name,
                obstacle(agent, &demand.model)?
            ))
        })
        .collect();
    obstacles.extend(
        taken
            .iter()
            .map(|(agent, model)| format!("{agent} is to load {model}")),
    );
    if obstacles.is_empty() {
        format!("{place}: {why}")
    } else {
        format!("{place}: {why} ({})", obstacles.join(", "))
    }
}
