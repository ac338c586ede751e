//! Every violation is found, and what is safe is mended, once.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "bed/mod.rs"]
mod bed;

use std::fs;
use std::os::unix::fs::symlink;

use bed::{Bed, bed, failed, queued};
use rigor_queue::claim::{self, Candidate, Held};
use rigor_queue::fsck::{Check, look};
use rigor_queue::lane::Move;
use rigor_queue::name::{FileName, TaskId};
use rigor_queue::record::{AttemptRecord, Outcome};
use rigor_queue::records;
use rigor_queue::rig::{BRAIN, PLAN_TASK, Place, Rig};
use rigor_queue::submit::{self, Durability, Sequence};
use rigor_queue::task::{Class, TaskSpec, Work};

fn claimed(rig: &Rig, name: &FileName) -> Held {
    let Candidate::Ready(held) = claim::candidate(rig, Class::Cpu, name).unwrap() else {
        panic!("it is free");
    };
    held.claim(rig, "gpu-1", false).unwrap().unwrap()
}

/// What is found: the check and the path under the rig.
fn found(rig: &Rig) -> Vec<(Check, String)> {
    let under =
        |path: &std::path::Path| path.strip_prefix(rig.root()).unwrap().display().to_string();
    let all = look(rig).unwrap();
    all.iter()
        .map(|one| (one.check, under(&one.path)))
        .collect()
}

/// Mends all that is safe; what is left.
fn mended(rig: &Rig) -> Vec<(Check, String)> {
    for finding in look(rig).unwrap() {
        assert_eq!(finding.mend(rig).unwrap(), finding.safe, "{finding:?}");
    }
    found(rig)
}

fn sequenced(rig: &Rig) {
    Sequence::open(rig, Durability::Process)
        .unwrap()
        .take(100)
        .unwrap();
}

#[test]
fn a_sound_rig_has_no_finding() {
    let Bed { rig, .. } = &bed();
    sequenced(rig);
    let (first, spec) = queued(rig, "a", 1);
    queued(rig, "b", 2);
    let (running, _) = queued(rig, "c", 3);
    drop(claimed(rig, &running));
    let held = claimed(rig, &first);
    let record = AttemptRecord::without_worker("gpu-1", &first, &spec, Outcome::Succeeded);
    records::replace(rig, &record).unwrap();
    held.complete(rig).unwrap();
    assert_eq!(found(rig), []);
}

#[test]
fn what_a_crash_left_is_finished() {
    let Bed { rig, .. } = &bed();
    sequenced(rig);
    for (task, outcome, lane) in [
        ("good", Outcome::Succeeded, "complete/b"),
        ("bad", failed(), "retry/b"),
        (
            "lost",
            Outcome::Lost {
                reason: "its agent died".to_owned(),
            },
            "queue/cpu",
        ),
    ] {
        let (name, spec) = queued(rig, task, 1);
        drop(claimed(rig, &name));
        let record = AttemptRecord::without_worker("gpu-1", &name, &spec, outcome);
        records::replace(rig, &record).unwrap();
        let at = format!("tasks/processing/gpu-1/{name}");
        assert_eq!(found(rig), [(Check::Unfinished, at)]);
        assert_eq!(mended(rig), []);
        let now = rig.root().join("tasks").join(lane);
        let there = fs::read_dir(&now).unwrap().filter(|entry| {
            let name = entry.as_ref().unwrap().file_name().into_string().unwrap();
            name.contains(&spec.id.to_string())
        });
        assert_eq!(there.count(), 1, "{task} is in {lane}");
    }
}

#[test]
fn what_cannot_be_believed_goes_to_quarantine() {
    let Bed { rig, .. } = &bed();
    sequenced(rig);
    let (name, spec) = queued(rig, "a", 1);
    let queue = rig.dir(Place::Queue(Class::Cpu));
    let sealed = fs::read(queue.join(name.to_string())).unwrap();
    // The same task in a later lane; of another class; damaged; empty; of a foreign name; a link.
    fs::write(rig.dir(Place::Retry("b")).join(name.to_string()), &sealed).unwrap();
    records::replace(
        rig,
        &AttemptRecord::without_worker("gpu-1", &name, &spec, failed()),
    )
    .unwrap();
    let script = rig.dir(Place::Queue(Class::Script));
    fs::write(script.join(name.to_string()), &sealed).unwrap();
    let (flipped, _) = queued(rig, "flipped", 2);
    let mut bytes = fs::read(queue.join(flipped.to_string())).unwrap();
    bytes[60] ^= 1;
    fs::write(queue.join(flipped.to_string()), bytes).unwrap();
    let (empty, _) = queued(rig, "empty", 3);
    fs::write(queue.join(empty.to_string()), "").unwrap();
    fs::write(queue.join("notes.txt"), "x").unwrap();
    let (link, _) = queued(rig, "link", 4);
    fs::remove_file(queue.join(link.to_string())).unwrap();
    symlink("/etc/hostname", queue.join(link.to_string())).unwrap();
    let mut expected = vec![
        (Check::Name, "tasks/queue/cpu/notes.txt".to_owned()),
        (Check::Place, format!("tasks/queue/script/{name}")),
        (Check::OneLane, format!("tasks/queue/cpu/{name}")),
    ];
    for name in [flipped, empty, link] {
        expected.push((Check::Content, format!("tasks/queue/cpu/{name}")));
    }
    let mut all = found(rig);
    all.sort();
    expected.sort();
    assert_eq!(all, expected);
    assert_eq!(mended(rig), []);
    assert!(
        rig.path(Place::Retry("b"), &name).exists(),
        "the later one stays"
    );
    assert_eq!(
        fs::read_dir(rig.dir(Place::Quarantine)).unwrap().count(),
        12,
        "each with its reason"
    );
}

#[test]
fn litter_orphans_and_the_sequence_are_put_in_order() {
    let Bed { rig, .. } = &bed();
    queued(rig, "a", 41);
    fs::write(rig.root().join("tasks/queue/cpu/.new-abc"), "half").unwrap();
    fs::create_dir(rig.root().join("tasks/waiting/b/.new-t")).unwrap();
    fs::write(rig.root().join("tasks/waiting/b/.new-t/x"), "half").unwrap();
    fs::create_dir(rig.attempts_dir("gone")).unwrap();
    fs::create_dir(rig.signals_dir("gpu-1").join("stop")).unwrap();
    let expected = [
        (Check::Litter, "tasks/queue/cpu/.new-abc"),
        (Check::Litter, "tasks/waiting/b/.new-t"),
        (Check::Attempts, "attempts/gone"),
        (Check::Sequence, "brain/sequence"),
        (Check::Signal, "signals/gpu-1/stop"),
    ];
    assert_eq!(
        found(rig),
        expected.map(|(check, path)| (check, path.to_owned()))
    );
    assert_eq!(mended(rig), []);
    let first = Sequence::open(rig, Durability::Process)
        .unwrap()
        .take(1)
        .unwrap();
    assert_eq!(first, 42, "no number is given twice");
}

#[test]
fn what_no_machine_can_decide_is_only_said() {
    let Bed { rig, .. } = &bed();
    sequenced(rig);
    let (name, _) = queued(rig, "a", 1);
    claimed(rig, &name).complete(rig).unwrap();
    let (bad, _) = queued(rig, "b", 2);
    claimed(rig, &bad).fail(rig).unwrap();
    fs::remove_dir_all(rig.root().join("tasks/cancelled")).unwrap();
    symlink("/tmp", rig.root().join("tasks/cancelled")).unwrap();
    let expected = [
        (Check::Lane, "tasks/cancelled".to_owned()),
        (Check::Record, format!("tasks/complete/b/{name}")),
        (Check::Record, format!("tasks/retry/b/{bad}")),
    ];
    assert_eq!(found(rig), expected);
    assert_eq!(mended(rig), expected, "nothing of it is touched");
    let _ = submit::manifest(rig, "b", "a");
}

/// A submitted plan is a task file too, with rules of its own: it lies claimed while its batch is
/// active, also with the record of an end that an operator has undone, and its number is its
/// submitter's.
#[test]
fn plans_are_not_taken_for_tasks() {
    let Bed { rig, .. } = &bed();
    sequenced(rig);
    // No task of it is there.
    fs::remove_dir(rig.attempts_dir("b")).unwrap();
    rig.prepare_agent(BRAIN).unwrap();
    let submit = |batch: &str| {
        rig.prepare_batch(batch).unwrap();
        let submission = serde_json::from_value(serde_json::json!({"source": "# Plan: p"}));
        let spec = TaskSpec {
            id: TaskId::derive(batch, PLAN_TASK, None),
            batch: batch.to_owned(),
            task: PLAN_TASK.to_owned(),
            class: Class::Brain,
            work: Work::Plan(submission.unwrap()),
            ..bed::spec("p")
        };
        // Far above what the brain has reserved: milliseconds of a clock.
        let name = FileName::first(5, 28_000_000_000, spec.shape(), spec.id);
        let place = Place::Queue(Class::Brain);
        submit::submit(rig, place, &name, &spec, Durability::Process).unwrap();
        (name, spec)
    };
    let claim = |name: &FileName| {
        let Candidate::Ready(held) = claim::candidate(rig, Class::Brain, name).unwrap() else {
            panic!("it is free");
        };
        held.claim(rig, BRAIN, false).unwrap().unwrap()
    };
    submit("queued");
    let (active, spec) = submit("active");
    drop(claim(&active));
    let record = AttemptRecord::without_worker(BRAIN, &active, &spec, failed());
    records::replace(rig, &record).unwrap();
    let (over, spec) = submit("over");
    let held = claim(&over);
    let record = AttemptRecord::without_worker(BRAIN, &over, &spec, Outcome::Succeeded);
    records::replace(rig, &record).unwrap();
    held.close(rig, Move::Complete).unwrap();
    assert_eq!(found(rig), []);
    // One that was submitted again by hand, and one whose batch is over and active.
    let copy = |from: Place<'_>, to: Place<'_>, name: &FileName| {
        fs::copy(rig.path(from, name), rig.path(to, name)).unwrap();
    };
    copy(
        Place::Processing(BRAIN),
        Place::Queue(Class::Brain),
        &active,
    );
    copy(Place::Complete("over"), Place::Processing(BRAIN), &over);
    let expected = [
        (Check::OneLane, format!("tasks/processing/brain/{over}")),
        (Check::OneLane, format!("tasks/queue/brain/{active}")),
    ];
    assert_eq!(found(rig), expected);
    assert_eq!(mended(rig), []);
    assert!(rig.path(Place::Processing(BRAIN), &active).exists());
    assert!(rig.path(Place::Complete("over"), &over).exists());
}

/// Every path under the rig, with what it holds; links are not followed.
fn listing(dir: &std::path::Path, into: &mut Vec<(std::path::PathBuf, Vec<u8>)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let meta = fs::symlink_metadata(&path).unwrap();
        let held = if meta.is_file() {
            fs::read(&path).unwrap()
        } else {
            format!("{:?}", meta.file_type()).into_bytes()
        };
        if meta.is_dir() {
            listing(&path, into);
        }
        into.push((path, held));
    }
    into.sort();
}

#[test]
fn looking_changes_nothing_and_one_repair_is_enough() {
    let Bed { rig, .. } = &bed();
    let queue = rig.dir(Place::Queue(Class::Cpu));
    let (name, spec) = queued(rig, "twice", 1);
    let sealed = fs::read(queue.join(name.to_string())).unwrap();
    fs::write(rig.dir(Place::Retry("b")).join(name.to_string()), &sealed).unwrap();
    let record = AttemptRecord::without_worker("gpu-1", &name, &spec, failed());
    records::replace(rig, &record).unwrap();
    let script = rig.dir(Place::Queue(Class::Script));
    fs::write(script.join(name.to_string()), &sealed).unwrap();
    let (over, spec) = queued(rig, "over", 2);
    drop(claimed(rig, &over));
    let record = AttemptRecord::without_worker("gpu-1", &over, &spec, failed());
    records::replace(rig, &record).unwrap();
    let (unsaid, _) = queued(rig, "unsaid", 3);
    claimed(rig, &unsaid).complete(rig).unwrap();
    let (empty, _) = queued(rig, "empty", 4);
    fs::write(queue.join(empty.to_string()), "").unwrap();
    fs::write(queue.join("notes.txt"), "x").unwrap();
    fs::write(queue.join(".new-abc"), "half").unwrap();
    fs::create_dir(rig.attempts_dir("gone")).unwrap();
    fs::create_dir(rig.signals_dir("gpu-1").join("stop")).unwrap();
    fs::remove_dir_all(rig.root().join("tasks/cancelled")).unwrap();
    symlink("/tmp", rig.root().join("tasks/cancelled")).unwrap();

    let (mut before, mut after) = (Vec::new(), Vec::new());
    listing(rig.root(), &mut before);
    let mut checks: Vec<_> = found(rig).into_iter().map(|(check, _)| check).collect();
    listing(rig.root(), &mut after);
    assert_eq!(before, after, "looking writes nothing");
    checks.dedup();
    let every = [
        Check::Lane,
        Check::Litter,
        Check::Name,
        Check::Content,
        Check::Place,
        Check::OneLane,
        Check::Unfinished,
        Check::Record,
        Check::Attempts,
        Check::Sequence,
        Check::Signal,
    ];
    assert_eq!(checks, every, "one fault of every kind");

    let left = mended(rig);
    assert!(look(rig).unwrap().iter().all(|finding| !finding.safe));
    let (mut once, mut twice) = (Vec::new(), Vec::new());
    listing(rig.root(), &mut once);
    assert_eq!(mended(rig), left);
    listing(rig.root(), &mut twice);
    assert_eq!(once, twice, "a second repair has nothing to do");
}
