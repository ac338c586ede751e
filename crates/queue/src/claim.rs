//! Claiming, and the moves of a task that somebody holds.
//!
//! Claim = lock, recheck existence, rename to `processing/<agent>/`. Whoever moves a file in
//! `processing/` holds its lock.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::copies;
use crate::error::{QueueError, Result};
use crate::format;
use crate::lane::{Holding, Lane, Move, transition};
use crate::lease::Lease;
use crate::name::{FileName, Shape};
use crate::rig::{Place, Renamed, Rig, sync_dir};
use crate::submit::replace_file;
use crate::task::{Class, TaskSpec};

/// The largest task file that is read, bytes: a plan of 1 MiB with its prompt files fits.
pub const TASK_FILE_MAX_BYTES: u64 = 8 * 1024 * 1024;

/// What came of looking at a candidate.
#[derive(Debug)]
pub enum Candidate {
    /// Locked, rechecked, read and valid. Dropping it unlocks it.
    Ready(Held),
    /// It is gone: claimed by another.
    LostRace,
    /// Another process looks at it right now.
    LockBusy,
    /// It could not be trusted and lies in quarantine.
    Quarantined {
        /// Why.
        reason: String,
    },
}

/// A task file whose lock this process holds, in a known place.
#[derive(Debug)]
pub struct Held {
    /// Its name.
    pub name: FileName,
    /// What it says.
    pub spec: Box<TaskSpec>,
    lane: Lane,
    path: PathBuf,
    lease: Lease,
}

/// What came of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// It is where it should be.
    Done,
    /// It was gone: somebody else moved it first.
    Gone,
}

/// Locks `queue/<class>/<name>`, rechecks that the path still names the locked file, reads and
/// checks it. A file that cannot be trusted, and a copy of one that is claimed or over, goes to
/// quarantine at once.
pub fn candidate(rig: &Rig, class: Class, name: &FileName) -> Result<Candidate> {
    match open_locked(rig, Place::Queue(class), name)? {
        Opened::Held(held) if held.spec.class != class => {
            let reason = format!(
                "it is of class {} and lies in queue/{class}",
                held.spec.class
            );
            quarantine(rig, &held.path, &reason)?;
            Ok(Candidate::Quarantined { reason })
        }
        Opened::Held(held) => match copies::is_copy(rig, &held.spec.batch, name, &held.path)? {
            Some(reason) => {
                quarantine(rig, &held.path, &reason)?;
                Ok(Candidate::Quarantined { reason })
            }
            None => Ok(Candidate::Ready(held)),
        },
        Opened::Gone => Ok(Candidate::LostRace),
        Opened::Busy => Ok(Candidate::LockBusy),
        Opened::Untrusted { reason } => Ok(Candidate::Quarantined { reason }),
    }
}

/// What came of opening a task file under its lock.
#[derive(Debug)]
pub enum Opened {
    /// Locked and valid.
    Held(Held),
    /// Not there.
    Gone,
    /// Locked by another process: a worker that still runs, or a claimant.
    Busy,
    /// Moved to quarantine.
    Untrusted {
        /// Why.
        reason: String,
    },
}

/// Locks and reads a task file in any place; the way to take up a file in `processing/` again.
pub fn open_in(rig: &Rig, place: Place<'_>, name: &FileName) -> Result<Opened> {
    open_locked(rig, place, name)
}

/// Reads a task file without locking it, for display. Nothing may be decided from it.
pub fn peek(rig: &Rig, place: Place<'_>, name: &FileName) -> Result<Option<TaskSpec>> {
    let path = rig.path(place, name);
    if let Some(archive) = rig.archive_of(place)? {
        let Some(bytes) = archive.task(place.lane(), name)? else {
            return Ok(None);
        };
        let spec = decode(&bytes, name);
        return spec
            .map(Some)
            .map_err(|why| QueueError::Untrusted { path, why });
    }
    match open_regular(rig, &path) {
        Ok(Regular::File(file)) => match read_spec(&file, &path, name)? {
            Ok(spec) => Ok(Some(spec)),
            Err(why) => Err(QueueError::Untrusted { path, why }),
        },
        Ok(Regular::Gone) => Ok(None),
        Ok(Regular::Refused(why)) => Err(QueueError::Untrusted { path, why }),
        Err(error) => Err(error),
    }
}

impl Held {
    /// Takes the task for `agent`: the rename that records the owner. `None`: it was moved first.
    ///
    /// A crash before the rename leaves it queued, a crash after it leaves it claimed with a free
    /// lock. `durable` makes the claim survive a power cut before this returns.
    pub fn claim(self, rig: &Rig, agent: &str, durable: bool) -> Result<Option<Held>> {
        let place = Place::Processing(agent);
        let (moved, name) = self.step(rig, Move::Claim, Holding::OWNER, place)?;
        match moved {
            Moved::Gone => Ok(None),
            Moved::Done => {
                if durable {
                    sync_claims(rig, agent)?;
                }
                Ok(Some(self.at(rig, place, name)))
            }
        }
    }

    /// Splits the claim into what the worker gets and what the agent remembers.
    pub fn into_parts(self) -> (FileName, Box<TaskSpec>, Lease) {
        (self.name, self.spec, self.lease)
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    // The moves below take `self`, so the lock goes after the rename.

    /// Processing -> complete. The attempt's record must be there (durable, unless the rig does
    /// without).
    pub fn complete(self, rig: &Rig) -> Result<Moved> {
        let place = Place::Complete(&self.spec.batch);
        Ok(self.step(rig, Move::Complete, Holding::OWNER, place)?.0)
    }

    /// Processing -> retry: the attempt failed, the brain decides what follows. The attempt's
    /// record must be there.
    pub fn fail(self, rig: &Rig) -> Result<Moved> {
        let place = Place::Retry(&self.spec.batch);
        Ok(self.step(rig, Move::Fail, Holding::OWNER, place)?.0)
    }

    /// Processing -> queue as the next attempt: this one was lost. Nothing of the attempt may
    /// still run. It is not charged.
    pub fn requeue(self, rig: &Rig) -> Result<FileName> {
        let place = Place::Queue(self.spec.class);
        let (_, next) = self.step(rig, Move::Requeue, Holding::OWNER, place)?;
        Ok(next)
    }

    /// Ends an attempt by the move that its record asks for ([`Move::after`]).
    pub fn end(self, rig: &Rig, step: Move) -> Result<Moved> {
        match step {
            Move::Complete => self.complete(rig),
            Move::Fail => self.fail(rig),
            _ => {
                let place = Place::Queue(self.spec.class);
                Ok(self.step(rig, step, Holding::OWNER, place)?.0)
            }
        }
    }

    /// Queue -> waiting: the task's batch is held. `task` is the folder of its expansion.
    pub fn withdraw(self, rig: &Rig, task: &str) -> Result<Moved> {
        let place = Place::Waiting {
            batch: &self.spec.batch,
            task,
        };
        Ok(self
            .step(rig, Move::Withdraw, Holding::BRAIN_LOCKED, place)?
            .0)
    }

    /// The batch of a plan ends: processing/brain -> complete, failed or cancelled. After an
    /// error it lies where it was.
    pub fn close(&self, rig: &Rig, step: Move) -> Result<Moved> {
        let batch = &self.spec.batch;
        let place = match step.rule().to {
            Lane::Failed => Place::Failed(batch),
            Lane::Cancelled => Place::Cancelled(batch),
            _ => Place::Complete(batch),
        };
        let holding = Holding {
            owner: true,
            ..Holding::BRAIN_LOCKED
        };
        Ok(self.step(rig, step, holding, place)?.0)
    }

    /// Waiting, queue or retry -> cancelled, as the attempt `under` (from retry the next one: the
    /// record of the last attempt stays). Held, so that it cannot be claimed meanwhile. The
    /// record with the reason must be there, under that attempt.
    pub fn cancel(self, rig: &Rig, under: &FileName) -> Result<Moved> {
        let place = Place::Cancelled(&self.spec.batch);
        let from = (self.lane, self.path.as_path());
        let (lane, next) = legal(Move::Cancel, from, &self.name, Holding::BRAIN_LOCKED)?;
        debug_assert_eq!((lane, next), (place.lane(), *under), "the record's attempt");
        rig.writable()?;
        move_file(rig, &self.path, &rig.path(place, &next))
    }

    /// A closed batch is opened again: -> processing/brain.
    pub fn reopen(self, rig: &Rig) -> Result<Option<Held>> {
        let place = Place::Processing(crate::rig::BRAIN);
        match self.step(rig, Move::Reopen, Holding::BRAIN_LOCKED, place)? {
            (Moved::Gone, _) => Ok(None),
            (Moved::Done, name) => Ok(Some(self.at(rig, place, name))),
        }
    }

    /// Any live lane -> quarantine, with the reason beside it.
    pub fn quarantine(self, rig: &Rig, reason: &str) -> Result<()> {
        quarantine(rig, &self.path, reason)
    }

    fn at(self, rig: &Rig, place: Place<'_>, name: FileName) -> Held {
        Held {
            name,
            lane: place.lane(),
            path: rig.path(place, &name),
            ..self
        }
    }

    /// That the mover holds the file's lock is this value; that it is who it must be, is the lock
    /// that a component holds for life.
    fn step(
        &self,
        rig: &Rig,
        step: Move,
        holding: Holding,
        to: Place<'_>,
    ) -> Result<(Moved, FileName)> {
        let (lane, next) = legal(step, (self.lane, &self.path), &self.name, holding)?;
        debug_assert_eq!(lane, to.lane(), "{step:?}");
        rig.writable()?;
        let target = rig.path(to, &next);
        let renamed = match step {
            // The file was opened a moment ago, and a claim is what all others wait for.
            Move::Claim => rig.rename_opened(&self.path, &target)?,
            _ => rig.rename_new(&self.path, &target)?,
        };
        Ok((moved(renamed, &self.path, &target)?, next))
    }
}

/// Makes the claims of `agent` so far survive a power cut.
pub fn sync_claims(rig: &Rig, agent: &str) -> Result<()> {
    rig.writable()?;
    rig.synced(sync_dir(&rig.dir(Place::Processing(agent))))
}

/// Waiting -> queue: the task's dependencies are met. No lock: nobody but the brain looks there.
pub fn release(rig: &Rig, batch: &str, task: &str, class: Class, name: &FileName) -> Result<Moved> {
    let from = Place::Waiting { batch, task };
    Ok(brain_move(rig, Move::Release, from, Place::Queue(class), name, None)?.0)
}

/// Retry -> queue, as the next attempt, charged.
pub fn retry(rig: &Rig, batch: &str, class: Class, name: &FileName) -> Result<Option<FileName>> {
    let (from, to) = (Place::Retry(batch), Place::Queue(class));
    let (moved, next) = brain_move(rig, Move::Retry, from, to, name, None)?;
    Ok((moved == Moved::Done).then_some(next))
}

/// Retry -> queue, as the next attempt, not charged, under the shape of its raised need (see
/// [`raised_need`](crate::records::raised_need)), which its record must hold already.
pub fn retry_raised(
    rig: &Rig,
    batch: &str,
    class: Class,
    name: &FileName,
    shape: Shape,
) -> Result<Option<FileName>> {
    let (from, to) = (Place::Retry(batch), Place::Queue(class));
    let (moved, next) = brain_move(rig, Move::Raise, from, to, name, Some(shape))?;
    Ok((moved == Moved::Done).then_some(next))
}

/// Retry -> failed: that attempt was the last.
pub fn give_up(rig: &Rig, batch: &str, name: &FileName) -> Result<Moved> {
    let (from, to) = (Place::Retry(batch), Place::Failed(batch));
    Ok(brain_move(rig, Move::GiveUp, from, to, name, None)?.0)
}

/// Failed or cancelled -> waiting as the next attempt: an operator wants it after all. What
/// was charged to its retries is forgotten.
pub fn revive(
    rig: &Rig,
    from: Place<'_>,
    batch: &str,
    task: &str,
    name: &FileName,
) -> Result<Option<FileName>> {
    let to = Place::Waiting { batch, task };
    rig.make_place(to)?;
    let (moved, next) = brain_move(rig, Move::Revive, from, to, name, None)?;
    Ok((moved == Moved::Done).then_some(next))
}

/// A move that the brain makes without the file's lock.
fn brain_move(
    rig: &Rig,
    step: Move,
    from: Place<'_>,
    to: Place<'_>,
    name: &FileName,
    shape: Option<Shape>,
) -> Result<(Moved, FileName)> {
    let source = rig.path(from, name);
    let (lane, mut next) = legal(step, (from.lane(), &source), name, Holding::BRAIN)?;
    debug_assert_eq!(lane, to.lane(), "{step:?}");
    next.shape = shape.unwrap_or(next.shape);
    rig.writable()?;
    Ok((move_file(rig, &source, &rig.path(to, &next))?, next))
}

fn legal(
    step: Move,
    (from, path): (Lane, &Path),
    name: &FileName,
    holding: Holding,
) -> Result<(Lane, FileName)> {
    transition(step, from, name, holding).map_err(|why| QueueError::Illegal {
        path: path.to_owned(),
        why,
    })
}

/// Moves whatever lies at `path` to quarantine, with the reason beside it. Nothing of it is opened or
/// followed.
pub fn quarantine(rig: &Rig, path: &Path, reason: &str) -> Result<()> {
    /// With what is added to it, a name of a file stays one (255 bytes).
    const NAME_MOST_BYTES: usize = 200;

    let dir = rig.dir(Place::Quarantine);
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let file = &file[..file.floor_char_boundary(NAME_MOST_BYTES)];
    let why = serde_json::json!({
        "from": path, "reason": reason, "at": jiff::Timestamp::now(),
    });
    for n in 0.. {
        let name = if n == 0 {
            file.to_owned()
        } else {
            format!("{file}.{n}")
        };
        let to = dir.join(&name);
        if fs::symlink_metadata(&to).is_ok() {
            continue;
        }
        // First the reason, whole: who is killed in between, or finds no room for it, leaves the file
        // where it is.
        let note = dir.join(format!("{name}.reason"));
        replace_file(&note, format!("{why}\n").as_bytes(), false)?;
        let renamed = rig.rename_new(path, &to);
        if matches!(renamed, Ok(Renamed::Exists)) {
            continue;
        }
        // Where another was faster the note is his.
        if !matches!(renamed, Ok(Renamed::Done)) && fs::symlink_metadata(&to).is_err() {
            let _ = fs::remove_file(&note);
        }
        return renamed.map(drop);
    }
    unreachable!("the loop ends by returning")
}

enum Regular {
    File(File),
    Gone,
    Refused(String),
}

/// Opens without following, blocking or creating; refuses what is not one regular file of ours.
fn open_regular(rig: &Rig, path: &Path) -> Result<Regular> {
    use rustix::io::Errno;
    let file = match rig.open_own(path, OFlags::RDONLY | OFlags::NONBLOCK)? {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT) => return Ok(Regular::Gone),
        Err(Errno::LOOP) => return Ok(Regular::Refused("it is a symbolic link".to_owned())),
        Err(Errno::NXIO) => return Ok(Regular::Refused("it is a socket or a device".to_owned())),
        Err(errno) => return Err(QueueError::errno("open", path)(errno)),
    };
    let meta = file.metadata().map_err(QueueError::io("stat", path))?;
    let refused = if !meta.is_file() {
        Some("it is not a regular file".to_owned())
    } else if meta.nlink() > 1 {
        Some(format!("it has {} names (hard links)", meta.nlink()))
    } else if meta.uid() != rig.owner() {
        Some(format!(
            "it belongs to uid {}, the rig to uid {}",
            meta.uid(),
            rig.owner()
        ))
    } else if meta.len() > TASK_FILE_MAX_BYTES {
        Some(format!(
            "it has {} bytes, the limit is {TASK_FILE_MAX_BYTES}",
            meta.len()
        ))
    } else {
        None
    };
    Ok(refused.map_or(Regular::File(file), Regular::Refused))
}

fn open_locked(rig: &Rig, place: Place<'_>, name: &FileName) -> Result<Opened> {
    let path = &rig.path(place, name);
    let untrusted = |reason: String| {
        quarantine(rig, path, &reason)?;
        Ok(Opened::Untrusted { reason })
    };
    let file = match open_regular(rig, path)? {
        Regular::File(file) => file,
        Regular::Gone => return Ok(Opened::Gone),
        Regular::Refused(reason) => return untrusted(reason),
    };
    let lease = match Lease::try_acquire(file).map_err(QueueError::io("lock", path))? {
        Ok(lease) => lease,
        Err(_file) => return Ok(Opened::Busy),
    };
    // The recheck: between open and lock another may have claimed, finished and even requeued it.
    let locked = lease
        .file()
        .metadata()
        .map_err(QueueError::io("stat", path))?;
    match fs::symlink_metadata(path) {
        Ok(now) if (now.dev(), now.ino()) == (locked.dev(), locked.ino()) => {}
        Ok(_) => return Ok(Opened::Gone),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Opened::Gone),
        Err(error) => return Err(QueueError::io("stat", path)(error)),
    }
    match read_spec(lease.file(), path, name)? {
        Ok(spec) => {
            let (name, path) = (*name, path.to_owned());
            Ok(Opened::Held(Held {
                name,
                spec: Box::new(spec),
                lane: place.lane(),
                path,
                lease,
            }))
        }
        Err(reason) => untrusted(reason),
    }
}

/// The specification in an open task file; the inner error says why it cannot be trusted.
fn read_spec(
    file: &File,
    path: &Path,
    name: &FileName,
) -> Result<std::result::Result<TaskSpec, String>> {
    let mut bytes = Vec::new();
    let mut reader: &File = file;
    let read = (&mut reader)
        .take(TASK_FILE_MAX_BYTES + 1)
        .read_to_end(&mut bytes);
    read.map_err(QueueError::io("read", path))?;
    Ok(decode(&bytes, name))
}

/// The specification in the bytes of a task file of that name.
pub(crate) fn decode(bytes: &[u8], name: &FileName) -> std::result::Result<TaskSpec, String> {
    let spec: TaskSpec = format::unseal(bytes)?;
    if spec.id != name.id {
        return Err(format!(
            "its name says task {}, its content task {}",
            name.id, spec.id
        ));
    }
    // Names become directories: checked here, so that no path is ever built from anything else.
    for (what, text) in [("batch", &spec.batch), ("task", &spec.task)] {
        if !crate::rig::is_safe_name(text) {
            return Err(format!("its {what} {text:?} cannot be a directory's name"));
        }
    }
    Ok(spec)
}

/// The specification that this process inherited with its lease. For the worker.
pub fn read_leased(lease: &Lease, name: &FileName) -> std::result::Result<TaskSpec, String> {
    use std::os::unix::fs::FileExt;
    let file = lease.file();
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    if length > TASK_FILE_MAX_BYTES {
        return Err(format!(
            "it has {length} bytes, the limit is {TASK_FILE_MAX_BYTES}"
        ));
    }
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, 0)
        .map_err(|error| error.to_string())?;
    decode(&bytes, name)
}

fn move_file(rig: &Rig, from: &Path, to: &Path) -> Result<Moved> {
    moved(rig.rename_new(from, to)?, from, to)
}

fn moved(renamed: Renamed, from: &Path, to: &Path) -> Result<Moved> {
    match renamed {
        Renamed::Done => Ok(Moved::Done),
        Renamed::Gone => Ok(Moved::Gone),
        Renamed::Exists => Err(QueueError::Untrusted {
            path: to.to_owned(),
            why: format!("it exists, so {} cannot move there", from.display()),
        }),
    }
}
