//! A plan of ten thousand tasks from its submission to its files, beside the fastest way to as many
//! durable files.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::figure::{Figure, Target};
use super::process::{self, Process};
use super::programs::{bench_queue, release};
use super::rig::{PLAIN, Rig};
use super::{Bench, plans};

const TASKS: u64 = 10_000;
const SHARE: f64 = 0.7;
/// What the brain may need at the most for each task of a plan, bytes, while it makes them.
pub(super) const TASK_BYTES: f64 = 400.0;

#[derive(Deserialize)]
pub(super) struct Expanded {
    pub(super) tasks: u64,
    pub(super) submit_seconds: f64,
    pub(super) seconds: f64,
}

#[derive(Deserialize)]
struct Written {
    seconds: f64,
}

pub(super) fn run(options: &Bench, scratch: &Path) -> Result<Vec<Figure>> {
    let tasks = options.size(TASKS);
    let plan = plans::nothing(scratch, tasks)?;
    let (mut ours, mut files) = (Vec::new(), Vec::new());
    let (mut submits, mut peaks) = (Vec::new(), Vec::new());
    for _ in 0..options.runs {
        let rig = Rig::start(scratch, PLAIN)?;
        let brain = brain(&rig)?;
        brain.forget_peak()?;
        let before = brain.peak_mb()?;
        let expanded = expand(&rig, &plan, tasks)?;
        ours.push(tasks as f64 / expanded.seconds);
        submits.push(expanded.submit_seconds * 1e3);
        peaks.push((brain.peak_mb()? - before) * f64::from(1 << 20) / tasks as f64);
        drop(rig);
        let written: Written = bench_queue(&[&"files", &scratch, &tasks.to_string()])?;
        files.push(tasks as f64 / written.seconds);
    }
    Ok(vec![
        Figure::of(
            format!("{tasks} tasks submitted and expanded, durable"),
            "1/s",
            ours,
        )
        .against(
            "their files written, one syncfs, one rename",
            files,
            Target::AtLeast(SHARE),
        ),
        Figure::of(
            "of it: until `rigor submit` has acknowledged",
            "ms",
            submits,
        ),
        Figure::of(
            "the brain's memory at its peak, for each task",
            "bytes",
            peaks,
        )
        .limit(TASK_BYTES, Target::Under(1.0)),
    ])
}

pub(super) fn brain(rig: &Rig) -> Result<Process> {
    let mut all = process::components(rig)?.into_iter();
    all.find(|component| component.name == "brain")
        .context("the brain does not run")
}

/// Submits a plan, held, until its foreach is expanded.
pub(super) fn expand(rig: &Rig, plan: &Path, tasks: u64) -> Result<Expanded> {
    let rigor = release("rigor");
    let expanded: Expanded =
        bench_queue(&[&"expansion", &rig.root, &plan, &rigor, &plans::NOTHING])?;
    if expanded.tasks != tasks {
        bail!("{} of {tasks} tasks were made", expanded.tasks);
    }
    Ok(expanded)
}
