//! What must hold of a rig when nothing of it runs any more, whatever was done to it before.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rigor_exec::Containment;
use rigor_queue::lane::Lane;
use rigor_queue::name::{FileName, TaskId};
use rigor_queue::record::Outcome;
use rigor_queue::rig::{Place, RIG_BATCH, Rig};
use rigor_queue::task::Class;
use rigor_queue::{claim, records, submit};
use walkdir::WalkDir;

use crate::driver::{self, Operation};
use crate::{journal, processes};

/// Of a lane with more files than this only so many are read, evenly spread.
const READ_MOST: usize = 2_000;

/// Checks the rig at `root`, and the plans under `plans`. Returns everything that is wrong.
/// Temporary files may be as old as `litter_age`; the tasks `acknowledged` were acknowledged to
/// somebody.
pub fn check(
    root: &Path,
    rig_id: &str,
    plans: &Path,
    litter_age: Duration,
    acknowledged: &[TaskId],
) -> Vec<String> {
    let mut wrong = Vec::new();
    for process in processes::of_rig(root, rig_id) {
        wrong.push(format!("a process is left: {process:?}"));
    }
    wrong.extend(litter(root, litter_age));
    wrong.extend(overlaps(plans));
    match Rig::open(root) {
        Ok(rig) => {
            let places = places(&rig);
            wrong.extend(more_than_one_lane(&places));
            wrong.extend(lost(&rig, &places));
            wrong.extend(without_result(&rig, &places));
            wrong.extend(forgotten(&places, acknowledged));
            wrong.extend(half_written(&rig, &places));
            wrong.extend(without_reason(&rig));
            wrong.extend(groups_of_nobody(rig_id, &places));
        }
        Err(error) => wrong.push(error.to_string()),
    }
    wrong
}

/// Checks a rig of the [`driver`]: what holds of every rig, and that expansions are whole.
pub fn check_driver(
    root: &Path,
    operation: Operation,
    litter_age: Duration,
    acknowledged: &[TaskId],
) -> Vec<String> {
    let plans = Path::new("/nowhere");
    let mut wrong = check(root, driver::RIG_ID, plans, litter_age, acknowledged);
    // An expansion is there whole (then the manifest names all of it) or not at all.
    let waiting = root.join("tasks/waiting").join(driver::BATCH);
    if matches!(operation, Operation::ExpandFew | Operation::ExpandMany) && waiting.is_dir() {
        for entry in fs::read_dir(&waiting).expect("read a batch").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let whole = operation.expands_to();
            let there = fs::read_dir(entry.path()).expect("read an expansion");
            let there = there
                .flatten()
                .filter(|entry| !is_hidden(&entry.file_name()));
            let count = there.count();
            if !name.starts_with('.') && count != whole {
                wrong.push(format!(
                    "{count} of {whole} tasks of an expansion are there"
                ));
            }
        }
    }
    wrong
}

/// Those of the tasks whose newest attempt has a valid record that says that it succeeded.
pub fn finished(root: &Path, ids: &[TaskId]) -> Vec<TaskId> {
    let rig = Rig::open(root).expect("open the rig");
    let places = places(&rig);
    let succeeded = |id: &&TaskId| {
        let name = places
            .get(id)
            .and_then(|found| found.first())
            .map(|it| it.1);
        name.is_some_and(|name| {
            let record = records::read(&rig, driver::BATCH, name.id, name.attempt);
            record.is_ok_and(|it| it.is_some_and(|it| it.outcome == Outcome::Succeeded))
        })
    };
    ids.iter().filter(succeeded).copied().collect()
}

/// Whether a task is in one of these lanes.
pub fn is_in(root: &Path, id: TaskId, lanes: &[Lane]) -> bool {
    let rig = Rig::open(root).expect("open the rig");
    let places = places(&rig);
    let found = places.get(&id).map(Vec::as_slice).unwrap_or_default();
    found.iter().any(|(lane, ..)| lanes.contains(lane))
}

/// Where each task file lies.
type Places = BTreeMap<TaskId, Vec<(Lane, FileName, PathBuf)>>;

fn places(rig: &Rig) -> Places {
    let mut places = Places::new();
    for lane in Lane::ALL {
        let shown = |entry: &walkdir::DirEntry| !is_hidden(entry.file_name());
        let entries = WalkDir::new(rig.lane_dir(lane)).into_iter();
        for entry in entries.filter_entry(shown).flatten() {
            let name = entry
                .file_name()
                .to_str()
                .and_then(|text| text.parse().ok());
            let Some(name): Option<FileName> = name else {
                continue;
            };
            let found = (lane, name, entry.into_path());
            places.entry(name.id).or_default().push(found);
        }
    }
    archived(rig, &mut places);
    places
}

/// An archived batch is what its archive has; what is left of it in the lanes counts for nothing.
fn archived(rig: &Rig, places: &mut Places) {
    for batch in rig.archived_batches().expect("read the archive") {
        for place in [
            Place::Complete(&batch),
            Place::Failed(&batch),
            Place::Cancelled(&batch),
        ] {
            for name in rig.list(place).expect("read an archive").names {
                let path = rig.path(place, &name);
                let found = places.entry(name.id).or_default();
                found.retain(|(_, _, left)| *left != path);
                found.push((place.lane(), name, path));
            }
        }
    }
}

fn more_than_one_lane(places: &Places) -> Vec<String> {
    let more = places.iter().filter(|(_, found)| found.len() > 1);
    more.map(|(id, found)| format!("{id} is in {} places: {found:?}", found.len()))
        .collect()
}

/// Tasks of an expansion that are in no lane.
fn lost(rig: &Rig, places: &Places) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut batches = rig.subdirs(Lane::Waiting).expect("read the batches");
    batches.extend(rig.archived_batches().expect("read the archive"));
    for batch in batches {
        // What is not finished is not there.
        for task in rig.expansions(&batch).expect("read a batch") {
            let manifest = match submit::manifest(rig, &batch, &task) {
                Ok(manifest) => manifest.unwrap_or_default(),
                Err(error) => {
                    wrong.push(error.to_string());
                    continue;
                }
            };
            for entry in manifest {
                if !places.contains_key(&entry.id) {
                    wrong.push(format!("{} ({task} of {batch}) is in no lane", entry.id));
                }
            }
        }
    }
    wrong
}

/// Tasks that somebody was told of and that are in no lane.
fn forgotten(places: &Places, acknowledged: &[TaskId]) -> Vec<String> {
    let gone = acknowledged.iter().filter(|id| !places.contains_key(id));
    gone.map(|id| format!("{id} was acknowledged and is in no lane"))
        .collect()
}

/// Task files that can be seen and are not whole.
fn half_written(rig: &Rig, places: &Places) -> Vec<String> {
    let mut wrong = Vec::new();
    let files = places.values().flatten();
    let live = files.filter(|(lane, ..)| *lane != Lane::Quarantine);
    let apart = live.clone().count().div_ceil(READ_MOST).max(1);
    for (n, (lane, name, path)) in live.enumerate() {
        if fs::symlink_metadata(path).is_ok_and(|meta| meta.len() == 0) {
            wrong.push(format!("{} has 0 bytes", path.display()));
            continue;
        }
        let folder = folder(path);
        let above = path.parent().map(self::folder).unwrap_or_default();
        let place = match lane {
            Lane::Waiting => Some(Place::Waiting {
                batch: &above,
                task: &folder,
            }),
            Lane::Queue => Class::parse(&folder).map(Place::Queue),
            Lane::Processing => Some(Place::Processing(&folder)),
            Lane::Retry => Some(Place::Retry(&folder)),
            Lane::Complete => Some(Place::Complete(&folder)),
            Lane::Failed => Some(Place::Failed(&folder)),
            Lane::Cancelled => Some(Place::Cancelled(&folder)),
            Lane::Quarantine => None,
        };
        let place = place.filter(|_| n % apart == 0);
        if let Some(Err(error)) = place.map(|place| claim::peek(rig, place, name)) {
            wrong.push(format!("in {lane}: {error}"));
        }
    }
    wrong
}

/// The name of the directory that something lies in.
fn folder(path: &Path) -> String {
    let folder = path.parent().and_then(Path::file_name);
    folder.unwrap_or_default().to_string_lossy().into_owned()
}

/// What lies in quarantine without a whole note that says why.
fn without_reason(rig: &Rig) -> Vec<String> {
    let dir = rig.dir(Place::Quarantine);
    let mut wrong = Vec::new();
    for entry in fs::read_dir(&dir).expect("read the quarantine").flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        if file.ends_with(".reason") {
            continue;
        }
        let note = fs::read_to_string(dir.join(format!("{file}.reason"))).unwrap_or_default();
        let said: Option<serde_json::Value> = serde_json::from_str(&note).ok();
        if said.is_none_or(|said| said["reason"].as_str().is_none_or(str::is_empty)) {
            wrong.push(format!("{file} in quarantine has no reason: {note:?}"));
        }
    }
    wrong
}

/// Cgroups of attempts that are over.
fn groups_of_nobody(rig_id: &str, places: &Places) -> Vec<String> {
    let groups = Containment::detect(rig_id).attempts().into_iter();
    let runs = |id: &TaskId, attempt: u32| {
        let found = places.get(id).map(Vec::as_slice).unwrap_or_default();
        let mut found = found.iter();
        found.any(|(lane, name, _)| *lane == Lane::Processing && name.attempt == attempt)
    };
    groups
        .filter(|(id, attempt)| !runs(id, *attempt))
        .map(|(id, attempt)| format!("a cgroup of {id}.a{attempt} is left, and it is over"))
        .collect()
}

fn is_hidden(name: &std::ffi::OsStr) -> bool {
    name.to_string_lossy().starts_with('.')
}

/// Tasks that are over with no record that says how, or with one that says otherwise.
fn without_result(rig: &Rig, places: &Places) -> Vec<String> {
    let mut wrong = Vec::new();
    for found in places.values() {
        for (lane, name, path) in found {
            let batch = &folder(path);
            let newest = match lane {
                Lane::Complete | Lane::Failed | Lane::Cancelled => newest_record(rig, batch, name),
                _ => continue,
            };
            let Ok(Some((attempt, class, outcome))) = newest else {
                wrong.push(format!(
                    "{name} of {batch} in {lane} has no record: {newest:?}"
                ));
                continue;
            };
            let fits = match (lane, &outcome) {
                (Lane::Complete, Outcome::Succeeded) => attempt == name.attempt,
                (Lane::Failed, Outcome::Failed { .. }) => true,
                // What was lost too often, or whose batch has failures.
                (Lane::Failed, Outcome::Lost { .. }) => true,
                (Lane::Failed, Outcome::Succeeded) => class == Class::Brain,
                (Lane::Cancelled, Outcome::Cancelled { .. } | Outcome::Failed { .. }) => true,
                _ => false,
            };
            if !fits && batch != RIG_BATCH {
                wrong.push(format!(
                    "{name} of {batch} is in {lane}, and its newest record (attempt {attempt}) says {outcome:?}"
                ));
            }
        }
    }
    wrong
}

type Newest = Option<(u32, Class, Outcome)>;

fn newest_record(rig: &Rig, batch: &str, name: &FileName) -> rigor_queue::Result<Newest> {
    // A task that is cancelled after an attempt gets a record of its own for that.
    let mut all = records::history(rig, batch, name.id, name.attempt + 1)?;
    let newest = all.pop();
    Ok(newest.map(|record| (record.attempt, record.class, record.outcome)))
}

/// Temporary files that nobody finished or collected.
fn litter(root: &Path, most: Duration) -> Vec<String> {
    WalkDir::new(root)
        .into_iter()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(".new-"))
        .filter(|entry| {
            let modified = entry.metadata().ok().and_then(|meta| meta.modified().ok());
            modified.and_then(|at| at.elapsed().ok()) >= Some(most)
        })
        .map(|entry| format!("litter: {}", entry.path().display()))
        .collect()
}

/// Attempts of one task that ran at the same time.
fn overlaps(plans: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(plans).into_iter().flatten().flatten() {
        let attempts = journal::read(&entry.path());
        for pair in attempts.windows(2) {
            let [one, next] = pair else { continue };
            if one.task == next.task && next.start < one.last {
                wrong.push(format!(
                    "two attempts ran at the same time: {one:?} and {next:?}"
                ));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use rigor_queue::record::AttemptRecord;
    use rigor_queue::submit::Durability;
    use rigor_queue::task::TaskSpec;

    use super::*;
    use crate::tasks;

    /// A rig with two waiting tasks of one expansion, in which nothing is wrong.
    struct Sound {
        _dir: tempfile::TempDir,
        rig: Rig,
        plans: PathBuf,
        specs: Vec<TaskSpec>,
        /// Of this rig alone: cases run beside each other, and one leaves a process.
        id: String,
    }

    impl Sound {
        fn new() -> Sound {
            let dir = tempfile::tempdir().unwrap();
            let rig = Rig::create(&dir.path().join("rig")).unwrap();
            rig.prepare_batch("b").unwrap();
            let specs: Vec<TaskSpec> = ["1", "2"]
                .map(|item| tasks::spec("b", "t", Some(item), "true"))
                .into();
            let all = (1..)
                .zip(&specs)
                .map(|(n, spec)| (name(n, spec), spec.clone()));
            submit::expand(&rig, "b", "t", all, Durability::Process).unwrap();
            let sound = Sound {
                plans: dir.path().join("plans"),
                id: dir
                    .path()
                    .file_name()
                    .unwrap()
                    .to_string_lossy()
                    .into_owned(),
                _dir: dir,
                rig,
                specs,
            };
            assert_eq!(sound.check(), "");
            sound
        }

        fn check(&self) -> String {
            let ids: Vec<TaskId> = self.specs.iter().map(|spec| spec.id).collect();
            check(self.rig.root(), &self.id, &self.plans, Duration::ZERO, &ids).join("\n")
        }

        #[track_caller]
        fn finds(&self, what: &str) {
            assert!(
                self.check().contains(what),
                "not {what:?}: {}",
                self.check()
            );
        }

        fn waiting(&self, n: usize) -> PathBuf {
            let place = Place::Waiting {
                batch: "b",
                task: "t",
            };
            self.rig.path(place, &self.name(n))
        }

        fn name(&self, n: usize) -> FileName {
            name(n as u64 + 1, &self.specs[n])
        }
    }

    fn name(n: u64, spec: &TaskSpec) -> FileName {
        FileName::first(spec.priority, n, spec.shape(), spec.id)
    }

    // A checker that finds nothing would let every case pass.

    #[test]
    fn a_lost_task_is_found() {
        let sound = Sound::new();
        let id = sound.specs[0].id;
        fs::remove_file(sound.waiting(0)).unwrap();
        sound.finds(&format!("{id} (t of b) is in no lane"));
        sound.finds(&format!("{id} was acknowledged and is in no lane"));
    }

    #[test]
    fn a_task_in_two_lanes_is_found() {
        let sound = Sound::new();
        let queued = sound.rig.path(Place::Queue(Class::Cpu), &sound.name(1));
        fs::copy(sound.waiting(1), &queued).unwrap();
        sound.finds(&format!("{} is in 2 places", sound.specs[1].id));
    }

    #[test]
    fn what_is_half_written_is_found() {
        let sound = Sound::new();
        let text = fs::read(sound.waiting(0)).unwrap();
        fs::write(sound.waiting(0), "").unwrap();
        sound.finds("has 0 bytes");
        fs::write(sound.waiting(0), &text[..text.len() / 2]).unwrap();
        sound.finds("in waiting: ");
        fs::write(sound.waiting(0), &text).unwrap();
        assert_eq!(sound.check(), "");
    }

    #[test]
    fn an_end_without_a_record_and_one_that_says_otherwise_are_found() {
        let sound = Sound::new();
        let complete = sound.rig.path(Place::Complete("b"), &sound.name(0));
        fs::rename(sound.waiting(0), &complete).unwrap();
        sound.finds("has no record");
        let lost = Outcome::Lost {
            reason: "its agent died".to_owned(),
        };
        let record = AttemptRecord::without_worker("a", &sound.name(0), &sound.specs[0], lost);
        records::write_new(&sound.rig, &record).unwrap();
        sound.finds("is in complete, and its newest record");
    }

    #[test]
    fn quarantine_without_a_reason_is_found() {
        let sound = Sound::new();
        let dir = sound.rig.dir(Place::Quarantine);
        fs::write(dir.join("strange"), "?").unwrap();
        sound.finds("strange in quarantine has no reason");
        fs::write(dir.join("strange.reason"), "{\"reason\":\"\"}\n").unwrap();
        sound.finds("strange in quarantine has no reason");
        fs::write(dir.join("strange.reason"), "{\"reason\":\"why\"}\n").unwrap();
        assert_eq!(sound.check(), "");
    }

    #[test]
    fn litter_is_found() {
        let sound = Sound::new();
        fs::write(sound.rig.root().join("agents/.new-abc"), "").unwrap();
        sound.finds("litter: ");
    }

    #[test]
    fn attempts_that_overlap_are_found() {
        let sound = Sound::new();
        let plan = sound.plans.join("p");
        fs::create_dir_all(&plan).unwrap();
        let journal = "x 1 start 10.0 a\nx 2 start 11.0 b\nx 1 tick 11.5 a\nx 2 stop 12.0 b\n";
        fs::write(plan.join(journal::FILE), journal).unwrap();
        sound.finds("two attempts ran at the same time");
        fs::write(plan.join(journal::FILE), journal.replace("11.5", "10.5")).unwrap();
        assert_eq!(sound.check(), "");
    }

    #[test]
    fn processes_that_are_left_are_found() {
        let sound = Sound::new();
        let mut left = Command::new("sleep")
            .arg("60")
            .env("RIGOR_COOKIE", format!("{}:0000000000000001.a1", sound.id))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let found = sound.check();
        left.kill().unwrap();
        left.wait().unwrap();
        assert!(found.contains("a process is left"), "{found}");
        assert_eq!(sound.check(), "");
    }
}
