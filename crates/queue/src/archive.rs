//! Archived batches: `archive/<batch>/` holds all that was in the lanes and in `attempts/` of a
//! batch that is over, in a few files instead of several for each task.
//!
//! | file | holds |
//! |---|---|
//! | `tasks.jsonl` | a line for each task: its lane, its file, the records of its attempts, where its output is; then the manifests |
//! | `output.log` | what attempts printed, one after the other |
//! | `<id>.aN.log` | the same of one attempt that printed much |
//! | `index.jsonl` | where in those files the bytes of each former file are |
//! | `batch.json` | what is shown of the batch, the sums of the others |
//!
//! Every former file comes back byte for byte ([`take_out`]). `archive/<batch>/` appears by one
//! rename and goes by one, so it is whole or not there. **While it is there it is the batch**: what
//! is left in the lanes of an archived batch counts for nothing, and is removed. Reading goes on
//! through the same functions as before ([`Rig::list`], [`claim::peek`](crate::claim::peek),
//! [`records::read`](crate::records::read), [`output::open`](crate::output::open)).
//!
//! Who changes anything here holds `archive/lock`, which is never replaced.

mod build;
mod gather;
mod removal;
mod restore;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::{QueueError, Result};
use crate::format;
use crate::lane::Lane;
use crate::lease::Lease;
use crate::name::{FileName, TaskId};
use crate::rig::{Listing, Place, Rig, is_safe_name, make_dir};
use crate::small;

pub use build::{Compacted, compact};
pub use gather::{Over, over};
pub use removal::{Removal, clear, leftovers, remove, sweep};
pub use restore::take_out;

const HEADER: &str = "batch.json";
const INDEX: &str = "index.jsonl";
const TASKS: &str = "tasks.jsonl";
const OUTPUT: &str = "output.log";

/// What `batch.json` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// The batch.
    pub batch: String,
    /// How it ended: `complete`, `failed` or `cancelled`.
    pub lane: Lane,
    /// When it ended.
    pub ended: Timestamp,
    /// When it was archived.
    pub archived: Timestamp,
    /// Its tasks, the plan itself not among them.
    pub tasks: u64,
    /// Files that it took before.
    pub files: u64,
    /// Bytes of `tasks.jsonl`, `output.log` and the outputs that are files of their own.
    pub bytes: u64,
    /// The start of the SHA-256 of `index.jsonl`, 16 hexadecimal digits.
    pub index_sum: String,
    /// What the brain last counted for displays; none where there was nothing to read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub view: Option<Value>,
}

/// Which directory a former file lay in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    /// `complete/<batch>/`.
    Complete,
    /// `failed/<batch>/`.
    Failed,
    /// `cancelled/<batch>/`.
    Cancelled,
    /// `attempts/<batch>/`.
    Attempt,
    /// The manifest of `waiting/<batch>/<name>/`.
    Expansion,
}

impl Kind {
    fn of(lane: Lane) -> Option<Kind> {
        match lane {
            Lane::Complete => Some(Kind::Complete),
            Lane::Failed => Some(Kind::Failed),
            Lane::Cancelled => Some(Kind::Cancelled),
            Lane::Waiting | Lane::Queue | Lane::Processing | Lane::Retry | Lane::Quarantine => None,
        }
    }

    fn lane(self) -> Option<Lane> {
        match self {
            Kind::Complete => Some(Lane::Complete),
            Kind::Failed => Some(Lane::Failed),
            Kind::Cancelled => Some(Lane::Cancelled),
            Kind::Attempt | Kind::Expansion => None,
        }
    }
}

/// Which file of the archive has the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Within {
    Tasks,
    Output,
    /// One of its own, under the name that it had.
    Own,
}

/// A line of `index.jsonl`: one former file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    kind: Kind,
    name: String,
    within: Within,
    at: u64,
    /// Without the newline, if there was one.
    bytes: u64,
    /// A newline followed that is not stored.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    newline: bool,
    /// When a task file came into its lane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    since: Option<Timestamp>,
}

impl Row {
    /// Bytes of the former file.
    fn length(&self) -> u64 {
        self.bytes + u64::from(self.newline)
    }

    /// Where the former file lay.
    fn path(&self, rig: &Rig, batch: &str) -> PathBuf {
        match self.kind {
            Kind::Attempt => rig.attempts_dir(batch).join(&self.name),
            Kind::Expansion => rig
                .dir(Place::Waiting {
                    batch,
                    task: &self.name,
                })
                .join(crate::submit::MANIFEST),
            Kind::Complete => rig.dir(Place::Complete(batch)).join(&self.name),
            Kind::Failed => rig.dir(Place::Failed(batch)).join(&self.name),
            Kind::Cancelled => rig.dir(Place::Cancelled(batch)).join(&self.name),
        }
    }
}

/// An archived batch, open for reading.
#[derive(Debug)]
pub struct Archive {
    dir: PathBuf,
    /// What is shown of it.
    pub header: Header,
    /// Sorted by kind and name.
    rows: Vec<Row>,
    /// Of `batch.json`: another one is another archive.
    identity: Identity,
}

type Identity = (u64, u64, i64, i64);

/// The last archive that was opened: tasks of one batch are read one after the other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Last(Arc<std::sync::Mutex<Option<Arc<Archive>>>>);

impl Rig {
    /// `archive/`.
    pub fn archive_dir(&self) -> PathBuf {
        self.root().join("archive")
    }

    /// The batches that are archived.
    pub fn archived_batches(&self) -> Result<Vec<String>> {
        self.subdirs_of(&self.archive_dir())
    }

    /// Whether a batch is archived.
    pub fn is_archived(&self, batch: &str) -> bool {
        is_safe_name(batch) && self.archive_dir().join(batch).is_dir()
    }

    /// What is shown of an archived batch; `None` where it is not archived. Its index is not read.
    ///
    /// # Errors
    ///
    /// [`QueueError::Untrusted`] for one that is damaged.
    pub fn archive_header(&self, batch: &str) -> Result<Option<Header>> {
        let dir = self.archive_dir().join(batch);
        Ok(read_header(&dir)?.map(|(header, _)| header))
    }

    /// An archived batch; `None` where it is not archived.
    ///
    /// # Errors
    ///
    /// [`QueueError::Untrusted`] for one that is damaged.
    pub fn archived(&self, batch: &str) -> Result<Option<Arc<Archive>>> {
        let dir = self.archive_dir().join(batch);
        let identity = match fs::symlink_metadata(dir.join(HEADER)) {
            Ok(meta) => identity(&meta),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(QueueError::io("stat", dir.join(HEADER))(error)),
        };
        // A poisoned lock guards a value that is replaced whole: it is as good as ever.
        let mut last = self
            .last_archive()
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(archive) = &*last
            && archive.dir == dir
            && archive.identity == identity
        {
            return Ok(Some(archive.clone()));
        }
        let opened = Archive::open(&dir)?.map(Arc::new);
        if let Some(archive) = &opened {
            *last = Some(archive.clone());
        }
        Ok(opened)
    }

    /// The archive that has what `place` held.
    pub(crate) fn archive_of(&self, place: Place<'_>) -> Result<Option<Arc<Archive>>> {
        match place {
            Place::Complete(batch) | Place::Failed(batch) | Place::Cancelled(batch) => {
                self.archived(batch)
            }
            Place::Waiting { .. }
            | Place::Queue(_)
            | Place::Processing(_)
            | Place::Retry(_)
            | Place::Quarantine => Ok(None),
        }
    }

    /// Whether what `place` held is in an archive.
    pub(crate) fn is_archived_place(&self, place: Place<'_>) -> bool {
        match place {
            Place::Complete(batch) | Place::Failed(batch) | Place::Cancelled(batch) => {
                self.is_archived(batch)
            }
            Place::Waiting { .. }
            | Place::Queue(_)
            | Place::Processing(_)
            | Place::Retry(_)
            | Place::Quarantine => false,
        }
    }

    /// [`Rig::find`] in an archive. Most that are asked have no such task, and there may be many:
    /// their indexes are searched as text, not understood. One without an index has none.
    pub(crate) fn find_archived(
        &self,
        place: Place<'_>,
        prefix: &str,
    ) -> Result<Vec<(FileName, usize)>> {
        let (Place::Complete(batch) | Place::Failed(batch) | Place::Cancelled(batch)) = place
        else {
            return Ok(Vec::new());
        };
        let index = fs::read_to_string(self.archive_dir().join(batch).join(INDEX));
        if !index.unwrap_or_default().contains(&format!("-{prefix}")) {
            return Ok(Vec::new());
        }
        let mut found = self.list(place)?.names;
        found.retain(|name| name.id.to_string().starts_with(prefix));
        Ok(found.into_iter().map(|name| (name, 0)).collect())
    }

    /// Folders of the expansions of a batch, archived or not: `waiting/<batch>/<task>`.
    pub fn expansions(&self, batch: &str) -> Result<Vec<String>> {
        match self.archived(batch)? {
            Some(archive) => Ok(archive.names_of(Kind::Expansion)),
            None => self.subdirs_of(&self.lane_dir(Lane::Waiting).join(batch)),
        }
    }

    /// When a task file came to where it is: a rename sets its change time. None where it is gone.
    pub fn since(&self, place: Place<'_>, name: &FileName) -> Option<Timestamp> {
        if let Ok(Some(archive)) = self.archive_of(place) {
            let kind = Kind::of(place.lane())?;
            return archive.row(kind, &name.to_string())?.since;
        }
        changed_at(&fs::metadata(self.path(place, name)).ok()?)
    }
}

/// The change time of a file.
fn changed_at(meta: &fs::Metadata) -> Option<Timestamp> {
    Timestamp::new(meta.ctime(), i32::try_from(meta.ctime_nsec()).ok()?).ok()
}

fn identity(meta: &fs::Metadata) -> Identity {
    (meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec())
}

fn read_header(dir: &Path) -> Result<Option<(Header, Identity)>> {
    let path = dir.join(HEADER);
    let (bytes, meta) = match small::read(&path) {
        Ok(read) => read,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(QueueError::io("read", &path)(error)),
    };
    let header: Header = format::unseal(&bytes).map_err(|why| damaged(&path, why))?;
    if dir.file_name().is_none_or(|name| *name != *header.batch) {
        return Err(damaged(&path, format!("it is of batch {}", header.batch)));
    }
    Ok(Some((header, identity(&meta))))
}

fn damaged(path: &Path, why: impl std::fmt::Display) -> QueueError {
    QueueError::Untrusted {
        path: path.to_owned(),
        why: format!(
            "{why}; the archive is damaged: put it back from a backup, or move its directory out of the rig"
        ),
    }
}

fn sum(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let digest = Sha256::digest(bytes);
    digest[..8].iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl Archive {
    fn open(dir: &Path) -> Result<Option<Archive>> {
        let Some((header, identity)) = read_header(dir)? else {
            return Ok(None);
        };
        let path = dir.join(INDEX);
        let bytes = fs::read(&path).map_err(QueueError::io("read", &path))?;
        if sum(&bytes) != header.index_sum {
            return Err(damaged(&path, "its sum is not the one in batch.json"));
        }
        let rows = serde_json::Deserializer::from_slice(&bytes)
            .into_iter::<Row>()
            .collect::<std::result::Result<Vec<Row>, _>>()
            .map_err(|error| damaged(&path, error))?;
        // Names become paths again when the batch is taken out.
        if let Some(row) = rows.iter().find(|row| !is_safe_name(&row.name)) {
            return Err(damaged(&path, format!("{:?} is no file's name", row.name)));
        }
        Ok(Some(Archive {
            dir: dir.to_owned(),
            header,
            rows,
            identity,
        }))
    }

    fn row(&self, kind: Kind, name: &str) -> Option<&Row> {
        let key = |row: &Row| (row.kind, row.name.as_str()).cmp(&(kind, name));
        self.rows
            .binary_search_by(key)
            .ok()
            .map(|at| &self.rows[at])
    }

    fn of(&self, kind: Kind) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.kind == kind)
    }

    fn names_of(&self, kind: Kind) -> Vec<String> {
        self.of(kind).map(|row| row.name.clone()).collect()
    }

    /// The task files that a lane held, in claim order.
    pub(crate) fn listing(&self, lane: Lane) -> Listing {
        let names = Kind::of(lane)
            .into_iter()
            .flat_map(|kind| self.of(kind))
            .filter_map(|row| row.name.parse().ok());
        let mut listing = Listing {
            names: names.collect(),
            foreign: Vec::new(),
        };
        listing.names.sort_unstable();
        listing
    }

    /// The bytes of a task file.
    pub(crate) fn task(&self, lane: Lane, name: &FileName) -> Result<Option<Vec<u8>>> {
        let row = Kind::of(lane).and_then(|kind| self.row(kind, &name.to_string()));
        row.map(|row| self.content(row)).transpose()
    }

    /// The bytes of a file of `attempts/<batch>/`.
    pub(crate) fn attempt(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let row = self.row(Kind::Attempt, name);
        row.map(|row| self.content(row)).transpose()
    }

    /// The bytes of the manifest of an expansion.
    pub(crate) fn manifest(&self, folder: &str) -> Result<Option<Vec<u8>>> {
        let row = self.row(Kind::Expansion, folder);
        row.map(|row| self.content(row)).transpose()
    }

    /// A file of `attempts/<batch>/`, open, with where in it the bytes begin and how many they are.
    pub(crate) fn open_attempt(&self, name: &str) -> Result<Option<(File, u64, u64)>> {
        let Some(row) = self.row(Kind::Attempt, name) else {
            return Ok(None);
        };
        Ok(Some((self.extent(row)?, row.at, row.bytes)))
    }

    /// All that is wrong with its files, in words. Reads every task file in it.
    pub(crate) fn look(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for row in &self.rows {
            if row.kind.lane().is_none() {
                wrong.extend(self.extent(row).err().map(|error| error.to_string()));
                continue;
            }
            let content = match self.content(row) {
                Ok(content) => content,
                Err(error) => {
                    wrong.push(error.to_string());
                    continue;
                }
            };
            let decoded = row
                .name
                .parse::<FileName>()
                .map_err(|error| error.to_string())
                .and_then(|name| crate::claim::decode(&content, &name));
            match decoded {
                Ok(spec) if spec.batch == self.header.batch => {}
                Ok(spec) => wrong.push(format!("{} is of batch {}", row.name, spec.batch)),
                Err(why) => wrong.push(format!("{}: {why}", row.name)),
            }
        }
        wrong
    }

    /// The ids of its tasks.
    pub fn tasks(&self) -> impl Iterator<Item = (TaskId, Lane)> {
        self.rows.iter().filter_map(|row| {
            let name: FileName = row.kind.lane().and(row.name.parse().ok())?;
            Some((name.id, row.kind.lane()?))
        })
    }

    fn path_of(&self, row: &Row) -> PathBuf {
        match row.within {
            Within::Tasks => self.dir.join(TASKS),
            Within::Output => self.dir.join(OUTPUT),
            Within::Own => self.dir.join(&row.name),
        }
    }

    /// The file that has the bytes of a former one, open; it is long enough.
    fn extent(&self, row: &Row) -> Result<File> {
        let path = self.path_of(row);
        let file = File::open(&path).map_err(QueueError::io("open", &path))?;
        let meta = file.metadata().map_err(QueueError::io("stat", &path))?;
        let end = row.at.checked_add(row.bytes);
        if end.is_none_or(|end| end > meta.len()) {
            return Err(damaged(&path, format!("{} lies behind its end", row.name)));
        }
        Ok(file)
    }

    /// The former file, byte for byte.
    fn content(&self, row: &Row) -> Result<Vec<u8>> {
        // The file is looked at before the memory is asked for.
        let file = self.extent(row)?;
        let mut bytes = vec![0; row.bytes as usize];
        file.read_exact_at(&mut bytes, row.at)
            .map_err(QueueError::io("read", self.path_of(row)))?;
        if row.newline {
            bytes.push(b'\n');
        }
        Ok(bytes)
    }
}

/// Held by who changes anything in `archive/`.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held, not read")] Lease);

impl Lock {
    /// Takes the lock, waiting for who has it for as long as `patience`.
    ///
    /// # Errors
    ///
    /// [`QueueError::Held`] when that is over.
    pub fn take(rig: &Rig, patience: Duration) -> Result<Lock> {
        let dir = rig.archive_dir();
        rig.no_links(&dir)?;
        make_dir(&dir)?;
        let holder = "the brain archives or takes out a batch, or `rigor clean` runs";
        Lease::wait_for_path(&dir.join("lock"), patience, holder).map(Lock)
    }
}
