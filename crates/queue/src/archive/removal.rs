//! Removing: what is left of an archived batch in the lanes, and archives themselves.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::build::remove_tree;
use super::{Archive, Header, Kind, Lock};
use crate::claim;
use crate::error::{QueueError, Result};
use crate::lane::Lane;
use crate::rig::{Place, Renamed, Rig, sync_dir};
use crate::submit::Durability;

/// What was removed from the lanes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removal {
    /// Files.
    pub files: u64,
    /// What lay there and is not in the archive: it was moved to quarantine.
    pub odd: Vec<PathBuf>,
}

/// Archived batches of which something is left in the lanes: whoever archived them died.
///
/// # Errors
///
/// A directory that cannot be read.
pub fn leftovers(rig: &Rig) -> Result<Vec<String>> {
    let mut left = BTreeSet::new();
    for parent in parents(rig) {
        left.extend(rig.subdirs_of(&parent)?);
    }
    left.retain(|batch| rig.is_archived(batch));
    Ok(left.into_iter().collect())
}

/// The directories that hold one for each batch.
fn parents(rig: &Rig) -> Vec<PathBuf> {
    let lanes = [
        Lane::Complete,
        Lane::Failed,
        Lane::Cancelled,
        Lane::Retry,
        Lane::Waiting,
    ];
    let mut parents: Vec<PathBuf> = lanes.map(|lane| rig.lane_dir(lane)).into();
    parents.push(rig.root().join("attempts"));
    parents
}

/// Removes from the lanes what is left of an archived batch: only files that the archive has.
/// Anything else that lies there is moved to quarantine. Also removes what was being made or removed
/// of the archive when somebody died.
///
/// # Errors
///
/// The batch is not archived or its archive is damaged, in which case nothing is removed; or the
/// disk refuses.
pub fn clear(rig: &Rig, _lock: &Lock, batch: &str) -> Result<Removal> {
    rig.writable()?;
    let mut removal = Removal::default();
    let Some(archive) = rig.archived(batch)? else {
        return Ok(removal);
    };
    let dirs = dirs_of(rig, &archive, batch);
    for dir in &dirs {
        rig.no_links(dir)?;
    }
    for row in &archive.rows {
        let path = row.path(rig, batch);
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(QueueError::io("stat", &path)(error)),
            Ok(meta) if meta.is_file() && meta.len() == row.length() => {
                fs::remove_file(&path).map_err(QueueError::io("remove", &path))?;
                removal.files += 1;
            }
            Ok(_) => {
                let why = "its batch is archived, and the archive has another content for it";
                put_aside(rig, &path, why, &mut removal)?;
            }
        }
        crate::crash_point!("archive.removing");
    }
    directories(rig, &dirs, &mut removal)?;
    let view = rig.view_path(batch);
    match fs::remove_file(&view) {
        Ok(()) => removal.files += 1,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(QueueError::io("remove", &view)(error)),
    }
    Ok(removal)
}

fn put_aside(rig: &Rig, path: &Path, why: &str, removal: &mut Removal) -> Result<()> {
    claim::quarantine(rig, path, why)?;
    removal.odd.push(path.to_owned());
    Ok(())
}

/// The directories of a batch, each behind those that lie in it.
fn dirs_of(rig: &Rig, archive: &Archive, batch: &str) -> Vec<PathBuf> {
    let expansions = archive.names_of(Kind::Expansion);
    let waiting = expansions.iter().map(|task| {
        let place = Place::Waiting { batch, task };
        rig.dir(place)
    });
    let parents = parents(rig).into_iter();
    waiting
        .chain(parents.map(|parent| parent.join(batch)))
        .collect()
}

/// The directories, empty by now but for unfinished writing.
fn directories(rig: &Rig, dirs: &[PathBuf], removal: &mut Removal) -> Result<()> {
    for dir in dirs {
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(QueueError::io("read", dir)(error)),
        };
        for entry in entries {
            let entry = entry.map_err(QueueError::io("read", dir))?;
            let path = entry.path();
            if entry.file_name().to_string_lossy().starts_with(".new-") {
                let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
                let gone = if is_dir {
                    fs::remove_dir_all(&path)
                } else {
                    fs::remove_file(&path)
                };
                gone.map_err(QueueError::io("remove", &path))?;
            } else {
                let why = "its batch is archived, and the archive does not have it";
                put_aside(rig, &path, why, removal)?;
            }
        }
        fs::remove_dir(dir).map_err(QueueError::io("remove", dir))?;
    }
    Ok(())
}

/// Removes an archive for good. `None`: there is none. What the plan wrote in its own folder stays,
/// and the key that it was submitted under: see [`keys::forget`](crate::keys::forget).
///
/// # Errors
///
/// The disk refuses: the archive is there whole, or gone.
pub fn remove(
    rig: &Rig,
    lock: &Lock,
    batch: &str,
    durability: Durability,
) -> Result<Option<Header>> {
    let Some(header) = rig.archive_header(batch)? else {
        return Ok(None);
    };
    // Else what is left in the lanes would be a batch again, and not a whole one.
    clear(rig, lock, batch)?;
    retire(rig, batch, durability)?;
    Ok(Some(header))
}

/// `archive/<batch>/` goes by one rename.
pub(super) fn retire(rig: &Rig, batch: &str, durability: Durability) -> Result<()> {
    let dir = rig.archive_dir();
    let old = dir.join(format!(".old-{batch}"));
    remove_tree(&old)?;
    match rig.rename_new(&dir.join(batch), &old)? {
        Renamed::Done => {}
        Renamed::Gone | Renamed::Exists => {
            return Err(QueueError::Untrusted {
                path: dir.join(batch),
                why: "another process changed it meanwhile, without the lock".to_owned(),
            });
        }
    }
    if durability.syncs() {
        rig.synced(sync_dir(&dir))?;
    }
    remove_tree(&old)
}

/// Removes what was being made or removed in `archive/` when somebody died: returns how many
/// archives that were.
///
/// # Errors
///
/// The disk refuses.
pub fn sweep(rig: &Rig, _lock: &Lock) -> Result<usize> {
    let dir = rig.archive_dir();
    let entries = fs::read_dir(&dir).map_err(QueueError::io("read", &dir))?;
    let mut removed = 0;
    for entry in entries {
        let entry = entry.map_err(QueueError::io("read", &dir))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(".new-") || name.starts_with(".old-") {
            remove_tree(&entry.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}
