//! Rows 14, 15 and 33: task files that changed on the disk, one task in two lanes, and very many
//! of them.

use std::fs;
use std::time::{Duration, Instant};

use rigor_queue::QueueError;
use rigor_queue::claim::{self, Candidate};
use rigor_queue::index::Index;
use rigor_queue::name::{FileName, Shape, TaskId};
use rigor_queue::record::{AttemptRecord, Outcome};
use rigor_queue::records;
use rigor_queue::rig::{BRAIN, Place, Rig};
use rigor_queue::submit::{self, Durability};
use rigor_queue::task::Class;
use rigor_tests::journal::{self, command, noted};
use rigor_tests::{sweep, tasks};

const BATCH: &str = "b";

fn rig() -> (tempfile::TempDir, Rig) {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::create(&dir.path().join("rig")).unwrap();
    rig.prepare_batch(BATCH).unwrap();
    rig.prepare_agent("a").unwrap();
    (dir, rig)
}

/// Row 14: of every byte of a task file one bit.
#[test]
fn a_flipped_bit_of_a_task_file_is_seen() {
    let (_dir, rig) = rig();
    let spec = tasks::spec(BATCH, "t", Some("1"), "echo one");
    let name = FileName::first(spec.priority, 1, spec.shape(), spec.id);
    let place = Place::Queue(Class::Cpu);
    submit::submit(&rig, place, &name, &spec, Durability::Process).unwrap();
    let path = rig.path(place, &name);
    let whole = fs::read(&path).unwrap();
    let mut reasons = 0;
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(&path, &bytes).unwrap();
        match claim::candidate(&rig, Class::Cpu, &name).unwrap() {
            Candidate::Quarantined { reason } => {
                assert!(!reason.is_empty());
                reasons += usize::from(reason.contains("sum"));
            }
            // A bit of the white space at the end changes nothing that is read.
            Candidate::Ready(held) => assert_eq!(*held.spec, spec, "byte {at}"),
            other => panic!("byte {at}: {other:?}"),
        }
        assert!(
            fs::symlink_metadata(&path).is_err() || at + 1 >= whole.len(),
            "byte {at}"
        );
    }
    assert!(
        reasons > whole.len() / 2,
        "the checksum says so: {reasons} of {}",
        whole.len()
    );
}

/// Row 14, for the authority on results.
#[test]
fn a_flipped_bit_of_a_record_makes_it_absent_or_refused_by_name() {
    let (_dir, rig) = rig();
    let spec = tasks::spec(BATCH, "t", None, "true");
    let name = FileName::first(spec.priority, 1, spec.shape(), spec.id);
    let record = AttemptRecord::without_worker("a", &name, &spec, Outcome::Succeeded);
    records::write_new(&rig, &record).unwrap();
    let path = rig.record_path(BATCH, spec.id, 1);
    let whole = fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(&path, &bytes).unwrap();
        match records::read(&rig, BATCH, spec.id, 1) {
            Ok(read) => assert!(read.is_none_or(|read| read == record), "byte {at}"),
            // In the envelope's own words: what they hold is whole, and not to be thrown away.
            Err(QueueError::Untrusted { .. }) => assert!(at < 20, "byte {at}"),
            Err(error) => panic!("byte {at}: {error}"),
        }
    }
}

/// Row 15: somebody has copied the file of a task that is over into the queue.
#[test]
fn of_one_task_in_two_lanes_the_latest_attempt_counts_and_the_other_is_put_aside() {
    let mut rig = rigor_tests::Rig::new(1);
    let work = "[ \"$RIGOR_ATTEMPT\" = 2 ]";
    let plan = rig.plan(
        "copied",
        &format!(
            "### one\n\n- **task_class**: cpu\n- **backoff**: 1s..1s\n{}\n\
             ### two\n\n- **task_class**: cpu\n- **depends_on**: one\n{}",
            command(&noted(work)),
            command(&noted(
                "until [ -e \"$RIGOR_PLAN_DIR/go\" ]; do sleep 0.1; done"
            )),
        ),
    );
    rig.start_all();
    let batch = rig.submit(&plan);
    rig.wait("the second task runs", |_| journal::read(&plan).len() == 3);
    let done = rig.list(Place::Complete(&batch))[0];
    assert_eq!(done.attempt, 2);
    rig.kill(BRAIN);
    rig.kill("gpu-1");
    let from = rig.rig.path(Place::Complete(&batch), &done);
    let stale = done.to_string().replace(".a2c1.", ".a1c0.");
    let queue = rig.rig.dir(Place::Queue(Class::Cpu));
    for copy in [&done.to_string(), &stale] {
        fs::copy(&from, queue.join(copy)).unwrap();
    }
    rig.start_brain();
    for copy in [&done.to_string(), &stale] {
        let aside = rig.rig.dir(Place::Quarantine).join(copy);
        rig.wait("the copy is in quarantine", |_| aside.exists());
    }
    fs::write(plan.join("go"), "").unwrap();
    rig.start_agent("gpu-1");
    assert_eq!(rig.wait_short_batch(&batch), 0);
    let of_one = |id| {
        journal::read(&plan)
            .iter()
            .filter(|it| it.task == id)
            .count()
    };
    assert_eq!(of_one(done.id.to_string()), 2, "neither copy ran");
    let line = rig.wait_for_match(
        BRAIN,
        "WARNING Moved .* from queue to quarantine: the task is in complete as attempt 2 too",
    );
    println!("{line}");
    for copy in [&done.to_string(), &stale] {
        fs::remove_file(rig.rig.dir(Place::Quarantine).join(copy)).unwrap();
    }
}

/// Row 15: somebody copies the file of a task back into the queue while everything runs, and an
/// agent with nothing to do takes whatever is there.
#[test]
fn a_copy_of_a_running_task_is_not_run_beside_it() {
    let mut rig = rigor_tests::Rig::new(2);
    let work = "until [ -e \"$RIGOR_PLAN_DIR/go\" ]; do note tick; sleep 0.05; done";
    let task = format!(
        "### one\n\n- **task_class**: cpu\n{}",
        command(&noted(work))
    );
    let plan = rig.plan("copied", &task);
    rig.start_all();
    let batch = rig.submit(&plan);
    rig.wait("it runs", |_| !journal::read(&plan).is_empty());
    let agents = ["gpu-1", "gpu-2"];
    let owner = agents
        .iter()
        .find(|agent| !rig.list(Place::Processing(agent)).is_empty());
    let owner = Place::Processing(owner.unwrap());
    let name = rig.list(owner)[0];
    let queued = rig.rig.path(Place::Queue(Class::Cpu), &name);
    let aside = rig.rig.path(Place::Quarantine, &name);
    // As cp does it: under another name first, so that nobody sees half a file.
    let copy = |from: Place<'_>| {
        let half = queued.with_file_name(".copying");
        fs::copy(rig.rig.path(from, &name), &half).unwrap();
        fs::rename(&half, &queued).unwrap();
    };
    copy(owner);
    rig.wait("the copy is in quarantine", |_| {
        aside.exists() && !queued.exists()
    });
    let note = fs::read_to_string(aside.with_file_name(format!("{name}.reason"))).unwrap();
    assert!(note.contains("has claimed this attempt already"), "{note}");
    rig.wait_for_line(BRAIN, "A copy of ");
    assert_eq!(rig.list(owner), [name], "the task itself runs on");
    fs::write(plan.join("go"), "").unwrap();
    assert_eq!(rig.wait_short_batch(&batch), 0);
    fs::remove_file(&aside).unwrap();
    copy(Place::Complete(&batch));
    rig.wait("so is one of what is done", |_| {
        aside.exists() && !queued.exists()
    });
    let attempts = journal::read(&plan);
    assert_eq!(attempts.len(), 1, "it ran once: {attempts:?}");
    assert!(rig.list(Place::Complete(&batch)).contains(&name));
    fs::remove_file(&aside).unwrap();
}

/// Row 33: a claim does not cost more as the queue grows. In small, unless `RIGOR_MILLION` is set.
#[test]
fn a_claim_from_a_long_queue_costs_what_one_from_a_short_one_does() {
    const SHORT: u64 = 500;
    const CLAIMS: usize = 200;
    let long = match std::env::var("RIGOR_MILLION") {
        Ok(_) => 1_000_000,
        Err(_) => 50_000,
    };
    let mut slowest = Vec::new();
    for count in [SHORT, long] {
        let (_dir, rig) = rig();
        let all = (0..count).map(|n| {
            let spec = tasks::spec(BATCH, "t", Some(&n.to_string()), "true");
            (
                FileName::first(spec.priority, n, spec.shape(), spec.id),
                spec,
            )
        });
        submit::expand(&rig, BATCH, "t", all, Durability::Process).unwrap();
        // As a release of all of them leaves it, without 50,000 renames.
        let waiting = rig.dir(Place::Waiting {
            batch: BATCH,
            task: "t",
        });
        let queue = rig.dir(Place::Queue(Class::Cpu));
        fs::remove_dir(&queue).unwrap();
        fs::rename(&waiting, &queue).unwrap();
        let mut index = Index::default();
        index.replace(rig.list(Place::Queue(Class::Cpu)).unwrap().names);
        let mut took: Vec<Duration> = (0..CLAIMS)
            .map(|_| {
                let began = Instant::now();
                let (_, _, first) = index.shapes(began)[0];
                let Candidate::Ready(held) = claim::candidate(&rig, Class::Cpu, &first).unwrap()
                else {
                    panic!("{first} is not to be had");
                };
                held.claim(&rig, "a", false).unwrap().unwrap();
                index.remove(&first);
                began.elapsed()
            })
            .collect();
        took.sort();
        slowest.push(took[CLAIMS * 99 / 100 - 1]);
    }
    println!(
        "p99 of a claim: {:?} of {SHORT}, {:?} of {long}",
        slowest[0], slowest[1]
    );
    // A claim that reads the whole directory, or the whole index, takes a hundred times longer.
    let most = (slowest[0] * 20).max(Duration::from_millis(20));
    assert!(slowest[1] < most, "{slowest:?}");
}

/// What is over never slows a claim: an agent moves tasks into lanes of fifty thousand files and
/// reads none of them.
#[test]
fn an_agent_reads_no_lane_of_tasks_that_are_over() {
    const OVER: u64 = 25_000;
    const ITEMS: usize = 20;
    if let Err(why) = sweep::available() {
        return println!("skipped: {why}");
    }
    let mut rig = rigor_tests::Rig::new(1);
    let plan = rig.plan(
        "few",
        "### each\n\n- **task_class**: cpu\n- **foreach**: `items.txt`\n- **command**: `true`\n",
    );
    let items: String = (0..ITEMS).map(|n| format!("i{n}\n")).collect();
    fs::write(plan.join("items.txt"), items).unwrap();
    let batch = rig.submit(&plan);
    let over = || {
        (0..OVER).flat_map(|n| {
            let of = |task: &str| {
                let id = TaskId::derive("other", task, Some(&n.to_string()));
                FileName::first(5, 1_000_000 + n, Shape(7), id)
            };
            [
                rig.rig.path(Place::Complete(&batch), &of("done")),
                rig.rig.path(Place::Failed(&batch), &of("not done")),
            ]
        })
    };
    for path in over() {
        fs::File::create(path).unwrap();
    }
    let paths: Vec<_> = over().collect();
    let log = rig.plans().with_file_name("strace.log");
    let strace = [
        "strace",
        "-D",
        "-f",
        "-y",
        "-qq",
        "-o",
        log.to_str().unwrap(),
    ];
    let calls = ["-e", "trace=getdents64,renameat2"];
    rig.spawn_under(&[&strace[..], &calls].concat(), "gpu-1");
    rig.start_brain();
    let summary = plan.join("history").join(&batch).join("RUN_SUMMARY.json");
    rig.wait("the batch is over", |_| summary.exists());
    for path in paths {
        fs::remove_file(path).unwrap();
    }
    rig.terminate("gpu-1");
    rig.ended("gpu-1");
    let text = fs::read_to_string(&log).unwrap();
    let of = |call: &str, lane: &str| {
        let lines = text.lines();
        lines
            .filter(|line| line.contains(call) && line.contains(&format!("/tasks/{lane}")))
            .count()
    };
    assert_eq!(of("renameat2(", "complete"), ITEMS, "it moved them there");
    assert!(of("getdents64(", "queue") > 0, "what it lists is seen");
    for lane in ["complete", "failed", "cancelled"] {
        assert_eq!(of("getdents64(", lane), 0, "{lane}");
    }
}
