//! The snapshot that `rigor status` prints.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use rigor_config::Config;
use rigor_queue::name::TaskId;
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
/// So much of the decision log's end is searched for the last MONITOR line, bytes: lines are
/// some hundred bytes, a MONITOR with many stuck tasks some thousand.
const DECISIONS_TAIL: u64 = 256 * 1024;

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
            brain: agents::brain(rig, now)?,
            queue: queue(rig, &ids, &running, &plans, &agents, now)?,
            agents,
            batches: shown,
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
    let stuck_tasks = stuck(rig, &processing);
    let quarantine = rig.list(Place::Quarantine)?;
    let reasons = |path: &PathBuf| path.extension().is_some_and(|end| end == "reason");
    Ok(Queue {
        total_pending: by_class.values().sum(),
        by_class,
        processing: processing.len(),
        stuck: stuck_tasks.len(),
        stuck_tasks,
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

/// The tasks that the brain's last MONITOR named as stuck and that still run.
fn stuck(rig: &Rig, processing: &BTreeSet<TaskId>) -> Vec<TaskId> {
    if processing.is_empty() {
        return Vec::new();
    }
    let named = last_monitor(rig).unwrap_or_default();
    let is_named = |id: &TaskId| {
        let text = id.to_string();
        named
            .iter()
            .any(|prefix| prefix.len() >= 8 && text.starts_with(prefix.as_str()))
    };
    processing.iter().copied().filter(is_named).collect()
}

fn last_monitor(rig: &Rig) -> Option<Vec<String>> {
    let mut file = File::open(rig.logs_dir().join("brain_decisions.log")).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(DECISIONS_TAIL)))
        .ok()?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail).ok()?;
    let text = String::from_utf8_lossy(&tail);
    text.lines()
        .rev()
        .filter(|line| line.contains("\"MONITOR\""))
        .find_map(|line| {
            let entry: serde_json::Value = serde_json::from_str(line).ok()?;
            let is_monitor = entry.get("type").and_then(|kind| kind.as_str()) == Some("MONITOR");
            let stuck = entry.get("details")?.get("stuck_tasks")?.as_array()?;
            let ids = stuck.iter().filter_map(|one| one.get("task_id")?.as_str());
            is_monitor.then(|| ids.map(str::to_owned).collect())
        })
}
