//! Development tasks: demo, test, ci, tidy, bench, simulate, soak, gpu-smoke, cluster-up, cluster-down, fixtures.
//!
//! Depends on no crate of the workspace: it has to work while one of them does not compile.

mod bench;
mod ci;
mod cluster;
mod demo;
pub mod fixtures;
mod gpu_smoke;
mod launch;
mod own_rig;
mod simulate;
mod soak;
mod test;
mod tidy;
mod tools;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

/// Development tasks of the Rigor workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
enum Task {
    /// Run an example plan on a rig of three stand-in GPUs and a tiny model, and show what happens.
    Demo(demo::Demo),
    /// Set up what the tests need, build everything, run the tests.
    Test {
        /// Only tests whose name contains one of these.
        filters: Vec<String>,
    },
    /// Everything that a change has to pass: fmt, clippy, doc, tidy, test.
    Ci,
    /// Check the rules of the house that no compiler knows.
    Tidy,
    /// Try everything once on this machine's GPU, with the real NVML and a real LLM runtime, and
    /// write a report.
    GpuSmoke(gpu_smoke::GpuSmoke),
    /// Run benchmarks, print their figures and write them to bench/results; see docs/performance.md.
    Bench(bench::Bench),
    /// Run the placement policy over traces of work in simulated time; see docs/simulation.md.
    #[command(disable_help_flag = true)]
    Simulate {
        /// What the simulator is told: `--all --check`, or traces; `--help` shows all. `--live` runs
        /// traces on a real rig too, see `--live --help`.
        #[arg(allow_hyphen_values = true, trailing_var_arg = true)]
        arguments: Vec<String>,
    },
    /// Work through a mixed load while everything is killed, frozen and littered at random, and count.
    #[command(disable_help_flag = true)]
    Soak {
        /// What the soak is told: `--minutes N`; `--help` shows all.
        #[arg(allow_hyphen_values = true, trailing_var_arg = true)]
        arguments: Vec<String>,
    },
    /// Build, make a rig where there is none, and start it.
    ClusterUp {
        /// The rig's directory.
        #[arg(long, env = "RIGOR_DIR", value_name = "DIR", default_value = "rig")]
        rig: PathBuf,
        /// A new rig gets so many stand-in GPUs, and a tiny model with random weights.
        #[arg(long, value_name = "N")]
        sim_gpus: Option<u16>,
    },
    /// Stop a rig.
    ClusterDown {
        /// The rig's directory.
        #[arg(long, env = "RIGOR_DIR", value_name = "DIR", default_value = "rig")]
        rig: PathBuf,
    },
    /// Install llama.cpp's server and models with random weights into target/fixtures; prints their paths as JSON.
    Fixtures {
        /// Also write a model of 0.8 GB that takes seconds to load.
        #[arg(long)]
        big_model: bool,
    },
    /// Start a program that ends with this one's parent (used by `demo`).
    #[command(hide = true, name = "__tied")]
    Tied(launch::Tied),
}

/// Runs the task that the process's arguments name.
pub fn run() -> ExitCode {
    let result = match Task::parse() {
        Task::Demo(options) => demo::run(&options),
        Task::Test { filters } => test::run(&filters),
        Task::Ci => ci::run(),
        Task::Tidy => tidy::run(),
        Task::GpuSmoke(options) => gpu_smoke::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::Simulate { arguments } => simulate::run(&arguments),
        Task::Soak { arguments } => soak::run(&arguments),
        Task::ClusterUp { rig, sim_gpus } => cluster::up(&rig, sim_gpus),
        Task::ClusterDown { rig } => cluster::down(&rig),
        Task::Fixtures { big_model } => print_fixtures(big_model),
        Task::Tied(tied) => launch::become_it(&tied),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn print_fixtures(big_model: bool) -> Result<()> {
    let fixtures = fixtures::ensure()?;
    if big_model {
        fixtures.big_model()?;
    }
    println!("{}", serde_json::to_string_pretty(&fixtures)?);
    Ok(())
}
