//! Tasks through the queue from their expansion to their end, for counting system calls.

use std::path::Path;

use anyhow::{Context, Result, bail};
use rigor_queue::claim::{self, Candidate, Moved};
use rigor_queue::name::FileName;
use rigor_queue::rig::{Place, Rig};
use rigor_queue::submit::{self, Durability};
use rigor_queue::task::Class;

use crate::tasks::{BATCH, fresh_rig, spec};

const AGENT: &str = "gpu-1";
const TASK: &str = "nothing";

/// Expands a task into `count`, releases, claims and completes each, with nothing synced: what is
/// counted are the calls, and those of a sync are one for all of them.
pub(crate) fn run(dir: &Path, count: u64) -> Result<serde_json::Value> {
    let (_scratch, rig) = fresh_rig(dir)?;
    rig.prepare_agent(AGENT)?;
    let tasks = (0..count).map(|sequence| {
        let spec = spec(sequence);
        let name = FileName::first(spec.priority, sequence, spec.shape(), spec.id);
        (name, spec)
    });
    let tasks: Vec<_> = tasks.collect();
    let names: Vec<FileName> = tasks.iter().map(|(name, _)| *name).collect();
    submit::expand(&rig, BATCH, TASK, tasks, Durability::Process)?;
    for name in &names {
        live(&rig, name).with_context(|| format!("task {name}"))?;
    }
    let complete = rig.count(Place::Complete(BATCH))?;
    Ok(serde_json::json!({ "complete": complete }))
}

fn live(rig: &Rig, name: &FileName) -> Result<()> {
    if claim::release(rig, BATCH, TASK, Class::Cpu, name)? != Moved::Done {
        bail!("it was not there to be released");
    }
    let Candidate::Ready(held) = claim::candidate(rig, Class::Cpu, name)? else {
        bail!("it could not be claimed");
    };
    let held = held.claim(rig, AGENT, false)?;
    match held.context("it was moved by another")?.complete(rig)? {
        Moved::Done => Ok(()),
        Moved::Gone => bail!("it was not there to be completed"),
    }
}
