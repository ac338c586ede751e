//! The protocol over a real directory.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rigor_queue::claim::{self, Candidate, Held, Moved, Opened};
use rigor_queue::name::{FileName, TaskId};
use rigor_queue::presence::{self, ComponentLock, Role};
use rigor_queue::record::{AttemptRecord, Outcome, Peaks};
use rigor_queue::rig::{Place, Rig};
use rigor_queue::submit::{self, Durability, Sequence};
use rigor_queue::task::{Backoff, Class, TaskSpec, Vram, Work};
use rigor_queue::watch::{Wake, Watcher};
use rigor_queue::{QueueError, records};

struct Setup {
    _dir: tempfile::TempDir,
    rig: Rig,
}

fn setup() -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::create(dir.path()).unwrap();
    rig.prepare_agent("gpu-1").unwrap();
    rig.prepare_batch("b").unwrap();
    Setup { _dir: dir, rig }
}

fn spec(task: &str, item: Option<&str>) -> TaskSpec {
    TaskSpec {
        id: TaskId::derive("b", task, item),
        batch: "b".to_owned(),
        plan: "p".to_owned(),
        task: task.to_owned(),
        name: item.map_or(task.to_owned(), |item| format!("{task}_{item}")),
        class: Class::Cpu,
        work: Work::Command {
            command: "true".to_owned(),
        },
        item: None,
        priority: 5,
        cpus: 1,
        on: Vec::new(),
        model: None,
        min_tier: None,
        vram: Vram::default(),
        timeout_s: None,
        kill_if_silent_s: None,
        retries: 2,
        backoff: Backoff::default(),
        env: Default::default(),
        env_file: None,
        venv: None,
        conda: None,
        secrets: Vec::new(),
        workdir: None,
        requires: Vec::new(),
        produces: Vec::new(),
        plan_dir: "/p".into(),
        batch_dir: "/p/history/b".into(),
        created: jiff::Timestamp::UNIX_EPOCH,
    }
}

fn queue(rig: &Rig, task: &str, sequence: u64) -> (FileName, TaskSpec) {
    let spec = spec(task, None);
    let name = FileName::first(spec.priority, sequence, spec.shape(), spec.id);
    assert!(
        submit::submit(
            rig,
            Place::Queue(Class::Cpu),
            &name,
            &spec,
            Durability::Default
        )
        .unwrap()
    );
    (name, spec)
}

fn ready(rig: &Rig, name: &FileName) -> Held {
    match claim::candidate(rig, Class::Cpu, name).unwrap() {
        Candidate::Ready(held) => held,
        other => panic!("{other:?}"),
    }
}

fn record(spec: &TaskSpec, attempt: u32, outcome: Outcome) -> AttemptRecord {
    AttemptRecord {
        id: spec.id,
        batch: spec.batch.clone(),
        task: spec.task.clone(),
        name: spec.name.clone(),
        class: spec.class,
        attempt,
        agent: "gpu-1".to_owned(),
        nonce: None,
        started: None,
        ended: jiff::Timestamp::UNIX_EPOCH,
        duration_ms: 0,
        outcome,
        exit_code: None,
        signal: None,
        peaks: Peaks::default(),
        output_bytes: 0,
        output_dropped: 0,
        llm: None,
        gpu_memory: None,
    }
}

fn lanes_of(rig: &Rig, id: TaskId) -> Vec<String> {
    let mut found = Vec::new();
    let mut dirs = vec![rig.root().join("tasks")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                dirs.push(entry.path());
            } else if entry
                .file_name()
                .to_str()
                .unwrap()
                .contains(&id.to_string())
            {
                let path = entry.path();
                found.push(
                    path.strip_prefix(rig.root().join("tasks"))
                        .unwrap()
                        .display()
                        .to_string(),
                );
            }
        }
    }
    found
}

#[test]
fn a_life_from_queue_to_complete() {
    let Setup { rig, .. } = &setup();
    let (name, spec) = queue(rig, "t", 1);
    let held = ready(rig, &name)
        .claim(rig, "gpu-1", false)
        .unwrap()
        .unwrap();
    assert_eq!(lanes_of(rig, spec.id), [format!("processing/gpu-1/{name}")]);
    assert!(records::write_new(rig, &record(&spec, 1, Outcome::Succeeded)).unwrap());
    records::commit(rig, &[("b".to_owned(), spec.id, 1)], Durability::Default).unwrap();
    assert_eq!(held.complete(rig).unwrap(), Moved::Done);
    assert_eq!(lanes_of(rig, spec.id), [format!("complete/b/{name}")]);
}

#[test]
fn no_move_replaces_what_lies_in_its_way() {
    let Setup { rig, .. } = &setup();
    let (name, spec) = queue(rig, "t", 1);
    let claimed = ready(rig, &name).claim(rig, "gpu-1", false).unwrap();
    let way = rig.path(Place::Complete("b"), &name);
    fs::write(&way, "somebody's").unwrap();
    let error = claimed.unwrap().complete(rig).unwrap_err();
    assert!(error.to_string().contains("it exists"), "{error}");
    assert_eq!(fs::read_to_string(&way).unwrap(), "somebody's");
    fs::remove_file(way).unwrap();
    assert_eq!(lanes_of(rig, spec.id), [format!("processing/gpu-1/{name}")]);
}

#[test]
fn a_failed_attempt_is_retried_and_given_up() {
    let Setup { rig, .. } = &setup();
    let (name, spec) = queue(rig, "t", 1);
    let held = ready(rig, &name)
        .claim(rig, "gpu-1", true)
        .unwrap()
        .unwrap();
    held.fail(rig).unwrap();
    let next = claim::retry(rig, "b", Class::Cpu, &name).unwrap().unwrap();
    assert_eq!((next.attempt, next.charged), (2, 1));
    assert_eq!(lanes_of(rig, spec.id), [format!("queue/cpu/{next}")]);
    assert_eq!(
        claim::retry(rig, "b", Class::Cpu, &name).unwrap(),
        None,
        "the old name is fenced off"
    );
    let held = ready(rig, &next)
        .claim(rig, "gpu-1", false)
        .unwrap()
        .unwrap();
    let third = held.requeue(rig).unwrap();
    assert_eq!(
        (third.attempt, third.charged),
        (3, 1),
        "a lost attempt is not charged"
    );
    ready(rig, &third)
        .claim(rig, "gpu-1", false)
        .unwrap()
        .unwrap()
        .fail(rig)
        .unwrap();
    claim::give_up(rig, "b", &third).unwrap();
    assert_eq!(lanes_of(rig, spec.id), [format!("failed/b/{third}")]);
    let fourth = claim::revive(rig, Place::Failed("b"), "b", "t", &third)
        .unwrap()
        .unwrap();
    assert_eq!((fourth.attempt, fourth.charged), (4, 0));
    assert_eq!(
        claim::release(rig, "b", "t", Class::Cpu, &fourth).unwrap(),
        Moved::Done
    );
    assert_eq!(lanes_of(rig, spec.id), [format!("queue/cpu/{fourth}")]);
}

#[test]
fn a_held_candidate_is_busy_for_others_and_free_when_dropped() {
    let Setup { rig, .. } = &setup();
    let (name, _) = queue(rig, "t", 1);
    let held = ready(rig, &name);
    assert!(matches!(
        claim::candidate(rig, Class::Cpu, &name).unwrap(),
        Candidate::LockBusy
    ));
    drop(held);
    let held = ready(rig, &name)
        .claim(rig, "gpu-1", false)
        .unwrap()
        .unwrap();
    assert!(matches!(
        claim::candidate(rig, Class::Cpu, &name).unwrap(),
        Candidate::LostRace
    ));
    assert!(matches!(
        claim::open_in(rig, Place::Processing("gpu-1"), &name).unwrap(),
        Opened::Busy
    ));
    drop(held);
    assert!(matches!(
        claim::open_in(rig, Place::Processing("gpu-1"), &name).unwrap(),
        Opened::Held(_)
    ));
}

#[test]
fn the_lease_goes_to_the_child_and_ends_with_it() {
    let Setup { rig, .. } = &setup();
    let (name, _) = queue(rig, "t", 1);
    let held = ready(rig, &name)
        .claim(rig, "gpu-1", false)
        .unwrap()
        .unwrap();
    let (_, _, lease) = held.into_parts();
    let mut child = Command::new("sleep")
        .arg("60")
        .stdin(lease.into_stdio())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let place = Place::Processing("gpu-1");
    assert!(matches!(
        claim::open_in(rig, place, &name).unwrap(),
        Opened::Busy
    ));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(matches!(
        claim::open_in(rig, place, &name).unwrap(),
        Opened::Held(_)
    ));
}

#[test]
fn what_cannot_be_trusted_goes_to_quarantine_and_nothing_outside_is_touched() {
    let outside = tempfile::NamedTempFile::new().unwrap();
    fs::write(outside.path(), "precious").unwrap();
    /// Spoils a task file; the second path is a precious file elsewhere.
    type Spoil = fn(&std::path::Path, &std::path::Path);
    let damage: [(&str, Spoil); 10] = [
        ("empty", |path, _| fs::write(path, "").unwrap()),
        ("not a Rigor file", |path, _| {
            fs::write(path, "\0\0\0\0").unwrap()
        }),
        ("checksum", |path, _| {
            let text = fs::read_to_string(path).unwrap();
            fs::write(path, text.replace("\"true\"", "\"rm -rf\"")).unwrap();
        }),
        ("schema", |path, _| {
            let text = fs::read_to_string(path).unwrap();
            fs::write(path, text.replace("\"schema\":1", "\"schema\":9")).unwrap();
        }),
        // Whole, of this schema, and no task: a record of an attempt.
        ("does not say what it must", |path, _| {
            let Setup { rig, .. } = &setup();
            let (name, spec) = queue(rig, "t", 1);
            let outcome = Outcome::Succeeded;
            let record = AttemptRecord::without_worker("gpu-1", &name, &spec, outcome);
            assert!(records::write_new(rig, &record).unwrap());
            fs::copy(rig.record_path("b", name.id, 1), path).unwrap();
        }),
        ("limit", |path, _| {
            fs::File::create(path)
                .unwrap()
                .set_len(claim::TASK_FILE_MAX_BYTES + 1)
                .unwrap();
        }),
        ("symbolic link", |path, outside| {
            fs::remove_file(path).unwrap();
            std::os::unix::fs::symlink(outside, path).unwrap();
        }),
        ("regular file", |path, _| {
            fs::remove_file(path).unwrap();
            rustix::fs::mknodat(
                rustix::fs::CWD,
                path,
                rustix::fs::FileType::Fifo,
                rustix::fs::Mode::RWXU,
                0,
            )
            .unwrap();
        }),
        ("regular file", |path, _| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        }),
        ("hard links", |path, _| {
            fs::hard_link(path, path.with_file_name(".second")).unwrap()
        }),
    ];
    for (n, (word, spoil)) in damage.iter().enumerate() {
        let Setup { rig, .. } = &setup();
        let (name, _) = queue(rig, "t", 1);
        let path = rig.path(Place::Queue(Class::Cpu), &name);
        spoil(&path, outside.path());
        match claim::candidate(rig, Class::Cpu, &name).unwrap() {
            Candidate::Quarantined { reason } => assert!(reason.contains(word), "{n}: {reason}"),
            other => panic!("{n} {word}: {other:?}"),
        }
        assert!(fs::symlink_metadata(&path).is_err(), "{word}: still queued");
        let reason = rig.dir(Place::Quarantine).join(format!("{name}.reason"));
        assert!(fs::read_to_string(reason).unwrap().contains(word));
    }
    assert_eq!(fs::read_to_string(outside.path()).unwrap(), "precious");
}

#[test]
fn a_file_under_anothers_name_is_refused() {
    let Setup { rig, .. } = &setup();
    let (name, spec) = queue(rig, "t", 1);
    let other = FileName::first(5, 2, spec.shape(), TaskId::derive("b", "other", None));
    fs::rename(
        rig.path(Place::Queue(Class::Cpu), &name),
        rig.path(Place::Queue(Class::Cpu), &other),
    )
    .unwrap();
    assert!(matches!(
        claim::candidate(rig, Class::Cpu, &other).unwrap(),
        Candidate::Quarantined { reason } if reason.contains("its name says task")
    ));
}

#[test]
fn an_expansion_is_there_whole_and_once() {
    let Setup { rig, .. } = &setup();
    let tasks = || {
        (0..100).map(|n| {
            let mut spec = spec("t", Some(&n.to_string()));
            spec.item = Some(rigor_queue::task::Item {
                id: n.to_string(),
                value: serde_json::json!(n),
                members: Vec::new(),
            });
            (FileName::first(5, n, spec.shape(), spec.id), spec)
        })
    };
    // Litter of a crash in the middle of an earlier try.
    let litter = rig
        .lane_dir(rigor_queue::lane::Lane::Waiting)
        .join("b/.new-t");
    fs::create_dir_all(&litter).unwrap();
    fs::write(litter.join("half"), "x").unwrap();
    assert_eq!(submit::manifest(rig, "b", "t").unwrap(), None);
    assert!(submit::expand(rig, "b", "t", tasks(), Durability::Default).unwrap());
    assert!(
        !submit::expand(rig, "b", "t", tasks(), Durability::Default).unwrap(),
        "made twice"
    );
    assert!(!litter.exists());
    let listed = rig
        .list(Place::Waiting {
            batch: "b",
            task: "t",
        })
        .unwrap();
    assert_eq!(listed.names.len(), 100);
    assert_eq!(listed.foreign, Vec::<std::path::PathBuf>::new());
    let manifest = submit::manifest(rig, "b", "t").unwrap().unwrap();
    assert_eq!(manifest.len(), 100);
    assert_eq!(manifest[7].item.as_deref(), Some("7"));
}

#[test]
fn a_torn_record_counts_as_absent_and_can_be_replaced() {
    let Setup { rig, .. } = &setup();
    let spec = spec("t", None);
    let path = rig.record_path("b", spec.id, 1);
    fs::write(&path, "{\"schema\":1,\"sum\":\"0123\",\"bo").unwrap();
    assert_eq!(records::read(rig, "b", spec.id, 1).unwrap(), None);
    let record = record(
        &spec,
        1,
        Outcome::Lost {
            reason: "agent gpu-1 died".to_owned(),
        },
    );
    assert!(!records::write_new(rig, &record).unwrap());
    records::replace(rig, &record).unwrap();
    assert_eq!(records::read(rig, "b", spec.id, 1).unwrap(), Some(record));
}

#[test]
fn a_component_runs_once_and_displays_see_it_without_a_lock() {
    let Setup { rig, .. } = &setup();
    assert_eq!(presence::is_held(rig, "gpu-1").unwrap(), None);
    let lock = ComponentLock::acquire(rig, "gpu-1", Role::Running).unwrap();
    assert_eq!(presence::is_held(rig, "gpu-1").unwrap(), Some(true));
    let error = ComponentLock::acquire(rig, "gpu-1", Role::Running).unwrap_err();
    assert!(matches!(error, QueueError::Held { .. }));
    assert!(
        error
            .to_string()
            .contains(&format!("pid {}", std::process::id())),
        "{error}"
    );
    drop(lock);
    assert_eq!(presence::is_held(rig, "gpu-1").unwrap(), Some(false));
    ComponentLock::acquire(rig, "gpu-1", Role::Recovering).unwrap();
}

#[test]
fn only_the_process_that_holds_the_lock_is_killed_for_it() {
    let Setup { rig, .. } = &setup();
    // As where the holder died without a word and its number was given to another program.
    let mut innocent = Command::new("sleep").arg("60").spawn().unwrap();
    let path = rig.agent_dir("gpu-1").join("lock");
    let name = |pid: u32, role: &str| {
        fs::write(&path, format!("{{\"pid\":{pid},\"role\":\"{role}\"}}")).unwrap();
    };
    name(innocent.id(), "running");
    assert_eq!(presence::kill_holder(rig, "gpu-1").unwrap(), None);
    let lock = ComponentLock::acquire(rig, "gpu-1", Role::Running).unwrap();
    // Nobody ends itself, and nobody the brain for an agent that it recovers.
    assert_eq!(presence::kill_holder(rig, "gpu-1").unwrap(), None);
    name(innocent.id(), "running");
    assert_eq!(presence::kill_holder(rig, "gpu-1").unwrap(), None);
    assert!(innocent.try_wait().unwrap().is_none(), "it was killed");
    drop(lock);
    innocent.kill().unwrap();
    innocent.wait().unwrap();
    // It holds the lock itself; only what the file says of it differs.
    let mut holder = Command::new("flock")
        .arg("--no-fork")
        .arg(&path)
        .args(["sleep", "60"])
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while presence::is_held(rig, "gpu-1").unwrap() != Some(true) {
        assert!(Instant::now() < deadline, "flock takes no lock");
        std::thread::sleep(Duration::from_millis(5));
    }
    name(holder.id(), "recovering");
    assert_eq!(presence::kill_holder(rig, "gpu-1").unwrap(), None);
    name(holder.id(), "running");
    let killed = presence::kill_holder(rig, "gpu-1").unwrap();
    assert_eq!(killed, Some(holder.id()));
    holder.wait().unwrap();
}

#[test]
fn sequences_are_never_given_twice_over_restarts() {
    let Setup { rig, .. } = &setup();
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        let mut sequence = Sequence::open(rig, Durability::Default).unwrap();
        for count in [1, 5, 200_000] {
            let first = sequence.take(count).unwrap();
            assert!((first..first + count).all(|n| seen.insert(n)));
        }
    }
    fs::write(rig.brain_dir().join("sequence"), "many").unwrap();
    assert!(Sequence::open(rig, Durability::Default).is_err());
}

#[test]
fn unfit_directories_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Rig::open(&dir.path().join("none")).unwrap_err().to_string();
    assert!(missing.contains("rigor init"), "{missing}");
    Rig::create(dir.path()).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let open = Rig::open(dir.path()).unwrap_err().to_string();
    assert!(open.contains("chmod o-w"), "{open}");
}

#[test]
fn watched_directories_report_arrivals_and_departures_but_no_opens() {
    let Setup { rig, .. } = &setup();
    let (sender, wakes) = mpsc::channel();
    let mut watcher = Watcher::new(move |wake| drop(sender.send(wake))).unwrap();
    watcher.watch(&rig.dir(Place::Queue(Class::Cpu))).unwrap();
    let (name, _) = queue(rig, "t", 1);
    let path = rig.path(Place::Queue(Class::Cpu), &name);
    let wait = |wanted: &Wake| {
        loop {
            let wake = wakes
                .recv_timeout(Duration::from_secs(10))
                .expect("a wake-up");
            if wake == *wanted {
                return;
            }
            // The temporary file comes and goes before.
            assert!(!matches!(wake, Wake::Rescan | Wake::Failed(_)), "{wake:?}");
        }
    };
    wait(&Wake::Added(path.clone()));
    let held = ready(rig, &name);
    held.claim(rig, "gpu-1", false).unwrap().unwrap();
    // Opening, reading and locking said nothing: the very next wake-up is the departure.
    assert_eq!(
        wakes.recv_timeout(Duration::from_secs(10)).unwrap(),
        Wake::Removed(path)
    );
}

#[test]
fn a_candidate_can_be_cancelled_only_by_who_holds_it() {
    let Setup { rig, .. } = &setup();
    let (name, spec) = queue(rig, "t", 1);
    let held = ready(rig, &name);
    assert!(matches!(
        claim::open_in(rig, Place::Queue(Class::Cpu), &name).unwrap(),
        Opened::Busy
    ));
    held.cancel(rig, &name).unwrap();
    assert_eq!(lanes_of(rig, spec.id), [format!("cancelled/b/{name}")]);
}

#[test]
fn litter_of_dead_writers_is_swept_and_nothing_else() {
    let Setup { rig, .. } = &setup();
    let (name, spec) = queue(rig, "t", 1);
    let old = [
        rig.dir(Place::Queue(Class::Cpu)).join(".new-abc"),
        rig.lane_dir(rigor_queue::lane::Lane::Waiting)
            .join("b/.new-t/x"),
        rig.agent_dir("gpu-1").join(".new-beat"),
    ];
    for path in &old {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }
    assert_eq!(
        rig.sweep(Duration::from_secs(3600), ["b"]).unwrap(),
        0,
        "young ones may be in use"
    );
    assert_eq!(rig.sweep(Duration::ZERO, ["b"]).unwrap(), 3);
    assert!(old.iter().all(|path| !path.exists()));
    assert_eq!(lanes_of(rig, spec.id), [format!("queue/cpu/{name}")]);
}

#[test]
fn a_held_batch_takes_its_queued_tasks_back() {
    let Setup { rig, .. } = &setup();
    let (name, spec) = queue(rig, "t", 1);
    fs::create_dir_all(rig.dir(Place::Waiting {
        batch: "b",
        task: "t",
    }))
    .unwrap();
    assert_eq!(ready(rig, &name).withdraw(rig, "t").unwrap(), Moved::Done);
    assert_eq!(lanes_of(rig, spec.id), [format!("waiting/b/t/{name}")]);
    assert_eq!(
        claim::release(rig, "b", "t", Class::Cpu, &name).unwrap(),
        Moved::Done
    );
}

/// Who takes a component's lock empties the file before it writes its name: at that moment nobody
/// can say whether the holder is there for life or for a moment, so it is waited for.
#[test]
fn a_lock_without_a_name_is_waited_for() {
    let Setup { rig, .. } = &setup();
    let lock = ComponentLock::acquire(rig, "gpu-1", Role::Recovering).unwrap();
    fs::write(rig.agent_dir("gpu-1").join("lock"), "").unwrap();
    let owned = rig.clone();
    let (sender, taken) = mpsc::channel();
    std::thread::spawn(move || {
        let lock = ComponentLock::take(&owned, "gpu-1", Duration::from_secs(20));
        sender.send(lock.is_ok()).unwrap();
    });
    let early = taken.recv_timeout(Duration::from_millis(200));
    assert!(early.is_err(), "it waits: {early:?}");
    drop(lock);
    assert!(taken.recv_timeout(Duration::from_secs(20)).unwrap());
}

/// Whoever is killed between the two, or finds no room for the reason, leaves the file where it is.
#[test]
fn nothing_goes_to_quarantine_without_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::create(&dir.path().join("rig")).unwrap();
    let lane = rig.dir(Place::Queue(Class::Cpu));
    let quarantine = rig.dir(Place::Quarantine);
    fs::write(lane.join("odd"), "x").unwrap();
    // No note can be written there.
    fs::create_dir(quarantine.join("odd.reason")).unwrap();
    claim::quarantine(&rig, &lane.join("odd"), "a test").unwrap_err();
    assert!(lane.join("odd").exists());
    assert!(!quarantine.join("odd").exists());
    fs::remove_dir(quarantine.join("odd.reason")).unwrap();
    claim::quarantine(&rig, &lane.join("odd"), "a test").unwrap();
    // One that has gone leaves no note, and the longest name has room for its own.
    claim::quarantine(&rig, &lane.join("gone"), "a test").unwrap();
    let long = "\u{e4}".repeat(127);
    fs::write(lane.join(&long), "x").unwrap();
    claim::quarantine(&rig, &lane.join(&long), "a test").unwrap();
    let mut names: Vec<String> = fs::read_dir(&quarantine)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let short = "\u{e4}".repeat(100);
    let expected = ["odd", "odd.reason", &short, &format!("{short}.reason")];
    assert_eq!(names, expected);
    for name in ["odd", &short] {
        let note = fs::read_to_string(quarantine.join(format!("{name}.reason"))).unwrap();
        assert!(note.contains("\"reason\":\"a test\""), "{note}");
    }
}
