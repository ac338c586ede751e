//! The arguments of every command, with their help.

mod control;
mod machine;
mod plans;
mod views;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

pub(crate) use control::{Agent, Batch, Load, LogLevel, Retry, Targets, Unload};
pub(crate) use machine::{Clean, Completions, Detached, Doctor, Down, Fsck, Init, Up};
pub(crate) use plans::{Check, PlanArgs, Run, Submit};
pub(crate) use views::{Logs, Models, Report, Show, Status, Tasks, Wait, Why};

/// Keeps every GPU of a rig busy with a plan's work, and says why when one is not.
#[derive(Debug, Parser)]
#[command(
    name = "rigor",
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  rigor init rig                     make a rig from the GPUs of this machine
  rigor up                           start the brain and the agents
  rigor submit plans/tags --wait     run a plan
  rigor status                       who does what
  rigor why gpu-1                    and why it does nothing

Exit codes: 0 ok, 1 failed, 2 usage; a wait: 3 cancelled, 4 the brain is not running."
)]
pub(crate) struct Arguments {
    /// The rig's directory.
    #[arg(
        long,
        global = true,
        env = "RIGOR_DIR",
        value_name = "DIR",
        default_value = "./rig"
    )]
    pub(crate) rig: PathBuf,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a rig directory with its rig.toml, from the GPUs of this machine.
    Init(Init),
    /// Start the brain and every agent.
    Up(Up),
    /// Stop the brain and every agent.
    Down(Down),
    /// Check a plan as submit does, and submit nothing.
    Check(Check),
    /// Submit a plan; prints the batch's id.
    Submit(Submit),
    /// Run one command as a batch of its own.
    Run(Run),
    /// Show the rig: who does what, and why somebody does nothing.
    Status(Status),
    /// List tasks.
    Tasks(Tasks),
    /// List the models of the catalogue: what they need, where they fit, how fast they are.
    Models(Models),
    /// Show one task: what it is, where it is, and all its attempts.
    Show(Show),
    /// Print what a task printed.
    Logs(Logs),
    /// Say why a task does not run, an agent does nothing, or a batch waits.
    Why(Why),
    /// Wait until a batch is over.
    Wait(Wait),
    /// Cancel batches or tasks.
    Cancel(Targets),
    /// Run failed or cancelled tasks again.
    Retry(Retry),
    /// Start nothing new of a batch until it is released.
    Hold(Batch),
    /// Go on with a batch that is held.
    Release(Batch),
    /// Let an agent start nothing new; what runs goes on.
    Pause(Agent),
    /// Undo pause and drain.
    Resume(Agent),
    /// Let an agent finish what it has and take nothing more.
    Drain(Agent),
    /// Change how much a component logs, without a restart.
    LogLevel(LogLevel),
    /// Load a model on an agent's GPU.
    Load(Load),
    /// Free the GPU memory that an agent's model takes.
    Unload(Unload),
    /// Look for what is wrong with the rig and this machine, each with a remedy.
    Doctor(Doctor),
    /// Check the rig directory itself, while nothing runs in it, and mend what is safe.
    Fsck(Fsck),
    /// Remove archived batches that ended long ago.
    Clean(Clean),
    /// Print the summary of a batch that is over.
    Report(Report),
    /// Print a completion script for a shell.
    Completions(Completions),
    /// Start a program in a session of its own (used by `up`).
    #[command(hide = true, name = "__detached")]
    Detached(Detached),
}

/// What is wrong with a word of a closed list.
fn one_of<'a>(text: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    let near = rigor_config::nearest(text, known.iter().copied())
        .map(|near| format!("; did you mean {near}?"))
        .unwrap_or_default();
    format!("it is one of {}{near}", known.join(", "))
}
