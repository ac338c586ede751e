//! `cargo xtask demo`: a rig of three stand-in GPUs runs an example plan, before your eyes.

mod screen;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::own_rig::state::{Batch, Status, Summary};
use crate::own_rig::{self, OwnRig};
use crate::{fixtures, workspace};
use screen::Screen;

/// Enough to see that more than one gets work, few enough for two cores.
const GPUS: u16 = 3;
/// Requests that a model answers at once: one, so that the prompts are work for all of them.
const SLOTS: &str = "1";
/// The plan that is run.
const PLAN: &str = "examples/plans/digest";
/// Between two looks at the rig.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long the programs may take to be there.
const START_MOST: Duration = Duration::from_secs(20);
/// After so long without any change something is wrong. A large `--model` on a slow CPU takes
/// this long for one answer, not longer.
const STALLED_AFTER: Duration = Duration::from_secs(180);
/// How long the summary may come after the end of the batch.
const SUMMARY_MOST: Duration = Duration::from_secs(15);

/// Options of `cargo xtask demo`.
#[derive(Args)]
pub(crate) struct Demo {
    /// A chat model to use in place of the tiny one with random weights. It runs on the CPU.
    #[arg(long, value_name = "FILE.gguf")]
    model: Option<PathBuf>,
    /// Leave the rig running at the end, until Ctrl-C.
    #[arg(long)]
    keep: bool,
}

/// Runs the demo. Whatever happens, nothing of it is left running.
pub(crate) fn run(options: &Demo) -> Result<()> {
    let model = options.model.as_deref().map(fs::canonicalize).transpose();
    let model = model.context("--model")?;
    let target = workspace::root().join("target");
    let _alone = alone(&target)?;
    // As in development: the dependencies are shared with xtask itself, and optimised.
    workspace::build()?;
    let fixtures = fixtures::ensure()?;

    // From here on something may run that has to be stopped.
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))
            .context("cannot listen for Ctrl-C")?;
    }
    let started = Instant::now();
    let rig = target.join("demo-rig");
    let mut cluster = OwnRig::new(&rig)?;
    cluster.clear()?;
    introduce(model.as_deref());
    cluster.rigor(&[
        "init".as_ref(),
        rig.as_os_str(),
        "--name".as_ref(),
        "demo".as_ref(),
        "--sim-gpus".as_ref(),
        GPUS.to_string().as_ref(),
        "--model".as_ref(),
        model.as_ref().unwrap_or(&fixtures.model).as_os_str(),
        "--slots".as_ref(),
        SLOTS.as_ref(),
        "--llama-server".as_ref(),
        fixtures.llama_server.as_os_str(),
        "--port".as_ref(),
        own_rig::free_ports(GPUS)?.to_string().as_ref(),
    ])?;

    let played = play(options, &mut cluster, &interrupted, started);
    let stopped = cluster.stop();
    if let Err(error) = &played
        && !interrupted.load(Ordering::Relaxed)
    {
        println!("\nThe demo failed: {error:#}\n");
        cluster.print_log_tails();
    }
    played?;
    stopped?;
    println!("Everything is stopped; nothing is left running.");
    Ok(())
}

fn play(
    options: &Demo,
    cluster: &mut OwnRig,
    interrupted: &AtomicBool,
    started: Instant,
) -> Result<()> {
    let agents = cluster.status()?.agents;
    cluster.start("brain", &["brain"])?;
    for agent in &agents {
        cluster.start(&agent.name, &["gpu-agent", &agent.name])?;
    }
    let deadline = Instant::now() + START_MOST;
    loop {
        let status = cluster.status()?;
        if status.brain.alive && status.agents.iter().all(|agent| agent.alive) {
            break;
        }
        cluster.check_alive()?;
        if Instant::now() > deadline {
            bail!(
                "the brain and the agents were not there after {}s",
                START_MOST.as_secs()
            );
        }
        pause(interrupted)?;
    }
    let plan = workspace::root().join(PLAN);
    let id = cluster.rigor(&["submit".as_ref(), plan.as_os_str()])?;
    let id = id.trim();
    println!("Submitted {PLAN} as {id}");

    let batch = watch(cluster, id, interrupted, started)?;
    if batch.state != "complete" {
        let failed = cluster.rigor(&[
            "tasks".as_ref(),
            "--batch".as_ref(),
            id.as_ref(),
            "--lane".as_ref(),
            "failed".as_ref(),
        ]);
        println!("{}", failed.unwrap_or_default());
        bail!(
            "the batch ended as {}: {} failed, {} cancelled",
            batch.state,
            batch.failed,
            batch.cancelled
        );
    }
    let folder = batch.batch_dir.context("the batch has no folder")?;
    let report = folder.join("output/report.md");
    if !report.is_file() {
        bail!(
            "the batch is complete and {} is not there",
            report.display()
        );
    }
    let summary = summary(&folder, interrupted)?;
    print_outcome(id, &report, &summary, started);
    if options.keep {
        println!("\nThe rig keeps running; Ctrl-C stops it.");
        while !interrupted.load(Ordering::Relaxed) {
            cluster.check_alive()?;
            thread::sleep(LOOK_EVERY);
        }
        println!();
    }
    Ok(())
}

/// Shows the batch until it is over.
fn watch(
    cluster: &mut OwnRig,
    id: &str,
    interrupted: &AtomicBool,
    started: Instant,
) -> Result<Batch> {
    let mut screen = Screen::new(started);
    let mut seen = (Instant::now(), String::new());
    loop {
        let Status {
            agents, batches, ..
        } = cluster.status()?;
        let batch = batches
            .into_iter()
            .find(|batch| batch.id == id)
            .with_context(|| format!("{id} was submitted and is not among the batches"))?;
        screen.show(&batch, &agents);
        if batch.is_over() {
            screen.close();
            return Ok(batch);
        }
        cluster.check_alive()?;
        let now = screen::line(&batch, &agents);
        if now != seen.1 {
            seen = (Instant::now(), now);
        } else if seen.0.elapsed() > STALLED_AFTER {
            bail!(
                "nothing has changed for {}s: {}",
                STALLED_AFTER.as_secs(),
                seen.1
            );
        }
        pause(interrupted)?;
    }
}

fn summary(folder: &Path, interrupted: &AtomicBool) -> Result<Summary> {
    let path = folder.join("RUN_SUMMARY.json");
    let deadline = Instant::now() + SUMMARY_MOST;
    while !path.exists() {
        if Instant::now() > deadline {
            bail!("{} was not written", path.display());
        }
        pause(interrupted)?;
    }
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not understood", path.display()))
}

fn introduce(model: Option<&Path>) {
    println!("\nRigor's demo: one rig, {GPUS} GPUs, one plan.\n");
    println!("  The GPUs are STAND-INS: a library in NVML's place answers for them, and they");
    println!("  compute nothing. What runs is the real brain, agents, workers and llama.cpp.");
    match model {
        None => {
            println!("  The model is TINY, with RANDOM WEIGHTS: its answers are noise.");
            println!("  For real answers: cargo xtask demo --model FILE.gguf\n");
        }
        Some(file) => println!("  The model is {}, on the CPU.\n", file.display()),
    }
}

fn print_outcome(id: &str, report: &Path, summary: &Summary, started: Instant) {
    println!(
        "\nComplete: {} of {} tasks in {:.0}s ({:.0}s with the start of the rig). What each GPU did:\n",
        summary.done,
        summary.total,
        summary.wall_seconds,
        started.elapsed().as_secs_f64()
    );
    for agent in &summary.agents {
        let classes: Vec<String> = agent
            .by_class
            .iter()
            .map(|(class, count)| format!("{class} {count}"))
            .collect();
        println!(
            "  {:<8} {:>4} attempts, {:>4} succeeded ({}), {:.1}s of task time",
            agent.name,
            agent.attempts,
            agent.succeeded,
            classes.join(", "),
            agent.task_seconds
        );
    }
    let own = std::env::current_exe().unwrap_or_default();
    let programs = shown(own.parent().unwrap_or(Path::new("target/debug")));
    println!("\nThe report: {}", shown(report));
    println!("\nThe same by hand:");
    println!("  export PATH=\"$PWD/{programs}:$PATH\" RIGOR_DIR=target/demo-rig");
    println!("  rigor up && rigor submit {PLAN} --wait");
    println!("  rigor status");
    println!("  rigor tasks --batch {id}");
    println!("  rigor report {id}");
    println!("  rigor down");
}

/// A path as one would type it in the workspace.
fn shown(path: &Path) -> String {
    path.strip_prefix(workspace::root())
        .unwrap_or(path)
        .display()
        .to_string()
}

/// A demo at a time: they share a folder.
fn alone(target: &Path) -> Result<File> {
    let path = target.join("demo.lock");
    let file = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
    if file.try_lock().is_err() {
        bail!(
            "another `cargo xtask demo` of this checkout runs; wait for it, or stop it with Ctrl-C"
        );
    }
    Ok(file)
}

fn pause(interrupted: &AtomicBool) -> Result<()> {
    thread::sleep(LOOK_EVERY);
    if interrupted.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}
