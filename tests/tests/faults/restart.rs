//! Row 28, and 33 with the real programs: a brain is killed and started again over very many queued
//! files, while an agent claims them. `RIGOR_FILES` asks for another number.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use rigor_queue::rig::{BRAIN, Place};
use rigor_queue::task::Class;
use rigor_tests::journal::{self, command, noted};
use rigor_tests::{Rig, sweep, wait_until};

/// In small, as a build without optimisation takes its time.
const FILES: usize = 5_000;
const VARIABLE: &str = "RIGOR_FILES";
/// Attempts to see before and after the restart.
const ATTEMPTS: usize = 10;
/// Directories, records, task files that one of each shape is read of: far fewer than there are
/// tasks, however many.
const OPENS_MOST: usize = 2_000;
/// A build without optimisation makes some thousand files in a second.
const FILES_PER_S_LEAST: usize = 500;

#[test]
fn a_brain_is_killed_and_started_again_over_very_many_files() {
    let files = std::env::var(VARIABLE).map_or(FILES, |number| {
        number.parse().expect("RIGOR_FILES is a number")
    });
    let mut rig = Rig::new(1);
    let plan = rig.plan(
        "many",
        &format!(
            "### each\n\n- **task_class**: cpu\n- **foreach**: `items.txt`\n{}",
            command(&noted("true"))
        ),
    );
    let items: String = (0..files).map(|n| format!("i{n}\n")).collect();
    fs::write(plan.join("items.txt"), items).unwrap();
    rig.start_brain();
    let began = Instant::now();
    let _batch = rig.submit(&plan);
    let queue = rig.rig.dir(Place::Queue(Class::Cpu));
    let patience = Duration::from_secs(60 + (files / FILES_PER_S_LEAST) as u64);
    wait_until(patience, "all are queued", || {
        fs::read_dir(&queue).unwrap().count() == files
    });
    println!("{files} files: made and queued in {:.1?}", began.elapsed());
    rig.start_agent("gpu-1");
    rig.wait("they run", |_| journal::read(&plan).len() >= ATTEMPTS);
    rig.kill(BRAIN);
    let before = journal::read(&plan).len();
    rig.wait("they go on without a brain", |_| {
        journal::read(&plan).len() >= before + ATTEMPTS
    });
    let trace = rig.plans().with_file_name("trace");
    let began = Instant::now();
    let ready = rig.log(BRAIN).matches("Brain ready").count();
    match sweep::available() {
        Ok(()) => rig.spawn_under(
            &[
                "strace",
                "-D",
                "-f",
                "-qq",
                "--seccomp-bpf",
                "-s",
                "300",
                "-e",
                "trace=openat,openat2",
                "-o",
                trace.to_str().unwrap(),
            ],
            BRAIN,
        ),
        Err(why) => {
            println!("system calls are not counted: {why}");
            rig.spawn(BRAIN);
        }
    }
    wait_until(patience, "the brain is ready", || {
        rig.log(BRAIN).matches("Brain ready").count() > ready
    });
    println!("ready again in {:.1?}", began.elapsed());
    if let Ok(trace) = fs::read_to_string(&trace) {
        let opens = trace.lines().filter(|line| line.contains("/rig/")).count();
        println!("{opens} opens in the rig until then");
        assert!(
            opens < OPENS_MOST.min(files / 2),
            "{opens} opens for {files} files"
        );
    }
    let before = journal::read(&plan).len();
    rig.wait("they go on with the new brain", |_| {
        journal::read(&plan).len() >= before + ATTEMPTS
    });
    let mut ran: BTreeMap<String, u32> = BTreeMap::new();
    for attempt in journal::read(&plan) {
        *ran.entry(attempt.task).or_default() += 1;
    }
    assert!(ran.values().all(|times| *times == 1), "a task ran twice");
    // The checker looks for a task in two lanes, and for one in none.
}
