//! What can be wrong with a rig directory at rest, and what of it can be mended safely.
//!
//! [`look`] only reads. It says the truth of a rig in which nothing runs; of one that works it also
//! shows what is in the middle of a move. [`Finding::mend`] is for who holds the lock of every
//! component. Nothing is ever deleted but unfinished writing; what cannot be believed goes to
//! `quarantine/`.

mod look;

use std::fs;
use std::path::PathBuf;

use serde::Serialize;

use crate::archive;
use crate::claim::{self, Moved, Opened};
use crate::error::{QueueError, Result};
use crate::lane::Move;
use crate::name::FileName;
use crate::records;
use crate::rig::{Place, Rig};
use crate::submit::replace_file;

pub use look::look;

/// Whoever has the archive's lock beside a repair is `rigor clean`.
const ARCHIVE_PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// Something that must not be.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// What must hold and does not.
    pub check: Check,
    /// Where.
    pub path: PathBuf,
    /// What is wrong there, in words.
    pub what: String,
    /// What is to be done about it.
    pub remedy: String,
    /// Whether [`Finding::mend`] does that.
    pub safe: bool,
    #[serde(skip)]
    mend: Option<Mend>,
}

/// What must hold in a rig at rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// A lane is a directory of the rig.
    Lane,
    /// Nothing unfinished is left lying.
    Litter,
    /// A task file has a task file's name.
    Name,
    /// A task file can be read and trusted.
    Content,
    /// A task file lies where its content belongs.
    Place,
    /// A task is in one lane.
    OneLane,
    /// An attempt that has a record is not in `processing/` any more.
    Unfinished,
    /// Who is in `retry`, `complete` or `failed` has the record that says so.
    Record,
    /// Attempts belong to a batch that is there.
    Attempts,
    /// An archive is whole, and nothing of its batch is left in the lanes.
    Archive,
    /// No sequence number is in use that is not reserved.
    Sequence,
    /// A signal is a file.
    Signal,
}

#[derive(Debug)]
enum Mend {
    Remove,
    Quarantine,
    Finish { agent: String, name: FileName },
    Reserve { sequence: u64 },
    Clear { batch: String },
}

impl Finding {
    /// Mends it, as `remedy` says. `false`: it is not [`safe`](Finding::safe), or it has gone
    /// meanwhile. The caller holds the locks of the brain and of every agent.
    pub fn mend(&self, rig: &Rig) -> Result<bool> {
        match &self.mend {
            None => Ok(false),
            Some(Mend::Remove) => {
                let meta = match fs::symlink_metadata(&self.path) {
                    Ok(meta) => meta,
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
                    Err(error) => return Err(QueueError::io("stat", &self.path)(error)),
                };
                if meta.is_dir() {
                    fs::remove_dir_all(&self.path)
                } else {
                    fs::remove_file(&self.path)
                }
                .map_err(QueueError::io("remove", &self.path))?;
                Ok(true)
            }
            Some(Mend::Quarantine) => {
                claim::quarantine(rig, &self.path, &self.what)?;
                Ok(true)
            }
            Some(Mend::Clear { batch }) => {
                let lock = archive::Lock::take(rig, ARCHIVE_PATIENCE)?;
                archive::clear(rig, &lock, batch)?;
                Ok(true)
            }
            Some(Mend::Finish { agent, name }) => finish(rig, agent, name),
            Some(Mend::Reserve { sequence }) => {
                replace_file(&self.path, format!("{sequence}\n").as_bytes(), true)?;
                Ok(true)
            }
        }
    }
}

/// Makes the move that a record asks for and that a crash cut off.
fn finish(rig: &Rig, agent: &str, name: &FileName) -> Result<bool> {
    let Opened::Held(held) = claim::open_in(rig, Place::Processing(agent), name)? else {
        return Ok(false);
    };
    let Some(record) = records::read(rig, &held.spec.batch, name.id, name.attempt)? else {
        return Ok(false);
    };
    let step = Move::after(&record.outcome);
    // Where another lane is a link, this one is mended all the same.
    rig.make_place(match step {
        Move::Complete => Place::Complete(&held.spec.batch),
        Move::Fail => Place::Retry(&held.spec.batch),
        _ => Place::Queue(held.spec.class),
    })?;
    let attempt = (record.batch.clone(), record.id, record.attempt);
    records::commit(rig, &[attempt], crate::submit::Durability::Strict)?;
    Ok(held.end(rig, step)? == Moved::Done)
}
