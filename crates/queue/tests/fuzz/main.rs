//! Damaged files of a rig, through the functions that read them: nothing panics, hangs or grows
//! without bounds, and what is believed says the same when it is written and read again.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod mutate;

use std::fs;
use std::path::PathBuf;

use jiff::Timestamp;
use mutate::{Dice, bytes, fuzz};
use rigor_queue::claim;
use rigor_queue::error::QueueError;
use rigor_queue::heartbeat::{Health, Heartbeat};
use rigor_queue::name::{FileName, TaskId};
use rigor_queue::record::{AttemptRecord, FailureKind, GpuMemory, LlmUse, Outcome, RaisedNeed};
use rigor_queue::rig::{Place, Rig};
use rigor_queue::submit::{self, Durability};
use rigor_queue::task::{Backoff, Class, TaskSpec, Vram, Work};
use rigor_queue::{outlook, presence, reasons, records};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

struct Bed {
    _dir: tempfile::TempDir,
    rig: Rig,
}

fn bed() -> Bed {
    let dir = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    let rig = Rig::create(dir.path()).unwrap();
    rig.prepare_agent("gpu-1").unwrap();
    rig.prepare_batch("b").unwrap();
    Bed { _dir: dir, rig }
}

fn spec() -> TaskSpec {
    TaskSpec {
        id: TaskId::derive("b", "t", None),
        batch: "b".to_owned(),
        plan: "p".to_owned(),
        task: "t".to_owned(),
        name: "t".to_owned(),
        class: Class::Cpu,
        work: Work::Command {
            command: "echo 'a' \"b\" $(c)\n".to_owned(),
        },
        item: None,
        priority: 5,
        cpus: 1,
        on: vec!["gpu-1".to_owned()],
        model: None,
        min_tier: None,
        vram: Vram::default(),
        timeout_s: Some(60),
        kill_if_silent_s: Some(5),
        retries: 2,
        backoff: Backoff::default(),
        env: [("A".to_owned(), "ü".to_owned())].into(),
        env_file: None,
        venv: None,
        conda: None,
        secrets: vec!["HF_TOKEN".to_owned()],
        workdir: None,
        requires: vec!["in".into()],
        produces: vec!["out".into()],
        plan_dir: "/p".into(),
        batch_dir: "/p/history/b".into(),
        created: Timestamp::UNIX_EPOCH,
    }
}

/// The envelope of a body that is not what the code wrote: only the sum is right.
fn seal(body: &str) -> Vec<u8> {
    let digest = Sha256::digest(body.as_bytes());
    let sum: String = digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{{\"schema\":1,\"sum\":\"{sum}\",\"body\":{body}}}\n").into_bytes()
}

/// A value somewhere in a tree becomes something else.
fn tree(dice: &mut Dice, value: &mut Value) {
    let stop = dice.below(3) == 0;
    match value {
        Value::Object(map) if !map.is_empty() && !stop => {
            let key = map.keys().nth(dice.below(map.len())).unwrap().clone();
            match dice.below(8) {
                0 => drop(map.remove(&key)),
                1 => drop(map.insert("unknown".to_owned(), json!(1))),
                _ => tree(dice, &mut map[&key]),
            }
        }
        Value::Array(all) if !all.is_empty() && !stop => {
            let at = dice.below(all.len());
            match dice.below(4) {
                0 => all.push(all[at].clone()),
                _ => tree(dice, &mut all[at]),
            }
        }
        other => *other = absurd(dice),
    }
}

fn absurd(dice: &mut Dice) -> Value {
    match dice.below(16) {
        0 => Value::Null,
        1 => json!(u64::MAX),
        2 => json!(i64::MIN),
        3 => json!(1e308),
        4 => json!(-1),
        5 => json!(0.5),
        6 => json!("\0"),
        7 => json!("x".repeat(dice.below(200_000))),
        8 => json!("../../x"),
        9 => json!([]),
        10 => json!({}),
        11 => json!(true),
        12 => json!("9999-99-99T99:99:99Z"),
        13 => json!("-009999-01-02T01:59:59Z"),
        14 => (0..dice.below(200)).fold(json!(1), |inner, _| json!([inner])),
        _ => json!("\u{202e}💩\u{7f}"),
    }
}

/// Damages a JSON text by its structure, or as bytes.
fn damaged(dice: &mut Dice, seed: &Value) -> Vec<u8> {
    if dice.below(3) == 0 {
        return bytes(dice, seed.to_string().as_bytes());
    }
    let mut value = seed.clone();
    for _ in 0..=dice.below(3) {
        tree(dice, &mut value);
    }
    value.to_string().into_bytes()
}

#[test]
fn task_files() {
    let Bed { rig, .. } = &bed();
    let spec = spec();
    let name = FileName::first(5, 1, spec.shape(), spec.id);
    let place = Place::Queue(Class::Cpu);
    submit::submit(rig, place, &name, &spec, Durability::Process).unwrap();
    let path = rig.path(place, &name);
    let valid = fs::read(&path).unwrap();
    let body = serde_json::to_value(&spec).unwrap();
    let make = |dice: &mut Dice| match dice.below(2) {
        0 => bytes(dice, &valid),
        _ => seal(&String::from_utf8_lossy(&damaged(dice, &body))),
    };
    let again = rig.path(Place::Queue(Class::Script), &name);
    fuzz(15_000, make, |input| {
        fs::write(&path, input).unwrap();
        if let Ok(Some(read)) = claim::peek(rig, place, &name) {
            assert_eq!(read.id, name.id);
            let _ = fs::remove_file(&again);
            submit::submit(
                rig,
                Place::Queue(Class::Script),
                &name,
                &read,
                Durability::Process,
            )
            .unwrap();
            let twice = claim::peek(rig, Place::Queue(Class::Script), &name).unwrap();
            assert_eq!(twice, Some(read));
        }
    });
}

#[test]
fn attempt_records() {
    let Bed { rig, .. } = &bed();
    let spec = spec();
    let name = FileName::first(5, 1, spec.shape(), spec.id);
    let outcome = Outcome::Failed {
        kind: FailureKind::Signal,
        reason: "killed".to_owned(),
    };
    let mut record = AttemptRecord::without_worker("gpu-1", &name, &spec, outcome);
    record.llm = Some(LlmUse {
        model: "m".to_owned(),
        ..LlmUse::default()
    });
    record.gpu_memory = Some(GpuMemory {
        leased_mb: Some(1000),
        budget_mb: 4000,
        raised: false,
        next: Some(RaisedNeed::Mb { mb: 1500 }),
    });
    let body = serde_json::to_value(&record).unwrap();
    let path = rig.record_path("b", spec.id, 1);
    let valid = seal(&body.to_string());
    let make = |dice: &mut Dice| match dice.below(2) {
        0 => bytes(dice, &valid),
        _ => seal(&String::from_utf8_lossy(&damaged(dice, &body))),
    };
    fuzz(15_000, make, |input| {
        fs::write(&path, input).unwrap();
        let read = match records::read(rig, "b", spec.id, 1) {
            Ok(read) => read,
            // Whole, and not of this version: it is refused by name.
            Err(QueueError::Untrusted { .. }) => return,
            Err(error) => panic!("{error}"),
        };
        if let Some(read) = read {
            fs::write(&path, seal(&serde_json::to_string(&read).unwrap())).unwrap();
            assert_eq!(records::read(rig, "b", spec.id, 1).unwrap(), Some(read));
        }
    });
}

#[test]
fn heartbeats() {
    let Bed { rig, .. } = &bed();
    let beat = Heartbeat::alive(1, Timestamp::UNIX_EPOCH, Health::Healthy);
    let mut seed = serde_json::to_value(&beat).unwrap();
    seed["idle_since"] = json!("2026-01-01T00:00:00Z");
    seed["cpu_slots"] = json!([1, 2]);
    let path = rig.agent_dir("gpu-1").join("heartbeat.json");
    let make = |dice: &mut Dice| damaged(dice, &seed);
    fuzz(15_000, make, |input| {
        fs::write(&path, input).unwrap();
        if let Ok(Some(read)) = presence::heartbeat(rig, "gpu-1") {
            presence::beat(rig, "gpu-1", &read).unwrap();
            assert_eq!(presence::heartbeat(rig, "gpu-1").unwrap(), Some(read));
        }
    });
}

#[test]
fn outlooks() {
    let Bed { rig, .. } = &bed();
    let seed = json!({
        "schema": 1, "at": "2026-01-01T00:00:00Z", "waiting": {"cpu": 3}, "retry": 1,
        "held": ["b"], "never": {"9c0ffee1": "it needs 99 GB"},
        "models": [{"model": "m", "queued": 3, "holders": ["gpu-1"], "reason": "r", "asked": [
            {"id": "a1b2c3d4e5f60718", "since": "2026-01-01T00:00:00Z", "eligible": []}]}],
        "stuck": [{"id": "a1b2c3d4e5f60718", "name": "t", "agent": "gpu-1",
            "since": "2026-01-01T00:00:00Z", "quiet_since": "2026-01-01T00:00:00Z", "end": "e"}],
    });
    let path = rig.brain_dir().join("outlook.json");
    fs::write(&path, seed.to_string()).unwrap();
    assert!(outlook::read(rig).unwrap().is_some(), "the seed is valid");
    let make = |dice: &mut Dice| damaged(dice, &seed);
    fuzz(15_000, make, |input| {
        fs::write(&path, input).unwrap();
        if let Ok(Some(read)) = outlook::read(rig) {
            outlook::write(rig, &read).unwrap();
            assert_eq!(outlook::read(rig).unwrap(), Some(read));
        }
    });
}

#[test]
fn reason_journals() {
    let Bed { rig, .. } = &bed();
    let line = json!({"since": "2026-01-01T00:00:00Z", "cause": "no_work", "detail": "d"});
    let seed = format!("{line}\n{line}\n{line}\n").into_bytes();
    let path = rig.agent_dir("gpu-1").join("reasons.jsonl");
    fs::write(&path, &seed).unwrap();
    let from = "2025-01-01T00:00:00Z".parse().unwrap();
    assert_eq!(
        reasons::read(rig, "gpu-1", from).unwrap().len(),
        3,
        "the seed is valid"
    );
    let make = |dice: &mut Dice| match dice.below(2) {
        0 => bytes(dice, &seed),
        _ => [damaged(dice, &line), b"\n".to_vec(), damaged(dice, &line)].concat(),
    };
    fuzz(10_000, make, |input| {
        fs::write(&path, input).unwrap();
        let read = reasons::read(rig, "gpu-1", from).unwrap();
        assert!(read.len() <= 1 + input.iter().filter(|byte| **byte == b'\n').count());
        let log = reasons::ReasonLog::open(rig, "gpu-1").unwrap();
        let _ = log.last();
    });
}

#[test]
fn manifests() {
    let Bed { rig, .. } = &bed();
    let spec = spec();
    let name = FileName::first(5, 1, spec.shape(), spec.id);
    submit::expand(rig, "b", "t", [(name, spec)], Durability::Process).unwrap();
    let place = Place::Waiting {
        batch: "b",
        task: "t",
    };
    let path = rig.dir(place).join(".items.jsonl");
    let line = json!({"id": "a1b2c3d4e5f60718", "item": "i", "members": ["a", "b"]});
    let make = |dice: &mut Dice| damaged(dice, &line);
    fuzz(10_000, make, |input| {
        fs::write(&path, input).unwrap();
        let _ = submit::manifest(rig, "b", "t");
    });
}

/// A signal is a file's name; whatever else lies there hides no other signal.
#[test]
fn signals() {
    let Bed { rig, .. } = &bed();
    presence::send(rig, "gpu-1", "stop", "{}").unwrap();
    let dir = rig.signals_dir("gpu-1");
    let seed = json!({"reason": "ended by request"});
    let make = |dice: &mut Dice| damaged(dice, &seed);
    fuzz(5_000, make, |input| {
        fs::write(dir.join("x.abort"), input).unwrap();
        let found = presence::signals(rig, "gpu-1").unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].0, "stop");
    });
}

/// What is not a file is not read: it neither hangs nor hides what is.
#[test]
fn odd_things_in_place_of_files() {
    let Bed { rig, .. } = &bed();
    let spec = spec();
    let places: [PathBuf; 4] = [
        rig.record_path("b", spec.id, 1),
        rig.agent_dir("gpu-1").join("heartbeat.json"),
        rig.brain_dir().join("outlook.json"),
        rig.signals_dir("gpu-1").join("x.abort"),
    ];
    let (sender, done) = std::sync::mpsc::channel();
    let owned = rig.clone();
    std::thread::spawn(move || {
        for kind in ["fifo", "directory", "link to a device", "huge"] {
            for path in &places {
                match kind {
                    "fifo" => {
                        use rustix::fs::{CWD, FileType, Mode, mknodat};
                        mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
                    }
                    "directory" => fs::create_dir(path).unwrap(),
                    "link to a device" => std::os::unix::fs::symlink("/dev/zero", path).unwrap(),
                    _ => fs::File::create(path).unwrap().set_len(1 << 40).unwrap(),
                }
            }
            presence::send(&owned, "gpu-1", "stop", "").unwrap();
            let record = records::read(&owned, "b", spec.id, 1);
            assert!(!matches!(record, Ok(Some(_))), "{kind}");
            assert!(presence::heartbeat(&owned, "gpu-1").is_err(), "{kind}");
            assert!(outlook::read(&owned).is_err(), "{kind}");
            let found = presence::signals(&owned, "gpu-1").unwrap();
            assert!(
                found.iter().any(|(name, _)| name == "stop"),
                "{kind}: {found:?}"
            );
            for path in &places {
                let _ = fs::remove_file(path).or_else(|_| fs::remove_dir(path));
            }
        }
        sender.send(()).unwrap();
    });
    done.recv_timeout(std::time::Duration::from_secs(20))
        .expect("nothing hangs and nothing panics");
}
