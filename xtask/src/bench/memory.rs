//! A rig with a million tasks: its memory, and how soon it answers with a tenth of them.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::figure::{Figure, Target};
use super::process;
use super::programs::{output, release};
use super::rig::{PLAIN, Rig};
use super::{Bench, plans};

const QUEUED: u64 = 1_000_000;
/// A brain may have so much resident, MiB.
const BRAIN_MB: f64 = 300.0;
/// And an agent.
const AGENT_MB: f64 = 150.0;
/// Tasks queued when the rig is asked.
const ASKED_AT: u64 = 100_000;
/// An answer may take so long, milliseconds.
const ANSWER_MS: f64 = 100.0;
/// Until all are queued.
const MOST: Duration = Duration::from_secs(1800);
/// Between two looks: each reads the whole queue.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Brain and agent with a million tasks queued, and at their peaks.
pub(super) fn run(options: &Bench, scratch: &Path) -> Result<Vec<Figure>> {
    let queued = options.size(QUEUED);
    let rig = Rig::start(scratch, PLAIN)?;
    queue(&rig, scratch, queued)?;
    let (mut brain, mut agent) = (Vec::new(), Vec::new());
    let components = process::components(&rig)?;
    let [of_brain, of_agent] = components.as_slice() else {
        bail!("a rig of a brain and an agent was wanted");
    };
    for _ in 0..options.runs {
        thread::sleep(LOOK_EVERY);
        brain.push(of_brain.rss_mb()?);
        agent.push(of_agent.rss_mb()?);
    }
    Ok(vec![
        Figure::of(format!("the brain with {queued} queued"), "MiB", brain)
            .limit(BRAIN_MB, Target::Under(1.0)),
        Figure::of("the brain at its peak", "MiB", vec![of_brain.peak_mb()?]),
        Figure::of(format!("an agent with {queued} queued"), "MiB", agent)
            .limit(AGENT_MB, Target::Under(1.0)),
        Figure::of("an agent at its peak", "MiB", vec![of_agent.peak_mb()?]),
    ])
}

/// `rigor why` and `rigor status` with a hundred thousand tasks queued.
pub(super) fn why(options: &Bench, scratch: &Path) -> Result<Vec<Figure>> {
    let queued = options.size(ASKED_AT);
    let rig = Rig::start(scratch, PLAIN)?;
    let batch = queue(&rig, scratch, queued)?;
    let tasks = rig.rigor(&["tasks", "--lane", "queue", "--limit", "1", "--json"])?;
    let tasks: Value = serde_json::from_str(&tasks).context("rigor tasks --json")?;
    let task = tasks["tasks"][0]["id"]
        .as_str()
        .context("a task is queued")?;
    let questions: [&[&str]; 5] = [
        &["status"],
        &["why", task],
        &["why", &batch],
        &["why", "cpu-1"],
        &["why", "brain"],
    ];
    let mut took = questions.map(|_| Vec::new());
    for _ in 0..options.runs {
        for (words, took) in questions.iter().zip(&mut took) {
            let mut command = std::process::Command::new(release("rigor"));
            command.arg("--rig").arg(&rig.root).args(*words);
            let started = Instant::now();
            output(&mut command)?;
            took.push(started.elapsed().as_secs_f64() * 1e3);
        }
    }
    let names = ["status", "why TASK", "why BATCH", "why AGENT", "why brain"];
    let figures = names.iter().zip(took).map(|(name, took)| {
        Figure::of(format!("rigor {name}, {queued} queued"), "ms", took)
            .limit(ANSWER_MS, Target::Under(1.0))
    });
    Ok(figures.collect())
}

/// Queues so many tasks, which the paused agent sees and does not run; the batch's id.
fn queue(rig: &Rig, scratch: &Path, count: u64) -> Result<String> {
    rig.rigor(&["pause", "cpu-1"])?;
    let plan = plans::nothing(scratch, count)?;
    let batch = rig.rigor(&["submit".as_ref(), plan.as_os_str()])?;
    let started = Instant::now();
    loop {
        let status: Value = serde_json::from_str(&rig.rigor(&["status", "--json"])?)?;
        if status["queue"]["total_pending"] == count {
            return Ok(batch.trim().to_owned());
        }
        if started.elapsed() > MOST {
            bail!(
                "{} of {count} tasks were queued after {}s",
                status["queue"]["total_pending"],
                MOST.as_secs()
            );
        }
        thread::sleep(LOOK_EVERY);
    }
}
