//! Arguments of the commands that show and wait.

use std::time::Duration;

use clap::Args;
use rigor_queue::lane::Lane;
use rigor_queue::task::Class;

use super::machine::duration;
use super::one_of;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rigor models
  rigor models --json | jq '.models[] | {id, need_mb, on}'

VRAM is estimated from a model's files until a load of it was measured; ~ marks what is not measured.")]
pub(crate) struct Models {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rigor status
  rigor status --json | jq '.agents[] | {name, state, idle_reason}'")]
pub(crate) struct Status {
    /// Print the whole state as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rigor tasks --lane failed
  rigor tasks --batch video-tags --class llm --limit 20
  rigor tasks --json | jq '.tasks[].id'")]
pub(crate) struct Tasks {
    /// Of this batch (its id, or the beginning of it).
    #[arg(long, value_name = "BATCH")]
    pub(crate) batch: Option<String>,
    /// In this lane: waiting, queue, processing, retry, complete, failed, cancelled or quarantine.
    #[arg(long, value_name = "LANE", value_parser = lane)]
    pub(crate) lane: Option<Lane>,
    /// Of this class: meta, llm, script, cpu or brain.
    #[arg(long, value_name = "CLASS", value_parser = class)]
    pub(crate) class: Option<Class>,
    /// In the hands of this agent.
    #[arg(long, value_name = "AGENT")]
    pub(crate) agent: Option<String>,
    /// At most so many.
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rigor show a1b2c3d4
  rigor show video-tags-20260207-214530-ab2c/transcribe_v7 --json")]
pub(crate) struct Show {
    /// A task: its id, the beginning of it, or BATCH/NAME.
    pub(crate) task: String,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rigor logs a1b2c3d4
  rigor logs -f video-tags/transcribe_v7       ends when the task ends
  rigor logs a1b2c3d4 --attempt 1")]
pub(crate) struct Logs {
    /// A task: its id, the beginning of it, or BATCH/NAME.
    pub(crate) task: String,
    /// Go on until the task ends.
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Of this attempt [default: the last that printed anything].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) attempt: Option<u32>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rigor why gpu-1                        why it does nothing
  rigor why video-tags/tag_v7            why it does not run
  rigor why video-tags                   what the batch waits for
  rigor why brain
  rigor why gpu-1 --at 21:45             what it did then
  rigor why gpu-1 --since 2h             what its time went into

The first line is the answer. Works without the brain, and takes no locks.")]
pub(crate) struct Why {
    /// A task (its id, the beginning of it, or BATCH/NAME), an agent, a batch, or brain.
    #[arg(value_name = "TASK|AGENT|BATCH")]
    pub(crate) what: String,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// What an agent's GPU did at that time: 21:45, or 2026-02-07T21:45:00.
    #[arg(long, value_name = "TIME")]
    pub(crate) at: Option<String>,
    /// What an agent's GPU did for so long until now (or until --at), like 2h.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) since: Option<Duration>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rigor wait video-tags-20260207-214530-ab2c
  rigor wait video-tags

Exits 0 complete, 1 failed, 3 cancelled, 4 brain not running.")]
pub(crate) struct Wait {
    /// The batch's id, or the beginning of it.
    pub(crate) batch: String,
    /// Print the batch as JSON when it is over.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rigor report video-tags
  rigor report video-tags --json | jq .")]
pub(crate) struct Report {
    /// The batch's id, or the beginning of it.
    pub(crate) batch: String,
    /// Print RUN_SUMMARY.json.
    #[arg(long)]
    pub(crate) json: bool,
    /// Print where the summary lies, not what it says.
    #[arg(long)]
    pub(crate) path: bool,
}

fn lane(text: &str) -> Result<Lane, String> {
    let known = || Lane::ALL.iter().map(|lane| lane.as_str());
    Lane::ALL
        .into_iter()
        .find(|lane| lane.as_str() == text)
        .ok_or_else(|| one_of(text, known()))
}

fn class(text: &str) -> Result<Class, String> {
    Class::parse(text).ok_or_else(|| one_of(text, Class::ALL.iter().map(|class| class.as_str())))
}
