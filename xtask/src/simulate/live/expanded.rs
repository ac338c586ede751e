//! A trace as the simulator expands it, as far as a rig is made of it.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

/// What `simulator --expand` prints.
#[derive(Debug, Deserialize)]
pub(super) struct Expanded {
    pub(super) trace: Trace,
    /// Seconds of each task of each work.
    pub(super) durations: Vec<Vec<f64>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Trace {
    pub(super) about: String,
    #[serde(rename = "gpu")]
    pub(super) gpus: Vec<Gpu>,
    #[serde(rename = "model")]
    pub(super) models: Vec<Model>,
    pub(super) work: Vec<Work>,
    pub(super) costs: Costs,
    #[serde(rename = "outage")]
    outages: Vec<Value>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Gpu {
    pub(super) count: u16,
    pub(super) budget_mb: u64,
    pub(super) cpu_slots: u32,
}

#[derive(Debug, Deserialize)]
pub(super) struct Model {
    pub(super) id: String,
    pub(super) vram_mb: u64,
    pub(super) load_s: f64,
    pub(super) slots: u32,
}

#[derive(Debug, Deserialize)]
pub(super) struct Work {
    pub(super) name: String,
    pub(super) model: Option<String>,
    pub(super) seconds: f64,
    spread: f64,
    long_share: f64,
    pub(super) vram_mb: u64,
    at: f64,
    every: f64,
    pub(super) after: Option<String>,
    each: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Costs {
    pub(super) submit_s: f64,
    pub(super) task_s: f64,
    pub(super) load_s: f64,
}

impl Expanded {
    pub(super) fn of(printed: &Value) -> Result<Expanded> {
        Expanded::deserialize(printed).context("the simulator printed something unknown")
    }

    /// Whether a rig can be made of it.
    pub(super) fn check(&self) -> Result<()> {
        let Trace {
            gpus,
            work,
            outages,
            ..
        } = &self.trace;
        let one_kind = gpus.iter().all(|gpu| gpu.budget_mb == gpus[0].budget_mb);
        ensure!(one_kind, "--live takes GPUs of one kind");
        ensure!(outages.is_empty(), "--live takes no outages");
        for work in work {
            let comes = work.at == 0.0 && work.every == 0.0 && work.each.is_none();
            ensure!(
                comes,
                "{}: --live takes no `at`, `every` and `each`",
                work.name
            );
            let fixed = work.spread == 0.0 && work.long_share == 0.0;
            ensure!(
                work.model.is_none() || fixed,
                "{}: the stand-in runtime's latency is one for all tasks of a model",
                work.name
            );
        }
        Ok(())
    }
}
