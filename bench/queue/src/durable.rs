//! What the disk takes to make one task durable, from its submission to its claim.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rigor_queue::claim::{self, Candidate};
use rigor_queue::name::FileName;
use rigor_queue::rig::{Place, Rig};
use rigor_queue::submit::{self, Durability};
use rigor_queue::task::Class;

use crate::tasks::{BATCH, QUEUE, fresh_rig, spec};

const AGENT: &str = "gpu-1";

/// The steps of the queue that a task goes through which is not repeated (`retries: 0`, so its claim
/// is durable too): submission of its plan, expansion, release, claim. So often with every fsync and
/// without any; milliseconds each took.
pub(crate) fn run(dir: &Path, count: u64) -> Result<serde_json::Value> {
    let (_scratch, rig) = fresh_rig(dir)?;
    rig.prepare_agent(AGENT)?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for round in 0..count {
        with.push(steps(&rig, 2 * round, Durability::Default)?);
        without.push(steps(&rig, 2 * round + 1, Durability::Process)?);
    }
    Ok(serde_json::json!({ "with_ms": with, "without_ms": without }))
}

fn steps(rig: &Rig, sequence: u64, durability: Durability) -> Result<f64> {
    let spec = spec(sequence);
    let name = FileName::first(spec.priority, sequence, spec.shape(), spec.id);
    let task = format!("nothing-{sequence}");
    let started = Instant::now();
    // The plan's file is about as large as a task's.
    let plans = Place::Queue(Class::Brain);
    submit::submit(rig, plans, &name, &spec, durability)?;
    submit::expand(rig, BATCH, &task, [(name, spec)], durability)?;
    claim::release(rig, BATCH, &task, Class::Cpu, &name)?;
    let Candidate::Ready(held) = claim::candidate(rig, Class::Cpu, &name)? else {
        bail!("{} could not be claimed", rig.path(QUEUE, &name).display());
    };
    let held = held.claim(rig, AGENT, durability.syncs())?;
    held.context("it was moved by another")?;
    Ok(started.elapsed().as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_round_claims_two() {
        let dir = tempfile::tempdir().expect("a directory");
        let found = run(dir.path(), 3).expect("it can be made durable");
        for key in ["with_ms", "without_ms"] {
            let took = found[key].as_array().expect("a list");
            assert_eq!(took.len(), 3);
            assert!(took.iter().all(|ms| ms.as_f64().is_some_and(|ms| ms > 0.0)));
        }
    }
}
