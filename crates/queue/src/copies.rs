//! One task, two files: somebody has copied one. No copy runs.
//!
//! Nothing in the protocol copies a task file, so of two files of one task one is a mistake of
//! whoever made it. The latest attempt counts, and of equal ones the file that is further on in a
//! task's life.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::error::{QueueError, Result};
use crate::lane::Lane;
use crate::name::FileName;
use crate::record::Outcome;
use crate::records;
use crate::rig::{Place, Rig};
use crate::task::Class;

/// The names of those who claim are read anew at least this often.
const READ_EVERY: Duration = Duration::from_secs(1);

/// Where else a task is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// Its lane there.
    pub lane: Lane,
    /// Its name there.
    pub name: FileName,
}

/// The directories of those who claim, as they were read last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Claimants(Arc<Mutex<Option<Read>>>);

#[derive(Debug)]
struct Read {
    at: Instant,
    modified: SystemTime,
    dirs: Arc<[PathBuf]>,
}

/// The other file of the task of a batch whose file `name` lies at `path`: of this attempt or a
/// later one, in any lane that a task runs or ends in. `None`: that file is the only one.
///
/// Lanes are listed, in the order of a task's life, so that one that moves on meanwhile is met; and
/// twice, as one that is taken back moves against it. For when there is a reason to ask.
pub fn other_file(rig: &Rig, batch: &str, name: &FileName, path: &Path) -> Result<Option<Other>> {
    for _ in 0..2 {
        let agents = rig.subdirs(Lane::Processing)?;
        let queues = Class::ALL.map(Place::Queue).into_iter();
        let claimed = agents.iter().map(|agent| Place::Processing(agent));
        let ended = [
            Place::Retry(batch),
            Place::Complete(batch),
            Place::Failed(batch),
            Place::Cancelled(batch),
        ];
        for place in queues.chain(claimed).chain(ended) {
            let names = rig.list(place)?.names.into_iter();
            let same = |other: &FileName| {
                other.id == name.id
                    && other.attempt >= name.attempt
                    && rig.path(place, other) != path
            };
            if let Some(name) = names.into_iter().find(same) {
                let lane = place.lane();
                return Ok(Some(Other { lane, name }));
            }
        }
    }
    Ok(None)
}

/// Why a queued file must not be claimed although it can be trusted: the task is claimed or over
/// under that attempt already. Costs a claim a call for the record, one for `processing/` and one
/// for each agent; lanes are listed only where the attempt has a record.
pub(crate) fn is_copy(
    rig: &Rig,
    batch: &str,
    name: &FileName,
    path: &Path,
) -> Result<Option<String>> {
    // First who runs: a record is there before a task leaves `processing/`.
    let text = name.to_string();
    for dir in rig.claimants().dirs(rig)?.iter() {
        if fs::symlink_metadata(dir.join(&text)).is_ok() {
            let agent = dir.file_name().unwrap_or_default().to_string_lossy();
            return Ok(Some(format!(
                "{agent} has claimed this attempt already: this file is a copy"
            )));
        }
    }
    match records::read(rig, batch, name.id, name.attempt)? {
        // A cancellation that did not come to its move leaves the record behind.
        None => return Ok(None),
        Some(record) if matches!(record.outcome, Outcome::Cancelled { .. }) => return Ok(None),
        Some(_) => {}
    }
    // Of a claim that a power cut has undone there is a record, and no other file: it runs again.
    let other = other_file(rig, batch, name, path)?;
    Ok(other.map(|other| {
        format!(
            "the task is in {} as attempt {} too, which counts: this file is a copy",
            other.lane, other.name.attempt
        )
    }))
}

impl Claimants {
    /// `processing/<agent>/` of every agent that ever ran here, the brain among them.
    fn dirs(&self, rig: &Rig) -> Result<Arc<[PathBuf]>> {
        let lane = rig.lane_dir(Lane::Processing);
        let modified = fs::symlink_metadata(&lane)
            .and_then(|meta| meta.modified())
            .map_err(QueueError::io("stat", &lane))?;
        let now = Instant::now();
        // A poisoned lock guards a value that is replaced whole: it is as good as ever.
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(read) = &*last
            && read.modified == modified
            && now - read.at < READ_EVERY
        {
            return Ok(read.dirs.clone());
        }
        let names = rig.subdirs(Lane::Processing)?.into_iter();
        let dirs: Arc<[PathBuf]> = names.map(|name| lane.join(name)).collect();
        *last = Some(Read {
            at: now,
            modified,
            dirs: dirs.clone(),
        });
        Ok(dirs)
    }
}
