//! What a claim costs beside the system calls that it is made of.

use std::path::Path;

use anyhow::{Result, bail};
use serde::Deserialize;

use super::Bench;
use super::figure::{Figure, Target};
use super::programs::bench_queue;

const TASKS: u64 = 10_000;
/// A rig has an agent for each GPU, and they race for the same tasks.
const PROCESSES: [u64; 2] = [1, 3];
const SHARE: f64 = 0.7;
/// Claims per second that a rig has to reach with that many queued.
const RATE: f64 = 5_000.0;

#[derive(Deserialize)]
struct Claimed {
    claims: u64,
    seconds: f64,
}

pub(super) fn run(options: &Bench, scratch: &Path) -> Result<Vec<Figure>> {
    let tasks = options.size(TASKS);
    let mut figures = Vec::new();
    for processes in PROCESSES {
        let (mut ours, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..options.runs {
            ours.push(rate("ours", scratch, tasks, processes)?);
            bare.push(rate("bare", scratch, tasks, processes)?);
        }
        let name = match processes {
            1 => "claims, 1 process".to_owned(),
            _ => format!("claims, {processes} processes that race"),
        };
        let figure = Figure::of(name, "1/s", ours.clone());
        figures.push(figure.against("the bare system calls", bare, Target::AtLeast(SHARE)));
        if processes == 1 {
            let name = format!("claims with {tasks} queued");
            let figure = Figure::of(name, "1/s", ours);
            figures.push(figure.limit(RATE, Target::AtLeast(1.0)));
        }
    }
    Ok(figures)
}

fn rate(how: &str, scratch: &Path, tasks: u64, processes: u64) -> Result<f64> {
    let (count, by) = (tasks.to_string(), processes.to_string());
    let run: Claimed = bench_queue(&[&"claim", &how, &scratch, &count, &by])?;
    if run.claims != tasks {
        bail!("{} of {tasks} tasks were claimed ({how})", run.claims);
    }
    Ok(run.claims as f64 / run.seconds)
}
