//! Row 16b: the wall clock jumps by a day, forth and back, while everything runs.

use std::fs;
use std::path::PathBuf;

use rigor_queue::rig::BRAIN;
use rigor_tests::Setup;
use rigor_tests::journal::command;

/// libfaketime, in the folder of this machine's architecture.
fn library() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib").ok()?;
    folders
        .filter_map(|folder| Some(folder.ok()?.path().join("faketime/libfaketimeMT.so.1")))
        .find(|path| path.exists())
}

#[test]
fn the_wall_clock_jumps_by_a_day_and_back() {
    let Some(library) = library() else {
        println!("skipped: no libfaketime (apt-get install faketime)");
        return;
    };
    let mut rig = Setup {
        gpus: 2,
        ..Setup::default()
    }
    .make();
    let plan = rig.plan(
        "days",
        &format!(
            "### each\n\n- **task_class**: cpu\n- **foreach**: `items.txt`\n- **timeout**: 1m\n{}",
            command("sleep 0.5; echo done >> \"$RIGOR_PLAN_DIR/done\"")
        ),
    );
    const ITEMS: usize = 60;
    let items: String = (0..ITEMS).map(|n| format!("i{n}\n")).collect();
    fs::write(plan.join("items.txt"), items).unwrap();
    let clock = rig.plans().with_file_name("clock");
    // Replaced in one step: a reader never sees half of it.
    let set = |offset: &str| {
        let new = clock.with_extension("new");
        fs::write(&new, offset).unwrap();
        fs::rename(&new, &clock).unwrap();
    };
    set("+0d\n");
    let env = [
        ("LD_PRELOAD", library.to_str().unwrap()),
        ("FAKETIME_TIMESTAMP_FILE", clock.to_str().unwrap()),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("NO_FAKE_STAT", "1"),
    ];
    for name in [BRAIN, "gpu-1", "gpu-2"] {
        rig.spawn_with(name, &env);
    }
    let batch = rig.submit(&plan);
    let done = || fs::read_to_string(plan.join("done")).map_or(0, |text| text.lines().count());
    for (offset, most) in [("+1d\n", 4), ("-1d\n", 16), ("+0d\n", 28)] {
        rig.wait("some are done", |_| done() >= most);
        set(offset);
        let written = |rig: &rigor_tests::Rig| rig.heartbeat(BRAIN).map(|beat| beat.at);
        let before = written(&rig);
        rig.wait("the brain has the new time", |rig| {
            let moved = written(rig).zip(before);
            moved.is_some_and(|(now, before)| now.duration_since(before).as_hours().abs() >= 20)
        });
        let status = rig.status();
        let agents = status["agents"].as_array().unwrap();
        assert_eq!(agents.len(), 2);
        assert!(
            agents.iter().all(|agent| agent["alive"] == true),
            "at {offset}: {status:#}"
        );
    }
    assert_eq!(rig.wait_batch(&batch), 0);
    assert_eq!(done(), ITEMS, "each ran once");
    let log = rig.log(BRAIN);
    for wrong in ["Stuck tasks", "is dead", "hung", "timed out", "timeout"] {
        assert!(!log.contains(wrong), "{wrong} in:\n{log}");
    }
}
