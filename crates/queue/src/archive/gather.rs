//! What there is of a batch that is over.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use jiff::Timestamp;
use rustix::fs::FileType;

use super::Kind;
use crate::error::Result;
use crate::lane::Lane;
use crate::name::{FileName, TaskId};
use crate::records;
use crate::rig::{BRAIN, PLAN_TASK, Place, RIG_BATCH, Rig, is_safe_name};
use crate::submit;
use crate::task::Class;

/// A batch that is over and lies in the lanes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Over {
    /// The batch.
    pub batch: String,
    /// When it ended.
    pub ended: Timestamp,
}
/// The batches that are over and not archived: their plan's file lies in a lane that ends a task.
///
/// # Errors
///
/// A directory that cannot be read.
pub fn over(rig: &Rig) -> Result<Vec<Over>> {
    let active = plans_at_work(rig)?;
    let mut found = Vec::new();
    for batch in rig.subdirs(Lane::Complete)? {
        let plan = plan_task(&batch);
        if batch == RIG_BATCH || active.contains(&plan) || rig.is_archived(&batch) {
            continue;
        }
        for place in ends(&batch) {
            let Some((name, _)) = rig.find(place, &plan.to_string())?.pop() else {
                continue;
            };
            if let Some(ended) = ended(rig, place, &name)? {
                let batch = batch.clone();
                found.push(Over { batch, ended });
            }
            break;
        }
    }
    Ok(found)
}

fn plan_task(batch: &str) -> TaskId {
    TaskId::derive(batch, PLAN_TASK, None)
}

fn ends(batch: &str) -> [Place<'_>; 3] {
    [
        Place::Complete(batch),
        Place::Failed(batch),
        Place::Cancelled(batch),
    ]
}

/// Ids of what the brain has, or is about to take up.
fn plans_at_work(rig: &Rig) -> Result<BTreeSet<TaskId>> {
    // The queue first: a plan that moves in between is seen twice, not missed.
    let queued = rig.list(Place::Queue(Class::Brain))?.names;
    let held = rig.list(Place::Processing(BRAIN))?.names;
    Ok(queued.iter().chain(&held).map(|name| name.id).collect())
}

/// When the task of that file ended: as its record says, else when it came there.
fn ended(rig: &Rig, place: Place<'_>, name: &FileName) -> Result<Option<Timestamp>> {
    let (Place::Complete(batch) | Place::Failed(batch) | Place::Cancelled(batch)) = place else {
        return Ok(None);
    };
    let record = records::read(rig, batch, name.id, name.attempt)?;
    let said = record.map(|record| record.ended);
    Ok(said.or_else(|| rig.since(place, name)))
}
/// All that there is of a batch.
#[derive(Debug)]
pub(super) struct Gathered {
    pub(super) lane: Lane,
    pub(super) ended: Timestamp,
    pub(super) tasks: Vec<(Kind, FileName, PathBuf)>,
    /// Folders and their manifests.
    pub(super) expansions: Vec<(String, PathBuf)>,
    /// Files of `attempts/<batch>/`, by the task that their name says, else none.
    pub(super) attempts: BTreeMap<Option<TaskId>, Vec<String>>,
}

/// The inner error says why a batch is left as it is.
pub(super) type Refusable<T> = Result<std::result::Result<T, String>>;

/// What there is of a batch, or why it must not be touched.
pub(super) fn gather(rig: &Rig, batch: &str) -> Refusable<Gathered> {
    let plan = plan_task(batch);
    if plans_at_work(rig)?.contains(&plan) {
        return Ok(Err("it is not over".to_owned()));
    }
    let mut tasks = Vec::new();
    let mut closed = None;
    for place in ends(batch) {
        let listing = rig.list(place)?;
        if let Some(odd) = listing.foreign.first() {
            let odd = odd.display();
            return Ok(Err(format!("{odd} is no task file: see `rigor fsck`")));
        }
        for name in listing.names {
            if name.id == plan {
                closed = ended(rig, place, &name)?.map(|at| (place.lane(), at));
            }
            if let Some(kind) = Kind::of(place.lane()) {
                tasks.push((kind, name, rig.path(place, &name)));
            }
        }
    }
    let Some((lane, ended)) = closed else {
        return Ok(Err("its plan has not ended".to_owned()));
    };
    let mut over: BTreeSet<TaskId> = tasks.iter().map(|(_, name, _)| name.id).collect();
    if over.len() != tasks.len() {
        return Ok(Err(
            "a task of it is in two lanes: see `rigor fsck`".to_owned()
        ));
    }
    if rig.count(Place::Retry(batch))? > 0 {
        return Ok(Err("it has tasks in retry".to_owned()));
    }
    // They count as failed, and stay where they are.
    let quarantined = rig.list(Place::Quarantine)?.names;
    over.extend(quarantined.iter().map(|name| name.id));
    let mut expansions = Vec::new();
    for task in rig.expansions(batch)? {
        let place = Place::Waiting { batch, task: &task };
        if rig.count(place)? > 0 {
            return Ok(Err(format!("{task} has tasks that wait")));
        }
        let Some(manifest) = submit::manifest(rig, batch, &task)? else {
            return Ok(Err(format!("{task} has no manifest: see `rigor fsck`")));
        };
        // Wherever else one lay, it would be in a lane that is at work, or lost.
        if let Some(entry) = manifest.iter().find(|entry| !over.contains(&entry.id)) {
            let id = entry.id;
            return Ok(Err(format!("task {id} of {task} has not ended")));
        }
        let path = rig.dir(place).join(submit::MANIFEST);
        expansions.push((task, path));
    }
    Ok(attempts(rig, batch)?.map(|attempts| Gathered {
        lane,
        ended,
        tasks,
        expansions,
        attempts,
    }))
}

fn attempts(rig: &Rig, batch: &str) -> Refusable<BTreeMap<Option<TaskId>, Vec<String>>> {
    let mut found: BTreeMap<Option<TaskId>, Vec<String>> = BTreeMap::new();
    let mut odd = None;
    rig.each_entry(&rig.attempts_dir(batch), |name, kind| match name.to_str() {
        // Unfinished writing: removed with the rest.
        Some(name) if name.starts_with(".new-") => {}
        Some(name) if kind == FileType::RegularFile && is_safe_name(name) => {
            let id = name.split_once('.').and_then(|(id, _)| id.parse().ok());
            found.entry(id).or_default().push(name.to_owned());
        }
        _ => odd = Some(name.to_owned()),
    })?;
    if let Some(odd) = odd {
        let odd = rig.attempts_dir(batch).join(odd);
        let odd = odd.display();
        return Ok(Err(format!(
            "{odd} is no file of an attempt: see `rigor fsck`"
        )));
    }
    for names in found.values_mut() {
        names.sort_unstable();
    }
    Ok(Ok(found))
}
