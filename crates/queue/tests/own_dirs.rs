//! Directories of a rig that are links, files of somebody else, and copies of task files.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "bed/mod.rs"]
mod bed;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bed::{Bed, bed, failed, queued};
use rigor_queue::claim::{self, Candidate, Held};
use rigor_queue::name::FileName;
use rigor_queue::presence;
use rigor_queue::record::{AttemptRecord, Outcome};
use rigor_queue::rig::{Place, Rig};
use rigor_queue::submit::{self, Durability};
use rigor_queue::task::Class;
use rigor_queue::{QueueError, records};

/// Puts a directory aside, outside the rig, and a link to it in its place, as somebody does who
/// wants it on another disk. Returns where it is now.
fn move_out(dir: &Path, outside: &Path) -> PathBuf {
    let there = outside.join(dir.file_name().unwrap());
    fs::rename(dir, &there).unwrap();
    symlink(&there, dir).unwrap();
    there
}

fn put_back(dir: &Path, there: &Path) {
    fs::remove_file(dir).unwrap();
    fs::rename(there, dir).unwrap();
}

/// Every path below a directory, with what it holds.
fn held(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found: Vec<(PathBuf, Vec<u8>)> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .flat_map(|path| match path.is_dir() {
            true => held(&path),
            false => vec![(path.clone(), fs::read(path).unwrap())],
        })
        .collect();
    found.sort();
    found
}

fn candidate(rig: &Rig, name: &FileName) -> Held {
    match claim::candidate(rig, Class::Cpu, name).unwrap() {
        Candidate::Ready(held) => held,
        other => panic!("{name}: {other:?}"),
    }
}

fn claimed(rig: &Rig, name: &FileName) -> Held {
    let held = candidate(rig, name);
    held.claim(rig, "gpu-1", false).unwrap().unwrap()
}

#[track_caller]
fn is_linked<T: std::fmt::Debug>(result: Result<T, QueueError>, dir: &Path) {
    let error = result.unwrap_err();
    assert!(
        matches!(&error, QueueError::Linked { path, .. } if path == dir),
        "{error}"
    );
    let said = error.to_string();
    assert!(said.contains("put the directory itself"), "{said}");
}

#[test]
fn a_rig_of_which_a_directory_is_a_link_is_not_opened() {
    let Bed { rig, _dir } = &bed();
    let outside = tempfile::tempdir().unwrap();
    for dir in [
        "tasks",
        "tasks/waiting",
        "tasks/queue",
        "tasks/queue/cpu",
        "tasks/processing",
        "tasks/retry",
        "tasks/complete",
        "tasks/failed",
        "tasks/cancelled",
        "tasks/quarantine",
        "attempts",
        "archive",
        "agents",
        "signals",
        "signals/brain",
        "brain",
        "brain/held",
    ] {
        let dir = rig.root().join(dir);
        let there = move_out(&dir, outside.path());
        let whole = held(&there);
        if !dir.ends_with("signals/brain") {
            is_linked(Rig::open(rig.root()), &dir);
            is_linked(Rig::create(rig.root()), &dir);
        }
        is_linked(rig.prepare_agent("brain"), &dir);
        assert_eq!(held(&there), whole, "{}", dir.display());
        put_back(&dir, &there);
    }
    for dir in ["agents/gpu-1", "signals/gpu-1", "tasks/processing/gpu-1"] {
        let dir = rig.root().join(dir);
        let there = move_out(&dir, outside.path());
        is_linked(rig.prepare_agent("gpu-1"), &dir);
        is_linked(rig.check_dirs(Some("gpu-1")), &dir);
        put_back(&dir, &there);
    }
    for dir in ["tasks/complete/b", "tasks/waiting/b", "attempts/b"] {
        let dir = rig.root().join(dir);
        let there = move_out(&dir, outside.path());
        is_linked(rig.prepare_batch("b"), &dir);
        put_back(&dir, &there);
    }
    Rig::open(rig.root()).unwrap();
}

/// Whoever wants the whole rig elsewhere may have it so, also above it and while it is in use.
#[test]
fn what_the_rig_lies_under_may_be_a_link() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    fs::create_dir(&disk).unwrap();
    symlink(&disk, dir.path().join("link")).unwrap();
    let rig = Rig::create(&dir.path().join("link/rig")).unwrap();
    rig.prepare_agent("gpu-1").unwrap();
    rig.prepare_batch("b").unwrap();
    symlink(disk.join("rig"), dir.path().join("named")).unwrap();
    Rig::open(&dir.path().join("named")).unwrap();
    let (name, _) = queued(&rig, "a", 1);
    // Now a part of the path that the program knows becomes a link.
    fs::rename(&disk, dir.path().join("larger")).unwrap();
    symlink(dir.path().join("larger"), &disk).unwrap();
    rig.check_dirs(Some("gpu-1")).unwrap();
    let held = claimed(&rig, &name);
    assert_eq!(held.complete(&rig).unwrap(), claim::Moved::Done);
    assert_eq!(rig.list(Place::Complete("b")).unwrap().names, [name]);
}

/// A lane that becomes a link while programs run: nothing is listed through it, claimed from it,
/// moved into it or out of it, written or removed behind it.
#[test]
fn nothing_is_followed_out_of_a_rig_in_use() {
    let Bed { rig, _dir } = &bed();
    let outside = tempfile::tempdir().unwrap();
    let (name, spec) = queued(rig, "a", 1);
    let (other, _) = queued(rig, "b", 2);
    let record = AttemptRecord::without_worker("gpu-1", &name, &spec, Outcome::Succeeded);
    let ready = claimed(rig, &other);

    let queue = rig.dir(Place::Queue(Class::Cpu));
    fs::write(queue.join(".new-half"), "half").unwrap();
    let there = move_out(&queue, outside.path());
    let whole = held(&there);
    is_linked(rig.list(Place::Queue(Class::Cpu)), &queue);
    is_linked(rig.find(Place::Queue(Class::Cpu), "a"), &queue);
    is_linked(claim::candidate(rig, Class::Cpu, &name), &queue);
    is_linked(claim::peek(rig, Place::Queue(Class::Cpu), &name), &queue);
    let place = Place::Queue(Class::Cpu);
    is_linked(
        submit::submit(rig, place, &name, &spec, Durability::Process),
        &queue,
    );
    is_linked(
        claim::quarantine(rig, &queue.join(name.to_string()), "?"),
        &queue,
    );
    is_linked(rig.sweep(Duration::ZERO, ["b"]), &queue);
    is_linked(ready.requeue(rig), &queue);
    assert_eq!(held(&there), whole);
    put_back(&queue, &there);

    // The target of a claim, which looks at nothing else.
    let processing = rig.dir(Place::Processing("gpu-1"));
    let ready = candidate(rig, &name);
    let there = move_out(&processing, outside.path());
    let whole = held(&there);
    is_linked(ready.claim(rig, "gpu-1", false), &processing);
    is_linked(rig.list(Place::Processing("gpu-1")), &processing);
    assert_eq!(held(&there), whole);
    put_back(&processing, &there);

    let (complete, retry) = (rig.dir(Place::Complete("b")), rig.dir(Place::Retry("b")));
    let there = move_out(&complete, outside.path());
    let whole = held(&there);
    is_linked(claimed(rig, &name).complete(rig), &complete);
    assert_eq!(held(&there), whole);
    put_back(&complete, &there);
    let Ok(claim::Opened::Held(again)) = claim::open_in(rig, Place::Processing("gpu-1"), &name)
    else {
        panic!("it is where it was");
    };
    again.fail(rig).unwrap();
    // The source of a move of the brain, which opens no file.
    let there = move_out(&retry, outside.path());
    is_linked(claim::retry(rig, "b", Class::Cpu, &name), &retry);
    put_back(&retry, &there);

    let attempts = rig.attempts_dir("b");
    let there = move_out(&attempts, outside.path());
    is_linked(records::write_new(rig, &record), &attempts);
    is_linked(records::replace(rig, &record), &attempts);
    // Absent would mean that the attempt left no result, and it would run again.
    is_linked(records::read(rig, "b", name.id, 1), &attempts);
    assert_eq!(held(&there), []);
    put_back(&attempts, &there);

    let signals = rig.signals_dir("gpu-1");
    fs::write(signals.join("pause"), "").unwrap();
    let there = move_out(&signals, outside.path());
    is_linked(presence::send(rig, "gpu-1", "stop", ""), &signals);
    is_linked(presence::signals(rig, "gpu-1"), &signals);
    is_linked(presence::unsend(rig, "gpu-1", "pause"), &signals);
    assert_eq!(held(&there).len(), 1);
    put_back(&signals, &there);
}

/// Needs root, to give a file away.
#[test]
fn a_task_file_of_somebody_else_goes_to_quarantine() {
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: giving a file to another user needs root");
    }
    let Bed { rig, .. } = &bed();
    let (name, _) = queued(rig, "a", 1);
    let path = rig.path(Place::Queue(Class::Cpu), &name);
    std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
    match claim::candidate(rig, Class::Cpu, &name).unwrap() {
        Candidate::Quarantined { reason } => {
            assert!(reason.contains("belongs to uid 65534"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    assert!(!path.exists());
    assert!(rig.path(Place::Quarantine, &name).exists());
}

#[track_caller]
fn is_copy(rig: &Rig, name: &FileName, said: &str) {
    match claim::candidate(rig, Class::Cpu, name).unwrap() {
        Candidate::Quarantined { reason } => assert!(reason.contains(said), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert!(!rig.path(Place::Queue(Class::Cpu), name).exists());
}

#[test]
fn a_copy_of_a_task_that_runs_or_is_over_is_not_claimed() {
    let Bed { rig, .. } = &bed();
    rig.prepare_agent("gpu-2").unwrap();
    let queue = rig.dir(Place::Queue(Class::Cpu));
    let (name, spec) = queued(rig, "a", 1);
    let whole = fs::read(rig.path(Place::Queue(Class::Cpu), &name)).unwrap();
    let copy = |name: &FileName| fs::write(queue.join(name.to_string()), &whole).unwrap();

    // It runs, and has no record yet.
    let running = claimed(rig, &name);
    copy(&name);
    is_copy(rig, &name, "gpu-1 has claimed this attempt already");
    // It failed and waits for its next attempt; that is queued; that runs.
    let record = AttemptRecord::without_worker("gpu-1", &name, &spec, failed());
    records::replace(rig, &record).unwrap();
    running.fail(rig).unwrap();
    copy(&name);
    is_copy(rig, &name, "the task is in retry as attempt 1 too");
    let next = claim::retry(rig, "b", Class::Cpu, &name).unwrap().unwrap();
    copy(&name);
    is_copy(rig, &name, "the task is in queue as attempt 2 too");
    let running = claimed(rig, &next);
    copy(&name);
    is_copy(rig, &name, "the task is in processing as attempt 2 too");
    // It is done.
    let record = AttemptRecord::without_worker("gpu-1", &next, &spec, Outcome::Succeeded);
    records::replace(rig, &record).unwrap();
    running.complete(rig).unwrap();
    for name in [&name, &next] {
        copy(name);
        is_copy(rig, name, "the task is in complete as attempt 2 too");
    }
    let aside = rig.list(Place::Quarantine).unwrap().names.len();
    assert_eq!(aside, 2, "one of each name, and others with a number");
}

/// What only looks like a copy.
#[test]
fn a_cancellation_and_a_claim_that_were_undone_stop_nobody() {
    let Bed { rig, .. } = &bed();
    let (name, spec) = queued(rig, "cancelled", 1);
    let reason = "changed his mind".to_owned();
    let outcome = Outcome::Cancelled { reason };
    let record = AttemptRecord::without_worker("brain", &name, &spec, outcome);
    records::replace(rig, &record).unwrap();
    claimed(rig, &name);
    // A power cut has undone the rename of a claim, and not the record.
    let (name, spec) = queued(rig, "undone", 2);
    let record = AttemptRecord::without_worker("gpu-1", &name, &spec, Outcome::Succeeded);
    records::replace(rig, &record).unwrap();
    claimed(rig, &name);
}
