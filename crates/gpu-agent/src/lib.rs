//! One agent per GPU: claims what it can run now, forks workers, owns the LLM runtime.
//!
//! One synchronous dispatcher (`agent`) takes in a closed set of events and decides by
//! `rigor_policy::admission`; threads of their own read the GPU, look for signs of life, make results
//! durable, and host signals and the LLM runtime.

mod activity;
mod agent;
mod attempts;
mod beat;
mod claiming;
mod committer;
mod device;
mod event;
mod idle;
mod judged;
mod lend;
mod lines;
mod llm;
mod measured;
mod memory;
mod model;
mod queues;
mod reasons;
mod runtime_health;
mod sampler;
mod side;
mod signals;
mod stall;
mod start;
mod trouble;
mod warm;

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use rigor_telemetry::Format;

use crate::agent::Counts;

/// Claims tasks for one GPU and runs them.
#[derive(Debug, Parser)]
#[command(name = "gpu-agent", version, about)]
pub(crate) struct Args {
    /// The agent's name, as in rig.toml.
    name: String,
    /// Run without a GPU: cpu tasks only.
    #[arg(long)]
    cpu_only: bool,
    /// The rig directory.
    #[arg(long, env = "RIGOR_DIR", default_value = "./rig")]
    rig: PathBuf,
    /// The form of log lines on stderr: short, text or json.
    #[arg(long)]
    log_format: Option<Format>,
}

/// The program. Exit code 0 after an orderly end, 1 after a failure, 2 for wrong usage.
pub fn run() -> ExitCode {
    let args = Args::parse();
    let opened = match start::open(&args) {
        Ok(opened) => opened,
        Err(error) => {
            eprintln!("gpu-agent {}: {error:#}", args.name);
            return ExitCode::FAILURE;
        }
    };
    let guard = match start::log(&args, &opened) {
        Ok(guard) => guard,
        Err(error) => {
            eprintln!("gpu-agent {}: {error:#}", args.name);
            return ExitCode::FAILURE;
        }
    };
    rigor_telemetry::install_panic_hook("GPU agent");
    let counts = Arc::new(Counts::default());
    let ended = std::panic::catch_unwind(AssertUnwindSafe(|| {
        start::serve(&args.name, opened, Arc::clone(&counts), &guard)
    }));
    let code = match ended {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            rigor_telemetry::log_crash("GPU agent", error.as_ref(), error.backtrace());
            ExitCode::FAILURE
        }
        // The hook has said why.
        Err(_) => ExitCode::FAILURE,
    };
    tracing::info!(
        "GPU {} shutting down - completed {}, failed {}",
        args.name,
        counts.completed(),
        counts.failed()
    );
    code
}
