//! What must hold of a rig when nothing of it runs any more, whatever was done to it before.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use rigor_queue::lane::Lane;
use rigor_queue::name::{FileName, TaskId};
use rigor_queue::record::Outcome;
use rigor_queue::rig::{RIG_BATCH, Rig};
use rigor_queue::task::Class;
use rigor_queue::{records, submit};
use walkdir::WalkDir;

use crate::{journal, processes};

/// Checks the rig at `root`, and the plans under `plans`. Returns everything that is wrong.
/// Temporary files may be as old as `litter_age`.
pub fn check(root: &Path, rig_id: &str, plans: &Path, litter_age: Duration) -> Vec<String> {
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
        }
        Err(error) => wrong.push(error.to_string()),
    }
    wrong
}

/// Where each task file lies.
type Places = BTreeMap<TaskId, Vec<(Lane, FileName, String)>>;

fn places(rig: &Rig) -> Places {
    let mut places = Places::new();
    for lane in Lane::ALL {
        for entry in WalkDir::new(rig.lane_dir(lane)).into_iter().flatten() {
            let name = entry
                .file_name()
                .to_str()
                .and_then(|text| text.parse().ok());
            let Some(name): Option<FileName> = name else {
                continue;
            };
            let folder = entry.path().parent().and_then(|path| path.file_name());
            let folder = folder.unwrap_or_default().to_string_lossy().into_owned();
            places
                .entry(name.id)
                .or_default()
                .push((lane, name, folder));
        }
    }
    places
}

fn more_than_one_lane(places: &Places) -> Vec<String> {
    let more = places.iter().filter(|(_, found)| found.len() > 1);
    more.map(|(id, found)| format!("{id} is in {} places: {found:?}", found.len()))
        .collect()
}

/// Tasks of an expansion that are in no lane.
fn lost(rig: &Rig, places: &Places) -> Vec<String> {
    let mut wrong = Vec::new();
    for batch in rig.subdirs(Lane::Waiting).expect("read the batches") {
        let dir = rig.lane_dir(Lane::Waiting).join(&batch);
        for entry in std::fs::read_dir(dir).expect("read a batch").flatten() {
            let task = entry.file_name().to_string_lossy().into_owned();
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

/// Tasks that are over with no record that says how, or with one that says otherwise.
fn without_result(rig: &Rig, places: &Places) -> Vec<String> {
    let mut wrong = Vec::new();
    for found in places.values() {
        for (lane, name, batch) in found {
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
    use std::fs;
    use std::process::{Command, Stdio};

    use rigor_queue::rig::Place;

    use super::*;

    /// A checker that finds nothing would let every case pass.
    #[test]
    fn everything_that_is_wrong_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (root, plans) = (dir.path().join("rig"), dir.path().join("plans"));
        let rig = Rig::create(&root).unwrap();
        rig.prepare_batch("b").unwrap();
        let id = |n: u8| TaskId::derive("b", "t", Some(&n.to_string()));
        let name =
            |n: u8| FileName::first(5, n.into(), rigor_queue::name::Shape(0), id(n)).to_string();
        let check = || check(&root, "testrig", &plans, Duration::ZERO).join("\n");
        let waiting = rig.dir(Place::Waiting {
            batch: "b",
            task: "t",
        });
        fs::create_dir_all(&waiting).unwrap();
        let manifest: String = (1..=2)
            .map(|n| format!("{{\"id\":\"{}\"}}\n", id(n)))
            .collect();
        fs::write(waiting.join(".items.jsonl"), manifest).unwrap();
        for n in 1..=2 {
            fs::write(waiting.join(name(n)), "").unwrap();
        }
        assert_eq!(check(), "");

        fs::remove_file(waiting.join(name(1))).unwrap();
        assert!(
            check().contains(&format!("{} (t of b) is in no lane", id(1))),
            "{}",
            check()
        );
        fs::write(waiting.join(name(1)), "").unwrap();

        let queued = rig.dir(Place::Queue(Class::Cpu)).join(name(2));
        fs::write(&queued, "").unwrap();
        assert!(
            check().contains(&format!("{} is in 2 places", id(2))),
            "{}",
            check()
        );
        fs::remove_file(&queued).unwrap();

        let complete = rig.dir(Place::Complete("b")).join(name(2));
        fs::rename(waiting.join(name(2)), &complete).unwrap();
        assert!(check().contains("has no record"), "{}", check());
        fs::rename(&complete, waiting.join(name(2))).unwrap();

        let litter = root.join("agents/.new-abc");
        fs::write(&litter, "").unwrap();
        assert!(check().contains("litter: "), "{}", check());
        fs::remove_file(&litter).unwrap();

        let plan = plans.join("p");
        fs::create_dir_all(&plan).unwrap();
        let journal = "x 1 start 10.0 a\nx 2 start 11.0 b\nx 1 tick 11.5 a\nx 2 stop 12.0 b\n";
        fs::write(plan.join(journal::FILE), journal).unwrap();
        assert!(
            check().contains("two attempts ran at the same time"),
            "{}",
            check()
        );
        fs::write(plan.join(journal::FILE), journal.replace("11.5", "10.5")).unwrap();
        assert_eq!(check(), "");

        let mut left = Command::new("sleep")
            .arg("60")
            .env("RIGOR_COOKIE", "testrig:0000000000000001.a1")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let found = check();
        left.kill().unwrap();
        left.wait().unwrap();
        assert!(found.contains("a process is left"), "{found}");
        assert_eq!(check(), "");
    }
}
