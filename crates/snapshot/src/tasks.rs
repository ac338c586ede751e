//! Single tasks: where each lies, and lists of them.

use jiff::Timestamp;
use rigor_queue::claim;
use rigor_queue::lane::Lane;
use rigor_queue::name::{FileName, TaskId};
use rigor_queue::records;
use rigor_queue::rig::{BRAIN, Place, RIG_BATCH, Rig};
use rigor_queue::task::Class;
use serde::Serialize;

use crate::Result;
use crate::batches::{Active, PLAN_TASK, ids, plan_task_id};
use crate::names::{Names, plan_tasks};

/// One task.
#[derive(Clone, Debug, Serialize)]
pub struct Task {
    /// Its id.
    pub id: TaskId,
    /// The instance's name; empty where its file cannot be read.
    pub name: String,
    /// Its batch; empty where its file cannot be read.
    pub batch: String,
    /// Its id in the plan; empty where its file cannot be read.
    pub task: String,
    /// Its class, where it is known.
    pub class: Option<Class>,
    /// Where it lies.
    pub lane: Lane,
    /// Who has it, in processing.
    pub agent: Option<String>,
    /// The attempt that runs, ran last, or comes next.
    pub attempt: u32,
    /// Attempts charged to its retries.
    pub charged: u32,
    /// 0 to 10, higher first.
    pub priority: u8,
    /// When it came into the lane.
    pub since: Option<Timestamp>,
    /// Why it is there: for retry, failed and cancelled.
    pub reason: Option<String>,
}

/// Which tasks are wanted. Empty: all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of this batch.
    pub batch: Option<String>,
    /// In this lane.
    pub lane: Option<Lane>,
    /// Of this class.
    pub class: Option<Class>,
    /// In the hands of this agent.
    pub agent: Option<String>,
    /// At most so many.
    pub limit: Option<usize>,
}

/// A place that owns its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spot {
    /// `waiting/<batch>/<task>/`.
    Waiting {
        /// The batch.
        batch: String,
        /// The task's id in the plan.
        task: String,
    },
    /// `queue/<class>/`.
    Queue(Class),
    /// `processing/<agent>/`.
    Processing(String),
    /// `retry/<batch>/`, `complete/<batch>/`, `failed/<batch>/` or `cancelled/<batch>/`.
    OfBatch(Lane, String),
    /// `quarantine/`.
    Quarantine,
}

impl Spot {
    /// The place.
    pub fn place(&self) -> Place<'_> {
        match self {
            Spot::Waiting { batch, task } => Place::Waiting { batch, task },
            Spot::Queue(class) => Place::Queue(*class),
            Spot::Processing(agent) => Place::Processing(agent),
            Spot::OfBatch(Lane::Retry, batch) => Place::Retry(batch),
            Spot::OfBatch(Lane::Failed, batch) => Place::Failed(batch),
            Spot::OfBatch(Lane::Cancelled, batch) => Place::Cancelled(batch),
            Spot::OfBatch(_, batch) => Place::Complete(batch),
            Spot::Quarantine => Place::Quarantine,
        }
    }

    /// The batch, where the place says it.
    pub fn batch(&self) -> Option<&str> {
        match self {
            Spot::Waiting { batch, .. } | Spot::OfBatch(_, batch) => Some(batch),
            Spot::Queue(_) | Spot::Processing(_) | Spot::Quarantine => None,
        }
    }
}

/// The tasks that `filter` wants, by lane in the order of a task's life, in claim order within.
/// A task that moves meanwhile is listed once, where it was seen last.
pub fn tasks(rig: &Rig, filter: &Filter) -> Result<Vec<Task>> {
    let all = ids(rig)?;
    let active = Active::read(rig)?;
    let plans = active.plan_ids(&all);
    let mut names = Names::default();
    for id in all
        .iter()
        .filter(|id| filter.batch.as_ref().is_none_or(|wanted| wanted == *id))
    {
        let needed = match filter.lane {
            // Only batches that are not over have tasks there.
            Some(Lane::Waiting | Lane::Queue | Lane::Processing | Lane::Retry) => {
                active.is_active(id)
            }
            _ => true,
        };
        if needed {
            let batch = active.batch(rig, id)?;
            names.add(rig, id, batch.as_ref())?;
        }
    }
    let mut found = Vec::new();
    let mut rows = std::collections::HashMap::new();
    for spot in spots(rig, &all, filter)? {
        for name in rig.list(spot.place())?.names {
            let is_plan = plans.contains(&name.id)
                || spot
                    .batch()
                    .is_some_and(|batch| plan_task_id(batch) == name.id);
            if !is_plan {
                // A later lane was read later.
                if let Some(earlier) = rows.insert(name.id, found.len()) {
                    found[earlier] = None;
                }
                found.push(Some((spot.clone(), name)));
            }
        }
    }
    let mut tasks = Vec::new();
    for (spot, name) in found.into_iter().flatten() {
        if filter.limit.is_some_and(|limit| tasks.len() >= limit) {
            break;
        }
        if let Some(task) = describe(rig, &spot, &name, &names)
            && is_wanted(filter, &task)
        {
            tasks.push(task);
        }
    }
    Ok(tasks)
}

/// All places that can hold what `filter` wants.
pub(crate) fn spots(rig: &Rig, batches: &[String], filter: &Filter) -> Result<Vec<Spot>> {
    let rigs_own = RIG_BATCH.to_owned();
    let wanted_batches: Vec<&String> = batches
        .iter()
        .chain([&rigs_own])
        .filter(|id| filter.batch.as_ref().is_none_or(|wanted| wanted == *id))
        .collect();
    let mut spots = Vec::new();
    for lane in Lane::ALL {
        if filter.lane.is_some_and(|wanted| wanted != lane)
            || (filter.agent.is_some() && lane != Lane::Processing)
        {
            continue;
        }
        match lane {
            Lane::Waiting => {
                for &batch in &wanted_batches {
                    let of = |task| Spot::Waiting {
                        batch: batch.clone(),
                        task,
                    };
                    spots.extend(plan_tasks(rig, batch)?.into_iter().map(of));
                }
            }
            Lane::Queue => {
                let of = Class::ALL
                    .into_iter()
                    .filter(|class| filter.class.is_none_or(|wanted| wanted == *class));
                spots.extend(of.map(Spot::Queue));
            }
            Lane::Processing => {
                let mut agents = rig.subdirs(Lane::Processing)?;
                agents.retain(|name| filter.agent.as_ref().is_none_or(|wanted| wanted == name));
                spots.extend(agents.into_iter().map(Spot::Processing));
            }
            Lane::Retry | Lane::Complete | Lane::Failed | Lane::Cancelled => {
                spots.extend(
                    wanted_batches
                        .iter()
                        .map(|id| Spot::OfBatch(lane, (*id).clone())),
                );
            }
            Lane::Quarantine => spots.push(Spot::Quarantine),
        }
    }
    Ok(spots)
}

fn is_wanted(filter: &Filter, task: &Task) -> bool {
    filter
        .batch
        .as_ref()
        .is_none_or(|batch| *batch == task.batch)
        && filter.class.is_none_or(|class| task.class == Some(class))
        && filter
            .agent
            .as_ref()
            .is_none_or(|agent| task.agent.as_ref() == Some(agent))
}

/// `None` where the file is gone.
fn describe(rig: &Rig, spot: &Spot, name: &FileName, names: &Names) -> Option<Task> {
    let place = spot.place();
    let lane = place.lane();
    let agent = match spot {
        Spot::Processing(agent) => Some(agent.clone()),
        Spot::Waiting { .. } | Spot::Queue(_) | Spot::OfBatch(..) | Spot::Quarantine => None,
    };
    let mut task = Task {
        id: name.id,
        name: String::new(),
        batch: spot.batch().unwrap_or_default().to_owned(),
        task: String::new(),
        class: match spot {
            Spot::Queue(class) => Some(*class),
            Spot::Processing(agent) if agent == BRAIN => Some(Class::Brain),
            _ => None,
        },
        lane,
        agent,
        attempt: name.attempt,
        charged: name.charged,
        priority: name.priority(),
        since: rig.since(place, name),
        reason: None,
    };
    match names.get(name.id) {
        Some(known) if task.class.is_some() || known.class.is_some() => {
            task.name = known.name();
            task.batch = known.batch.to_string();
            task.task = known.task.to_string();
            task.class = task.class.or(known.class);
        }
        _ => match claim::peek(rig, place, name) {
            Ok(Some(spec)) if spec.task == PLAN_TASK => return None,
            Ok(Some(spec)) => {
                task.name = spec.name;
                task.batch = spec.batch;
                task.task = spec.task;
                task.class = Some(spec.class);
            }
            Ok(None) => return None,
            Err(error) => task.reason = Some(error.to_string()),
        },
    }
    if matches!(lane, Lane::Retry | Lane::Failed | Lane::Cancelled) {
        let record = records::read(rig, &task.batch, name.id, name.attempt)
            .ok()
            .flatten();
        let reason = record.and_then(|record| record.outcome.reason().map(str::to_owned));
        task.reason = reason.or(task.reason);
    }
    Some(task)
}
