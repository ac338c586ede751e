//! The facts of a task.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use rigor_policy::why::{Attempt, BatchFacts, Facts, TaskFacts};
use rigor_queue::claim;
use rigor_queue::lane::Lane;
use rigor_queue::name::{FileName, TaskId};
use rigor_queue::record::{AttemptRecord, Outcome};
use rigor_queue::rig::{Place, RIG_BATCH, Rig};
use rigor_queue::task::{Backoff, Class, RETRIES_DEFAULT, TaskSpec};
use rigor_queue::{output, records};

use super::{batch, facts};
use crate::Result;
use crate::tasks::Spot;

/// Lines of a task's output that are told.
const OUTPUT_LINES: usize = 3;

/// Reads all about a task that lay in `spot`. `None`: it has moved since.
pub(super) fn read(
    rig: &Rig,
    facts: &Facts,
    name: &FileName,
    spot: &Spot,
    ahead: usize,
) -> Result<Option<TaskFacts>> {
    let place = spot.place();
    let spec = match claim::peek(rig, place, name) {
        Ok(Some(spec)) => spec,
        Ok(None) => return Ok(None),
        Err(_) if place.lane() == Lane::Quarantine => return Ok(Some(unreadable(rig, name))),
        Err(error) => return Err(error.into()),
    };
    let batch = match spec.batch.as_str() {
        RIG_BATCH => None,
        id => batch::read(rig, facts, id, batch::Depth::Counts)?,
    };
    let records = records::history(rig, &spec.batch, spec.id, name.attempt)?;
    let agent = match spot {
        Spot::Processing(agent) => Some(agent.clone()),
        Spot::Waiting { .. } | Spot::Queue(_) | Spot::OfBatch(..) | Spot::Quarantine => None,
    };
    let beat = facts
        .agents
        .iter()
        .filter_map(|agent| agent.component.current())
        .flat_map(|beat| &beat.running)
        .find(|running| running.id == spec.id && running.attempt == name.attempt)
        .cloned();
    let last = records.last().map_or(name.attempt, |record| record.attempt);
    let output = match place.lane() {
        Lane::Failed | Lane::Retry => {
            let output = output::open(rig, &spec.batch, spec.id, last)?;
            output.map_or(Vec::new(), |output| {
                facts::last_printed(output, OUTPUT_LINES)
            })
        }
        _ => Vec::new(),
    };
    Ok(Some(TaskFacts {
        id: spec.id,
        name: format!("{}/{}", spec.batch, spec.name),
        step: spec.task.clone(),
        class: spec.class,
        lane: place.lane(),
        since: rig.since(place, name),
        shape: name.shape,
        on: spec.on.clone(),
        model: spec.model.clone(),
        charged: name.charged,
        attempt: name.attempt,
        retries: spec.retries,
        backoff: spec.backoff,
        items: spec
            .item
            .as_ref()
            .map_or(1, |item| item.members.len().max(1)),
        own_items: own_items(rig, &spec, batch.as_ref(), place.lane())?,
        batch,
        ahead,
        attempts: records.into_iter().map(attempt).collect(),
        worker: agent.as_ref().and_then(|_| worker(spec.id)),
        agent,
        beat,
        quarantined: (place.lane() == Lane::Quarantine)
            .then(|| quarantine_reason(rig, name))
            .flatten(),
        output,
    }))
}

/// A file in quarantine of which nothing can be believed but its name.
fn unreadable(rig: &Rig, name: &FileName) -> TaskFacts {
    TaskFacts {
        id: name.id,
        name: name.id.to_string(),
        step: String::new(),
        class: Class::Cpu,
        lane: Lane::Quarantine,
        since: rig.since(Place::Quarantine, name),
        shape: name.shape,
        on: Vec::new(),
        model: None,
        charged: name.charged,
        attempt: name.attempt,
        retries: RETRIES_DEFAULT,
        backoff: Backoff::default(),
        items: 1,
        batch: None,
        own_items: BTreeMap::new(),
        ahead: 0,
        attempts: Vec::new(),
        agent: None,
        beat: None,
        worker: None,
        quarantined: quarantine_reason(rig, name),
        output: Vec::new(),
    }
}

/// What lies beside a file in quarantine.
fn quarantine_reason(rig: &Rig, name: &FileName) -> Option<String> {
    let path = rig.dir(Place::Quarantine).join(format!("{name}.reason"));
    let note: serde_json::Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    Some(note.get("reason")?.as_str()?.to_owned())
}

fn attempt(record: AttemptRecord) -> Attempt {
    let (outcome, kind) = match &record.outcome {
        Outcome::Succeeded => ("succeeded", None),
        Outcome::Failed { kind, .. } => ("failed", Some(*kind)),
        Outcome::Lost { .. } => ("lost", None),
        Outcome::Cancelled { .. } => ("cancelled", None),
    };
    Attempt {
        attempt: record.attempt,
        agent: record.agent,
        outcome,
        kind,
        reason: record.outcome.reason().map(str::to_owned),
        ended: Some(record.ended),
        // Without a worker it took no time that anybody would ask for.
        took: record
            .started
            .map(|_| Duration::from_millis(record.duration_ms)),
    }
}

/// Where the same item's tasks of the steps lie that this one waits for.
fn own_items(
    rig: &Rig,
    spec: &TaskSpec,
    batch: Option<&BatchFacts>,
    lane: Lane,
) -> Result<BTreeMap<String, Option<Lane>>> {
    let mut lanes = BTreeMap::new();
    let (Lane::Waiting, Some(batch), Some(item)) = (lane, batch, &spec.item) else {
        return Ok(lanes);
    };
    let step = batch.steps.iter().find(|step| step.id == spec.task);
    for dep in step.map(|step| step.per_item.as_slice()).unwrap_or(&[]) {
        let id = TaskId::derive(&spec.batch, dep, Some(&item.id));
        lanes.insert(dep.clone(), lane_of(rig, &spec.batch, dep, id)?);
    }
    Ok(lanes)
}

fn lane_of(rig: &Rig, batch: &str, task: &str, id: TaskId) -> Result<Option<Lane>> {
    let agents = rig.subdirs(Lane::Processing)?;
    // The long lanes last; a task that moves on meanwhile is found in a later state.
    let mut places = vec![Place::Waiting { batch, task }];
    places.extend(Class::ALL.map(Place::Queue));
    places.extend(agents.iter().map(|agent| Place::Processing(agent)));
    places.extend([
        Place::Retry(batch),
        Place::Complete(batch),
        Place::Failed(batch),
        Place::Cancelled(batch),
        Place::Quarantine,
    ]);
    let digits = id.to_string();
    for place in places {
        if !rig.find(place, &digits)?.is_empty() {
            return Ok(Some(place.lane()));
        }
    }
    Ok(None)
}

/// The process of the task's worker, which has the task's id among its arguments.
fn worker(id: TaskId) -> Option<u32> {
    let id = id.to_string();
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let arguments = fs::read(entry.path().join("cmdline")).ok()?;
        let mut words = arguments.split(|byte| *byte == 0);
        let program = String::from_utf8_lossy(words.next()?).into_owned();
        let is_worker = program.rsplit('/').next() == Some("worker");
        let names_it = words.any(|word| String::from_utf8_lossy(word).contains(id.as_str()));
        (is_worker && names_it).then_some(pid)
    })
}
