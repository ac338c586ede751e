//! The brain: releases tasks, places models, watches, retries, reports.
//!
//! One loop (`dispatcher`): wake-ups come in, decisions are made by pure functions (`graph`,
//! `rigor_policy`), and their results are files. All that is remembered can be taken from disk
//! again, so a brain can be killed at any moment.

mod agents;
mod attempts;
mod batch;
mod context;
mod dispatcher;
mod events;
mod expand;
mod fit;
mod graph;
mod journal;
mod measured;
mod monitor;
mod notify;
mod outlook;
mod place;
mod replay;
mod retention;
mod signals;
mod stuck;
mod summary;
mod view;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use rigor_config::Config;
use rigor_exec::Containment;
use rigor_queue::presence::ComponentLock;
use rigor_queue::rig::{BRAIN, Rig};
use rigor_queue::submit::{Durability, Sequence};
use rigor_queue::watch::Watcher;
use rigor_telemetry::{Format, JsonLog, LevelHandle, Options};

use crate::attempts::Attempts;
use crate::context::Context;
use crate::dispatcher::{Dispatcher, Event};
use crate::journal::Journal;
use crate::retention::Retention;

/// The placement journal is set aside at this size; one line is some 3 kB on a rig of 8 GPUs.
const PLACEMENT_BYTES: u64 = 16 << 20;
/// So many older ones are kept.
const PLACEMENT_KEEP: u32 = 2;
/// How long a lock whose holder is dead may look taken.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// The brain of a rig: turns submitted plans into tasks, releases them as dependencies are met,
/// decides which GPU holds which LLM, retries, recovers what dead agents left, and reports.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Example:\n  brain --rig ./rig\n\nCtrl-C (SIGTERM) drains and exits, a second one stops at once."
)]
pub struct Args {
    /// The rig directory
    #[arg(long, env = "RIGOR_DIR", default_value = "./rig")]
    rig: PathBuf,
    /// The form of lines on stderr: short (default in a terminal), text, json
    #[arg(long)]
    log_format: Option<Format>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make recorded placement decisions again and compare
    ///
    /// Exits 0 when all are equal, 1 when one is different, 2 when something cannot be read.
    Replay(replay::Replay),
}

/// Runs until told to stop. Exit code 0 after a drain, 1 after an error.
pub fn main(args: Args) -> ExitCode {
    if let Some(Command::Replay(replay)) = &args.command {
        return replay::main(replay);
    }
    match start(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Logging may not be up yet, and a terminal wants it in any case.
            eprintln!("brain: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: &Args) -> Result<()> {
    let (config, text) = Config::load_with_text(&args.rig)?;
    let rig = Rig::open(&args.rig)?;
    let lock = ComponentLock::take(&rig, BRAIN, LOCK_PATIENCE)?;
    let options = Options {
        log_file: Some(rig.logs_dir().join("brain.log")),
        level_variables: &["BRAIN_LOG_LEVEL"],
        format: args.log_format,
        max_size_bytes: config.log.max_size_bytes,
        keep: config.log.keep,
        ..Options::new(BRAIN)
    };
    let guard = rigor_telemetry::init(&options)?;
    rigor_telemetry::install_panic_hook("Brain");
    keep_settings(&rig, &text);
    let result = run(rig, config, &lock, guard.levels());
    if let Err(error) = &result {
        rigor_telemetry::log_crash("Brain", error.as_ref(), error.backtrace());
    }
    drop(lock);
    drop(guard);
    result
}

/// Keeps the rig.toml that this brain runs with: commands that look or stop go on working by it
/// while somebody has broken the file itself.
fn keep_settings(rig: &Rig, text: &str) {
    // The file may hold secrets: a file that is made anew is its owner's alone.
    let kept = rigor_queue::submit::replace_file(&rig.settings_copy(), text.as_bytes(), false);
    if let Err(error) = kept {
        tracing::warn!("The rig.toml that the brain runs with could not be kept: {error}");
    }
}

fn run(rig: Rig, config: Config, lock: &ComponentLock, levels: LevelHandle) -> Result<()> {
    let durability = match config.rig.durability {
        rigor_config::Durability::Default => Durability::Default,
        rigor_config::Durability::Strict => Durability::Strict,
        rigor_config::Durability::Process => Durability::Process,
    };
    std::fs::create_dir_all(rig.brain_dir().join("batches")).context("make brain/batches")?;
    let (sender, events) = std::sync::mpsc::channel();
    let wakes = sender.clone();
    // The loop owns the receiver for as long as it runs; after that nobody listens, rightly.
    let watcher = match Watcher::new(move |wake| drop(wakes.send(Event::Wake(wake)))) {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            tracing::warn!("{error}; directories are read every second instead");
            None
        }
    };
    let retention = Retention::start(&rig, &config.retention, durability, sender.clone())
        .context("start a thread")?;
    let _signals = signals::listen(sender)?;
    let containment = Containment::detect(&config.rig.id);
    let worker = rigor_exec::find_worker()?;
    let slots = config.limits.cpu_slots as usize;
    let decisions = rig.logs_dir().join("brain_decisions.log");
    let journal = JsonLog::open(&decisions, config.log.max_size_bytes, config.log.keep)
        .with_context(|| format!("open {}", decisions.display()))?;
    let placed = rig.placement_journal();
    let placement_bytes = PLACEMENT_BYTES.min(config.log.max_size_bytes);
    let placement = JsonLog::open(&placed, placement_bytes, PLACEMENT_KEEP)
        .with_context(|| format!("open {}", placed.display()))?;
    tracing::info!(
        "Brain starting: rig {} ({}), {} GPUs{}, {} models, containment: {}",
        config.rig.name,
        rig.root().display(),
        config.gpus.len(),
        if config.nvml.simulated {
            " (stand-ins)"
        } else {
            ""
        },
        config.models.len(),
        containment.tier(),
    );
    let sequence = Sequence::open(&rig, durability)?;
    let brain = Context::new(
        rig,
        config,
        durability,
        sequence,
        Journal::new(journal, placement),
        watcher,
    );
    let attempts = Attempts::new(containment, worker, slots);
    Dispatcher::new(brain, attempts, retention, events, levels).run(lock)
}
