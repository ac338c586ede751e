//! Bringing task files into the rig: one at a time, or a whole expansion at once.

use std::fs::{self, File};
use std::io::{self, BufRead, BufWriter, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{QueueError, Result};
use crate::format;
use crate::lane::Lane;
use crate::name::{FileName, TaskId};
use crate::rig::{Place, Renamed, Rig, make_dir, sync_dir};
use crate::task::TaskSpec;

/// The manifest of an expansion: a dotfile, so that it is no task.
pub(crate) const MANIFEST: &str = ".items.jsonl";
/// From so many files on, one `syncfs` is cheaper than an fsync of each.
const SYNCFS_FROM: usize = 8;

/// How much a power cut may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Nothing that was acknowledged, and no claim: a claim is on disk before its worker starts.
    Strict,
    /// Nothing that was acknowledged; a claim of the last second may be forgotten (and so run
    /// again), never the task.
    #[default]
    Default,
    /// Whatever was not written back yet: no fsync anywhere. A crash of any process still loses
    /// nothing.
    Process,
}

impl Durability {
    /// Whether anything is synced.
    pub fn syncs(self) -> bool {
        self != Durability::Process
    }
}

/// Writes one task file into `place`, which appears whole or not at all. When this returns it
/// survives what `durability` says. `false`: a file of that name was there already.
pub fn submit(
    rig: &Rig,
    place: Place<'_>,
    name: &FileName,
    spec: &TaskSpec,
    durability: Durability,
) -> Result<bool> {
    rig.writable()?;
    let dir = rig.dir(place);
    rig.no_links(&dir)?;
    let mut temporary = tempfile::Builder::new()
        .prefix(".new-")
        .tempfile_in(&dir)
        .map_err(QueueError::io("create a file in", &dir))?;
    temporary
        .write_all(&format::seal(spec))
        .map_err(QueueError::io("write", dir.join(name.to_string())))?;
    if durability.syncs() {
        let synced = temporary.as_file().sync_all();
        rig.synced(synced.map_err(QueueError::io("fsync", dir.join(name.to_string()))))?;
    }
    let target = dir.join(name.to_string());
    // persist_noclobber links and unlinks where it must, which would show two links for an
    // instant; the rename does not.
    let path = temporary.into_temp_path();
    match rig.rename_new(&path, &target)? {
        Renamed::Done => {
            path.keep()
                .map_err(|error| QueueError::io("keep", &target)(error.error))?;
            if durability.syncs()
                && let Err(error) = rig.synced(sync_dir(&dir))
            {
                // It is visible and not acknowledged: taken back, unless somebody was faster.
                return Err(match fs::remove_file(&target) {
                    Ok(()) => error,
                    Err(_) => QueueError::Unacknowledged {
                        path: target,
                        cause: Box::new(error),
                    },
                });
            }
            Ok(true)
        }
        Renamed::Exists => Ok(false),
        Renamed::Gone => Err(QueueError::Untrusted {
            path: target,
            why: "its temporary file was removed while it was written".to_owned(),
        }),
    }
}

/// A task of an expansion, as its manifest has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestEntry {
    /// The task.
    pub id: TaskId,
    /// The item's id; none for a task without foreach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<String>,
    /// With `batch_size`, the ids of its items.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<String>,
}

/// Writes `waiting/<batch>/<task>/` with all its task files and the manifest: one directory that
/// appears by one rename, so a crash leaves all of them or litter that the next try removes.
///
/// `false`: that expansion is there already. The directory stays (empty in the end) for the life
/// of the batch: its existence says that the expansion is done.
pub fn expand(
    rig: &Rig,
    batch: &str,
    task: &str,
    tasks: impl IntoIterator<Item = (FileName, TaskSpec)>,
    durability: Durability,
) -> Result<bool> {
    rig.writable()?;
    let parent = rig.lane_dir(Lane::Waiting).join(batch);
    let target = parent.join(task);
    rig.no_links(&target)?;
    if target.exists() {
        return Ok(false);
    }
    make_dir(&parent)?;
    let building = parent.join(format!(".new-{task}"));
    if building.exists() {
        fs::remove_dir_all(&building).map_err(QueueError::io("remove", &building))?;
    }
    make_dir(&building)?;
    let manifest_path = building.join(MANIFEST);
    let manifest =
        File::create(&manifest_path).map_err(QueueError::io("create", &manifest_path))?;
    let mut manifest = BufWriter::new(manifest);
    let mut written = Vec::new();
    let mut count = 0;
    for (name, spec) in tasks {
        crate::crash_point!("expand.building");
        let path = building.join(name.to_string());
        fs::write(&path, format::seal(&spec)).map_err(QueueError::io("write", &path))?;
        let (item, members) = spec
            .item
            .map(|item| (Some(item.id), item.members))
            .unwrap_or_default();
        let entry = ManifestEntry {
            id: spec.id,
            item,
            members,
        };
        serde_json::to_writer(&mut manifest, &entry)
            .map_err(io::Error::from)
            .and_then(|()| manifest.write_all(b"\n"))
            .map_err(QueueError::io("write", &manifest_path))?;
        count += 1;
        if count <= SYNCFS_FROM {
            written.push(path);
        }
    }
    manifest
        .into_inner()
        .map_err(|error| QueueError::io("write", &manifest_path)(error.into_error()))?;
    if durability.syncs() {
        written.push(manifest_path);
        rig.synced(sync_files(&building, &written, count))?;
    }
    crate::crash_point!("expand.built");
    match rig.rename_new(&building, &target)? {
        Renamed::Done => {
            crate::crash_point!("expand.renamed");
            if durability.syncs() {
                rig.synced(sync_dir(&parent))?;
            }
            Ok(true)
        }
        Renamed::Exists => Ok(false),
        Renamed::Gone => Err(QueueError::Untrusted {
            path: building,
            why: "it was removed while it was written".to_owned(),
        }),
    }
}

/// The manifest of an expansion, archived or not; `None` where the task was not expanded yet.
pub fn manifest(rig: &Rig, batch: &str, task: &str) -> Result<Option<Vec<ManifestEntry>>> {
    let path = rig.dir(Place::Waiting { batch, task }).join(MANIFEST);
    let lines: Box<dyn BufRead> = match File::open(&path) {
        Ok(file) => Box::new(io::BufReader::new(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let archive = rig.archived(batch)?;
            match archive.map(|archive| archive.manifest(task)).transpose()? {
                Some(Some(bytes)) => Box::new(io::Cursor::new(bytes)),
                Some(None) | None => return Ok(None),
            }
        }
        Err(error) => return Err(QueueError::io("open", &path)(error)),
    };
    let mut entries = Vec::new();
    for line in lines.lines() {
        let line = line.map_err(QueueError::io("read", &path))?;
        let entry = serde_json::from_str(&line).map_err(|error| QueueError::Untrusted {
            path: path.clone(),
            why: error.to_string(),
        })?;
        entries.push(entry);
    }
    Ok(Some(entries))
}

/// Replaces a small file whole: the old content or the new one, never a mixture. With `durable`
/// the new one survives a power cut when this returns.
pub fn replace_file(path: &Path, content: &[u8], durable: bool) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut temporary = tempfile::Builder::new()
        .prefix(".new-")
        .tempfile_in(dir)
        .map_err(QueueError::io("create a file in", dir))?;
    temporary
        .write_all(content)
        .map_err(QueueError::io("write", path))?;
    if durable {
        temporary
            .as_file()
            .sync_all()
            .map_err(QueueError::io("fsync", path))?;
    }
    temporary
        .persist(path)
        .map_err(|error| QueueError::io("rename to", path)(error.error))?;
    if durable {
        sync_dir(dir)?;
    }
    Ok(())
}

/// Makes files and their directory survive a power cut: one by one if few, else by one `syncfs`.
pub(crate) fn sync_files(dir: &Path, files: &[impl AsRef<Path>], count: usize) -> Result<()> {
    let handle = File::open(dir).map_err(QueueError::io("open", dir))?;
    if count > SYNCFS_FROM {
        return rustix::fs::syncfs(&handle).map_err(QueueError::errno("syncfs", dir));
    }
    for path in files {
        let path = path.as_ref();
        File::open(path)
            .and_then(|file| file.sync_all())
            .map_err(QueueError::io("fsync", path))?;
    }
    handle.sync_all().map_err(QueueError::io("fsync", dir))
}

/// Hands out the brain's monotone sequence. A block of numbers is reserved on disk before any of
/// it is used, so no number is given twice, whatever is killed when.
#[derive(Debug)]
pub struct Sequence {
    path: std::path::PathBuf,
    next: u64,
    reserved: u64,
    durability: Durability,
    rig: Rig,
}

/// Numbers reserved at a time: one write for so many tasks.
const SEQUENCE_BLOCK: u64 = 100_000;

impl Sequence {
    /// Goes on after the last block that was ever reserved.
    pub fn open(rig: &Rig, durability: Durability) -> Result<Sequence> {
        let path = rig.brain_dir().join("sequence");
        let reserved = match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map_err(|_| QueueError::Untrusted {
                path: path.clone(),
                why: format!("{text:?} is not a number; write one above every sequence in use"),
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(QueueError::io("read", &path)(error)),
        };
        Ok(Sequence {
            path,
            next: reserved,
            reserved,
            durability,
            rig: rig.clone(),
        })
    }

    /// The first of `count` numbers that nobody has or will get.
    pub fn take(&mut self, count: u64) -> Result<u64> {
        if self.next + count > self.reserved {
            self.rig.writable()?;
            let reserved = self.next + count + SEQUENCE_BLOCK;
            replace_file(
                &self.path,
                format!("{reserved}\n").as_bytes(),
                self.durability.syncs(),
            )?;
            self.reserved = reserved;
        }
        let first = self.next;
        self.next += count;
        Ok(first)
    }
}
