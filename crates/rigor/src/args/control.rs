//! Arguments of the commands that steer.

use clap::Args;

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
