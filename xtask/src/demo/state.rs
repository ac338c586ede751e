//! What the demo reads: `rigor status --json` and `RUN_SUMMARY.json`, as far as it shows them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

/// `rigor status --json`.
#[derive(Debug, Deserialize)]
pub(super) struct Status {
    pub(super) brain: Brain,
    pub(super) agents: Vec<Agent>,
    pub(super) batches: Vec<Batch>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Brain {
    pub(super) alive: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct Agent {
    pub(super) name: String,
    pub(super) alive: bool,
    pub(super) state: String,
    pub(super) model: Option<String>,
    pub(super) idle_reason: Option<String>,
    pub(super) processing: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Batch {
    pub(super) id: String,
    pub(super) state: String,
    pub(super) done: u64,
    pub(super) total: u64,
    #[serde(default)]
    pub(super) failed: u64,
    #[serde(default)]
    pub(super) cancelled: u64,
    pub(super) batch_dir: Option<PathBuf>,
    #[serde(default)]
    pub(super) tasks: Vec<PlanTask>,
}

#[derive(Debug, Deserialize)]
pub(super) struct PlanTask {
    pub(super) id: String,
    pub(super) total: Option<u64>,
    pub(super) done: u64,
    pub(super) failed: u64,
}

impl Batch {
    pub(super) fn is_over(&self) -> bool {
        ["complete", "failed", "cancelled"].contains(&self.state.as_str())
    }
}

/// `RUN_SUMMARY.json`.
#[derive(Debug, Deserialize)]
pub(super) struct Summary {
    pub(super) wall_seconds: f64,
    pub(super) total: u64,
    pub(super) done: u64,
    pub(super) agents: Vec<AgentSummary>,
}

#[derive(Debug, Deserialize)]
pub(super) struct AgentSummary {
    pub(super) name: String,
    pub(super) attempts: u64,
    pub(super) succeeded: u64,
    pub(super) by_class: BTreeMap<String, u64>,
    pub(super) task_seconds: f64,
}
