//! Files of an earlier version, of a later one, and with a field that this one does not know: each
//! is kept or refused by name, and none is taken for absent. They lie in `versions/`.
//!
//! `first` is a file without any field that was added since; it must be readable for ever.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "bed/mod.rs"]
mod bed;

use std::fs;
use std::path::Path;

use bed::{Bed, bed, failed, queued, spec};
use jiff::Timestamp;
use rigor_queue::QueueError;
use rigor_queue::claim::{self, Candidate};
use rigor_queue::heartbeat::Health;
use rigor_queue::keys::{self, Content};
use rigor_queue::name::{FileName, TaskId};
use rigor_queue::reasons::{self, Reason, ReasonLog};
use rigor_queue::record::Outcome;
use rigor_queue::rig::{Place, Rig};
use rigor_queue::submit::Durability;
use rigor_queue::task::{Class, Submission};
use rigor_queue::{outlook, presence, records};

/// What is said of a sealed file.
const REFUSED: [(&str, &str); 3] = [
    ("older", "its schema is 0, and this build reads 1"),
    ("newer", "its schema is 2, and this build reads 1"),
    ("field", "unknown field"),
];

fn fixture(name: &str) -> Vec<u8> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/versions");
    fs::read(dir.join(name)).unwrap()
}

fn put(path: &Path, name: &str) -> Vec<u8> {
    let bytes = fixture(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, &bytes).unwrap();
    bytes
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, QueueError>, at: &Path, said: &str) {
    match result.unwrap_err() {
        QueueError::Untrusted { path, why } => {
            assert_eq!(path, at);
            assert!(why.contains(said), "{why}");
        }
        other => panic!("{other}"),
    }
}

fn task() -> FileName {
    let spec = spec("a");
    FileName::first(spec.priority, 1, spec.shape(), spec.id)
}

#[test]
fn task_files() {
    let Bed { rig, .. } = &bed();
    let name = task();
    let path = rig.path(Place::Queue(Class::Cpu), &name);
    for (version, said) in REFUSED {
        let bytes = put(&path, &format!("task.{version}.json"));
        match claim::candidate(rig, Class::Cpu, &name).unwrap() {
            Candidate::Quarantined { reason } => assert!(reason.contains(said), "{reason}"),
            other => panic!("{version}: {other:?}"),
        }
        let aside = rig.path(Place::Quarantine, &name);
        assert_eq!(fs::read(&aside).unwrap(), bytes, "it is kept as it is");
        fs::remove_file(&aside).unwrap();
    }
    put(&path, "task.first.json");
    let Candidate::Ready(held) = claim::candidate(rig, Class::Cpu, &name).unwrap() else {
        panic!("a file of this version");
    };
    assert_eq!(*held.spec, spec("a"));
}

/// One that counted as absent would run the task once more.
#[test]
fn records_of_attempts() {
    let Bed { rig, .. } = &bed();
    let (name, _) = queued(rig, "a", 1);
    let path = rig.record_path("b", name.id, 1);
    for (version, said) in REFUSED {
        let bytes = put(&path, &format!("record.{version}.json"));
        refused(records::read(rig, "b", name.id, 1), &path, said);
        refused(records::history(rig, "b", name.id, 3), &path, said);
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
    put(&path, "record.first.json");
    let record = records::read(rig, "b", name.id, 1).unwrap().unwrap();
    assert_eq!(record.outcome, Outcome::Succeeded);
    assert_ne!(record.outcome, failed());
    assert_eq!(record.output_bytes, 0);
    // A torn one is still absent, and one that was damaged.
    let whole = fixture("record.newer.json");
    fs::write(&path, &whole[..whole.len() - 9]).unwrap();
    assert!(records::read(rig, "b", name.id, 1).unwrap().is_none());
    let damaged = String::from_utf8(whole)
        .unwrap()
        .replace("succeeded", "failed");
    fs::write(&path, damaged).unwrap();
    assert!(records::read(rig, "b", name.id, 1).unwrap().is_none());
}

#[test]
fn heartbeats() {
    let Bed { rig, .. } = &bed();
    let path = rig.agent_dir("gpu-1").join("heartbeat.json");
    // What is known of it is taken: who beats is alive, whichever version it is of.
    for version in ["first", "field", "newer"] {
        put(&path, &format!("heartbeat.{version}.json"));
        let beat = presence::heartbeat(rig, "gpu-1").unwrap().unwrap();
        assert_eq!((beat.sequence, beat.health), (3, Health::Healthy));
        assert_eq!(beat.completed, 0);
    }
    put(&path, "heartbeat.foreign.json");
    let read = presence::heartbeat(rig, "gpu-1");
    refused(read, &path, "its schema is 2, and this build reads 1");
}

#[test]
fn the_outlook() {
    let Bed { rig, .. } = &bed();
    let path = rig.brain_dir().join("outlook.json");
    for version in ["first", "field", "newer"] {
        put(&path, &format!("outlook.{version}.json"));
        assert_eq!(outlook::read(rig).unwrap().unwrap().retry, 0);
    }
    put(&path, "outlook.foreign.json");
    refused(
        outlook::read(rig),
        &path,
        "its schema is 2, and this build reads 1",
    );
}

/// A key that counted as free would make a second batch of one submission.
#[test]
fn keys_of_submissions() {
    let Bed { rig, .. } = &bed();
    let submission: Submission = serde_json::from_value(serde_json::json!({"source": ""})).unwrap();
    let reserve = |rig: &Rig, batch: &str| {
        let content = Content {
            plan_dir: Path::new("/p"),
            submission: &submission,
        };
        let task = |batch: &str| TaskId::derive(batch, "_plan", None);
        keys::reserve(rig, "k", &content, batch, task, Durability::Process)
    };
    reserve(rig, "b-1").unwrap();
    let dir = rig.brain_dir().join("keys");
    let mut files = fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let path = files.find(|path| path.extension().is_some()).unwrap();
    for (version, said) in REFUSED {
        let bytes = put(&path, &format!("key.{version}.json"));
        refused(reserve(rig, "b-2").map(|_| ()), &path, said);
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
    put(&path, "key.first.json");
    reserve(rig, "b-2").unwrap();
}

/// A journal is appended to: lines that cannot be read are left out of what is shown, and stay.
#[test]
fn journals_of_reasons() {
    let Bed { rig, .. } = &bed();
    let path = rig.agent_dir("gpu-1").join("reasons.jsonl");
    let before = put(&path, "reasons.jsonl");
    let shown = reasons::read(rig, "gpu-1", Timestamp::UNIX_EPOCH).unwrap();
    let minutes: Vec<i64> = shown
        .iter()
        .map(|one| one.since.as_second() / 60 % 60)
        .collect();
    assert_eq!(minutes, [0, 1, 3]);
    let mut journal = ReasonLog::open(rig, "gpu-1").unwrap();
    let next = Reason {
        detail: "more".to_owned(),
        ..shown[1].clone()
    };
    assert!(journal.note(next).unwrap());
    assert!(fs::read(&path).unwrap().starts_with(&before));
}

#[test]
fn the_sequence() {
    let Bed { rig, .. } = &bed();
    let path = rig.brain_dir().join("sequence");
    fs::write(&path, "{\"schema\":2,\"next\":7}\n").unwrap();
    let opened = rigor_queue::submit::Sequence::open(rig, Durability::Process);
    refused(opened.map(|_| ()), &path, "is not a number");
}
