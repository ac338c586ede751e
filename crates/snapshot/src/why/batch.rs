//! The facts of a batch.

use std::collections::BTreeMap;

use rigor_policy::why::{self, BatchFacts, Facts, Failures, Queued, Step};
use rigor_queue::claim;
use rigor_queue::name::Shape;
use rigor_queue::record::Outcome;
use rigor_queue::records;
use rigor_queue::rig::{Place, Rig};
use rigor_queue::task::{Class, TaskSpec};
use serde::Deserialize;

use crate::Result;
use crate::batches::{self, BatchState, PlanTask, plan_task_id};

/// Records of failed tasks that are read; more say no more.
const FAILURES_READ: usize = 1000;
/// Failed tasks that are named for each cause.
const EXAMPLES: usize = 3;
/// Attempts to come that are named.
const RETRIES_NAMED: usize = 3;
/// Files of a shape that are read to learn whether it is this batch's.
const SAMPLES: usize = 8;

/// How much is read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Depth<'a> {
    /// What the brain counted.
    Counts,
    /// What is queued too, from a look that serves every batch.
    Waits(&'a Queues),
    /// Queued tasks, attempts to come and failures too.
    All,
}

/// What is queued, of all batches.
#[derive(Debug)]
pub(super) struct Queues(Vec<QueuedShape>);

/// Queued tasks of a class and a shape.
#[derive(Debug)]
struct QueuedShape {
    class: Class,
    shape: Shape,
    count: usize,
    /// The first few.
    samples: Vec<TaskSpec>,
}

impl Queues {
    /// Lists the queue once and reads a few tasks of each shape.
    pub(super) fn read(rig: &Rig) -> Result<Queues> {
        let mut shapes = Vec::new();
        for class in [Class::Llm, Class::Script, Class::Cpu] {
            let place = Place::Queue(class);
            for (shape, (count, names)) in rig.shapes(place, SAMPLES)? {
                shapes.push(QueuedShape {
                    class,
                    shape,
                    count,
                    // One that cannot be read, or is gone, is not known to be of any batch.
                    samples: names
                        .iter()
                        .filter_map(|name| claim::peek(rig, place, name).ok().flatten())
                        .collect(),
                });
            }
        }
        Ok(Queues(shapes))
    }

    /// The shapes of a batch's queued tasks. A shape that several batches share counts for each.
    fn of_batch(&self, id: &str) -> BTreeMap<Shape, Queued> {
        let of_shape = |queued: &QueuedShape| {
            let spec = queued.samples.iter().find(|spec| spec.batch == id)?;
            let one = Queued {
                count: queued.count,
                one: spec.id,
                class: queued.class,
                model: spec.model.clone(),
            };
            Some((queued.shape, one))
        };
        self.0.iter().filter_map(of_shape).collect()
    }
}

/// An entry of `brain/measured.json`.
#[derive(Debug, Deserialize)]
struct Measurement {
    seconds: f64,
    runs: u64,
}

pub(super) fn read(
    rig: &Rig,
    facts: &Facts,
    id: &str,
    depth: Depth<'_>,
) -> Result<Option<BatchFacts>> {
    let Some(batch) = batches::batch(rig, id)? else {
        return Ok(None);
    };
    let measured = measured(rig);
    let mut steps: Vec<Step> = batch
        .tasks
        .iter()
        .map(|task| step(task, measured.get(&format!("{}/{}", batch.plan, task.id))))
        .collect();
    for beat in facts
        .agents
        .iter()
        // What a dead agent said last runs no more.
        .filter_map(|agent| agent.component.current())
    {
        for running in beat.running.iter().filter(|running| running.batch == id) {
            let of = |step: &&mut Step| {
                running
                    .name
                    .strip_prefix(step.id.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
            };
            // `tag_more_v7` is of `tag_more`, not of `tag`.
            if let Some(step) = steps.iter_mut().filter(of).max_by_key(|step| step.id.len()) {
                step.running = (step.running + 1).min(step.released);
            }
        }
    }
    let mut found = BatchFacts {
        id: id.to_owned(),
        state: match batch.state {
            BatchState::Submitted => why::BatchState::Submitted,
            BatchState::Running => why::BatchState::Running,
            BatchState::Held => why::BatchState::Held,
            BatchState::Complete => why::BatchState::Complete,
            BatchState::Failed => why::BatchState::Failed,
            BatchState::Cancelled => why::BatchState::Cancelled,
        },
        done: batch.done,
        failed: batch.failed,
        cancelled: batch.cancelled,
        total: batch.total,
        submitted: batch.submitted,
        steps,
        ..BatchFacts::default()
    };
    match depth {
        Depth::Counts => {}
        Depth::Waits(queues) => found.queued = queues.of_batch(id),
        Depth::All => {
            if batch.state.is_over() {
                found.reason = plans_reason(rig, id)?;
            } else {
                found.queued = Queues::read(rig)?.of_batch(id);
                found.retries = retries(rig, id)?;
            }
            found.failures = failures(rig, id)?;
        }
    }
    Ok(Some(found))
}

fn step(task: &PlanTask, measured: Option<&Measurement>) -> Step {
    Step {
        id: task.id.clone(),
        class: Some(task.class),
        expanded: task.expanded,
        foreach: task.foreach,
        total: task.total,
        done: task.done,
        failed: task.failed,
        cancelled: task.cancelled,
        released: task.running + task.queued,
        running: 0,
        retry: task.retry,
        problem: task.problem.clone(),
        depends_on: task.depends_on.clone(),
        per_item: task.per_item.clone(),
        measured: measured.map(|known| (known.seconds, known.runs)),
    }
}

/// What was measured; a file that cannot be read says nothing.
fn measured(rig: &Rig) -> BTreeMap<String, Measurement> {
    std::fs::read(rig.brain_dir().join("measured.json"))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default()
}

/// Why the plan itself ended as it did.
fn plans_reason(rig: &Rig, id: &str) -> Result<Option<String>> {
    let plan = plan_task_id(id);
    for place in [Place::Failed(id), Place::Cancelled(id)] {
        for (name, _) in rig.find(place, &plan.to_string())? {
            let record = records::read(rig, id, plan, name.attempt)?;
            if let Some(reason) = record.as_ref().and_then(|record| record.outcome.reason()) {
                return Ok(Some(reason.to_owned()));
            }
        }
    }
    Ok(None)
}

/// Its failed tasks by cause.
fn failures(rig: &Rig, id: &str) -> Result<Vec<Failures>> {
    let plan = plan_task_id(id);
    let mut causes: BTreeMap<String, Failures> = BTreeMap::new();
    let names = rig.list(Place::Failed(id))?.names;
    for name in names
        .iter()
        .filter(|name| name.id != plan)
        .take(FAILURES_READ)
    {
        let record = records::read(rig, id, name.id, name.attempt)?;
        let (cause, task) = match record {
            Some(record) => {
                let cause = match &record.outcome {
                    Outcome::Failed { kind, reason } => {
                        format!("{}: {}", kind.as_str(), alike(reason, &record.name))
                    }
                    other => other.reason().unwrap_or("it succeeded").to_owned(),
                };
                (cause, record.name)
            }
            None => ("it left no record".to_owned(), name.id.short()),
        };
        let failures = causes.entry(cause.clone()).or_insert(Failures {
            cause,
            count: 0,
            examples: Vec::new(),
        });
        failures.count += 1;
        if failures.examples.len() < EXAMPLES {
            failures.examples.push((task, name.id.short()));
        }
    }
    let mut failures: Vec<Failures> = causes.into_values().collect();
    failures.sort_by_key(|failure| std::cmp::Reverse(failure.count));
    Ok(failures)
}

/// The first line of a reason, without what differs from task to task of one kind: its name and
/// numbers of more than three digits.
fn alike(reason: &str, name: &str) -> String {
    let line = reason.lines().next().unwrap_or_default();
    let line = if name.is_empty() {
        line.to_owned()
    } else {
        line.replace(name, "TASK")
    };
    let mut text = String::new();
    let mut digits = String::new();
    for c in line.chars().chain(['\0']) {
        if c.is_ascii_digit() {
            digits.push(c);
            continue;
        }
        if digits.len() > 3 {
            text.push('N');
        } else {
            text.push_str(&digits);
        }
        digits.clear();
        if c != '\0' {
            text.push(c);
        }
    }
    text
}

/// The first few attempts to come, with why the last one failed.
fn retries(rig: &Rig, id: &str) -> Result<Vec<(String, String)>> {
    let mut retries = Vec::new();
    for name in rig.list(Place::Retry(id))?.names.iter().take(RETRIES_NAMED) {
        if let Some(record) = records::read(rig, id, name.id, name.attempt)? {
            let reason = record.outcome.reason().unwrap_or("no reason");
            retries.push((
                record.name.clone(),
                format!("attempt {} failed: {reason}", record.attempt),
            ));
        }
    }
    Ok(retries)
}
