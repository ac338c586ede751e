//! Arguments of the commands about the rig and its machine.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rigor init rig
  rigor init rig --model models/qwen2.5-7b-q4_k_m.gguf --slots 4
  rigor init rig --sim-gpus 3        three stand-in GPUs, on a machine that has none
  rigor init rig --cpu-only")]
pub(crate) struct Init {
    /// Where; must not hold a rig yet.
    pub(crate) dir: PathBuf,
    /// The rig's name [default: the directory's].
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Simulate so many GPUs with a stand-in NVML library.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64), conflicts_with = "cpu_only")]
    pub(crate) sim_gpus: Option<u16>,
    /// One agent without a GPU, whatever this machine has.
    #[arg(long)]
    pub(crate) cpu_only: bool,
    /// A chat model for llama-server; its id is the file's name. The first is what GPUs load by default.
    #[arg(long, value_name = "FILE.gguf")]
    pub(crate) model: Vec<PathBuf>,
    /// An embedding model for llama-server.
    #[arg(long, value_name = "FILE.gguf")]
    pub(crate) embedding_model: Vec<PathBuf>,
    /// Requests that a model answers at once.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) slots: u32,
    /// Context of a model, tokens, all slots together.
    #[arg(long, value_name = "TOKENS", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) context: u32,
    /// llama.cpp's server [default: llama-server on PATH].
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) llama_server: Option<PathBuf>,
    /// The first GPU's port; the others follow.
    #[arg(long, value_name = "PORT", default_value_t = 11435, value_parser = clap::value_parser!(u16).range(1025..=65000))]
    pub(crate) port: u16,
    /// Agents without a GPU, for cpu tasks [default: 0, or 1 with --cpu-only].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=64))]
    pub(crate) cpu_agents: Option<u16>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rigor up                in a tmux session named rigor: tmux attach -t rigor
  rigor up --no-tmux      in the background, output in RIG/logs/*.out
  rigor up --boot         as systemd user units that start with the machine

What runs already is left alone.")]
pub(crate) struct Up {
    /// Write and enable systemd user units, so that the rig starts with the machine.
    #[arg(long)]
    pub(crate) boot: bool,
    /// In the background, even where there is tmux.
    #[arg(long, conflicts_with = "boot")]
    pub(crate) no_tmux: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rigor down                 running tasks get 30s to end
  rigor down --grace 1h
  rigor down --boot          also remove the systemd user units

Agents are asked to drain, after the grace to stop at once, and killed if they do not. What still
runs then is put back and runs again after the next `rigor up`; a task with `retries: 0` fails.")]
pub(crate) struct Down {
    /// How long running tasks may go on.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub(crate) grace: Duration,
    /// Disable and remove the units of `up --boot`.
    #[arg(long)]
    pub(crate) boot: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rigor doctor
  rigor doctor --json | jq '.checks[] | select(.result == \"failed\")'

Exits 1 if anything failed.")]
pub(crate) struct Doctor {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rigor fsck --dry-run               say what is wrong, change nothing; also while the rig runs
  rigor down && rigor fsck           mend what is safe
  rigor fsck --dry-run --json | jq '.findings[] | {check, path}'

Mending deletes nothing but unfinished writing: what cannot be believed goes to tasks/quarantine/.")]
pub(crate) struct Fsck {
    /// Only say what is wrong.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rigor clean --older-than 30d --dry-run   what would be removed
  rigor clean --older-than 30d             remove it
  rigor clean --older-than 30d --json | jq .bytes

Only archived batches are removed: the brain archives a batch that has been over for
retention.compact_after (rig.toml, 1h). What their plans wrote into their own folders stays.
Works whether the rig is up or down.")]
pub(crate) struct Clean {
    /// Only what ended this long ago: 30d, 12h.
    #[arg(long, value_name = "DURATION", value_parser = age)]
    pub(crate) older_than: Duration,
    /// Only say what would be removed.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rigor completions bash > ~/.local/share/bash-completion/completions/rigor
  rigor completions zsh > ~/.zfunc/_rigor")]
pub(crate) struct Completions {
    /// The shell.
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(crate) struct Detached {
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<std::ffi::OsString>,
}

fn age(text: &str) -> Result<Duration, String> {
    let wrong = "write a duration such as 30d, 12h or \"1h 30m\"";
    rigor_config::parse_age(text).ok_or_else(|| wrong.to_owned())
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "write a duration such as 30s, 5m or \"1h 30m\"".to_owned();
    let signed: jiff::SignedDuration = text.parse().map_err(|_| wrong())?;
    Duration::try_from(signed).map_err(|_| wrong())
}
