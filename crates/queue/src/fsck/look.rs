//! Looking for what is wrong. Nothing here writes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Check, Finding, Mend};
use crate::claim;
use crate::error::{QueueError, Result};
use crate::lane::Lane;
use crate::name::{FileName, TaskId};
use crate::record::Outcome;
use crate::records;
use crate::rig::{Place, RIG_BATCH, Rig, is_safe_name};
use crate::task::{Class, TaskSpec, Work};

/// The manifest of an expansion is a dotfile that stays.
const MANIFEST: &str = ".items.jsonl";

/// A task file that was found.
struct Found {
    lane: Lane,
    name: FileName,
    path: PathBuf,
    /// A submitted plan: its number is the submitter's own, not of the brain's sequence.
    plan: bool,
}

struct Look<'a> {
    rig: &'a Rig,
    findings: Vec<Finding>,
    tasks: BTreeMap<TaskId, Vec<Found>>,
    /// Batches of which any task is there.
    batches: BTreeSet<String>,
    /// A task file could not be read, so its batch is not known.
    unread: bool,
}

/// Everything that is wrong with a rig, sorted by what must hold and path.
///
/// Every task file is read, so a rig of a million tasks takes minutes.
///
/// # Errors
///
/// A directory that cannot be read at all.
pub fn look(rig: &Rig) -> Result<Vec<Finding>> {
    let mut look = Look {
        rig,
        findings: Vec::new(),
        tasks: BTreeMap::new(),
        batches: BTreeSet::new(),
        unread: false,
    };
    look.lanes()?;
    look.one_lane();
    look.sequence()?;
    look.archives()?;
    look.attempts()?;
    look.others()?;
    look.findings
        .sort_by(|a, b| (a.check, &a.path).cmp(&(b.check, &b.path)));
    Ok(look.findings)
}

impl Look<'_> {
    fn add(&mut self, check: Check, path: &Path, what: String, remedy: &str, mend: Option<Mend>) {
        self.findings.push(Finding {
            check,
            path: path.to_owned(),
            what,
            remedy: remedy.to_owned(),
            safe: mend.is_some(),
            mend,
        });
    }

    fn quarantine(&mut self, check: Check, path: &Path, what: String) {
        let remedy = "it goes to tasks/quarantine/ as it is, with the reason beside it";
        self.add(check, path, what, remedy, Some(Mend::Quarantine));
    }

    fn lanes(&mut self) -> Result<()> {
        for lane in Lane::ALL {
            let dir = self.rig.lane_dir(lane);
            let is_dir = fs::symlink_metadata(&dir).is_ok_and(|meta| meta.is_dir());
            if !is_dir {
                let what = format!("tasks/{lane} is not a directory (a link is none)");
                let remedy = "put the directory back, or `rigor init` an empty rig beside it";
                self.add(Check::Lane, &dir, what, remedy, None);
                continue;
            }
            if lane == Lane::Quarantine {
                continue;
            }
            for (name, path, is_dir) in entries(&dir)? {
                let name = name.unwrap_or_default();
                if name.starts_with('.') {
                    self.litter(&path);
                } else if path.is_symlink() {
                    let what = "a link in place of a directory".to_owned();
                    let remedy = "look where it leads, and put a directory in its place";
                    self.add(Check::Lane, &path, what, remedy, None);
                } else if !is_dir {
                    let what = format!("it lies in tasks/{lane}, which holds directories only");
                    self.quarantine(Check::Place, &path, what);
                } else if !is_safe_name(&name)
                    || (lane == Lane::Queue && Class::parse(&name).is_none())
                {
                    let what = format!("tasks/{lane} has no directory of such a name");
                    let remedy = "look what is in it, and move it out of the rig";
                    self.add(Check::Place, &path, what, remedy, None);
                } else {
                    self.directory(lane, &name, &path)?;
                }
            }
        }
        Ok(())
    }

    fn directory(&mut self, lane: Lane, name: &str, path: &Path) -> Result<()> {
        if lane != Lane::Waiting {
            let place = match lane {
                Lane::Queue => Place::Queue(Class::parse(name).unwrap_or(Class::Cpu)),
                Lane::Processing => Place::Processing(name),
                Lane::Retry => Place::Retry(name),
                Lane::Complete => Place::Complete(name),
                Lane::Failed => Place::Failed(name),
                Lane::Cancelled => Place::Cancelled(name),
                Lane::Waiting | Lane::Quarantine => return Ok(()),
            };
            return self.place(place, path);
        }
        for (task, path, is_dir) in entries(path)? {
            let task = task.unwrap_or_default();
            if task.starts_with('.') {
                self.litter(&path);
            } else if !is_dir || !is_safe_name(&task) {
                let what = "tasks/waiting/<batch> holds a directory for each task of the plan only";
                self.quarantine(Check::Place, &path, what.to_owned());
            } else {
                self.place(
                    Place::Waiting {
                        batch: name,
                        task: &task,
                    },
                    &path,
                )?;
                if let Err(error) = crate::submit::manifest(self.rig, name, &task) {
                    let what = format!("its manifest cannot be read: {error}");
                    let remedy = "cancel the batch and submit it again";
                    self.add(Check::Content, &path, what, remedy, None);
                }
            }
        }
        Ok(())
    }

    /// The files of one place.
    fn place(&mut self, place: Place<'_>, dir: &Path) -> Result<()> {
        for (text, path, _) in entries(dir)? {
            match text.as_deref() {
                Some(MANIFEST) if place.lane() == Lane::Waiting => {}
                Some(text) if text.starts_with('.') => self.litter(&path),
                text => match text.and_then(|text| text.parse().ok()) {
                    Some(name) => self.file(place, name, path),
                    None => {
                        let what = "its name is no task file's".to_owned();
                        self.quarantine(Check::Name, &path, what);
                    }
                },
            }
        }
        Ok(())
    }

    fn file(&mut self, place: Place<'_>, name: FileName, path: PathBuf) {
        let lane = place.lane();
        let spec = match claim::peek(self.rig, place, &name) {
            Ok(Some(spec)) => spec,
            Ok(None) => return,
            Err(QueueError::Untrusted { why, .. }) => {
                return self.quarantine(Check::Content, &path, why);
            }
            Err(error) => {
                let remedy = "see that this user may read it, and look at the disk";
                self.unread = true;
                return self.add(Check::Content, &path, error.to_string(), remedy, None);
            }
        };
        let astray = match place {
            Place::Queue(class) if class != spec.class => Some(format!("of class {}", spec.class)),
            Place::Waiting { batch, .. }
            | Place::Retry(batch)
            | Place::Complete(batch)
            | Place::Failed(batch)
            | Place::Cancelled(batch)
                if batch != spec.batch =>
            {
                Some(format!("of batch {}", spec.batch))
            }
            _ => None,
        };
        if let Some(what) = astray {
            return self.quarantine(Check::Place, &path, format!("its content is {what}"));
        }
        self.batches.insert(spec.batch.clone());
        self.record(place, &name, &spec, &path);
        let plan = matches!(spec.work, Work::Plan(_));
        self.tasks.entry(name.id).or_default().push(Found {
            lane,
            name,
            path,
            plan,
        });
    }

    /// What the record of its attempt says, against where it lies.
    fn record(&mut self, place: Place<'_>, name: &FileName, spec: &TaskSpec, path: &Path) {
        let plan = matches!(spec.work, Work::Plan(_));
        let record = records::read(self.rig, &spec.batch, name.id, name.attempt);
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                let remedy = "use the Rigor that wrote it, or see that this user may read it";
                return self.add(Check::Record, path, error.to_string(), remedy, None);
            }
        };
        let outcome = record.map(|record| record.outcome);
        let said = match &outcome {
            None => "there is none",
            Some(Outcome::Succeeded) => "it says succeeded",
            Some(Outcome::Failed { .. }) => "it says failed",
            Some(Outcome::Lost { .. }) => "it says lost",
            Some(Outcome::Cancelled { .. }) => "it says cancelled",
        };
        match place {
            // A plan lies in processing/brain while its batch is active.
            Place::Processing(agent) if !plan && outcome.is_some() => {
                let what = format!("its attempt is over ({said}), and it was not moved on");
                let remedy = "it is moved on as the record says, as `rigor up` would";
                let agent = agent.to_owned();
                let mend = Some(Mend::Finish { agent, name: *name });
                self.add(Check::Unfinished, path, what, remedy, mend);
            }
            Place::Complete(_) if outcome != Some(Outcome::Succeeded) => {
                let what =
                    format!("the record of its attempt does not say that it succeeded: {said}");
                let remedy = "its output may be good: look at it, or run it again in a new batch";
                self.add(Check::Record, path, what, remedy, None);
            }
            Place::Failed(_) | Place::Retry(_)
                if matches!(outcome, None | Some(Outcome::Succeeded)) =>
            {
                let what = format!("the record of its attempt does not say why: {said}");
                let remedy = "`rigor retry` runs it again once it has failed for good";
                self.add(Check::Record, path, what, remedy, None);
            }
            _ => {}
        }
    }

    fn litter(&mut self, path: &Path) {
        let what = "unfinished writing of a process that is gone".to_owned();
        self.add(
            Check::Litter,
            path,
            what,
            "it is removed",
            Some(Mend::Remove),
        );
    }

    /// Of one id in two lanes the latest attempt counts, then the later lane of a task's life.
    fn one_lane(&mut self) {
        for (id, mut found) in std::mem::take(&mut self.tasks) {
            let done = |found: &Found| found.lane == Lane::Complete;
            found.sort_by_key(|found| (found.name.attempt, done(found), found.lane));
            let Some(last) = found.pop() else { continue };
            for other in found {
                let what = format!(
                    "task {id} is also in tasks/{}, as a later attempt or further on",
                    last.lane
                );
                // It lies where it should not: what else it is found for is settled with it.
                self.findings.retain(|finding| finding.path != other.path);
                self.quarantine(Check::OneLane, &other.path, what);
            }
            self.tasks.insert(id, vec![last]);
        }
    }

    fn sequence(&mut self) -> Result<()> {
        let used = self
            .tasks
            .values()
            .flatten()
            .filter(|found| !found.plan)
            .map(|found| found.name.sequence)
            .max();
        let path = self.rig.brain_dir().join("sequence");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(QueueError::io("read", &path)(error)),
        };
        let reserved: Option<u64> = match text.trim() {
            "" => Some(0),
            digits => digits.parse().ok(),
        };
        let least = used.map_or(0, |used| used + 1);
        if reserved.is_none_or(|reserved| reserved < least) {
            let what = format!(
                "it says {:?}, and the number {} is in use",
                text.trim(),
                least.max(1) - 1
            );
            let remedy = "the next free number is written";
            let mend = Some(Mend::Reserve { sequence: least });
            self.add(Check::Sequence, &path, what, remedy, mend);
        }
        Ok(())
    }

    fn archives(&mut self) -> Result<()> {
        let dir = self.rig.archive_dir();
        for (name, path, is_dir) in entries(&dir)? {
            let name = name.unwrap_or_default();
            if name.starts_with('.') {
                self.litter(&path);
            } else if is_dir && is_safe_name(&name) {
                let wrong = match self.rig.archived(&name) {
                    Ok(Some(archive)) => archive.look(),
                    Ok(None) => vec!["it has no batch.json".to_owned()],
                    Err(error) => vec![error.to_string()],
                };
                if let Some(first) = wrong.first() {
                    let more = match wrong.len() - 1 {
                        0 => String::new(),
                        more => format!(", and {more} more"),
                    };
                    let what = format!("the archive of {name} is damaged: {first}{more}");
                    let remedy = "put it back from a backup, or move it out of the rig";
                    self.add(Check::Archive, &path, what, remedy, None);
                }
                self.batches.insert(name);
            } else if name != "lock" {
                let what = "archive/ holds a directory for each archived batch only".to_owned();
                self.quarantine(Check::Archive, &path, what);
            }
        }
        // A link in place of a lane, or an unreadable one, is said for the lane itself.
        let left = crate::archive::leftovers(self.rig).unwrap_or_default();
        for batch in left {
            let path = dir.join(&batch);
            let what = format!("{batch} is archived, and something of it is left in the lanes");
            let remedy = "what the archive has too is removed";
            let mend = Some(Mend::Clear { batch });
            self.add(Check::Archive, &path, what, remedy, mend);
        }
        Ok(())
    }

    fn attempts(&mut self) -> Result<()> {
        let dir = self.rig.root().join("attempts");
        for (name, path, is_dir) in entries(&dir)? {
            let name = name.unwrap_or_default();
            if !is_dir || !is_safe_name(&name) {
                let what = "attempts/ holds a directory for each batch only".to_owned();
                self.quarantine(Check::Attempts, &path, what);
                continue;
            }
            if name != RIG_BATCH && !self.unread && !self.batches.contains(&name) {
                let what = "it is of a batch of which no task is left in any lane".to_owned();
                self.quarantine(Check::Attempts, &path, what);
                continue;
            }
            for (file, path, _) in entries(&path)? {
                if file.is_some_and(|file| file.starts_with('.')) {
                    self.litter(&path);
                }
            }
        }
        Ok(())
    }

    /// What lies beside the lanes.
    fn others(&mut self) -> Result<()> {
        let root = self.rig.root();
        let mut dirs = vec![root.to_owned(), self.rig.brain_dir()];
        for name in ["held", "cancelled", "escalations", "batches"] {
            dirs.push(self.rig.brain_dir().join(name));
        }
        for (_, agent, is_dir) in entries(&root.join("agents"))? {
            if is_dir {
                dirs.push(agent);
            }
        }
        for dir in dirs {
            for (name, path, _) in entries(&dir)? {
                if name.is_some_and(|name| name.starts_with(".new-")) {
                    self.litter(&path);
                }
            }
        }
        for (_, dir, is_dir) in entries(&root.join("signals"))? {
            if !is_dir {
                continue;
            }
            for (name, path, _) in entries(&dir)? {
                let is_file = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file());
                if name.is_some_and(|name| name.starts_with('.')) {
                    self.litter(&path);
                } else if !is_file {
                    self.quarantine(Check::Signal, &path, "a signal is a file".to_owned());
                }
            }
        }
        Ok(())
    }
}

/// What is in a directory: name (none where it is not UTF-8), path, whether it is a directory. One
/// that is not there is empty.
fn entries(dir: &Path) -> Result<Vec<(Option<String>, PathBuf, bool)>> {
    let listing = match fs::read_dir(dir) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(QueueError::io("read", dir)(error)),
    };
    let mut found = Vec::new();
    for entry in listing {
        let entry = entry.map_err(QueueError::io("read", dir))?;
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        found.push((entry.file_name().into_string().ok(), entry.path(), is_dir));
    }
    found.sort();
    Ok(found)
}
