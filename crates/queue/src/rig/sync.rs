//! Making things durable, and what follows where that fails.

use std::fs;
use std::io::ErrorKind::{QuotaExceeded, StorageFull};
use std::path::Path;

use super::Rig;
use crate::error::{QueueError, Result};

impl Rig {
    /// Refuses once an fsync has failed. After such a failure the kernel takes the pages for clean,
    /// so that the next fsync succeeds and says nothing.
    ///
    /// # Errors
    ///
    /// [`QueueError::ReadOnly`].
    pub fn writable(&self) -> Result<()> {
        match self.failed_sync.get() {
            None => Ok(()),
            Some(failed) => Err(QueueError::ReadOnly {
                root: self.root.clone(),
                failed: failed.clone(),
            }),
        }
    }

    /// The outcome of an fsync. One that failed is the last: see [`Rig::writable`]. A full disk
    /// alone is no such failure: it is said before anything is lost, and what follows is written
    /// anew.
    pub(crate) fn synced<T>(&self, outcome: Result<T>) -> Result<T> {
        if let Err(error) = &outcome
            && !matches!(error.io_kind(), None | Some(StorageFull | QuotaExceeded))
        {
            let _ = self.failed_sync.set(error.to_string());
        }
        outcome
    }
}

/// Makes a directory's entries survive a power cut.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    fs::File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(QueueError::io("fsync", path))
}
