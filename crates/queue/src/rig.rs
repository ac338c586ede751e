//! The rig directory: where everything lies, and whether it can be trusted to hold a queue.

mod own;
mod sync;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::error::{QueueError, Result};
use crate::lane::Lane;
use crate::name::{self, FileName, Shape, TaskId};
use crate::task::Class;

pub(crate) use own::Renamed;
pub(crate) use sync::sync_dir;

/// The brain's name among the agents.
pub const BRAIN: &str = "brain";
/// The batch of tasks that belong to no plan: `load_llm`, `unload_llm`.
pub const RIG_BATCH: &str = "_rig";
/// The task under which a submitted plan itself goes through the lanes.
pub const PLAN_TASK: &str = "_plan";
/// The longest name of a batch, a plan's task or an agent, bytes.
pub const NAME_MAX_BYTES: usize = 100;

/// File systems on which flock, RENAME_NOREPLACE or inotify do not hold between processes, by
/// `statfs` magic (linux/magic.h).
const UNFIT_FILE_SYSTEMS: [(u64, &str); 7] = [
    (0x6969, "NFS"),
    (0x6573_5546, "FUSE"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB2"),
    (0x517b, "SMB"),
    (0x0102_1997, "9P"),
    (0x00c3_6400, "Ceph"),
];

/// A rig directory that was checked.
#[derive(Clone, Debug)]
pub struct Rig {
    root: PathBuf,
    owner: u32,
    /// The first fsync that failed, of this value and its clones.
    failed_sync: Arc<OnceLock<String>>,
    last_archive: crate::archive::Last,
    claimants: crate::copies::Claimants,
}

/// A directory of task files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place<'a> {
    /// `waiting/<batch>/<task>/`: expanded, dependencies not met.
    Waiting {
        /// The batch.
        batch: &'a str,
        /// The task's id in the plan.
        task: &'a str,
    },
    /// `queue/<class>/`: ready.
    Queue(Class),
    /// `processing/<agent>/`: claimed.
    Processing(&'a str),
    /// `retry/<batch>/`: failed attempts.
    Retry(&'a str),
    /// `complete/<batch>/`.
    Complete(&'a str),
    /// `failed/<batch>/`.
    Failed(&'a str),
    /// `cancelled/<batch>/`.
    Cancelled(&'a str),
    /// `quarantine/`.
    Quarantine,
}

impl Place<'_> {
    /// The lane it belongs to.
    pub fn lane(&self) -> Lane {
        match self {
            Place::Waiting { .. } => Lane::Waiting,
            Place::Queue(_) => Lane::Queue,
            Place::Processing(_) => Lane::Processing,
            Place::Retry(_) => Lane::Retry,
            Place::Complete(_) => Lane::Complete,
            Place::Failed(_) => Lane::Failed,
            Place::Cancelled(_) => Lane::Cancelled,
            Place::Quarantine => Lane::Quarantine,
        }
    }
}

impl Rig {
    /// Makes the directories of a rig in `root` (which may exist) and opens it. What is there
    /// stays as it is.
    pub fn create(root: &Path) -> Result<Rig> {
        make_dir(root)?;
        let root = &root
            .canonicalize()
            .map_err(QueueError::io("resolve", root))?;
        // Nothing is made behind a link.
        Rig::unchecked(root.clone()).check_dirs(None)?;
        for dir in [
            "tasks/waiting",
            "tasks/processing",
            "tasks/retry",
            "tasks/complete",
            "tasks/failed",
            "tasks/cancelled",
            "tasks/quarantine",
            "attempts",
            "archive",
            "agents",
            "signals/brain",
            "brain/held",
            "brain/cancelled",
            "brain/escalations",
            "logs",
            "runs",
        ] {
            make_dir(&root.join(dir))?;
        }
        for class in Class::ALL {
            make_dir(&root.join("tasks/queue").join(class.as_str()))?;
        }
        Rig::open(root)
    }

    /// Opens a rig that `create` made: refuses by name a directory that is none, one that others
    /// may write to, a file system without the three things the protocol stands on, and a link in
    /// place of a directory.
    pub fn open(root: &Path) -> Result<Rig> {
        let rig = Rig::open_to_look(root)?;
        rig.check_dirs(None)?;
        Ok(rig)
    }

    /// As [`Rig::open`], also where a directory is a link: for who says what is wrong with a rig.
    pub fn open_to_look(root: &Path) -> Result<Rig> {
        let unfit = |why: String| QueueError::Unfit {
            path: root.to_owned(),
            why,
        };
        let meta = fs::metadata(root).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                unfit("it does not exist; make one with `rigor init DIR`".to_owned())
            }
            _ => QueueError::io("stat", root)(error),
        })?;
        let queue = fs::symlink_metadata(root.join("tasks/queue"));
        if !queue.is_ok_and(|meta| meta.is_dir() || meta.is_symlink()) {
            return Err(unfit(
                "it holds no tasks/queue; make one with `rigor init DIR`".to_owned(),
            ));
        }
        let me = rustix::process::geteuid().as_raw();
        if meta.uid() != me {
            return Err(unfit(format!(
                "it belongs to uid {}, and this process is uid {me}; run as its owner",
                meta.uid()
            )));
        }
        if meta.mode() & 0o002 != 0 {
            return Err(unfit(format!(
                "anybody may write to it (mode {:o}); `chmod o-w` it, since whoever writes here runs commands as you",
                meta.mode() & 0o7777
            )));
        }
        let magic = rustix::fs::statfs(root)
            .map_err(QueueError::errno("statfs", root))?
            .f_type as u64;
        if let Some((_, name)) = UNFIT_FILE_SYSTEMS
            .iter()
            .find(|(known, _)| *known == magic & 0xffff_ffff)
        {
            return Err(unfit(format!(
                "it is on {name}, where locks, renames and notifications do not hold; put the rig on a local file system"
            )));
        }
        let root = root
            .canonicalize()
            .map_err(QueueError::io("resolve", root))?;
        Ok(Rig::unchecked(root))
    }

    fn unchecked(root: PathBuf) -> Rig {
        Rig {
            root,
            owner: rustix::process::geteuid().as_raw(),
            failed_sync: Arc::default(),
            last_archive: crate::archive::Last::default(),
            claimants: crate::copies::Claimants::default(),
        }
    }

    /// The directory itself, absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The user that everything in the rig belongs to.
    pub(crate) fn owner(&self) -> u32 {
        self.owner
    }

    /// Where a place lies.
    pub fn dir(&self, place: Place<'_>) -> PathBuf {
        let lane = self.root.join("tasks").join(place.lane().as_str());
        match place {
            Place::Waiting { batch, task } => lane.join(batch).join(task),
            Place::Queue(class) => lane.join(class.as_str()),
            Place::Processing(agent) => lane.join(agent),
            Place::Retry(batch)
            | Place::Complete(batch)
            | Place::Failed(batch)
            | Place::Cancelled(batch) => lane.join(batch),
            Place::Quarantine => lane,
        }
    }

    /// Where a task file lies in a place.
    pub fn path(&self, place: Place<'_>, name: &FileName) -> PathBuf {
        self.dir(place).join(name.to_string())
    }

    /// `tasks/<lane>/`, which holds a directory for each batch (or class, or agent).
    pub fn lane_dir(&self, lane: Lane) -> PathBuf {
        self.root.join("tasks").join(lane.as_str())
    }

    /// `attempts/<batch>/`.
    pub fn attempts_dir(&self, batch: &str) -> PathBuf {
        self.root.join("attempts").join(batch)
    }

    /// The record of an attempt.
    pub fn record_path(&self, batch: &str, id: TaskId, attempt: u32) -> PathBuf {
        self.attempts_dir(batch)
            .join(format!("{id}.a{attempt}.json"))
    }

    /// What an attempt printed. The file is absent when it printed nothing.
    pub fn output_path(&self, batch: &str, id: TaskId, attempt: u32) -> PathBuf {
        self.attempts_dir(batch)
            .join(format!("{id}.a{attempt}.log"))
    }

    /// `agents/<agent>/`.
    pub fn agent_dir(&self, agent: &str) -> PathBuf {
        self.root.join("agents").join(agent)
    }

    /// `signals/<agent>/`.
    pub fn signals_dir(&self, agent: &str) -> PathBuf {
        self.root.join("signals").join(agent)
    }

    /// Who claims, as it was read last.
    pub(crate) fn claimants(&self) -> &crate::copies::Claimants {
        &self.claimants
    }

    /// The archive that was opened last.
    pub(crate) fn last_archive(&self) -> &crate::archive::Last {
        &self.last_archive
    }

    /// `brain/batches/<batch>.json`: what the brain counted last, for displays.
    pub fn view_path(&self, batch: &str) -> PathBuf {
        self.brain_dir()
            .join("batches")
            .join(format!("{batch}.json"))
    }

    /// `brain/`.
    pub fn brain_dir(&self) -> PathBuf {
        self.root.join("brain")
    }

    /// The directories in `brain/`.
    pub(crate) fn dirs_of_brain(&self) -> [PathBuf; 5] {
        ["held", "cancelled", "escalations", "batches", "keys"]
            .map(|name| self.brain_dir().join(name))
    }

    /// `brain/rig.toml`: the settings that the brain started with last.
    pub fn settings_copy(&self) -> PathBuf {
        self.brain_dir().join("rig.toml")
    }

    /// `brain/escalations/`: what only a person can mend, a file for each.
    pub fn escalations_dir(&self) -> PathBuf {
        self.brain_dir().join("escalations")
    }

    /// `brain/placement.jsonl`: every decision of which GPU holds which model, with all that it was
    /// made from.
    pub fn placement_journal(&self) -> PathBuf {
        self.brain_dir().join("placement.jsonl")
    }

    /// `logs/`.
    pub fn logs_dir(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// `runs/`: the folders of batches that `rigor run` makes.
    pub fn runs_dir(&self) -> PathBuf {
        self.root.join("runs")
    }

    /// Makes what an agent of that name needs.
    pub fn prepare_agent(&self, agent: &str) -> Result<()> {
        self.check_dirs(Some(agent))?;
        make_dir(&self.agent_dir(agent))?;
        make_dir(&self.signals_dir(agent))?;
        make_dir(&self.dir(Place::Processing(agent)))
    }

    /// Makes what the tasks of a batch need to move through the lanes.
    pub fn prepare_batch(&self, batch: &str) -> Result<()> {
        let places = [
            Place::Retry(batch),
            Place::Complete(batch),
            Place::Failed(batch),
            Place::Cancelled(batch),
        ];
        let mut dirs: Vec<PathBuf> = places.map(|place| self.dir(place)).into();
        dirs.push(self.lane_dir(Lane::Waiting).join(batch));
        dirs.push(self.attempts_dir(batch));
        dirs.iter().try_for_each(|dir| self.make_own(dir))
    }

    /// Makes a place, unless it is there.
    pub(crate) fn make_place(&self, place: Place<'_>) -> Result<()> {
        self.make_own(&self.dir(place))
    }

    /// Makes a directory of the rig, and none behind a link.
    fn make_own(&self, dir: &Path) -> Result<()> {
        self.no_links(dir)?;
        make_dir(dir)
    }

    /// Names of the directories under a lane (batches, agents), without litter.
    pub fn subdirs(&self, lane: Lane) -> Result<Vec<String>> {
        self.subdirs_of(&self.lane_dir(lane))
    }

    /// Names of the agents that ever ran here, the brain not among them.
    pub fn agents(&self) -> Result<Vec<String>> {
        let mut names = self.subdirs_of(&self.root.join("agents"))?;
        names.retain(|name| name != BRAIN);
        Ok(names)
    }

    /// Task files in a place, in claim order, and what lies there besides. A place that does not
    /// exist is empty. Dotfiles are somebody's unfinished writing and are left out. Of an archived
    /// batch it is what the archive has.
    pub fn list(&self, place: Place<'_>) -> Result<Listing> {
        if let Some(archive) = self.archive_of(place)? {
            return Ok(archive.listing(place.lane()));
        }
        let dir = self.dir(place);
        let mut listing = Listing::default();
        self.each_entry(&dir, |file, _| match file.to_str() {
            Some(text) if text.starts_with('.') => {}
            Some(text) => match text.parse() {
                Ok(name) => listing.names.push(name),
                Err(_) => listing.foreign.push(dir.join(file)),
            },
            None => listing.foreign.push(dir.join(file)),
        })?;
        listing.names.sort_unstable();
        Ok(listing)
    }

    /// Task files in a place whose id begins with `prefix` (hexadecimal digits), in claim order,
    /// each with how many come before it. The directory is read once and only names that match are
    /// parsed: somebody waits for the answer, however long the queue is.
    pub fn find(&self, place: Place<'_>, prefix: &str) -> Result<Vec<(FileName, usize)>> {
        if self.is_archived_place(place) {
            return self.find_archived(place, prefix);
        }
        let mut found: Vec<(FileName, usize)> = Vec::new();
        let mut orders = Vec::new();
        self.each_name(place, |text| {
            let Some(id) = name::id_digits(text) else {
                return;
            };
            orders.extend(name::order(text));
            if id.starts_with(prefix)
                && let Ok(name) = text.parse()
            {
                found.push((name, 0));
            }
        })?;
        found.sort_unstable();
        for (name, ahead) in &mut found {
            let own = name::order(&name.to_string());
            *ahead = orders.iter().filter(|order| Some(**order) < own).count();
        }
        Ok(found)
    }

    /// How many task files of each shape are in a place, with up to `samples` of each.
    pub fn shapes(
        &self,
        place: Place<'_>,
        samples: usize,
    ) -> Result<BTreeMap<Shape, (usize, Vec<FileName>)>> {
        let mut shapes: BTreeMap<Shape, (usize, Vec<FileName>)> = BTreeMap::new();
        self.each_name(place, |text| {
            let Some(shape) = name::shape_digits(text) else {
                return;
            };
            let (count, names) = shapes.entry(shape).or_default();
            *count += 1;
            if names.len() < samples {
                names.extend(text.parse::<FileName>());
            }
        })?;
        Ok(shapes)
    }

    /// Shows the raw names in a place, those of unfinished files left out.
    fn each_name(&self, place: Place<'_>, mut look: impl FnMut(&str)) -> Result<()> {
        self.each_entry(&self.dir(place), |name, _| {
            if let Some(text) = name.to_str()
                && !text.starts_with('.')
            {
                look(text);
            }
        })
    }

    /// Removes what writers that died left unfinished: `.new-*` older than `age`, wherever files
    /// are written whole, for batches in those that are named. Returns how many. Nobody writes one
    /// file for that long.
    pub fn sweep<'a>(
        &self,
        age: std::time::Duration,
        batches: impl IntoIterator<Item = &'a str>,
    ) -> Result<usize> {
        let mut dirs = vec![
            self.root.clone(),
            self.brain_dir(),
            self.dir(Place::Quarantine),
        ];
        dirs.extend(self.dirs_of_brain());
        dirs.extend(Class::ALL.map(|class| self.dir(Place::Queue(class))));
        for parent in [self.root.join("agents"), self.root.join("signals")] {
            dirs.extend(
                self.subdirs_of(&parent)?
                    .iter()
                    .map(|name| parent.join(name)),
            );
        }
        for batch in batches {
            dirs.push(self.lane_dir(Lane::Waiting).join(batch));
            dirs.push(self.attempts_dir(batch));
        }
        let mut removed = 0;
        for dir in dirs {
            self.no_links(&dir)?;
            removed += sweep_dir(&dir, age)?;
        }
        Ok(removed)
    }

    /// How many task files are in a place.
    pub fn count(&self, place: Place<'_>) -> Result<usize> {
        Ok(self.list(place)?.names.len())
    }
}

/// What lies in a place.
#[derive(Debug, Default)]
pub struct Listing {
    /// Task files, in claim order.
    pub names: Vec<FileName>,
    /// Anything whose name is not a task file's.
    pub foreign: Vec<PathBuf>,
}

/// Whether a text can be a batch, a plan's task or an agent: it becomes a directory's name.
pub fn is_safe_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= NAME_MAX_BYTES
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && !text.starts_with(['.', '-'])
}

pub(crate) fn make_dir(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(QueueError::io("make directory", path))
}

fn sweep_dir(dir: &Path, age: std::time::Duration) -> Result<usize> {
    let mut removed = 0;
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(QueueError::io("read", dir)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(QueueError::io("read", dir))?;
        if !entry.file_name().to_string_lossy().starts_with(".new-") {
            continue;
        }
        let path = entry.path();
        // Its writer may finish or remove it at this moment.
        let Ok(meta) = fs::symlink_metadata(&path) else {
            continue;
        };
        let old = meta
            .modified()
            .ok()
            .and_then(|at| at.elapsed().ok())
            .is_some_and(|since| since >= age);
        if !old {
            continue;
        }
        let gone = if meta.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        match gone {
            Ok(()) => removed += 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(QueueError::io("remove", &path)(error)),
        }
    }
    Ok(removed)
}
