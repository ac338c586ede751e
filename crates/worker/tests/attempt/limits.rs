//! What a command may use at most, and what its record says when it wanted more.

use std::fs;

use rigor_exec::Limits;
use rigor_queue::name::TaskId;
use rigor_queue::record::{FailureKind, Outcome};

use crate::stage::{BATCH, Stage, failure, lives};

const MB: u64 = 1_000_000;

/// A stage on which memory and processes are limited; none: this machine cannot hold limits.
fn fenced(limits: Limits) -> Option<Stage> {
    let mut stage = Stage::new();
    stage.limits = limits;
    let (processes, memory) = (
        stage.containment.limits_processes(),
        stage.containment.limits_memory(),
    );
    if processes.is_none() || memory.is_none() {
        println!("skipped: no cgroup controllers for this user: {processes:?}, {memory:?}");
        return None;
    }
    Some(stage)
}

#[test]
fn a_command_over_its_memory_is_ended_alone_and_its_record_says_so() {
    let Some(mut stage) = fenced(Limits {
        memory_bytes: Some(64 * MB),
        ..Limits::default()
    }) else {
        return;
    };
    let mut other = stage.command("echo $$ > other; until [ -e go ]; do sleep 0.01; done");
    other.id = TaskId::derive(BATCH, "other", None);
    let other = stage.start(&other);
    let neighbour = stage.pid_in("other");
    let record = stage.run(&stage.command(
        // Bounded, so that a machine on which the limit does not hold survives the test.
        "echo begun; tail -c 1G < <(head -c 1G /dev/zero) > /dev/null",
    ));
    let (kind, reason) = failure(&record);
    assert_eq!(kind, FailureKind::OomKilled, "{reason}");
    for word in [
        "limit of 64MB",
        "one of its processes",
        "at most",
        "`memory` in [limits]",
    ] {
        assert!(reason.contains(word), "{word}: {reason}");
    }
    assert!(stage.output(&record).starts_with("begun\n"));
    assert!(lives(neighbour));
    fs::write(stage.file("go"), "").expect("write");
    assert_eq!(stage.settle(other).outcome, Outcome::Succeeded);

    // What it may have it gets.
    stage.limits.memory_bytes = Some(512 * MB);
    let mut spec = stage.command("head -c 100M /dev/zero | tail -c 90M | wc -c");
    spec.id = TaskId::derive(BATCH, "enough", None);
    let record = stage.run(&spec);
    assert_eq!(record.outcome, Outcome::Succeeded, "{record:?}");
}

/// Where the machine's memory is short a task goes before an agent does.
#[test]
fn the_kernel_is_told_to_prefer_tasks_when_memory_is_short() {
    let stage = Stage::new();
    let record =
        stage.run(&stage.command("cat /proc/self/oom_score_adj /proc/$PPID/oom_score_adj"));
    let own = fs::read_to_string("/proc/self/oom_score_adj").expect("it is told");
    if own.trim().parse::<i32>().expect("a number") > 500 {
        return println!("skipped: this test itself is preferred already: {own}");
    }
    assert_eq!(stage.output(&record), format!("500\n{own}"));
}

/// Processes that start processes, 500 in all: not without end, in case the limit does not hold.
#[test]
fn a_fork_bomb_stops_at_its_limit_and_nothing_of_it_is_left() {
    let Some(stage) = fenced(Limits {
        processes: Some(40),
        ..Limits::default()
    }) else {
        return;
    };
    let mut spec = stage.command(
        "bomb() { if [ $1 -gt 0 ]; then bomb $(($1 - 1)) | bomb $(($1 - 1)) & fi; sleep 600; }; bomb 8",
    );
    spec.timeout_s = Some(2);
    let record = stage.run(&spec);
    let (kind, reason) = failure(&record);
    assert!(reason.contains("hit its limit of 40 processes"), "{reason}");
    assert!(matches!(
        kind,
        FailureKind::Timeout | FailureKind::ExitCode | FailureKind::Signal
    ));
    let cookie = format!("RIGOR_COOKIE={}:{}.a1", stage.rig_id, record.id);
    for entry in fs::read_dir("/proc").expect("read /proc").flatten() {
        let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
        assert!(
            !String::from_utf8_lossy(&environ).contains(&cookie),
            "{entry:?} is left"
        );
    }
}

#[test]
fn a_file_over_its_size_ends_its_writer_and_the_limit_is_named() {
    let mut stage = Stage::new();
    stage.limits.file_size_bytes = Some(MB);
    let dd = stage.command("dd if=/dev/zero of=big bs=1M count=8 2> /dev/null");
    let script = stage.command(
        "trap '' XFSZ; dd if=/dev/zero of=big bs=1M count=8 status=none || { echo dd failed: File too large; exit 1; }",
    );
    for (spec, number) in [(dd, 1), (script, 2)] {
        let mut spec = spec;
        spec.id = TaskId::derive(BATCH, &format!("file {number}"), None);
        let record = stage.run(&spec);
        let (kind, reason) = failure(&record);
        assert!(matches!(kind, FailureKind::Signal | FailureKind::ExitCode));
        assert!(
            reason.contains("limit of 1MB (limits.file_size"),
            "{reason}"
        );
        let size = fs::metadata(stage.file("big")).expect("it was begun").len();
        assert_eq!(size, MB);
    }
    // Its output is the worker's to write.
    let mut spec = stage.command("head -c 3M /dev/zero");
    spec.id = TaskId::derive(BATCH, "output", None);
    assert_eq!(stage.run(&spec).outcome, Outcome::Succeeded);
}
