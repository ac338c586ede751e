//! How long a task and a load of a real model take, measured on one agent by itself.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::expanded::Expanded;
use super::{Runtime, rig};

/// Tasks that are measured.
const TASKS: usize = 10;

/// Runs some tasks of each model on a rig of one GPU, and writes what a task and a load took into
/// the trace that the simulator had printed.
pub(super) fn measure(
    printed: &mut Value,
    folder: &Path,
    runtime: &Runtime,
    interrupted: &AtomicBool,
) -> Result<()> {
    let costs = Expanded::of(printed)?.trace.costs;
    let works = printed["trace"]["work"].as_array().map_or(0, Vec::len);
    for at in 0..works {
        let mut work = printed["trace"]["work"][at].clone();
        let Some(model) = work["model"].as_str().map(str::to_owned) else {
            continue;
        };
        let mut alone = printed.clone();
        work["after"] = Value::Null;
        work["count"] = json!(TASKS);
        alone["trace"]["gpu"][0]["count"] = json!(1);
        alone["trace"]["work"] = json!([work]);
        alone["durations"] = json!([vec![0.0; TASKS]]);
        let measured = rig::run(&Expanded::of(&alone)?, folder, runtime, interrupted)
            .with_context(|| format!("measure {model} alone"))?;
        let seconds = |cause: &str| measured.gpu_seconds.get(cause).copied().unwrap_or(0.0);
        ensure!(
            measured.loads == 1,
            "{model} was loaded {} times",
            measured.loads
        );
        let models = printed["trace"]["model"]
            .as_array_mut()
            .context("the trace has no models")?;
        let known = models
            .iter_mut()
            .find(|known| known["id"] == model.as_str());
        let known = known.with_context(|| format!("the trace has no {model}"))?;
        known["load_s"] = json!((seconds("loading") - costs.load_s).max(0.0));
        let at_once = known["slots"].as_f64().unwrap_or(1.0);
        let task = seconds("running") * at_once / TASKS as f64 - costs.task_s;
        printed["trace"]["work"][at]["seconds"] = json!(task.max(0.0));
    }
    Ok(())
}
