//! What an operator means: an agent, a batch, `batch/task-name`, or an id, each shortened as far
//! as it stays unique.

use rigor_config::{Config, nearest};
use rigor_queue::claim;
use rigor_queue::name::{FileName, TaskId};
use rigor_queue::rig::{BRAIN, Rig};

use crate::Result;
use crate::batches::{Active, PLAN_TASK, ids, plan_of, plan_task_id};
use crate::names::{Names, plan_tasks};
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
        /// Task files there that come before it in claim order.
        ahead: usize,
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
        targets.extend(located(rig, &batches, &Filter::default(), text)?);
    }
    if targets.is_empty() {
        let nearest = nearest_of_all(rig, &agents, &batches, text)?;
        return Ok(Found::NotFound { nearest });
    }
    Ok(one_of(targets, || None))
}

/// The agent, the batch, or the task of a batch that is not over, whose name is most like `text`;
/// a task as `batch/name`.
fn nearest_of_all(
    rig: &Rig,
    agents: &[String],
    batches: &[String],
    text: &str,
) -> Result<Option<String>> {
    let active = Active::read(rig)?;
    let mut names = Names::default();
    for batch in batches.iter().filter(|id| active.is_active(id)) {
        names.add(rig, batch, None)?;
    }
    // What a person types, with what it stands for: a batch may be typed without its time.
    let mut known: Vec<(String, String)> = agents
        .iter()
        .chain(batches)
        .map(|name| (name.clone(), name.clone()))
        .collect();
    known.extend(
        batches
            .iter()
            .rev()
            .map(|id| (plan_of(id).to_owned(), id.clone())),
    );
    known.extend(names.iter().map(|(_, known)| {
        let name = known.name();
        let label = format!("{}/{name}", known.batch);
        (name, label)
    }));
    let near = nearest(text, known.iter().map(|(name, _)| name.as_str()));
    Ok(near.and_then(|near| {
        let of = known.iter().find(|(name, _)| name == near);
        of.map(|(_, label)| label.clone())
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
    if let Some(target) = by_whole_name(rig, batch, name)? {
        return Ok(Found::One(target));
    }
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
            let targets = located(rig, &[batch.to_owned()], &filter, &id.to_string())?;
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

/// The task of exactly that name, by the id that follows from it: no manifest is read.
fn by_whole_name(rig: &Rig, batch: &str, name: &str) -> Result<Option<Target>> {
    let filter = Filter {
        batch: Some(batch.to_owned()),
        ..Filter::default()
    };
    for task in plan_tasks(rig, batch)? {
        let id = if name == task {
            TaskId::derive(batch, &task, None)
        } else if let Some(item) = name
            .strip_prefix(task.as_str())
            .and_then(|rest| rest.strip_prefix('_'))
        {
            TaskId::derive(batch, &task, Some(item))
        } else {
            continue;
        };
        let found = located(rig, &[batch.to_owned()], &filter, &id.to_string())?;
        if let Some(target) = found.into_iter().next() {
            return Ok(Some(target));
        }
    }
    Ok(None)
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

/// Where the tasks lie whose id begins like that. A task that moves while the lanes are read is
/// found where it was seen last; one that moved back past the reader is looked for a second time.
fn located(rig: &Rig, batches: &[String], filter: &Filter, prefix: &str) -> Result<Vec<Target>> {
    let plans: Vec<TaskId> = batches.iter().map(|id| plan_task_id(id)).collect();
    for _ in 0..2 {
        let mut found: Vec<(FileName, Spot, usize)> = Vec::new();
        for spot in spots(rig, batches, filter)? {
            for (name, ahead) in rig.find(spot.place(), prefix)? {
                if !plans.contains(&name.id) {
                    found.retain(|(of, ..)| of.id != name.id);
                    found.push((name, spot.clone(), ahead));
                }
            }
        }
        if !found.is_empty() {
            return Ok(found
                .into_iter()
                .map(|(name, spot, ahead)| Target::Task { name, spot, ahead })
                .collect());
        }
    }
    Ok(Vec::new())
}
