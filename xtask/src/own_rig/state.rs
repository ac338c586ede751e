//! What is read of a rig: `rigor status --json` and `RUN_SUMMARY.json`, as far as it is shown.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

/// `rigor status --json`.
#[derive(Debug, Deserialize)]
pub(crate) struct Status {
    pub(crate) brain: Brain,
    pub(crate) agents: Vec<Agent>,
    pub(crate) batches: Vec<Batch>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Brain {
    pub(crate) alive: bool,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Agent {
    pub(crate) name: String,
    pub(crate) alive: bool,
    pub(crate) state: String,
    pub(crate) model: Option<String>,
    pub(crate) idle_reason: Option<String>,
    pub(crate) health: Option<String>,
    pub(crate) health_reason: Option<String>,
    pub(crate) gpu: Option<Gpu>,
    pub(crate) processing: Vec<String>,
}

/// A GPU as its agent's last heartbeat has it; memory in MiB.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Gpu {
    pub(crate) name: String,
    pub(crate) uuid: String,
    #[serde(default)]
    pub(crate) stand_in: bool,
    pub(crate) used_mb: u64,
    pub(crate) total_mb: u64,
    pub(crate) budget_mb: u64,
    pub(crate) foreign: Option<String>,
    pub(crate) temperature_c: Option<u32>,
    pub(crate) power_w: Option<u32>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Batch {
    pub(crate) id: String,
    pub(crate) state: String,
    pub(crate) done: u64,
    pub(crate) total: u64,
    #[serde(default)]
    pub(crate) failed: u64,
    #[serde(default)]
    pub(crate) cancelled: u64,
    pub(crate) batch_dir: Option<PathBuf>,
    #[serde(default)]
    pub(crate) tasks: Vec<PlanTask>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct PlanTask {
    pub(crate) id: String,
    pub(crate) total: Option<u64>,
    pub(crate) done: u64,
    pub(crate) failed: u64,
}

impl Batch {
    pub(crate) fn is_over(&self) -> bool {
        ["complete", "failed", "cancelled"].contains(&self.state.as_str())
    }
}

/// `RUN_SUMMARY.json`.
#[derive(Debug, Deserialize)]
pub(crate) struct Summary {
    pub(crate) wall_seconds: f64,
    pub(crate) total: u64,
    pub(crate) done: u64,
    pub(crate) agents: Vec<AgentSummary>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct AgentSummary {
    pub(crate) name: String,
    pub(crate) attempts: u64,
    pub(crate) succeeded: u64,
    pub(crate) by_class: BTreeMap<String, u64>,
    pub(crate) task_seconds: f64,
}
