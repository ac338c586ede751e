//! Taking a batch out of the archive: its files lie as they did.

use std::fs;
use std::path::Path;

use super::removal::retire;
use super::{Kind, Lock, Within};
use crate::error::{QueueError, Result};
use crate::rig::{Place, Rig};
use crate::submit::{Durability, replace_file};

/// Puts every file of an archived batch back where it was, then removes the archive: it can be
/// opened again. `false`: it is not archived. After a crash it is archived still, and what was put
/// back counts for nothing.
///
/// # Errors
///
/// The archive is damaged or the disk refuses: the batch is archived still.
pub fn take_out(rig: &Rig, _lock: &Lock, batch: &str, durability: Durability) -> Result<bool> {
    rig.writable()?;
    let Some(archive) = rig.archived(batch)? else {
        return Ok(false);
    };
    rig.prepare_batch(batch)?;
    for task in archive.names_of(Kind::Expansion) {
        rig.make_place(Place::Waiting { batch, task: &task })?;
    }
    for row in &archive.rows {
        let path = row.path(rig, batch);
        match row.within {
            Within::Own => link(&archive.path_of(row), &path)?,
            Within::Tasks | Within::Output => replace_file(&path, &archive.content(row)?, false)?,
        }
    }
    if let Some(view) = &archive.header.view {
        let text = serde_json::to_vec(view).expect("it was read from JSON");
        replace_file(&rig.view_path(batch), &text, false)?;
    }
    if durability.syncs() {
        let root = fs::File::open(rig.root()).map_err(QueueError::io("open", rig.root()))?;
        let synced = rustix::fs::syncfs(&root);
        rig.synced(synced.map_err(QueueError::errno("syncfs", rig.root())))?;
    }
    crate::crash_point!("archive.taking_out");
    retire(rig, batch, durability)?;
    Ok(true)
}

/// A second name for a large output.
fn link(from: &Path, to: &Path) -> Result<()> {
    match fs::hard_link(from, to) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(QueueError::io("link", to)),
    }
}
