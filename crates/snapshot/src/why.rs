//! The facts behind `rigor why`, read from files, and the answer that follows from them.
//!
//! Works without the brain and without any agent, takes no lock, and reads of a long queue no more
//! than its names.

mod batch;
mod facts;
mod task;

use std::collections::BTreeMap;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use rigor_config::Config;
use rigor_policy::gpu_time::{Span, running_for};
use rigor_policy::why::{self, AgentVerdict, BatchVerdict, Explanation, OneAgent, TaskVerdict};
use rigor_queue::lane::Lane;
use rigor_queue::name::FileName;
use rigor_queue::presence;
use rigor_queue::reasons;
use rigor_queue::rig::{Place, Rig};
use serde::Serialize;

use crate::tasks::Spot;
use crate::{Result, SCHEMA};

/// Changes of an agent's cause that are told.
const CHANGES: usize = 10;
/// They are looked for this far back.
const CHANGES_OF: SignedDuration = SignedDuration::from_hours(24);

/// An answer, as JSON has it.
#[derive(Clone, Debug, Serialize)]
pub struct Answer<V> {
    /// The version of this shape.
    pub schema: u32,
    /// `task`, `agent`, `batch` or `brain`.
    pub kind: &'static str,
    /// A task's or a batch's whole id, an agent's name.
    pub id: String,
    /// `batch/name` of a task; else as the id.
    pub name: String,
    /// Where a task lies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lane: Option<Lane>,
    /// When it was read.
    pub at: Timestamp,
    /// The answer.
    #[serde(flatten)]
    pub explanation: Explanation<V>,
}

/// Why a task, that lay in `spot` behind so many others, is not done. `None`: it has moved since; look for it again.
pub fn task(
    rig: &Rig,
    config: &Config,
    name: &FileName,
    spot: &Spot,
    ahead: usize,
) -> Result<Option<Answer<TaskVerdict>>> {
    let facts = facts::read(rig, config)?;
    let Some(task) = task::read(rig, &facts, name, spot, ahead)? else {
        return Ok(None);
    };
    Ok(Some(Answer {
        schema: SCHEMA,
        kind: "task",
        id: task.id.to_string(),
        name: task.name.clone(),
        lane: Some(task.lane),
        at: facts.now,
        explanation: why::task(&facts, &task),
    }))
}

/// What a batch waits for; none where it has no plan in the lanes.
pub fn batch(rig: &Rig, config: &Config, id: &str) -> Result<Option<Answer<BatchVerdict>>> {
    let facts = facts::read(rig, config)?;
    let Some(batch) = batch::read(rig, &facts, id, batch::Depth::All)? else {
        return Ok(None);
    };
    Ok(Some(Answer {
        schema: SCHEMA,
        kind: "batch",
        id: id.to_owned(),
        name: id.to_owned(),
        lane: None,
        at: facts.now,
        explanation: why::batch(&facts, &batch),
    }))
}

/// What an agent does and why it does no more.
///
/// `orphan` is the runtime that a dead agent left and that still runs: its model and processes.
pub fn agent(
    rig: &Rig,
    config: &Config,
    name: &str,
    orphan: Option<(String, Vec<i32>)>,
) -> Result<Answer<AgentVerdict>> {
    let facts = facts::read(rig, config)?;
    let mut changes = reasons::read(rig, name, facts.now - CHANGES_OF)?;
    changes.drain(..changes.len().saturating_sub(CHANGES));
    let runs = facts
        .agents
        .iter()
        .any(|agent| agent.component.name == name && agent.component.pid.is_some());
    let one = OneAgent {
        name: name.to_owned(),
        disks: facts::disks(rig, name),
        changes,
        processing: rig.count(Place::Processing(name))?,
        signals: presence::signals(rig, name)?
            .into_iter()
            .map(|(signal, _)| signal)
            .collect(),
        orphan: orphan.filter(|_| !runs),
        last_words: (!runs).then(|| facts::last_words(rig, name)).flatten(),
    };
    Ok(Answer {
        schema: SCHEMA,
        kind: "agent",
        id: name.to_owned(),
        name: name.to_owned(),
        lane: None,
        at: facts.now,
        explanation: why::agent(&facts, &one),
    })
}

/// What the brain does.
pub fn brain(rig: &Rig, config: &Config) -> Result<Answer<AgentVerdict>> {
    let facts = facts::read(rig, config)?;
    let active = crate::batches::Active::read(rig)?;
    let queues = batch::Queues::read(rig)?;
    let mut waits = Vec::new();
    for id in crate::batches::ids(rig)?
        .iter()
        .filter(|id| active.is_active(id))
    {
        if let Some(batch) = batch::read(rig, &facts, id, batch::Depth::Waits(&queues))? {
            let summary = why::batch(&facts, &batch).summary;
            waits.push((id.clone(), summary));
        }
    }
    Ok(Answer {
        schema: SCHEMA,
        kind: "brain",
        id: facts.brain.name.clone(),
        name: facts.brain.name.clone(),
        lane: None,
        at: facts.now,
        explanation: why::brain(&facts, &waits),
    })
}

/// What a GPU's time went into.
#[derive(Clone, Debug, Serialize)]
pub struct Past {
    /// The version of this shape.
    pub schema: u32,
    /// `agent` or `batch`.
    pub kind: &'static str,
    /// The agent, or the batch.
    pub id: String,
    /// The first instant.
    pub from: Timestamp,
    /// The instant after the last.
    pub to: Timestamp,
    /// Of a batch: how long each GPU worked for it; of an agent: itself.
    pub gpus: Vec<PastGpu>,
}

/// One GPU's part of it.
#[derive(Clone, Debug, Serialize)]
pub struct PastGpu {
    /// Its agent.
    pub agent: String,
    /// The spans, in order; they cover all of it without gap or overlap.
    pub spans: Vec<PastSpan>,
    /// Seconds by cause.
    pub totals: BTreeMap<&'static str, f64>,
    /// Of the time in which tasks ran, seconds in which a task of the batch did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running_for_batch_s: Option<f64>,
}

/// A stretch of time that belongs to one cause.
#[derive(Clone, Debug, Serialize)]
pub struct PastSpan {
    /// Its first instant.
    pub from: Timestamp,
    /// The instant after its last.
    pub to: Timestamp,
    /// How long it is.
    pub seconds: f64,
    /// What the time went into.
    pub cause: &'static str,
    /// The code of the refusal behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'static str>,
    /// With numbers, as of its beginning.
    pub detail: String,
    /// Batches whose tasks ran.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub batches: Vec<String>,
}

impl From<&Span> for PastSpan {
    fn from(span: &Span) -> PastSpan {
        PastSpan {
            from: span.from,
            to: span.to,
            seconds: span.length().as_secs_f64(),
            cause: span.cause.as_str(),
            code: span.code.map(|code| code.as_str()),
            detail: span.detail.clone(),
            batches: span.batches.clone(),
        }
    }
}

/// What the time of an agent's GPU went into from `from` to `to`.
pub fn past_of_agent(
    rig: &Rig,
    config: &Config,
    name: &str,
    from: Timestamp,
    to: Timestamp,
) -> Result<Past> {
    past(rig, config, from, to, "agent", name, Some(name), None)
}

/// What the time of every GPU went into from `from` to `to`, and how much of it into a batch.
pub fn past_of_batch(
    rig: &Rig,
    config: &Config,
    batch: &str,
    from: Timestamp,
    to: Timestamp,
) -> Result<Past> {
    past(rig, config, from, to, "batch", batch, None, Some(batch))
}

#[expect(clippy::too_many_arguments, reason = "two callers, each a line")]
fn past(
    rig: &Rig,
    config: &Config,
    from: Timestamp,
    to: Timestamp,
    kind: &'static str,
    id: &str,
    agent: Option<&str>,
    batch: Option<&str>,
) -> Result<Past> {
    let times = crate::gpu_time::gpu_time(rig, config, from, to)?;
    let gpus = times
        .iter()
        .filter(|time| agent.is_none_or(|agent| time.agent == agent))
        .map(|time| PastGpu {
            agent: time.agent.clone(),
            spans: time.spans.iter().map(PastSpan::from).collect(),
            totals: time
                .totals()
                .into_iter()
                .map(|(cause, length)| (cause.as_str(), length.as_secs_f64()))
                .collect(),
            running_for_batch_s: batch.map(|batch| running_for(&time.spans, batch).as_secs_f64()),
        })
        .collect();
    Ok(Past {
        schema: SCHEMA,
        kind,
        id: id.to_owned(),
        from,
        to,
        gpus,
    })
}

/// The zone in which people here read times.
fn zone() -> TimeZone {
    TimeZone::system()
}
