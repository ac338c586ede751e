//! Batches: where each one's `_plan` file lies is its state.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;

use jiff::Timestamp;
use rigor_queue::claim;
use rigor_queue::lane::Lane;
use rigor_queue::name::{FileName, TaskId};
use rigor_queue::rig::{BRAIN, Place, RIG_BATCH, Rig};
use rigor_queue::task::{Class, TaskSpec};
use serde::{Deserialize, Serialize};

use crate::{Result, SnapshotError};

/// The task under which a submitted plan itself goes through the lanes.
pub const PLAN_TASK: &str = "_plan";

/// One batch.
#[derive(Clone, Debug, Serialize)]
pub struct Batch {
    /// Its id.
    pub id: String,
    /// Its plan's name.
    pub plan: String,
    /// Where its plan's file lies.
    pub state: BatchState,
    /// Tasks that completed.
    pub done: u64,
    /// Tasks in all; an estimate until every foreach is expanded, 0 until the brain has read it.
    pub total: u64,
    /// Tasks that failed for good.
    pub failed: u64,
    /// Tasks that were cancelled.
    pub cancelled: u64,
    /// Tasks that agents have claimed.
    pub running: u64,
    /// Tasks that are released and that nobody has claimed.
    pub queued: u64,
    /// When it was submitted.
    pub submitted: Option<Timestamp>,
    /// The plan's folder.
    pub plan_dir: Option<String>,
    /// `{BATCH_PATH}`.
    pub batch_dir: Option<String>,
    /// The tasks of its plan, as the brain last counted them.
    pub tasks: Vec<PlanTask>,
    /// Why the brain's count is missing, where it is there and cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// One task of a plan, all its items together.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlanTask {
    /// Its id in the plan.
    pub id: String,
    /// Its class.
    pub class: Class,
    /// It has one task for each item.
    #[serde(default)]
    pub foreach: bool,
    /// Its items are known.
    #[serde(default)]
    pub expanded: bool,
    /// Items in all; none until it is expanded.
    #[serde(default)]
    pub total: Option<u64>,
    /// Items that completed.
    #[serde(default)]
    pub done: u64,
    /// Items that failed.
    #[serde(default)]
    pub failed: u64,
    /// Items that were cancelled.
    #[serde(default)]
    pub cancelled: u64,
    /// Items that agents have claimed. The brain's file has here what it released, claimed or not.
    #[serde(default)]
    pub running: u64,
    /// Items that are released and that nobody has claimed.
    #[serde(default)]
    pub queued: u64,
    /// Items that wait for dependencies.
    #[serde(default)]
    pub waiting: u64,
    /// Items whose failed attempt is to be followed by another.
    #[serde(default)]
    pub retry: u64,
    /// Why it has no items, or none that run.
    #[serde(default)]
    pub problem: Option<String>,
    /// Tasks that it waits for.
    #[serde(default)]
    pub depends_on: Vec<String>,
    /// Of those, the tasks of which each item waits for the same item alone.
    #[serde(default)]
    pub per_item: Vec<String>,
}

/// What a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BatchState {
    /// The brain has not taken it up yet.
    Submitted,
    /// Its tasks go through the lanes.
    Running,
    /// Running, and nothing new is released until an operator says so.
    Held,
    /// Over, all done.
    Complete,
    /// Over, with failures.
    Failed,
    /// Over, by an operator.
    Cancelled,
}

impl BatchState {
    /// As it is written in JSON and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            BatchState::Submitted => "submitted",
            BatchState::Running => "running",
            BatchState::Held => "held",
            BatchState::Complete => "complete",
            BatchState::Failed => "failed",
            BatchState::Cancelled => "cancelled",
        }
    }

    /// Nothing of it will happen any more, unless an operator wants it.
    pub fn is_over(self) -> bool {
        match self {
            BatchState::Complete | BatchState::Failed | BatchState::Cancelled => true,
            BatchState::Submitted | BatchState::Running | BatchState::Held => false,
        }
    }
}

/// The id of a batch's `_plan` task.
pub fn plan_task_id(batch: &str) -> TaskId {
    TaskId::derive(batch, PLAN_TASK, None)
}

/// One batch; none where there is none of that id.
pub fn batch(rig: &Rig, id: &str) -> Result<Option<Batch>> {
    if !rig.dir(Place::Complete(id)).is_dir() && !rig.is_archived(id) {
        return Ok(None);
    }
    Active::read(rig)?.batch(rig, id)
}

/// The ids of all batches, archived or not, the newest last.
pub(crate) fn ids(rig: &Rig) -> Result<Vec<String>> {
    // The lanes first: a batch that is archived in between is seen twice, not missed.
    let mut ids = rig.subdirs(Lane::Complete)?;
    ids.extend(rig.archived_batches()?);
    ids.sort_unstable();
    ids.dedup();
    ids.retain(|id| id != RIG_BATCH);
    ids.sort_by(|a, b| stamp(a).cmp(stamp(b)));
    Ok(ids)
}

/// `_plan` files in the brain's queue and hands.
pub(crate) struct Active {
    queued: Vec<FileName>,
    processing: Vec<FileName>,
    /// Tasks that somebody has claimed, by batch and task of its plan.
    claimed: BTreeMap<(String, String), u64>,
}

impl Active {
    pub(crate) fn read(rig: &Rig) -> Result<Active> {
        // The queue first: a plan that moves in between is seen twice, not missed.
        let queued = rig.list(Place::Queue(Class::Brain))?.names;
        let processing = rig.list(Place::Processing(BRAIN))?.names;
        let mut claimed = BTreeMap::new();
        for owner in rig.subdirs(Lane::Processing)? {
            let place = Place::Processing(&owner);
            for name in rig.list(place)?.names {
                // One that has moved on, or cannot be read, is not known to be anybody's.
                if let Ok(Some(spec)) = claim::peek(rig, place, &name) {
                    *claimed.entry((spec.batch, spec.task)).or_default() += 1;
                }
            }
        }
        Ok(Active {
            queued,
            processing,
            claimed,
        })
    }

    /// The ids of `_plan` files among `batches`, which are no tasks to count.
    pub(crate) fn plan_ids(&self, batches: &[String]) -> BTreeSet<TaskId> {
        let held: BTreeSet<TaskId> = self
            .queued
            .iter()
            .chain(&self.processing)
            .map(|name| name.id)
            .collect();
        batches
            .iter()
            .map(|id| plan_task_id(id))
            .filter(|id| held.contains(id))
            .collect()
    }

    pub(crate) fn is_active(&self, batch: &str) -> bool {
        let id = plan_task_id(batch);
        self.queued
            .iter()
            .chain(&self.processing)
            .any(|name| name.id == id)
    }

    /// Which of the released tasks somebody has claimed: the brain's count has both as one.
    fn tell_apart(&self, batch: &mut Batch) {
        for task in &mut batch.tasks {
            let key = (batch.id.clone(), task.id.clone());
            let claimed = self.claimed.get(&key).copied().unwrap_or_default();
            let released = task.running;
            // What has ended since the brain counted is neither.
            task.running = claimed;
            task.queued = released.saturating_sub(claimed);
        }
        batch.running = batch.tasks.iter().map(|task| task.running).sum();
        let over = batch.done + batch.failed + batch.cancelled;
        let left = batch.total.saturating_sub(over + batch.running);
        let queued: u64 = batch.tasks.iter().map(|task| task.queued).sum();
        batch.queued = queued.min(left);
    }

    /// All that is known of a batch; none where it has no `_plan` file anywhere.
    pub(crate) fn batch(&self, rig: &Rig, id: &str) -> Result<Option<Batch>> {
        let (brains, problem) = match BrainsCount::read(rig, id) {
            Ok(brains) => (brains, None),
            Err(error) => (None, Some(error.to_string())),
        };
        let plan_id = plan_task_id(id);
        let find = |names: &[FileName]| names.iter().find(|name| name.id == plan_id).copied();
        let (state, place, name) = if let Some(name) = find(&self.processing) {
            let held = rig.brain_dir().join("held").join(id).exists();
            let state = if held {
                BatchState::Held
            } else {
                BatchState::Running
            };
            (state, Place::Processing(BRAIN), name)
        } else if let Some(name) = find(&self.queued) {
            (BatchState::Submitted, Place::Queue(Class::Brain), name)
        } else {
            // A batch that is over does not change, so the brain's last count stands; the lanes
            // of old batches are not read again for each display.
            if let Some(brains) = &brains
                && brains.state.is_over()
            {
                return Ok(Some(brains.clone().into_batch(brains.state)));
            }
            let lanes = [
                (BatchState::Complete, Place::Complete(id)),
                (BatchState::Failed, Place::Failed(id)),
                (BatchState::Cancelled, Place::Cancelled(id)),
            ];
            let mut found = None;
            for (state, place) in lanes {
                if let Some(name) = find(&rig.list(place)?.names) {
                    found = Some((state, place, name));
                    break;
                }
            }
            match found {
                Some(found) => found,
                None => return Ok(None),
            }
        };
        let mut batch = match brains {
            Some(brains) => brains.into_batch(state),
            None => match claim::peek(rig, place, &name) {
                Ok(Some(spec)) => from_spec(id, state, spec),
                Ok(None) | Err(_) => unread(id, state),
            },
        };
        batch.done = count(rig, Place::Complete(id), plan_id)?;
        batch.failed = count(rig, Place::Failed(id), plan_id)?;
        batch.cancelled = count(rig, Place::Cancelled(id), plan_id)?;
        self.tell_apart(&mut batch);
        batch.problem = problem;
        batch.total = batch.total.max(batch.done + batch.failed + batch.cancelled);
        Ok(Some(batch))
    }
}

/// `brain/batches/<batch>.json`. Keys that a later brain adds are left out.
#[derive(Clone, Debug, Deserialize)]
struct BrainsCount {
    id: String,
    plan: String,
    #[serde(default)]
    plan_dir: Option<String>,
    #[serde(default)]
    batch_dir: Option<String>,
    #[serde(default)]
    submitted: Option<Timestamp>,
    state: BatchState,
    #[serde(default)]
    tasks: Vec<PlanTask>,
    #[serde(default)]
    total: u64,
    #[serde(default)]
    done: u64,
    #[serde(default)]
    failed: u64,
    #[serde(default)]
    cancelled: u64,
}

impl BrainsCount {
    fn read(rig: &Rig, id: &str) -> Result<Option<BrainsCount>> {
        let path = rig.view_path(id);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let view = rig.archive_header(id)?.and_then(|header| header.view);
                let Some(view) = view else { return Ok(None) };
                view.to_string().into_bytes()
            }
            Err(error) => {
                return Err(SnapshotError::Unreadable {
                    path,
                    why: error.to_string(),
                });
            }
        };
        let count = serde_json::from_slice(&bytes).map_err(|error| SnapshotError::Unreadable {
            path,
            why: error.to_string(),
        })?;
        Ok(Some(count))
    }

    fn into_batch(self, state: BatchState) -> Batch {
        Batch {
            id: self.id,
            plan: self.plan,
            state,
            done: self.done,
            total: self.total,
            failed: self.failed,
            cancelled: self.cancelled,
            running: 0,
            queued: 0,
            submitted: self.submitted,
            plan_dir: self.plan_dir,
            batch_dir: self.batch_dir,
            tasks: self.tasks,
            problem: None,
        }
    }
}

fn from_spec(id: &str, state: BatchState, spec: TaskSpec) -> Batch {
    Batch {
        plan: spec.plan,
        submitted: Some(spec.created),
        plan_dir: Some(spec.plan_dir.display().to_string()),
        batch_dir: Some(spec.batch_dir.display().to_string()),
        ..unread(id, state)
    }
}

fn unread(id: &str, state: BatchState) -> Batch {
    Batch {
        id: id.to_owned(),
        plan: plan_of(id).to_owned(),
        state,
        done: 0,
        total: 0,
        failed: 0,
        cancelled: 0,
        running: 0,
        queued: 0,
        submitted: None,
        plan_dir: None,
        batch_dir: None,
        tasks: Vec::new(),
        problem: None,
    }
}

fn count(rig: &Rig, place: Place<'_>, plan_id: TaskId) -> Result<u64> {
    Ok(rig
        .list(place)?
        .names
        .iter()
        .filter(|name| name.id != plan_id)
        .count() as u64)
}

/// The plan's name, with which a batch id starts.
pub(crate) fn plan_of(id: &str) -> &str {
    id.strip_suffix(stamp(id))
        .unwrap_or(id)
        .trim_end_matches('-')
}

/// `yyyymmdd-hhmmss-xxxx` of a batch id; all of one that is made otherwise.
fn stamp(id: &str) -> &str {
    let at = id.rmatch_indices('-').nth(2).map_or(0, |(at, _)| at + 1);
    &id[at..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_id_ends_with_its_time() {
        assert_eq!(
            stamp("video-tags-20260207-214530-ab2c"),
            "20260207-214530-ab2c"
        );
        assert_eq!(stamp("odd"), "odd");
        assert_eq!(
            unread("video-tags-20260207-214530-ab2c", BatchState::Failed).plan,
            "video-tags"
        );
    }
}
