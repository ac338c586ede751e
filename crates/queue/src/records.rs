//! Reading and writing the records of attempts.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::error::{QueueError, Result};
use crate::format;
use crate::name::{FileName, TaskId};
use crate::record::{AttemptRecord, RaisedNeed};
use crate::rig::Rig;
use crate::small;
use crate::submit::{Durability, replace_file, sync_files};
use crate::task::TaskSpec;

/// Writes the record of an attempt that has none. A crash leaves it whole, torn (which reads as
/// absent) or absent. It is durable after [`commit`]. `false`: there is one already.
pub fn write_new(rig: &Rig, record: &AttemptRecord) -> Result<bool> {
    let path = rig.record_path(&record.batch, record.id, record.attempt);
    let new = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let mut file = match rig.open_own(&path, new)? {
        Ok(file) => File::from(file),
        Err(Errno::EXIST) => return Ok(false),
        Err(errno) => return Err(QueueError::errno("create", &path)(errno)),
    };
    file.write_all(&format::seal(record))
        .map_err(QueueError::io("write", &path))?;
    Ok(true)
}

/// Writes the record of an attempt over whatever is there: a torn one, or one without the peaks
/// that only the agent can measure.
pub fn replace(rig: &Rig, record: &AttemptRecord) -> Result<()> {
    let path = rig.record_path(&record.batch, record.id, record.attempt);
    rig.no_links(&rig.attempts_dir(&record.batch))?;
    replace_file(&path, &format::seal(record), false)
}

/// The record of an attempt, archived or not; torn counts as absent, and so does what is no file of
/// a sane size.
///
/// # Errors
///
/// [`QueueError::Untrusted`] for one that is whole and cannot be understood: of another version, or
/// with fields that this build does not know. The attempt has a result.
pub fn read(rig: &Rig, batch: &str, id: TaskId, attempt: u32) -> Result<Option<AttemptRecord>> {
    let path = rig.record_path(batch, id, attempt);
    match small::read_own(rig, &path)? {
        Ok((bytes, _)) => understood(&bytes, &path),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let Some(archive) = rig.archived(batch)? else {
                return Ok(None);
            };
            let bytes = archive.attempt(&format!("{id}.a{attempt}.json"))?;
            bytes.map_or(Ok(None), |bytes| understood(&bytes, &path))
        }
        Err(error) => Err(QueueError::io("read", &path)(error)),
    }
}

fn understood(bytes: &[u8], path: &Path) -> Result<Option<AttemptRecord>> {
    match format::unseal(bytes) {
        Ok(record) => Ok(Some(record)),
        Err(why) if format::is_whole(bytes) => Err(QueueError::Untrusted {
            path: path.to_owned(),
            why,
        }),
        Err(_) => Ok(None),
    }
}

/// The need that stands in for the one of the task file, where the file's name is of another shape
/// than its content: that of the last record that raised it. `Ok(None)`: the content's own need
/// holds.
///
/// # Errors
///
/// [`QueueError::Untrusted`] for a name whose shape neither the content nor any record explains.
pub fn raised_need(rig: &Rig, spec: &TaskSpec, name: &FileName) -> Result<Option<RaisedNeed>> {
    if spec.shape() == name.shape {
        return Ok(None);
    }
    // An attempt that was lost since has a record without it, or none.
    for attempt in (1..name.attempt).rev() {
        let record = read(rig, &spec.batch, spec.id, attempt)?;
        let next = record
            .and_then(|record| record.gpu_memory)
            .and_then(|memory| memory.next);
        if let Some(need) = next.filter(|need| spec.raised_shape(*need) == name.shape) {
            return Ok(Some(need));
        }
    }
    Err(QueueError::Untrusted {
        path: rig.record_path(&spec.batch, spec.id, name.attempt),
        why: format!(
            "its name says that it needs {:08x}, its content {:08x}, and no record of an attempt that ran out of GPU memory explains that",
            name.shape.0,
            spec.shape().0
        ),
    })
}

/// All records of a task, first attempt first, up to `last`.
pub fn history(rig: &Rig, batch: &str, id: TaskId, last: u32) -> Result<Vec<AttemptRecord>> {
    let mut records = Vec::new();
    for attempt in 1..=last {
        records.extend(read(rig, batch, id, attempt)?);
    }
    Ok(records)
}

/// Makes the records of attempts that ended together survive a power cut: one commit for all.
///
/// After an error they must be written anew ([`replace`]) before the next try: an fsync that failed
/// once says nothing the second time.
pub fn commit(rig: &Rig, attempts: &[(String, TaskId, u32)], durability: Durability) -> Result<()> {
    if !durability.syncs() || attempts.is_empty() {
        return Ok(());
    }
    rig.writable()?;
    let mut batches: Vec<&str> = attempts.iter().map(|(batch, ..)| batch.as_str()).collect();
    batches.sort_unstable();
    batches.dedup();
    for batch in batches {
        let paths: Vec<PathBuf> = attempts
            .iter()
            .filter(|(of, ..)| of == batch)
            .map(|(_, id, attempt)| rig.record_path(batch, *id, *attempt))
            .collect();
        rig.synced(sync_files(&rig.attempts_dir(batch), &paths, paths.len()))?;
    }
    Ok(())
}
