//! Rows 9, 10 and 11: a disk that is full, and one that is broken.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rigor_queue::heartbeat::Health;
use rigor_queue::name::TaskId;
use rigor_queue::rig::{BRAIN, Place};
use rigor_queue::task::Class;
use rigor_tests::journal::{self, command, noted};
use rigor_tests::mounts::{self, Namespace};
use rigor_tests::{Rig, Setup, processes, sweep};
use rustix::process::Signal;

const FULL: &str = "No space left on device";
const BROKEN: &str = "Input/output error";
/// Tasks that are queued behind the one that fills the disk.
const NEXT: usize = 40;
/// Longer than between two tries to write a result, of a worker (1 s) or of its agent (1 s, then 2 s).
const RETRIED: Duration = Duration::from_millis(4500);

fn one_task(rig: &Rig, work: &str) -> PathBuf {
    let task = format!(
        "### one\n\n- **task_class**: cpu\n{}",
        command(&noted(work))
    );
    rig.plan("one", &task)
}

/// Row 9.
#[test]
fn a_submission_to_a_full_disk_is_refused_and_leaves_nothing() {
    let test = "disk::a_submission_to_a_full_disk_is_refused_and_leaves_nothing";
    match mounts::enter(test, Some(48)) {
        Namespace::Done => return,
        Namespace::Unable(why) => return println!("skipped: {why}"),
        Namespace::Inside => {}
    }
    let mut rig = Rig::new(1);
    let plan = one_task(&rig, "true");
    let filler = rig.plans().with_file_name("filler");
    mounts::fill(&filler);
    let said = rig.rigor(&["submit", plan.to_str().unwrap()]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.stderr.contains(FULL), "{}", said.stderr);
    assert_eq!(said.stdout, "", "nothing is acknowledged");
    assert_eq!(rig.list(Place::Queue(Class::Brain)), []);
    fs::remove_file(&filler).unwrap();
    rig.start_all();
    let batch = rig.submit(&plan);
    assert_eq!(rig.wait_short_batch(&batch), 0);
    assert_eq!(journal::read(&plan).len(), 1);
}

/// Row 10.
#[test]
fn a_result_for_which_there_is_no_room_waits_and_nothing_is_claimed_meanwhile() {
    let test = "disk::a_result_for_which_there_is_no_room_waits_and_nothing_is_claimed_meanwhile";
    match mounts::enter(test, Some(48)) {
        Namespace::Done => return,
        Namespace::Unable(why) => return println!("skipped: {why}"),
        Namespace::Inside => {}
    }
    // An agent that cannot write its heartbeat is not taken for hung.
    let mut rig = Setup {
        gpus: 1,
        timing: "heartbeat_warn = \"1s\"\nheartbeat_hung = \"3s\"\n",
        ..Setup::default()
    }
    .make();
    let filler = rig.plans().with_file_name("filler");
    // The first task itself takes all the room, so that none is left for its result.
    let fill = format!("cat /dev/zero > {} 2> /dev/null; true", filler.display());
    let plan = one_task(&rig, &fill);
    // More than run at the same time.
    let next = rig.plan(
        "next",
        "### next\n\n- **task_class**: cpu\n- **foreach**: `items.txt`\n- **command**: `sleep 0.1`\n",
    );
    let items: String = (0..NEXT).map(|n| format!("i{n}\n")).collect();
    fs::write(next.join("items.txt"), items).unwrap();
    rig.start_brain();
    let batches = [rig.submit(&plan), rig.submit(&next)];
    let queued = |rig: &Rig| rig.list(Place::Queue(Class::Cpu));
    rig.wait("all are queued", |rig| queued(rig).len() == NEXT + 1);
    rig.start_agent("gpu-1");
    rig.wait("the agent says what is wrong", |rig| {
        rig.heartbeat("gpu-1").is_some_and(|beat| {
            let said = beat.health_reason.is_some_and(|why| why.contains(FULL));
            beat.health == Health::Quarantined && said
        }) || rig.log("gpu-1").contains(FULL)
    });
    let before = queued(&rig);
    assert!(!before.is_empty(), "too few tasks for this case");
    let until = Instant::now() + RETRIED;
    while Instant::now() < until {
        assert_eq!(queued(&rig), before, "it claims with results in its hands");
        std::thread::sleep(Duration::from_millis(50));
    }
    let waiting = rig.list(Place::Processing("gpu-1"));
    let first = TaskId::derive(&batches[0], "one", None);
    assert!(waiting.iter().any(|name| name.id == first), "{waiting:?}");
    fs::remove_file(&filler).unwrap();
    for batch in &batches {
        assert_eq!(rig.wait_batch(batch), 0);
        let done = rig.list(Place::Complete(batch));
        assert!(done.iter().all(|name| name.attempt == 1), "{done:?}");
    }
    let attempts = journal::read(&plan);
    assert_eq!(attempts.len(), 1, "it ran once: {attempts:?}");
}

/// Row 10, where the file system finds room for a file and none when it is to be made durable:
/// such a result holds no slot, and claims stop all the same.
#[test]
fn while_a_result_cannot_be_made_durable_for_want_of_room_nothing_is_claimed() {
    if let Err(why) = sweep::available() {
        return println!("skipped: {why}");
    }
    let mut rig = Rig::new(1);
    let plan = rig.plan(
        "some",
        &format!(
            "### each\n\n- **task_class**: cpu\n- **foreach**: `items.txt`\n{}",
            command(&noted("true"))
        ),
    );
    let items: String = (0..NEXT).map(|n| format!("i{n}\n")).collect();
    fs::write(plan.join("items.txt"), items).unwrap();
    rig.start_brain();
    let batch = rig.submit(&plan);
    let queued = |rig: &Rig| rig.list(Place::Queue(Class::Cpu));
    rig.wait("all are queued", |rig| queued(rig).len() == NEXT);
    // strace counts by thread: the first two tries of the thread that commits fail.
    let inject = "inject=fsync,syncfs:error=ENOSPC:when=1..2";
    let strace = ["strace", "-D", "-f", "-qq", "-o", "/dev/null"];
    let words = ["-e", "trace=fsync,syncfs", "-e", inject];
    rig.spawn_under(&[&strace[..], &words].concat(), "gpu-1");
    rig.wait_for_match("gpu-1", &format!("ERROR Claiming nothing: .*{FULL}"));
    let before = queued(&rig);
    assert!(!before.is_empty(), "too few tasks for this case");
    rig.wait("it claims again", |rig| {
        let now = queued(rig);
        let again = rig.log("gpu-1").contains("Claiming again");
        assert!(
            again || now == before,
            "it claims with results in its hands"
        );
        again
    });
    assert_eq!(rig.wait_batch(&batch), 0);
    let attempts = journal::read(&plan);
    assert_eq!(attempts.len(), NEXT, "each ran once");
}

/// A batch whose task files find no room is not given up.
#[test]
fn a_plan_that_finds_no_room_to_be_expanded_waits() {
    let test = "disk::a_plan_that_finds_no_room_to_be_expanded_waits";
    match mounts::enter(test, Some(48)) {
        Namespace::Done => return,
        Namespace::Unable(why) => return println!("skipped: {why}"),
        Namespace::Inside => {}
    }
    let mut rig = Rig::new(1);
    let plan = one_task(&rig, "true");
    rig.start_all();
    processes::send(rig.pid(BRAIN), Signal::STOP);
    let batch = rig.submit(&plan);
    let filler = rig.plans().with_file_name("filler");
    mounts::fill(&filler);
    processes::send(rig.pid(BRAIN), Signal::CONT);
    let line = rig.wait_for_match(BRAIN, &format!("ERROR .*go on with a batch.*{FULL}"));
    println!("{line}");
    fs::remove_file(&filler).unwrap();
    assert_eq!(rig.wait_batch(&batch), 0);
    assert_eq!(journal::read(&plan).len(), 1);
}

/// Row 11: what a failed fsync leaves nobody knows, and the next one says that all is well.
#[test]
fn after_a_failed_fsync_an_agent_moves_nothing_until_it_is_started_again() {
    if let Err(why) = sweep::available() {
        return println!("skipped: {why}");
    }
    let mut rig = Rig::new(1);
    let plan = one_task(&rig, "true");
    rig.start_brain();
    // strace counts by thread: only the first fsync of the thread that commits fails.
    let inject = "inject=fsync,syncfs:error=EIO:when=1";
    let strace = ["strace", "-D", "-f", "-qq", "-o", "/dev/null"];
    let words = ["-e", "trace=fsync,syncfs", "-e", inject];
    rig.spawn_under(&[&strace[..], &words].concat(), "gpu-1");
    let batch = rig.submit(&plan);
    let line = rig.wait_for_match(
        "gpu-1",
        &format!("ERROR Claiming nothing: fsync .*{BROKEN}"),
    );
    println!("{line}");
    let line = rig.wait_for_match(
        "gpu-1",
        "ERROR Claiming nothing: .* is read-only for this program",
    );
    println!("{line}");
    rig.wait("its heartbeat says so", |rig| {
        rig.heartbeat("gpu-1").is_some_and(|beat| {
            beat.health == Health::Quarantined
                && beat
                    .health_reason
                    .is_some_and(|why| why.contains("read-only"))
        })
    });
    assert_eq!(rig.list(Place::Processing("gpu-1")).len(), 1);
    assert_eq!(rig.list(Place::Complete(&batch)), [], "not acknowledged");
    // Its own restart adopts the result, from a record that is written anew.
    rig.kill("gpu-1");
    rig.start_agent("gpu-1");
    assert_eq!(rig.wait_batch(&batch), 0);
    assert_eq!(journal::read(&plan).len(), 1, "it is not run again");
}

/// Row 11, for who submits.
#[test]
fn a_submission_is_not_acknowledged_when_an_fsync_fails() {
    if let Err(why) = sweep::available() {
        return println!("skipped: {why}");
    }
    let mut rig = Rig::new(1);
    let plan = one_task(&rig, "true");
    // That of the file, then that of the directory: by then the file is visible.
    for nth in 1..=2 {
        let submit = rig.rigor_command(&["submit", plan.to_str().unwrap()]);
        let mut traced = std::process::Command::new("strace");
        traced
            .args(["-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync"])
            .args(["-e", &format!("inject=fsync:error=EIO:when={nth}")])
            .arg(submit.get_program())
            .args(submit.get_args());
        let said = rig.output(traced);
        assert_eq!(said.code, 1, "{said:?}");
        assert!(said.stderr.contains(BROKEN), "{}", said.stderr);
        assert_eq!(said.stdout, "");
        assert_eq!(rig.list(Place::Queue(Class::Brain)), []);
    }
    rig.start_all();
    let batch = rig.submit(&plan);
    assert_eq!(rig.wait_short_batch(&batch), 0);
    assert!(rig.log(BRAIN).contains("Brain ready"));
}
