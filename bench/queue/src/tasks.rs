//! Rigs with queued tasks.

use std::path::Path;

use anyhow::{Context, Result};
use rigor_queue::name::{FileName, TaskId};
use rigor_queue::rig::{Place, Rig};
use rigor_queue::submit::{self, Durability};
use rigor_queue::task::{Class, TaskSpec, Work};
use tempfile::TempDir;

pub(crate) const BATCH: &str = "bench-20260101-000000-abcd";

/// Where they lie.
pub(crate) const QUEUE: Place<'static> = Place::Queue(Class::Cpu);

/// An empty rig in a fresh directory below `dir`, which goes with the value.
pub(crate) fn fresh_rig(dir: &Path) -> Result<(TempDir, Rig)> {
    let scratch = tempfile::Builder::new()
        .prefix("rig-")
        .tempdir_in(dir)
        .with_context(|| format!("cannot make a rig below {}", dir.display()))?;
    let rig = Rig::create(scratch.path())?;
    rig.prepare_batch(BATCH)?;
    Ok((scratch, rig))
}

/// Queues one task; how it comes to lie there is not what is measured, so without a sync.
pub(crate) fn queue_one(rig: &Rig, sequence: u64) -> Result<FileName> {
    let spec = spec(sequence);
    let name = FileName::first(spec.priority, sequence, spec.shape(), spec.id);
    submit::submit(rig, QUEUE, &name, &spec, Durability::Process)?;
    Ok(name)
}

/// A task as a foreach makes them.
pub(crate) fn spec(sequence: u64) -> TaskSpec {
    let item = format!("item-{sequence}");
    TaskSpec {
        plan: "bench".to_owned(),
        name: format!("nothing_{item}"),
        plan_dir: "/home/user/plans/bench".into(),
        batch_dir: format!("/home/user/plans/bench/history/{BATCH}").into(),
        created: jiff::Timestamp::UNIX_EPOCH,
        item: Some(rigor_queue::task::Item {
            id: item.clone(),
            value: serde_json::json!({ "id": item }),
            members: Vec::new(),
        }),
        ..TaskSpec::new(
            TaskId::derive(BATCH, "nothing", Some(&item)),
            BATCH,
            "nothing",
            Class::Cpu,
            Work::Command {
                command: "true".to_owned(),
            },
        )
    }
}
