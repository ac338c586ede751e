//! All that is known of one task.

use std::path::PathBuf;

use jiff::Timestamp;
use rigor_queue::claim;
use rigor_queue::lane::Lane;
use rigor_queue::name::{FileName, TaskId};
use rigor_queue::record::{AttemptRecord, FailureKind, LlmUse, Outcome, Peaks};
use rigor_queue::records;
use rigor_queue::rig::Rig;
use rigor_queue::task::{Class, TaskSpec};
use serde::Serialize;

use crate::tasks::Spot;
use crate::{Result, SCHEMA};

/// One task with its attempts.
#[derive(Clone, Debug, Serialize)]
pub struct Detail {
    /// The version of this shape.
    pub schema: u32,
    /// Its id.
    pub id: TaskId,
    /// The instance's name.
    pub name: String,
    /// Its batch.
    pub batch: String,
    /// Its id in the plan.
    pub task: String,
    /// Its class.
    pub class: Class,
    /// Where it lies.
    pub lane: Lane,
    /// Who has it, in processing.
    pub agent: Option<String>,
    /// The attempt that runs, ran last, or comes next.
    pub attempt: u32,
    /// Attempts charged to its retries.
    pub charged: u32,
    /// When it came into the lane.
    pub since: Option<Timestamp>,
    /// Why its last attempt ended as it did.
    pub reason: Option<String>,
    /// What the last attempt printed; the file is absent where it printed nothing, and for a batch
    /// that is archived.
    pub output: PathBuf,
    /// The task file's content.
    pub specification: TaskSpec,
    /// The attempts, the first first; the one that runs has the outcome `running`.
    pub attempts: Vec<Attempt>,
}

/// One attempt.
#[derive(Clone, Debug, Serialize)]
pub struct Attempt {
    /// Which, from 1.
    pub attempt: u32,
    /// Who ran it.
    pub agent: String,
    /// When it began; for one that runs, when it was claimed.
    pub started: Option<Timestamp>,
    /// When it was over.
    pub ended: Option<Timestamp>,
    /// How long it took, milliseconds.
    pub duration_ms: Option<u64>,
    /// `running`, `succeeded`, `failed`, `lost` or `cancelled`.
    pub outcome: &'static str,
    /// Which kind of failure.
    pub kind: Option<FailureKind>,
    /// Why, in words.
    pub reason: Option<String>,
    /// The command's exit code.
    pub exit_code: Option<i32>,
    /// The signal that ended the command.
    pub signal: Option<i32>,
    /// What it used at most.
    pub peaks: Peaks,
    /// Bytes that it printed.
    pub output_bytes: u64,
    /// Bytes of that which were not kept.
    pub output_dropped: u64,
    /// What the model was asked.
    pub llm: Option<LlmUse>,
    /// The file with what it printed.
    pub output: PathBuf,
}

/// Reads all about a task that lay in `spot`. `None`: it has moved since; look for it again.
pub fn detail(rig: &Rig, name: &FileName, spot: &Spot) -> Result<Option<Detail>> {
    let place = spot.place();
    let since = rig.since(place, name);
    let Some(spec) = claim::peek(rig, place, name)? else {
        return Ok(None);
    };
    let records = records::history(rig, &spec.batch, spec.id, name.attempt)?;
    let mut attempts: Vec<Attempt> = records
        .into_iter()
        .map(|record| attempt(rig, record))
        .collect();
    let agent = match spot {
        Spot::Processing(agent) => Some(agent.clone()),
        Spot::Waiting { .. } | Spot::Queue(_) | Spot::OfBatch(..) | Spot::Quarantine => None,
    };
    let has_ended = attempts
        .last()
        .is_some_and(|last| last.attempt == name.attempt);
    if let (Some(agent), false) = (&agent, has_ended) {
        attempts.push(running(rig, &spec, name.attempt, agent.clone(), since));
    }
    let last = attempts.last().map_or(name.attempt, |last| last.attempt);
    Ok(Some(Detail {
        schema: SCHEMA,
        id: spec.id,
        name: spec.name.clone(),
        batch: spec.batch.clone(),
        task: spec.task.clone(),
        class: spec.class,
        lane: place.lane(),
        agent,
        attempt: name.attempt,
        charged: name.charged,
        since,
        reason: attempts.last().and_then(|last| last.reason.clone()),
        output: rig.output_path(&spec.batch, spec.id, last),
        specification: spec,
        attempts,
    }))
}

fn attempt(rig: &Rig, record: AttemptRecord) -> Attempt {
    let output = rig.output_path(&record.batch, record.id, record.attempt);
    let (outcome, kind) = match &record.outcome {
        Outcome::Succeeded => ("succeeded", None),
        Outcome::Failed { kind, .. } => ("failed", Some(*kind)),
        Outcome::Lost { .. } => ("lost", None),
        Outcome::Cancelled { .. } => ("cancelled", None),
    };
    Attempt {
        attempt: record.attempt,
        agent: record.agent,
        started: record.started,
        ended: Some(record.ended),
        duration_ms: Some(record.duration_ms),
        outcome,
        kind,
        reason: record.outcome.reason().map(str::to_owned),
        exit_code: record.exit_code,
        signal: record.signal,
        peaks: record.peaks,
        output_bytes: record.output_bytes,
        output_dropped: record.output_dropped,
        llm: record.llm,
        output,
    }
}

fn running(
    rig: &Rig,
    spec: &TaskSpec,
    attempt: u32,
    agent: String,
    claimed: Option<Timestamp>,
) -> Attempt {
    let output = rig.output_path(&spec.batch, spec.id, attempt);
    Attempt {
        attempt,
        agent,
        started: claimed,
        ended: None,
        duration_ms: None,
        outcome: "running",
        kind: None,
        reason: None,
        exit_code: None,
        signal: None,
        peaks: Peaks::default(),
        output_bytes: std::fs::metadata(&output).map_or(0, |meta| meta.len()),
        output_dropped: 0,
        llm: None,
        output,
    }
}
