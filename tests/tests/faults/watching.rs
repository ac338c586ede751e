//! Rows 29 and 30: wake-ups that are lost, and a kernel that gives none.

use std::fs;

use rigor_queue::rig::{BRAIN, Place};
use rigor_queue::task::Class;
use rigor_tests::journal::{self, command, noted};
use rigor_tests::{Rig, processes, sweep};
use rustix::process::Signal;

/// Renames: each is two events, and the kernel keeps 16,384 unless told otherwise.
const RENAMES: usize = 30_000;
const ITEMS: usize = 12;

/// Two steps, the second of an item after the first of it; the first waits for the file `go`.
fn two_steps(rig: &Rig) -> std::path::PathBuf {
    let gated = "until [ -e \"$RIGOR_PLAN_DIR/go\" ]; do sleep 0.05; done";
    let plan = rig.plan(
        "steps",
        &format!(
            "### first\n\n- **task_class**: cpu\n- **foreach**: `items.txt`\n{}\n\
             ### second\n\n- **task_class**: cpu\n- **foreach**: `items.txt`\n- **depends_on**: first_{{ITEM.id}}\n{}",
            command(&noted(gated)),
            command(&noted("true")),
        ),
    );
    let items: String = (0..ITEMS).map(|n| format!("i{n}\n")).collect();
    fs::write(plan.join("items.txt"), items).unwrap();
    plan
}

/// Row 29.
#[test]
fn a_brain_that_loses_wake_ups_reads_every_directory_again() {
    let mut rig = Rig::new(1);
    let plan = two_steps(&rig);
    rig.start_all();
    let batch = rig.submit(&plan);
    rig.wait("they run", |_| !journal::read(&plan).is_empty());
    processes::send(rig.pid(BRAIN), Signal::STOP);
    // Nobody but the brain watches this directory, and nobody reads names that begin with a dot.
    let dir = rig.rig.dir(Place::Queue(Class::Brain));
    let names = [dir.join(".flood-a"), dir.join(".flood-b")];
    fs::write(&names[0], "").unwrap();
    for n in 0..RENAMES {
        fs::rename(&names[n % 2], &names[(n + 1) % 2]).unwrap();
    }
    fs::remove_file(&names[RENAMES % 2]).unwrap();
    // The queue of wake-ups is full: of these the brain is not told.
    fs::write(plan.join("go"), "").unwrap();
    rig.wait("the first step is done", |rig| {
        rig.list(Place::Complete(&batch)).len() == ITEMS
    });
    processes::send(rig.pid(BRAIN), Signal::CONT);
    // Long before lanes are compared with memory in any case.
    assert_eq!(rig.wait_short_batch(&batch), 0);
    rig.wait_for_line(
        BRAIN,
        "WARNING Wake-ups were lost (the kernel's queue overflowed)",
    );
    let attempts = journal::read(&plan);
    assert_eq!(attempts.len(), 2 * ITEMS, "each once: {attempts:?}");
}

#[track_caller]
fn without(injection: &str, trace: &str) {
    if let Err(why) = sweep::available() {
        return println!("skipped: {why}");
    }
    let mut rig = Rig::new(1);
    let plan = two_steps(&rig);
    fs::write(plan.join("go"), "").unwrap();
    let strace = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", trace];
    let wrapper = [&strace[..], &["-e", injection]].concat();
    for name in [BRAIN, "gpu-1"] {
        rig.spawn_under(&wrapper, name);
    }
    for name in [BRAIN, "gpu-1"] {
        let line = rig.wait_for_match(name, "WARNING .*directories are read every second instead");
        println!("{line}");
    }
    rig.wait_for_line(BRAIN, "Brain ready");
    let batch = rig.submit(&plan);
    assert_eq!(rig.wait_batch(&batch), 0);
    assert_eq!(journal::read(&plan).len(), 2 * ITEMS);
    let said = rig.log(BRAIN).matches("read every second instead").count();
    assert_eq!(said, 1, "it is said once");
}

/// Row 30: no more instances of inotify.
#[test]
fn without_inotify_directories_are_polled() {
    without("inject=inotify_init1:error=EMFILE", "trace=inotify_init1");
}

/// Row 30: no more watches, in the middle of the start.
#[test]
fn with_too_few_watches_directories_are_polled() {
    without(
        "inject=inotify_add_watch:error=ENOSPC:when=3+",
        "trace=inotify_add_watch",
    );
}
