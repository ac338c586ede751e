//! Rows 14, 15 and 33: task files that changed on the disk, one task in two lanes, and very many
//! of them.

use std::fs;
use std::time::{Duration, Instant};

use rigor_queue::claim::{self, Candidate};
use rigor_queue::index::Index;
use rigor_queue::name::FileName;
use rigor_queue::record::{AttemptRecord, Outcome};
use rigor_queue::records;
use rigor_queue::rig::{BRAIN, Place, Rig};
use rigor_queue::submit::{self, Durability};
use rigor_queue::task::Class;
use rigor_tests::journal::{self, command, noted};
use rigor_tests::tasks;

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
fn a_flipped_bit_of_a_record_makes_it_absent() {
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
        let read = records::read(&rig, BATCH, spec.id, 1).unwrap();
        assert!(read.is_none_or(|read| read == record), "byte {at}");
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

/// Row 33 in small: a claim does not cost more as the queue grows.
#[test]
fn a_claim_from_a_long_queue_costs_what_one_from_a_short_one_does() {
    const LONG: u64 = 50_000;
    const SHORT: u64 = 500;
    const CLAIMS: usize = 200;
    let mut slowest = Vec::new();
    for count in [SHORT, LONG] {
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
        "p99 of a claim: {:?} of {SHORT}, {:?} of {LONG}",
        slowest[0], slowest[1]
    );
    // A claim that reads the whole directory, or the whole index, takes a hundred times longer.
    let most = (slowest[0] * 20).max(Duration::from_millis(20));
    assert!(slowest[1] < most, "{slowest:?}");
}
