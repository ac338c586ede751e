//! Arguments of the commands that steer.

use std::time::Duration;

use clap::Args;
use rigor_telemetry::Level;

use super::machine::duration;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rigor cancel video-tags-20260207-214530-ab2c
  rigor cancel a1b2c3d4 e5f60718")]
pub(crate) struct Targets {
    /// Batches or tasks.
    #[arg(required = true, value_name = "BATCH|TASK")]
    pub(crate) targets: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rigor retry a1b2c3d4
  rigor retry video-tags --failed

Tasks that were cancelled because of a retried one wait for it again.")]
pub(crate) struct Retry {
    /// Batches or tasks.
    #[arg(required = true, value_name = "BATCH|TASK")]
    pub(crate) targets: Vec<String>,
    /// Every failed task of a batch.
    #[arg(long)]
    pub(crate) failed: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rigor hold video-tags
  rigor release video-tags")]
pub(crate) struct Batch {
    /// The batch's id, or the beginning of it.
    pub(crate) batch: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rigor pause gpu-1
  rigor drain gpu-1
  rigor resume gpu-1")]
pub(crate) struct Agent {
    /// The agent's name.
    pub(crate) agent: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rigor load gpu-1 qwen2.5:7b

Prints the id of the task that does it. It lapses if the agent has not taken it within an hour.")]
pub(crate) struct Load {
    /// The agent's name.
    pub(crate) agent: String,
    /// The model's id in rig.toml.
    pub(crate) model: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rigor unload gpu-1

Running tasks that use the model end first.")]
pub(crate) struct Unload {
    /// The agent's name.
    pub(crate) agent: String,
    /// Only if this is what it holds.
    pub(crate) model: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rigor log-level gpu-1 debug --for 10m
  rigor log-level gpu-1                  shows what is set
  rigor log-level gpu-1 --reset")]
pub(crate) struct LogLevel {
    /// An agent, or brain.
    #[arg(value_name = "COMPONENT")]
    pub(crate) component: String,
    /// DEBUG, INFO, WARNING or ERROR, in any case; without it, what is set is printed.
    #[arg(value_name = "LEVEL", conflicts_with = "reset")]
    pub(crate) level: Option<Level>,
    /// Only for so long, like 10m or 1h30m [default: until --reset].
    #[arg(long = "for", value_name = "DURATION", value_parser = duration, requires = "level")]
    pub(crate) duration: Option<Duration>,
    /// Take back what was set.
    #[arg(long)]
    pub(crate) reset: bool,
}
