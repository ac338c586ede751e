//! `cargo xtask simulate --live`: a trace on a real rig beside what the simulator predicts of it.
//!
//! Real: the brain, the agents, the workers, their files, and runtimes as processes. Stand-ins: the
//! GPUs (NVML) and what the runtimes compute (`runtime-stand-in`: answers of a fixed latency).
//! Scripts are `sleep`.

mod alone;
mod expanded;
mod rig;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use serde::Deserialize;
use serde_json::Value;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::fixtures;
use crate::workspace::{self, cargo, checked};
use expanded::Expanded;

/// The prediction may be off by so much, as a share of the measured makespan.
const OFF_MOST: f64 = 0.15;

/// Runs traces on a real rig and compares with the simulator's predictions.
#[derive(Debug, Parser)]
pub(super) struct Live {
    /// Says that a real rig is wanted.
    #[arg(long, required = true)]
    live: bool,
    /// Traces; every one in traces/live/ where none is named.
    #[arg(value_name = "TRACE")]
    traces: Vec<PathBuf>,
    /// Fail where a prediction is off by more than 15%.
    #[arg(long)]
    check: bool,
    /// Serve the models by llama.cpp's own server, all with one of 0.8 GB and random weights, on this
    /// machine's processor: how long a task and a load take is measured on one agent first. Reported, never checked.
    #[arg(long, conflicts_with = "check")]
    llama: bool,
    /// The folder of the rigs; it is made anew for each trace.
    #[arg(long, value_name = "DIR", default_value = "target/live")]
    dir: PathBuf,
    /// Use the programs as they were built last.
    #[arg(long)]
    no_build: bool,
}

/// What serves the models.
enum Runtime {
    /// `runtime-stand-in`, at the trace's latencies.
    StandIn,
    /// llama.cpp, with a model of random weights.
    Llama {
        /// The program.
        server: PathBuf,
        /// What it serves under the names of all models.
        model: PathBuf,
    },
}

/// What the simulator prints of a trace.
#[derive(Debug, Deserialize)]
struct Predicted {
    policies: Vec<Policy>,
}

#[derive(Debug, Deserialize)]
struct Policy {
    makespan_s: f64,
    loads: usize,
    gpu_seconds: BTreeMap<String, f64>,
}

/// What a rig made of a trace.
#[derive(Debug)]
struct Measured {
    makespan_s: f64,
    loads: usize,
    gpu_seconds: BTreeMap<String, f64>,
}

pub(super) fn run(options: &Live) -> Result<()> {
    if !options.no_build {
        workspace::build()?;
        checked(&mut cargo(&[
            "build",
            "-p",
            "simulator",
            "-p",
            "runtime-stand-in",
        ]))?;
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))
            .context("listen to signals")?;
    }
    let traces = match options.traces.is_empty() {
        true => every_trace()?,
        false => options.traces.clone(),
    };
    let dir = std::path::absolute(&options.dir).context("--dir")?;
    let mut missed = Vec::new();
    let runtime = match options.llama {
        true => {
            let fixtures = fixtures::ensure()?;
            let model = fixtures.big_model()?;
            Runtime::Llama {
                server: fixtures.llama_server,
                model,
            }
        }
        false => Runtime::StandIn,
    };
    for path in &traces {
        let mut raw: Value = simulator(path, "--expand")?;
        let predicted: Predicted = if options.llama {
            alone::measure(&mut raw, &dir, &runtime, &interrupted)?;
            let known = dir.join("predicted.json");
            fs::write(&known, raw["trace"].to_string())
                .with_context(|| format!("write {}", known.display()))?;
            simulator(&known, "--json")?
        } else {
            simulator(path, "--json")?
        };
        let expanded = Expanded::of(&raw)?;
        let predicted = predicted.policies.into_iter().next();
        let predicted = predicted.context("the simulator ran no policy")?;
        let measured = rig::run(&expanded, &dir, &runtime, &interrupted)
            .with_context(|| format!("run {}", path.display()))?;
        print(path, &expanded, &runtime, &predicted, &measured);
        let off = predicted.makespan_s / measured.makespan_s - 1.0;
        if off.abs() > OFF_MOST && !options.llama {
            missed.push(format!("{}: off by {:+.0}%", path.display(), off * 100.0));
        }
    }
    if !missed.is_empty() {
        println!(
            "MISSED (the most is {:.0}%): {}",
            OFF_MOST * 100.0,
            missed.join("; ")
        );
        if options.check {
            bail!("the simulator predicts worse than it has to");
        }
    }
    Ok(())
}

fn every_trace() -> Result<Vec<PathBuf>> {
    let dir = workspace::root().join("traces/live");
    let mut paths = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))? {
        paths.push(
            entry
                .with_context(|| format!("read {}", dir.display()))?
                .path(),
        );
    }
    paths.sort();
    Ok(paths)
}

fn simulator<T: for<'de> Deserialize<'de>>(trace: &Path, how: &str) -> Result<T> {
    let mut command = std::process::Command::new(workspace::program("simulator")?);
    let output = command
        .arg(how)
        .arg(trace)
        .output()
        .context("start the simulator")?;
    if !output.status.success() {
        bail!(
            "{}: {}",
            workspace::shown(&command),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    serde_json::from_slice(&output.stdout).context("the simulator printed something unknown")
}

fn print(
    path: &Path,
    trace: &Expanded,
    runtime: &Runtime,
    predicted: &Policy,
    measured: &Measured,
) {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let costs = &trace.trace.costs;
    println!("{name}: {}", trace.trace.about);
    println!(
        "known beforehand: {:.2}s a submission, {:.2}s a task, {:.2}s a load, besides their own",
        costs.submit_s, costs.task_s, costs.load_s
    );
    let runtimes = match runtime {
        Runtime::StandIn => "stand-in runtimes",
        Runtime::Llama { .. } => "llama.cpp on the processor",
    };
    if let Runtime::Llama { .. } = runtime {
        for work in trace.trace.work.iter().filter(|work| work.model.is_some()) {
            println!(
                "measured on one agent alone: {:.2}s a task of {}",
                work.seconds, work.name
            );
        }
    }
    println!(
        "makespan: {:.1}s predicted, {:.1}s measured on a rig with stand-in GPUs and {runtimes}: {:+.0}%",
        predicted.makespan_s,
        measured.makespan_s,
        (predicted.makespan_s / measured.makespan_s - 1.0) * 100.0
    );
    println!(
        "loads: {} predicted, {} measured",
        predicted.loads, measured.loads
    );
    println!(
        " {:<24}{:>10}{:>10}",
        "GPU SECONDS", "PREDICTED", "MEASURED"
    );
    let mut causes: Vec<&String> = predicted
        .gpu_seconds
        .keys()
        .chain(measured.gpu_seconds.keys())
        .collect();
    causes.sort_unstable();
    causes.dedup();
    for cause in causes {
        let of = |all: &BTreeMap<String, f64>| all.get(cause).copied().unwrap_or(0.0);
        println!(
            " {cause:<24}{:>10.1}{:>10.1}",
            of(&predicted.gpu_seconds),
            of(&measured.gpu_seconds)
        );
    }
    println!();
}

/// How long a rig may take: three times what was predicted, and a minute.
fn patience(seconds: f64) -> Duration {
    Duration::from_secs_f64(60.0 + 3.0 * seconds)
}
