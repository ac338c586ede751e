//! The record of an attempt: `attempts/<batch>/<id>.aN.json`, the authority on results.
//!
//! It is written whole with a checksum and before the task file moves, so: a valid record means
//! "finish the move", a torn or absent one means "this attempt left no result".

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::name::{FileName, TaskId};
use crate::task::{Class, TaskSpec};

/// What one attempt did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttemptRecord {
    /// The task.
    pub id: TaskId,
    /// Its batch.
    pub batch: String,
    /// Its id in the plan.
    pub task: String,
    /// The instance's name.
    pub name: String,
    /// Its class.
    pub class: Class,
    /// Which attempt, from 1.
    pub attempt: u32,
    /// Who ran it (an agent's name, or `brain`).
    pub agent: String,
    /// Drawn at the claim: tells this claim from any other of the same file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// When the worker began; none where no worker ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// When the attempt was over.
    pub ended: Timestamp,
    /// From the worker's beginning to its end by the monotonic clock, milliseconds.
    pub duration_ms: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// The command's exit code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended the command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// What it used at most.
    #[serde(default)]
    pub peaks: Peaks,
    /// Bytes that the task printed, kept or not.
    #[serde(default)]
    pub output_bytes: u64,
    /// Bytes of output that were left out of the middle because of the cap.
    #[serde(default)]
    pub output_dropped: u64,
    /// What the model was asked, for a prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub llm: Option<LlmUse>,
    /// The GPU memory that it had, where it ran out of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_memory: Option<GpuMemory>,
}

impl AttemptRecord {
    /// The record of an attempt that no worker ran, or that left none: what `agent` says of it,
    /// ended now.
    pub fn without_worker(
        agent: &str,
        name: &FileName,
        spec: &TaskSpec,
        outcome: Outcome,
    ) -> AttemptRecord {
        AttemptRecord {
            id: spec.id,
            batch: spec.batch.clone(),
            task: spec.task.clone(),
            name: spec.name.clone(),
            class: spec.class,
            attempt: name.attempt,
            agent: agent.to_owned(),
            nonce: None,
            started: None,
            ended: Timestamp::now(),
            duration_ms: 0,
            outcome,
            exit_code: None,
            signal: None,
            peaks: Peaks::default(),
            output_bytes: 0,
            output_dropped: 0,
            llm: None,
            gpu_memory: None,
        }
    }
}

/// The GPU memory that an attempt had which ran out of it, and what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuMemory {
    /// What was promised to it, MiB; none: it had the GPU to itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leased_mb: Option<u64>,
    /// What tasks may use of that GPU in all, MiB.
    pub budget_mb: u64,
    /// Its need had been raised before.
    #[serde(default)]
    pub raised: bool,
    /// What the next attempt needs, once the brain has decided; its file's shape says so too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<RaisedNeed>,
}

/// A need of GPU memory that stands in for the one of the task file, which never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "need", rename_all = "snake_case", deny_unknown_fields)]
pub enum RaisedNeed {
    /// So much.
    Mb {
        /// MiB.
        mb: u64,
    },
    /// A GPU to itself.
    Alone {
        /// Of which tasks may use so much at least, MiB.
        budget_mb: u64,
    },
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case", deny_unknown_fields)]
pub enum Outcome {
    /// Done.
    Succeeded,
    /// Not done.
    Failed {
        /// Which kind of failure.
        kind: FailureKind,
        /// In words, with numbers; never empty.
        reason: String,
    },
    /// Taken back before it could end, through no fault of the task (its agent died, say).
    Lost {
        /// In words.
        reason: String,
    },
    /// Will not be done.
    Cancelled {
        /// In words: `dependency transcribe_v7 failed`, `cancelled by the operator`.
        reason: String,
    },
}

impl Outcome {
    /// The reason, where there is one.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Outcome::Succeeded => None,
            Outcome::Failed { reason, .. }
            | Outcome::Lost { reason }
            | Outcome::Cancelled { reason } => Some(reason),
        }
    }
}

/// The kinds of failure that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The command exited with another code than 0.
    ExitCode,
    /// A signal ended the command.
    Signal,
    /// `timeout` ran out.
    Timeout,
    /// `kill_if_silent` ran out.
    Silent,
    /// A path of `requires` is not there.
    MissingRequirement,
    /// A path of `produces` is not there.
    MissingProduct,
    /// The prompt does not fit the model's context.
    PromptTooLong,
    /// The model's server refused or broke off.
    LlmError,
    /// The worker was killed or crashed.
    WorkerLost,
    /// The task could not be started (bad environment file, missing working directory, ...).
    Setup,
    /// An operator or the brain ended it.
    Aborted,
    /// The brain ended it because it was stuck (`stuck.abort_after`).
    Stuck,
    /// The model could not be loaded or unloaded.
    LoadFailed,
    /// The task file could not be read or trusted.
    Quarantined,
    /// The plan (or a foreach of it) could not be carried out.
    Plan,
    /// The GPU's memory did not suffice.
    OutOfMemory,
    /// The kernel killed processes of the command for want of main memory: it had reached its limit,
    /// or the machine had none left.
    OomKilled,
}

impl FailureKind {
    /// As it is written in records and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            FailureKind::ExitCode => "exit_code",
            FailureKind::Signal => "signal",
            FailureKind::Timeout => "timeout",
            FailureKind::Silent => "silent",
            FailureKind::MissingRequirement => "missing_requirement",
            FailureKind::MissingProduct => "missing_product",
            FailureKind::PromptTooLong => "prompt_too_long",
            FailureKind::LlmError => "llm_error",
            FailureKind::WorkerLost => "worker_lost",
            FailureKind::Setup => "setup",
            FailureKind::Aborted => "aborted",
            FailureKind::Stuck => "stuck",
            FailureKind::LoadFailed => "load_failed",
            FailureKind::Quarantined => "quarantined",
            FailureKind::Plan => "plan",
            FailureKind::OutOfMemory => "out_of_memory",
            FailureKind::OomKilled => "oom_killed",
        }
    }
}

/// The most that an attempt used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peaks {
    /// Resident memory of its largest process, MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rss_mb: Option<u64>,
    /// CPU time of all its processes, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_ms: Option<u64>,
    /// GPU memory, MiB, as the agent measured it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vram_mb: Option<u64>,
}

/// What a prompt cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LlmUse {
    /// Catalogue id of the model.
    pub model: String,
    /// Tokens of the prompt, as the server counted.
    pub prompt_tokens: u64,
    /// Tokens of the answer.
    pub completion_tokens: u64,
    /// The prompt was cut to fit (`too_long: truncate`).
    #[serde(default)]
    pub truncated: bool,
    /// From the request that was answered to its answer, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_ms: Option<u64>,
}
