//! What a rig takes of the machine while there is nothing to do.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Bench;
use super::figure::{Figure, Target};
use super::process::{self, Taken};
use super::rig::{PLAIN, Rig, Setup};
use crate::fixtures;

/// Agents, each with a GPU.
const AGENTS: u16 = 5;
/// After the start, whose work is no part of being idle.
const SETTLE: Duration = Duration::from_secs(20);
/// All components together, milliseconds of CPU a minute.
const CPU_MS: f64 = 20.0;
/// Each component.
const RSS_MB: f64 = 15.0;

/// One component, each run.
#[derive(Default)]
struct Seen {
    /// A minute.
    cpu_ms: Vec<f64>,
    /// A second.
    wake_ups: Vec<f64>,
    rss_mb: Vec<f64>,
}

pub(super) fn run(options: &Bench, scratch: &Path) -> Result<Vec<Figure>> {
    let fixtures = fixtures::ensure()?;
    let setup = Setup {
        gpus: Some((&fixtures, AGENTS)),
        ..PLAIN
    };
    let rig = Rig::start(scratch, setup)?;
    thread::sleep(SETTLE);
    let components = process::components(&rig)?;
    // Runs are stretches of the same rig: what differs from one to the next is the noise.
    let (mut totals, mut without_nvml) = (Vec::new(), Vec::new());
    let mut each: BTreeMap<&str, Seen> = BTreeMap::new();
    for _ in 0..options.runs {
        let before = components.iter().map(process::Process::taken);
        let before: Vec<Taken> = before.collect::<Result<_>>()?;
        let started = Instant::now();
        thread::sleep(Duration::from_secs(options.idle));
        let seconds = started.elapsed().as_secs_f64();
        let (mut total, mut of_nvml) = (0.0, 0.0);
        for (component, before) in components.iter().zip(before) {
            let after = component.taken().context("a component has ended")?;
            let cpu_ms = (after.cpu_ms - before.cpu_ms) / seconds * 60.0;
            total += cpu_ms;
            of_nvml += (after.nvml_ms - before.nvml_ms) / seconds * 60.0;
            let seen = each.entry(&component.name).or_default();
            seen.cpu_ms.push(cpu_ms);
            seen.wake_ups
                .push((after.wake_ups - before.wake_ups) / seconds);
            seen.rss_mb.push(component.rss_mb()?);
        }
        totals.push(total);
        without_nvml.push(total - of_nvml);
    }
    let hourly = totals.iter().map(|ms| ms * 60.0 / 1e3).collect();
    let mut figures = vec![
        Figure::of(
            format!("CPU of a brain and {AGENTS} agents, idle"),
            "ms/min",
            totals,
        )
        .limit(CPU_MS, Target::Under(1.0)),
        // The stand-in looks through all processes for those that hold memory of its GPUs.
        Figure::of(
            "of it, without what asks the stand-in for NVML",
            "ms/min",
            without_nvml,
        )
        .limit(CPU_MS, Target::Under(1.0)),
        Figure::of("CPU of all in an hour", "s/h", hourly),
    ];
    for (name, seen) in each {
        figures.push(Figure::of(format!("{name}: CPU"), "ms/min", seen.cpu_ms));
        figures.push(Figure::of(
            format!("{name}: wake-ups"),
            "1/s",
            seen.wake_ups,
        ));
        figures.push(
            Figure::of(format!("{name}: resident memory"), "MiB", seen.rss_mb)
                .limit(RSS_MB, Target::Under(1.0)),
        );
    }
    Ok(figures)
}
