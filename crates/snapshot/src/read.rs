//! The snapshot that `rigor status` prints.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use rigor_config::Config;
use rigor_queue::name::TaskId;
use rigor_queue::outlook::{self, StuckTask};
use rigor_queue::rig::{BRAIN, Place, Rig};
use rigor_queue::task::Class;
use serde::Serialize;

use crate::agents::{self, Agent, Brain};
use crate::batches::{self, Active, Batch, plan_task_id};
use crate::names::plan_tasks;
use crate::{Result, SCHEMA};

/// Batches that are over and still shown, the newest.
const ENDED_SHOWN: usize = 20;
/// What counts as having completed just now.
const RECENT: Duration = Duration::from_secs(5 * 60);
/// Inodes below which a disk counts as nearly full: each task takes some.
const FEW_FILES: u64 = 1000;

/// The state of a rig.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    /// The version of this shape.
    pub schema: u32,
    /// When it was read.
    pub at: Timestamp,
    /// The rig's directory.
    pub rig: PathBuf,
    /// The rig's name.
    pub name: String,
    /// Its GPUs are stand-ins.
    pub simulated: bool,
    /// The brain.
    pub brain: Brain,
    /// The agents, those of rig.toml first.
    pub agents: Vec<Agent>,
    /// What lies in the lanes.
    pub queue: Queue,
    /// Every batch that is not over, and the newest of those that are; the newest last.
    pub batches: Vec<Batch>,
    /// The disk that the rig lies on; none where it does not say.
    pub disk: Option<Disk>,
}

/// The disk of the rig.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// Free for this user, MB (1,000,000 bytes).
    pub free_mb: u64,
    /// In all, MB.
    pub total_mb: u64,
    /// Files that can still be made; none where the file system has no such limit.
    pub free_files: Option<u64>,
    /// It is full or nearly so: results, logs and heartbeats are about to be lost.
    pub nearly_full: bool,
}

impl Disk {
    fn read(rig: &Rig) -> Option<Disk> {
        const MB: u64 = 1_000_000;
        let stat = rustix::fs::statvfs(rig.root()).ok()?;
        Some(Disk::of(
            stat.f_bavail.saturating_mul(stat.f_frsize) / MB,
            stat.f_blocks.saturating_mul(stat.f_frsize) / MB,
            (stat.f_files > 0).then_some(stat.f_favail),
        ))
    }

    fn of(free_mb: u64, total_mb: u64, free_files: Option<u64>) -> Disk {
        // A hundredth is much on a large disk, and on a tiny one 200 MB is all.
        let few_mb = (total_mb / 100).clamp(200, 2_000).min(total_mb / 10);
        Disk {
            free_mb,
            total_mb,
            free_files,
            nearly_full: free_mb < few_mb || free_files.is_some_and(|files| files < FEW_FILES),
        }
    }
}

/// What lies in the lanes. Submitted plans are batches and not counted here.
#[derive(Clone, Debug, Serialize)]
pub struct Queue {
    /// Ready to be claimed.
    pub total_pending: usize,
    /// The same, by class.
    pub by_class: BTreeMap<Class, usize>,
    /// Claimed.
    pub processing: usize,
    /// Of those, how many the brain last called stuck.
    pub stuck: usize,
    /// Their ids.
    pub stuck_tasks: Vec<TaskId>,
    /// Since when each is quiet, and what will end it.
    pub stuck_details: Vec<StuckTask>,
    /// Completed within the last 5 minutes.
    pub completed_last_5min: usize,
    /// Waiting for dependencies, in batches that are not over.
    pub waiting: usize,
    /// Failed attempts whose next step is not decided or not due.
    pub retry: usize,
    /// What could not be read or trusted.
    pub quarantined: usize,
}

impl Snapshot {
    /// Reads the state of a rig. Takes no lock and changes nothing.
    pub fn read(rig: &Rig, config: &Config) -> Result<Snapshot> {
        let now = SystemTime::now();
        let ids = batches::ids(rig)?;
        let active = Active::read(rig)?;
        let plans = active.plan_ids(&ids);
        let running: Vec<&String> = ids.iter().filter(|id| active.is_active(id)).collect();

        let mut shown = Vec::new();
        let mut ended = 0;
        for id in ids.iter().rev() {
            if !active.is_active(id) {
                if ended == ENDED_SHOWN {
                    continue;
                }
                ended += 1;
            }
            shown.extend(active.batch(rig, id)?);
        }
        shown.reverse();

        let agents = agents::agents(rig, config, now)?;
        Ok(Snapshot {
            schema: SCHEMA,
            at: Timestamp::now(),
            rig: rig.root().to_owned(),
            name: config.rig.name.clone(),
            simulated: config.nvml.simulated,
            brain: agents::brain(rig, config, now)?,
            queue: queue(rig, &ids, &running, &plans, &agents, now)?,
            agents,
            batches: shown,
            disk: Disk::read(rig),
        })
    }
}

fn queue(
    rig: &Rig,
    batches: &[String],
    running: &[&String],
    plans: &BTreeSet<TaskId>,
    agents: &[Agent],
    now: SystemTime,
) -> Result<Queue> {
    let mut by_class = BTreeMap::new();
    for class in Class::ALL {
        let names = rig.list(Place::Queue(class))?.names;
        by_class.insert(
            class,
            names
                .iter()
                .filter(|name| !plans.contains(&name.id))
                .count(),
        );
    }
    let mut processing: BTreeSet<TaskId> = rig
        .list(Place::Processing(BRAIN))?
        .names
        .iter()
        .map(|name| name.id)
        .collect();
    processing.retain(|id| !plans.contains(id));
    processing.extend(agents.iter().flat_map(|agent| &agent.processing));
    let mut waiting = 0;
    let mut retry = 0;
    for &batch in running {
        for task in plan_tasks(rig, batch)? {
            waiting += rig.count(Place::Waiting { batch, task: &task })?;
        }
        retry += rig.count(Place::Retry(batch))?;
    }
    let mut recent = 0;
    for batch in batches {
        recent += completed_since(rig, batch, now - RECENT)?;
    }
    let stuck_details = stuck(rig, &processing);
    let quarantine = rig.list(Place::Quarantine)?;
    let reasons = |path: &PathBuf| path.extension().is_some_and(|end| end == "reason");
    Ok(Queue {
        total_pending: by_class.values().sum(),
        by_class,
        processing: processing.len(),
        stuck: stuck_details.len(),
        stuck_tasks: stuck_details.iter().map(|task| task.id).collect(),
        stuck_details,
        completed_last_5min: recent,
        waiting,
        retry,
        quarantined: quarantine.names.len()
            + quarantine
                .foreign
                .iter()
                .filter(|path| !reasons(path))
                .count(),
    })
}

/// Tasks of a batch that completed since then: a rename sets the file's change time.
fn completed_since(rig: &Rig, batch: &str, since: SystemTime) -> Result<usize> {
    let place = Place::Complete(batch);
    let dir = rig.dir(place);
    // Nothing came into the directory since: its files need not be looked at.
    let changed = fs::metadata(&dir).and_then(|meta| meta.modified());
    if !changed.is_ok_and(|changed| changed >= since) {
        return Ok(0);
    }
    let since = since
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs() as i64;
    let plan = plan_task_id(batch);
    let names = rig.list(place)?.names;
    let recent = names.iter().filter(|name| {
        name.id != plan
            && fs::metadata(rig.path(place, name)).is_ok_and(|meta| meta.ctime() >= since)
    });
    Ok(recent.count())
}

/// The tasks that the brain last called stuck and that still run. An outlook that cannot be read
/// says nothing: the display goes on.
fn stuck(rig: &Rig, processing: &BTreeSet<TaskId>) -> Vec<StuckTask> {
    let outlook = outlook::read(rig).ok().flatten().unwrap_or_default();
    let mut stuck = outlook.stuck;
    stuck.retain(|task| processing.contains(&task.id));
    stuck
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_as_nearly_full() {
        let full = |free, total, files| Disk::of(free, total, files).nearly_full;
        assert!(full(199, 50_000, None) && !full(500, 50_000, None));
        assert!(full(999, 100_000, None) && !full(1000, 100_000, None));
        assert!(
            !full(2000, 20_000_000, None),
            "much is left on a large disk"
        );
        assert!(full(9, 100, None) && !full(50, 100, None), "a tiny disk");
        assert!(full(50_000, 100_000, Some(10)) && !full(50_000, 100_000, Some(10_000)));
    }
}
