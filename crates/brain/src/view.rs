//! `brain/batches/<batch>.json`: what only the brain knows of a batch, for displays.

use std::path::PathBuf;

use rigor_queue::rig::Rig;
use serde_json::{Value, json};

use crate::batch::Batch;
use crate::graph::Phase;

/// Where the view of a batch lies.
pub(crate) fn path(rig: &Rig, batch: &str) -> PathBuf {
    rig.brain_dir()
        .join("batches")
        .join(format!("{batch}.json"))
}

/// The view. Totals are estimates until every foreach is expanded: one that is not counts as one.
pub(crate) fn make(batch: &Batch, state: &str) -> Value {
    let mut estimate = 0;
    let tasks: Vec<Value> = batch
        .plan
        .tasks
        .iter()
        .zip(batch.graph.nodes())
        .map(|(task, node)| {
            let counts = node.counts;
            let expanded = node.phase == Phase::Expanded;
            estimate += if expanded { counts.total } else { 1 };
            let problem = match &node.phase {
                Phase::Broken(reason) | Phase::Cancelled(reason) => Some(reason.as_str()),
                Phase::Unexpanded | Phase::Expanded => None,
            };
            json!({
                "id": task.id,
                "class": task.class,
                "foreach": task.foreach.is_some(),
                "expanded": expanded,
                "total": expanded.then_some(counts.total),
                "waiting": counts.waiting,
                "running": counts.released,
                "retry": counts.retry,
                "done": counts.done,
                "failed": counts.failed,
                "cancelled": counts.cancelled,
                "problem": problem,
                "per_item": task.deps.iter().filter(|dep| dep.per_item).map(|dep| dep.task.as_str()).collect::<Vec<_>>(),
                "depends_on": task.deps.iter().map(|dep| dep.task.as_str()).collect::<Vec<_>>(),
            })
        })
        .collect();
    let totals = batch.graph.totals();
    json!({
        "schema": 1,
        "id": batch.id,
        "plan": batch.spec().plan,
        "plan_dir": batch.plan_dir,
        "batch_dir": batch.batch_dir,
        "submitted": batch.submitted.to_string(),
        "state": state,
        "tasks": tasks,
        "total": estimate,
        "done": totals.done,
        "failed": totals.failed,
        "cancelled": totals.cancelled,
    })
}
