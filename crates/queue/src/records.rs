//! Reading and writing the records of attempts.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use crate::error::{QueueError, Result};
use crate::format;
use crate::name::TaskId;
use crate::record::AttemptRecord;
use crate::rig::Rig;
use crate::submit::{Durability, replace_file, sync_files};

/// Writes the record of an attempt that has none. A crash leaves it whole, torn (which reads as
/// absent) or absent. It is durable after [`commit`]. `false`: there is one already.
pub fn write_new(rig: &Rig, record: &AttemptRecord) -> Result<bool> {
    let path = rig.record_path(&record.batch, record.id, record.attempt);
    let mut file = match File::options().write(true).create_new(true).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(QueueError::io("create", &path)(error)),
    };
    file.write_all(&format::seal(record))
        .map_err(QueueError::io("write", &path))?;
    Ok(true)
}

/// Writes the record of an attempt over whatever is there: a torn one, or one without the peaks
/// that only the agent can measure.
pub fn replace(rig: &Rig, record: &AttemptRecord) -> Result<()> {
    let path = rig.record_path(&record.batch, record.id, record.attempt);
    replace_file(&path, &format::seal(record), false)
}

/// The record of an attempt; torn counts as absent.
pub fn read(rig: &Rig, batch: &str, id: TaskId, attempt: u32) -> Result<Option<AttemptRecord>> {
    let path = rig.record_path(batch, id, attempt);
    match fs::read(&path) {
        Ok(bytes) => Ok(format::unseal(&bytes).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(QueueError::io("read", &path)(error)),
    }
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
pub fn commit(rig: &Rig, attempts: &[(String, TaskId, u32)], durability: Durability) -> Result<()> {
    if !durability.syncs() || attempts.is_empty() {
        return Ok(());
    }
    let mut batches: Vec<&str> = attempts.iter().map(|(batch, ..)| batch.as_str()).collect();
    batches.sort_unstable();
    batches.dedup();
    for batch in batches {
        let paths: Vec<PathBuf> = attempts
            .iter()
            .filter(|(of, ..)| of == batch)
            .map(|(_, id, attempt)| rig.record_path(batch, *id, *attempt))
            .collect();
        sync_files(&rig.attempts_dir(batch), &paths, paths.len())?;
    }
    Ok(())
}
