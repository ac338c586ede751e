//! The real policy over a trace of work, in simulated time: hours in milliseconds.
//!
//! Agents admit by [`rigor_policy::admission`], the brain places by [`rigor_policy::placement`]
//! from what it would have measured. The world alone is simulated: tasks take as long as the trace
//! says, a GPU shared by two tasks slows neither, and claims cost nothing.

pub mod bound;
pub mod report;
pub mod rules;
pub mod trace;
pub mod world;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use report::Report;
use trace::Trace;

/// Runs the placement policy over traces of work in simulated time.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask simulate")]
struct Arguments {
    /// Traces (TOML).
    #[arg(value_name = "TRACE", required_unless_present = "all")]
    traces: Vec<PathBuf>,
    /// Every trace in traces/.
    #[arg(long)]
    all: bool,
    /// Fail where a target is missed.
    #[arg(long)]
    check: bool,
    /// Print one JSON object a trace instead of tables.
    #[arg(long)]
    json: bool,
    /// Run nothing: print one JSON object a trace, with the trace and the duration of each task.
    #[arg(long, conflicts_with_all = ["check", "json"])]
    expand: bool,
}

/// The program.
pub fn run() -> ExitCode {
    match simulate(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("simulate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn simulate(arguments: &Arguments) -> Result<bool> {
    let mut paths = arguments.traces.clone();
    if arguments.all {
        let dir = std::fs::read_dir("traces").context("read traces/")?;
        for entry in dir {
            let path = entry.context("read traces/")?.path();
            if path.extension().is_some_and(|end| end == "toml") {
                paths.push(path);
            }
        }
        paths.sort();
    }
    ensure!(!paths.is_empty(), "there are no traces in traces/");
    let mut met = true;
    for path in &paths {
        if arguments.expand {
            let trace = Trace::read(path)?;
            let expanded = serde_json::json!({"trace": trace, "durations": trace.durations()});
            println!("{expanded}");
            continue;
        }
        let report = Report::of(path)?;
        if arguments.json {
            println!("{}", serde_json::to_string(&report)?);
        } else {
            println!("{report}");
        }
        met &= report.missed.is_empty();
    }
    Ok(met || !arguments.check)
}
