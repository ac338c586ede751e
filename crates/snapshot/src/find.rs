//! What an operator means: an agent, a batch, `batch/task-name`, or an id, each shortened as far
//! as it stays unique.

use rigor_config::{Config, nearest};
use rigor_queue::claim;
use rigor_queue::name::{FileName, TaskId};
use rigor_queue::rig::{BRAIN, Rig};

use crate::Result;
use crate::batches::{Active, PLAN_TASK, ids, plan_task_id};
use crate::names::Names;
use crate::tasks::{Filter, Spot, spots};

/// What was found under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A task, and where it lay.
    Task {
        /// Its file's name, which says its id and attempt.
        name: FileName,
        /// Where.
        spot: Spot,
    },
    /// A batch, by its whole id.
    Batch(String),
    /// An agent, or the brain.
    Agent(String),
}

/// What came of looking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// One.
    One(Target),
    /// Several begin like that: their whole ids or names.
    Ambiguous(Vec<String>),
    /// None; the name that is most like it.
    NotFound {
        /// The most alike; none where there is nothing at all.
        nearest: Option<String>,
    },
}

/// Finds what `text` names. An agent's name is taken whole; all else may be shortened.
pub fn find(rig: &Rig, config: &Config, text: &str) -> Result<Found> {
    let mut agents: Vec<String> = config.agent_names().map(str::to_owned).collect();
    agents.extend(rig.agents()?);
    agents.push(BRAIN.to_owned());
    if agents.iter().any(|agent| agent == text) {
        return Ok(Found::One(Target::Agent(text.to_owned())));
    }
    if let Some((batch, name)) = text.split_once('/') {
        return match find_batch(rig, batch)? {
            Found::One(Target::Batch(batch)) => named_task(rig, &batch, name),
            other => Ok(other),
        };
    }
    let batches = ids(rig)?;
    if batches.iter().any(|id| id == text) {
        return Ok(Found::One(Target::Batch(text.to_owned())));
    }
    let mut targets: Vec<Target> = prefixed(&batches, text).map(Target::Batch).collect();
    let hexadecimal = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if !text.is_empty() && text.len() <= 16 && hexadecimal {
        targets.extend(located(rig, &batches, &Filter::default(), |id| {
            id.to_string().starts_with(text)
        })?);
    }
    Ok(one_of(targets, || {
        let known = agents.iter().chain(&batches).map(String::as_str);
        nearest(text, known).map(str::to_owned)
    }))
}

/// Finds a batch by its id or the beginning of it.
pub fn find_batch(rig: &Rig, text: &str) -> Result<Found> {
    let batches = ids(rig)?;
    if batches.iter().any(|id| id == text) {
        return Ok(Found::One(Target::Batch(text.to_owned())));
    }
    let targets = prefixed(&batches, text).map(Target::Batch).collect();
    Ok(one_of(targets, || {
        nearest(text, batches.iter().map(String::as_str)).map(str::to_owned)
    }))
}

fn prefixed<'a>(batches: &'a [String], text: &'a str) -> impl Iterator<Item = String> + 'a {
    batches
        .iter()
        .filter(move |id| !text.is_empty() && id.starts_with(text))
        .cloned()
}

fn one_of(mut targets: Vec<Target>, nearest: impl FnOnce() -> Option<String>) -> Found {
    if targets.len() > 1 {
        return Found::Ambiguous(targets.iter().map(label).collect());
    }
    match targets.pop() {
        Some(target) => Found::One(target),
        None => Found::NotFound { nearest: nearest() },
    }
}

fn label(target: &Target) -> String {
    match target {
        Target::Task { name, .. } => name.id.to_string(),
        Target::Batch(id) => id.clone(),
        Target::Agent(name) => name.clone(),
    }
}

/// The task of that name in a batch; a unique beginning of the name will do.
fn named_task(rig: &Rig, batch: &str, name: &str) -> Result<Found> {
    let count = Active::read(rig)?.batch(rig, batch)?;
    let mut names = Names::default();
    names.add(rig, batch, count.as_ref())?;
    let mut known: Vec<(TaskId, String)> =
        names.iter().map(|(id, known)| (id, known.name())).collect();
    if known.is_empty() {
        known = read_names(rig, batch)?;
    }
    let exact = known.iter().find(|(_, of)| of == name);
    let matches: Vec<&(TaskId, String)> = match exact {
        Some(exact) => vec![exact],
        None => known
            .iter()
            .filter(|(_, of)| of.starts_with(name))
            .collect(),
    };
    match matches[..] {
        [] => {
            let near = nearest(name, known.iter().map(|(_, of)| of.as_str()));
            Ok(Found::NotFound {
                nearest: near.map(|near| format!("{batch}/{near}")),
            })
        }
        [(id, _)] => {
            let filter = Filter {
                batch: Some(batch.to_owned()),
                ..Filter::default()
            };
            let targets = located(rig, &[batch.to_owned()], &filter, |of| of == *id)?;
            Ok(one_of(targets, || None))
        }
        ref several => {
            let mut labels: Vec<String> = several
                .iter()
                .map(|(_, of)| format!("{batch}/{of}"))
                .collect();
            labels.sort_unstable();
            Ok(Found::Ambiguous(labels))
        }
    }
}

/// Names from the task files themselves, for a batch whose manifests are gone.
fn read_names(rig: &Rig, batch: &str) -> Result<Vec<(TaskId, String)>> {
    let filter = Filter {
        batch: Some(batch.to_owned()),
        ..Filter::default()
    };
    let mut names = Vec::new();
    for spot in spots(rig, &[batch.to_owned()], &filter)? {
        for name in rig.list(spot.place())?.names {
            if let Ok(Some(spec)) = claim::peek(rig, spot.place(), &name)
                && spec.batch == batch
                && spec.task != PLAN_TASK
            {
                names.push((spec.id, spec.name));
            }
        }
    }
    Ok(names)
}

/// Where the wanted tasks lie. A task that moves while the lanes are read is found where it was
/// seen last; one that moved back past the reader is looked for a second time.
fn located(
    rig: &Rig,
    batches: &[String],
    filter: &Filter,
    wanted: impl Fn(TaskId) -> bool,
) -> Result<Vec<Target>> {
    let plans: Vec<TaskId> = batches.iter().map(|id| plan_task_id(id)).collect();
    for _ in 0..2 {
        let mut found: Vec<(FileName, Spot)> = Vec::new();
        for spot in spots(rig, batches, filter)? {
            for name in rig.list(spot.place())?.names {
                if wanted(name.id) && !plans.contains(&name.id) {
                    found.retain(|(of, _)| of.id != name.id);
                    found.push((name, spot.clone()));
                }
            }
        }
        if !found.is_empty() {
            return Ok(found
                .into_iter()
                .map(|(name, spot)| Target::Task { name, spot })
                .collect());
        }
    }
    Ok(Vec::new())
}
