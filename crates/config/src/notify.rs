//! `[notify]`.

use std::collections::BTreeSet;
use std::time::Duration;

/// `[notify]`: a command that is run when something happens that its owner wants to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notify {
    /// The program and its arguments; never empty. A text in the file is `bash -c TEXT`.
    pub command: Vec<String>,
    /// What it is run for.
    pub on: BTreeSet<NotifyEvent>,
    /// A GPU that is idle this long while work for GPUs is queued is told of.
    pub gpu_idle_after: Duration,
    /// Of each event and subject at most one in this time.
    pub every: Duration,
    /// The command is killed after this long.
    pub timeout: Duration,
}

/// What can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NotifyEvent {
    /// A batch is over: complete, or cancelled by an operator.
    BatchFinished,
    /// A batch is over with failures, or was rejected.
    BatchFailed,
    /// An agent is gone without having been stopped, or hung.
    AgentDead,
    /// A GPU does nothing although there is work.
    GpuIdle,
}

impl NotifyEvent {
    /// Every event, in the order of the documentation.
    pub const ALL: [NotifyEvent; 4] = [
        NotifyEvent::BatchFinished,
        NotifyEvent::BatchFailed,
        NotifyEvent::AgentDead,
        NotifyEvent::GpuIdle,
    ];

    /// As it is written in rig.toml and told to the command.
    pub fn as_str(self) -> &'static str {
        match self {
            NotifyEvent::BatchFinished => "batch_finished",
            NotifyEvent::BatchFailed => "batch_failed",
            NotifyEvent::AgentDead => "agent_dead",
            NotifyEvent::GpuIdle => "gpu_idle",
        }
    }
}
