//! Archived batches: every byte comes back, readers see no difference, and whoever dies in between
//! is followed by one who goes on.

#![expect(clippy::unwrap_used, reason = "a failed test panics")]

#[expect(dead_code, reason = "nothing is queued here")]
mod bed;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bed::{failed, spec};
use proptest::prelude::*;
use rigor_queue::archive::{self, Compacted, Lock};
use rigor_queue::lane::Lane;
use rigor_queue::name::{FileName, TaskId};
use rigor_queue::record::{AttemptRecord, Outcome};
use rigor_queue::rig::{BRAIN, PLAN_TASK, Place, Rig};
use rigor_queue::submit::{self, Durability, ManifestEntry};
use rigor_queue::task::Class;
use rigor_queue::{claim, fsck, keys, output, records};

const BATCH: &str = "b";

/// What becomes of one task.
#[derive(Clone, Debug)]
struct Fate {
    lane: Lane,
    attempts: u32,
    /// Bytes that each attempt printed.
    printed: usize,
    /// The record of the first attempt but one is torn after so many bytes.
    torn: Option<usize>,
}

impl Fate {
    fn of(lane: Lane) -> Fate {
        Fate {
            lane,
            attempts: 1,
            printed: 5,
            torn: None,
        }
    }
}

struct Made {
    bed: bed::Bed,
    names: Vec<(FileName, Fate)>,
    plan: FileName,
}

fn place(lane: Lane) -> Place<'static> {
    match lane {
        Lane::Complete => Place::Complete(BATCH),
        Lane::Failed => Place::Failed(BATCH),
        Lane::Cancelled => Place::Cancelled(BATCH),
        other => panic!("{other} ends no task"),
    }
}

fn outcome(lane: Lane) -> Outcome {
    match lane {
        Lane::Complete => Outcome::Succeeded,
        Lane::Cancelled => Outcome::Cancelled {
            reason: "an operator's".to_owned(),
        },
        _ => failed(),
    }
}

/// A batch that is over, made through the functions that the programs call.
fn made(fates: &[Fate]) -> Made {
    let bed = bed::bed();
    let rig = &bed.rig;
    rig.prepare_agent(BRAIN).unwrap();
    let mut tasks = Vec::new();
    for n in 0..fates.len() {
        let mut spec = spec("each");
        let item = format!("i{n}");
        spec.id = TaskId::derive(BATCH, "each", Some(&item));
        spec.name = format!("each_{item}");
        tasks.push((FileName::first(5, n as u64, spec.shape(), spec.id), spec));
    }
    assert!(submit::expand(rig, BATCH, "each", tasks.clone(), Durability::Process).unwrap());
    let mut names = Vec::new();
    for ((mut name, spec), fate) in tasks.into_iter().zip(fates) {
        let waits = Place::Waiting {
            batch: BATCH,
            task: "each",
        };
        let from = rig.path(waits, &name);
        for attempt in 1..=fate.attempts {
            name.attempt = attempt;
            let last = attempt == fate.attempts;
            let outcome = if last { outcome(fate.lane) } else { failed() };
            let record = AttemptRecord::without_worker("gpu-1", &name, &spec, outcome);
            assert!(records::write_new(rig, &record).unwrap());
            let path = rig.record_path(BATCH, name.id, attempt);
            if let (false, Some(at)) = (last, fate.torn) {
                let whole = fs::read(&path).unwrap();
                fs::write(&path, &whole[..at.min(whole.len())]).unwrap();
            }
            if fate.printed > 0 {
                let text: Vec<u8> = (0..fate.printed).map(|n| (n % 251) as u8).collect();
                fs::write(rig.output_path(BATCH, name.id, attempt), text).unwrap();
            }
        }
        fs::rename(from, rig.path(place(fate.lane), &name)).unwrap();
        names.push((name, fate.clone()));
    }
    let mut of_plan = spec(PLAN_TASK);
    of_plan.class = Class::Brain;
    let plan = FileName::first(5, 0, of_plan.shape(), of_plan.id);
    submit::submit(
        rig,
        Place::Complete(BATCH),
        &plan,
        &of_plan,
        Durability::Process,
    )
    .unwrap();
    let record = AttemptRecord::without_worker(BRAIN, &plan, &of_plan, Outcome::Succeeded);
    records::write_new(rig, &record).unwrap();
    fs::create_dir_all(rig.view_path(BATCH).parent().unwrap()).unwrap();
    fs::write(rig.view_path(BATCH), r#"{"id":"b","state":"complete"}"#).unwrap();
    fs::write(rig.brain_dir().join("sequence"), "100000\n").unwrap();
    Made { bed, names, plan }
}

impl Made {
    fn rig(&self) -> &Rig {
        &self.bed.rig
    }

    fn compact(&self) -> archive::Header {
        match self.try_compact() {
            Compacted::Done(header) => header,
            Compacted::Refused(why) => panic!("{why}"),
        }
    }

    fn try_compact(&self) -> Compacted {
        let lock = self.lock();
        archive::compact(self.rig(), &lock, BATCH, Durability::Default).unwrap()
    }

    fn lock(&self) -> Lock {
        Lock::take(self.rig(), Duration::from_secs(5)).unwrap()
    }

    /// All that a reader can ask of the batch.
    fn read(&self) -> String {
        let rig = self.rig();
        let mut said = String::new();
        use std::fmt::Write;
        for lane in [Lane::Complete, Lane::Failed, Lane::Cancelled] {
            let names = rig.list(place(lane)).unwrap().names;
            let found = rig.find(place(lane), "").unwrap();
            assert_eq!(found.len(), names.len());
            for name in names {
                let spec = claim::peek(rig, place(lane), &name).unwrap().unwrap();
                let history = records::history(rig, BATCH, name.id, name.attempt).unwrap();
                let _ = writeln!(said, "{lane} {name} {spec:?} {history:?}");
                for attempt in 1..=name.attempt {
                    let output = output::open(rig, BATCH, name.id, attempt).unwrap();
                    let Some(mut output) = output else { continue };
                    let mut all = Vec::new();
                    output.read_from(0).unwrap().read_to_end(&mut all).unwrap();
                    assert_eq!(output.bytes().unwrap(), all.len() as u64);
                    let mut rest = Vec::new();
                    let mut reader = output.read_from(3).unwrap();
                    reader.read_to_end(&mut rest).unwrap();
                    assert_eq!(rest, all[3.min(all.len())..]);
                    let _ = writeln!(said, "{all:?}");
                }
            }
        }
        let _ = writeln!(said, "{:?}", rig.expansions(BATCH).unwrap());
        let manifest: Option<Vec<ManifestEntry>> = submit::manifest(rig, BATCH, "each").unwrap();
        let _ = writeln!(said, "{manifest:?}");
        said
    }
}

/// Every file and directory of the rig but the archive's own, with its bytes.
fn tree(rig: &Rig) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    fn walk(dir: &Path, into: &mut BTreeMap<PathBuf, Option<Vec<u8>>>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.ends_with("archive") {
                continue;
            }
            if path.is_dir() {
                into.insert(path.clone(), None);
                walk(&path, into);
            } else {
                into.insert(path.clone(), Some(fs::read(&path).unwrap()));
            }
        }
    }
    let mut all = BTreeMap::new();
    walk(rig.root(), &mut all);
    all
}

fn count(dir: &Path) -> usize {
    let entries = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .map(|path| 1 + if path.is_dir() { count(&path) } else { 0 })
        .sum()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

fn mixed() -> Vec<Fate> {
    let mut fates = vec![
        Fate::of(Lane::Complete),
        Fate::of(Lane::Failed),
        Fate::of(Lane::Cancelled),
    ];
    fates.push(Fate {
        attempts: 3,
        torn: Some(20),
        ..Fate::of(Lane::Complete)
    });
    fates.push(Fate {
        printed: 300 * 1024,
        ..Fate::of(Lane::Failed)
    });
    fates.push(Fate {
        printed: 0,
        ..Fate::of(Lane::Complete)
    });
    fates
}

#[test]
fn few_files_hold_it_readers_see_no_difference_and_every_byte_comes_back() {
    let fates: Vec<Fate> = (0..15).flat_map(|_| mixed()).collect();
    let made = made(&fates);
    let (before, read) = (tree(made.rig()), made.read());
    let files = count(made.rig().root());
    let header = made.compact();
    assert_eq!((header.lane, header.tasks), (Lane::Complete, 90));
    assert_eq!(made.read(), read);
    assert!(made.rig().is_archived(BATCH));
    assert_eq!(fsck::look(made.rig()).unwrap().len(), 0);
    // 15 large outputs keep a file each.
    let left = count(made.rig().root());
    assert!(files > 300 && left < 60, "{files} became {left}");
    let after = tree(made.rig());
    assert!(after.keys().all(|path| !path.ends_with(BATCH)), "{after:?}");

    let lock = made.lock();
    assert!(archive::take_out(made.rig(), &lock, BATCH, Durability::Default).unwrap());
    assert!(!archive::take_out(made.rig(), &lock, BATCH, Durability::Default).unwrap());
    assert_eq!(tree(made.rig()), before);
    assert_eq!(made.read(), read);
    assert_eq!(made.rig().archived_batches().unwrap(), [""; 0]);
}

/// A full disk leaves an output that was made and never written to, the only one of its batch.
#[test]
fn an_empty_output_comes_back() {
    let made = made(&[Fate {
        printed: 0,
        ..Fate::of(Lane::Complete)
    }]);
    let path = made.rig().output_path(BATCH, made.names[0].0.id, 1);
    fs::write(&path, "").unwrap();
    let (before, read) = (tree(made.rig()), made.read());
    made.compact();
    assert_eq!(fsck::look(made.rig()).unwrap().len(), 0);
    assert_eq!(made.read(), read);
    let lock = made.lock();
    assert!(archive::take_out(made.rig(), &lock, BATCH, Durability::Default).unwrap());
    assert_eq!(tree(made.rig()), before);
}

#[test]
fn who_died_in_between_is_followed() {
    let made = made(&mixed());
    let rig = made.rig();
    let (before, read) = (tree(rig), made.read());
    let archive = rig.archive_dir();
    // Before the rename: part of an archive under a dot name.
    let building = archive.join(".new-b");
    fs::create_dir_all(&building).unwrap();
    fs::write(building.join("tasks.jsonl"), "{").unwrap();
    made.compact();
    let kept = made.bed._dir.path().with_extension("kept");
    copy(&archive.join(BATCH), &kept);
    assert_eq!(made.read(), read);

    // Behind the rename, after any number of files was removed.
    let whole: Vec<(&PathBuf, &Vec<u8>)> = before
        .iter()
        .filter_map(|(path, bytes)| Some((path, bytes.as_ref()?)))
        .collect();
    for left in 0..=whole.len() {
        for dir in before.iter().filter(|(_, bytes)| bytes.is_none()) {
            fs::create_dir_all(dir.0).unwrap();
        }
        for (path, bytes) in &whole[..left] {
            fs::write(path, bytes).unwrap();
        }
        assert_eq!(made.read(), read, "what is left counts for nothing");
        assert_eq!(archive::leftovers(rig).unwrap(), [BATCH]);
        let found = fsck::look(rig).unwrap();
        assert!(
            !found.is_empty() && found.iter().all(|one| one.safe),
            "{found:?}"
        );
        if left % 2 == 0 {
            made.compact();
        } else {
            // `rigor fsck` does the same.
            for finding in &found {
                finding.mend(rig).unwrap();
            }
        }
        assert_eq!(archive::leftovers(rig).unwrap(), [""; 0]);
        assert_eq!(made.read(), read);
        assert_eq!(rig.list(Place::Quarantine).unwrap().foreign.len(), 0);
    }

    // In the middle of a removal of the archive itself.
    let lock = made.lock();
    fs::create_dir(archive.join(".old-x")).unwrap();
    assert_eq!(archive::sweep(rig, &lock).unwrap(), 1);
    fs::remove_dir_all(kept).unwrap();
}

#[test]
fn a_batch_that_is_not_over_is_not_touched() {
    fn refused(spoil: impl FnOnce(&Made), why: &str) {
        let made = made(&mixed());
        spoil(&made);
        let before = tree(made.rig());
        match made.try_compact() {
            Compacted::Refused(said) => assert!(said.contains(why), "{said}"),
            Compacted::Done(_) => panic!("{why}: archived"),
        }
        assert_eq!(tree(made.rig()), before);
        assert_eq!(made.rig().archived_batches().unwrap(), [""; 0]);
        assert_eq!(count(&made.rig().archive_dir()), 1, "the lock alone");
    }
    let plan = |made: &Made, to: Place<'_>| {
        let from = made.rig().path(Place::Complete(BATCH), &made.plan);
        fs::rename(from, made.rig().path(to, &made.plan)).unwrap();
    };
    let first = |made: &Made, to: Place<'_>| {
        let from = made.rig().path(Place::Complete(BATCH), &made.names[0].0);
        fs::rename(from, made.rig().path(to, &made.names[0].0)).unwrap();
    };
    refused(|made| plan(made, Place::Processing(BRAIN)), "not over");
    refused(|made| plan(made, Place::Queue(Class::Brain)), "not over");
    refused(|made| first(made, Place::Retry(BATCH)), "retry");
    refused(|made| first(made, Place::Queue(Class::Cpu)), "not ended");
    refused(|made| first(made, Place::Processing("gpu-1")), "not ended");
    let waits = Place::Waiting {
        batch: BATCH,
        task: "each",
    };
    refused(|made| first(made, waits), "wait");
    refused(
        |made| {
            let path = made.rig().path(Place::Complete(BATCH), &made.names[0].0);
            let mut bytes = fs::read(&path).unwrap();
            // A letter of the plan's name, which nothing else is compared with.
            let at = bytes
                .windows(6)
                .position(|part| part == b"\"plan\"")
                .unwrap();
            bytes[at + 8] ^= 1;
            fs::write(path, bytes).unwrap();
        },
        "checksum",
    );
    refused(
        |made| {
            let path = made.rig().dir(Place::Failed(BATCH)).join("mine.txt");
            fs::write(path, "x").unwrap();
        },
        "no task file",
    );
    // What is in quarantine counts as failed and stays there.
    let made = made(&mixed());
    let quarantined = made.rig().path(Place::Complete(BATCH), &made.names[0].0);
    claim::quarantine(made.rig(), &quarantined, "a test").unwrap();
    assert_eq!(made.compact().tasks, 5);
    assert_eq!(made.rig().count(Place::Quarantine).unwrap(), 1);
    let record = records::read(made.rig(), BATCH, made.names[0].0.id, 1).unwrap();
    assert!(record.is_some(), "its record is in the archive");
}

#[test]
fn what_came_after_it_was_archived_is_put_aside_and_not_lost() {
    let made = made(&mixed());
    made.compact();
    let rig = made.rig();
    rig.prepare_batch(BATCH).unwrap();
    let late = rig.attempts_dir(BATCH).join("0123456789abcdef.a7.json");
    fs::write(&late, "late").unwrap();
    let lock = made.lock();
    let removal = archive::clear(rig, &lock, BATCH).unwrap();
    assert_eq!((removal.files, removal.odd), (0, vec![late.clone()]));
    let kept = rig.dir(Place::Quarantine).join(late.file_name().unwrap());
    assert_eq!(fs::read(kept).unwrap(), b"late");

    // The same name with another content.
    rig.prepare_batch(BATCH).unwrap();
    let path = rig.path(Place::Complete(BATCH), &made.plan);
    fs::write(&path, "another").unwrap();
    let removal = archive::clear(rig, &lock, BATCH).unwrap();
    assert_eq!((removal.files, removal.odd), (0, vec![path]));
}

#[test]
fn a_damaged_archive_is_named_and_nothing_is_removed_for_it() {
    for file in ["batch.json", "index.jsonl", "tasks.jsonl"] {
        let made = made(&mixed());
        made.compact();
        let rig = made.rig();
        let path = rig.archive_dir().join(BATCH).join(file);
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let rig = Rig::open(rig.root()).unwrap();
        let found = fsck::look(&rig).unwrap();
        assert!(
            found
                .iter()
                .any(|one| !one.safe && one.path.ends_with(BATCH)),
            "{file}: {found:?}"
        );
        if file == "tasks.jsonl" {
            continue;
        }
        rig.prepare_batch(BATCH).unwrap();
        let lock = made.lock();
        let error = archive::clear(&rig, &lock, BATCH).unwrap_err().to_string();
        assert!(error.contains(file) && error.contains("damaged"), "{error}");
        assert!(error.contains("sum"), "{error}");
        assert!(archive::take_out(&rig, &lock, BATCH, Durability::Process).is_err());
        assert!(rig.list(Place::Complete(BATCH)).is_err());
    }
}

#[test]
fn a_removed_archive_takes_its_key_and_nothing_else() {
    let made = made(&mixed());
    let rig = made.rig();
    let submission = rigor_queue::task::Submission {
        source: "# p".to_owned(),
        files: BTreeMap::new(),
        inputs: BTreeMap::new(),
        limit: None,
        infer: false,
    };
    let content = keys::Content {
        plan_dir: "/p".as_ref(),
        submission: &submission,
    };
    let plan = |batch: &str| TaskId::derive(batch, PLAN_TASK, None);
    let ask = |as_batch: &str| {
        let durability = Durability::Process;
        keys::reserve(rig, "nightly", &content, as_batch, plan, durability).unwrap()
    };
    drop(ask(BATCH));
    assert!(matches!(ask(BATCH), keys::Keyed::Known(batch) if batch == BATCH));
    made.compact();
    let known = ask("c");
    assert!(
        matches!(&known, keys::Keyed::Known(batch) if batch == BATCH),
        "{known:?}"
    );
    drop(known);

    // Something is left in the lanes: it must not become a batch again.
    rig.prepare_batch(BATCH).unwrap();
    let lock = made.lock();
    let removed = archive::remove(rig, &lock, BATCH, Durability::Default).unwrap();
    assert_eq!(removed.unwrap().tasks, 6);
    assert_eq!(keys::forget(rig, &[BATCH.to_owned()]).unwrap(), 1);
    assert!(matches!(ask("c"), keys::Keyed::New(new) if new.batch == "c"));
    assert!(!rig.dir(Place::Complete(BATCH)).exists());
    assert!(rig.list(Place::Complete(BATCH)).unwrap().names.is_empty());
    assert!(
        archive::remove(rig, &lock, BATCH, Durability::Default)
            .unwrap()
            .is_none()
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn whatever_a_batch_holds_comes_back(fates in proptest::collection::vec(fate(), 0..8)) {
        let made = made(&fates);
        let (before, read) = (tree(made.rig()), made.read());
        made.compact();
        prop_assert_eq!(made.read(), read);
        let lock = made.lock();
        archive::take_out(made.rig(), &lock, BATCH, Durability::Process).unwrap();
        prop_assert_eq!(tree(made.rig()), before);
    }
}

fn fate() -> impl Strategy<Value = Fate> {
    let lane = prop_oneof![
        Just(Lane::Complete),
        Just(Lane::Failed),
        Just(Lane::Cancelled)
    ];
    let printed = prop_oneof![Just(0usize), 1..3000usize, Just(256 * 1024 + 1)];
    (lane, 1..4u32, printed, proptest::option::of(0..600usize)).prop_map(
        |(lane, attempts, printed, torn)| Fate {
            lane,
            attempts,
            printed,
            torn,
        },
    )
}
