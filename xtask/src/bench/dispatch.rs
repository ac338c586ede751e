//! Tasks that do nothing, through one agent with two slots, beside a bare loop and beside others.

use std::path::Path;

use anyhow::{Result, bail};
use serde::Deserialize;
use serde_json::Value;

use super::figure::{Figure, Target};
use super::peers::Peers;
use super::programs::{bench_queue, release};
use super::rig::{PLAIN, Rig, Setup};
use super::throughput::{self, AT_ONCE};
use super::{Bench, plans};

const TASKS: u64 = 10_000;
/// Of the bare loop, without any fsync and with those of the default.
const SHARES: [(&str, f64); 2] = [("process", 0.75), ("default", 0.6)];
/// HyperQueue, which is in no registry, as a share of `xargs -P2`, measured on another machine.
const HYPERQUEUE: f64 = 0.5;

/// What `bench-queue batch` prints.
#[derive(Deserialize)]
pub(super) struct Done {
    pub(super) batch: String,
    pub(super) seconds: f64,
}

#[derive(Deserialize)]
struct Spawned {
    seconds: f64,
}

pub(super) fn run(options: &Bench, scratch: &Path) -> Result<Vec<Figure>> {
    let tasks = options.size(TASKS);
    let plan = plans::nothing(scratch, tasks)?;
    let peers = throughput::all(&Peers::ensure()?, tasks);
    let mut ours = SHARES.map(|_| Vec::new());
    let mut others: Vec<Vec<f64>> = peers.iter().map(|_| Vec::new()).collect();
    let (mut bare, mut xargs) = (Vec::new(), Vec::new());
    for _ in 0..options.runs {
        for ((durability, _), ours) in SHARES.iter().zip(&mut ours) {
            ours.push(tasks_per_second(scratch, &plan, tasks, durability)?);
        }
        let spawned: Spawned =
            bench_queue(&[&"spawns", &release("worker"), &tasks.to_string(), &AT_ONCE])?;
        bare.push(tasks as f64 / spawned.seconds);
        xargs.push(throughput::xargs(scratch, tasks)?);
        for (peer, runs) in peers.iter().zip(&mut others) {
            match (peer.tasks_per_second)(scratch) {
                Ok(rate) => runs.push(rate),
                // The others are compared with all the same.
                Err(error) => println!("Not compared with in this run: {}: {error:#}", peer.name),
            }
        }
    }
    let hyperqueue: Vec<f64> = xargs.iter().map(|rate| rate * HYPERQUEUE).collect();
    let mut figures = Vec::new();
    for ((durability, share), ours) in SHARES.into_iter().zip(ours) {
        let name = format!("{tasks} tasks, durability {durability}");
        let against = |other: &str, runs: &[f64], target| {
            Figure::of(name.clone(), "1/s", ours.clone()).against(other, runs.to_vec(), target)
        };
        figures.push(against(
            "worker and bash in a bare loop",
            &bare,
            Target::AtLeast(share),
        ));
        for (peer, runs) in peers
            .iter()
            .zip(&others)
            .filter(|(_, runs)| !runs.is_empty())
        {
            figures.push(against(&peer.name, runs, Target::AtLeast(1.0)));
        }
        let name = "HyperQueue (half of xargs -P2 sh -c true)";
        figures.push(against(name, &hyperqueue, Target::AtLeast(1.0)));
    }
    Ok(figures)
}

/// From the start of `rigor submit` to the end of the batch.
fn tasks_per_second(
    scratch: &Path,
    plan: &Path,
    tasks: u64,
    durability: &'static str,
) -> Result<f64> {
    let setup = Setup {
        cpu_slots: Some(2),
        durability,
        ..PLAIN
    };
    let rig = Rig::start(scratch, setup)?;
    let done: Done = bench_queue(&[&"batch", &rig.root, &plan, &release("rigor")])?;
    complete(&rig, &done.batch, tasks)?;
    Ok(tasks as f64 / done.seconds)
}

/// Whether all tasks of a batch that is over were done: a rate of failures is none.
pub(super) fn complete(rig: &Rig, id: &str, tasks: u64) -> Result<()> {
    let status: Value = serde_json::from_str(&rig.rigor(&["status", "--json"])?)?;
    let batches = status["batches"].as_array().map_or(&[][..], Vec::as_slice);
    let batch = batches.iter().find(|batch| batch["id"] == id);
    if !batch.is_some_and(|batch| batch["done"] == tasks && batch["state"] == "complete") {
        bail!("{id} did not complete: {batch:?}");
    }
    Ok(())
}
