//! `rigor fsck` on a rig of the real programs: refused while one lives, a look changes nothing, and
//! after the repair the work goes on to its end.

use std::fs;
use std::path::{Path, PathBuf};

use rigor_queue::name::TaskId;
use rigor_queue::rig::{BRAIN, PLAN_TASK, Place};
use rigor_queue::task::Class;
use rigor_tests::Rig;
use rigor_tests::journal::{self, command, noted};
use walkdir::WalkDir;

const ITEMS: usize = 6;

/// Every path of the rig with its content, logs and locks left out: a look writes no log, but who
/// takes a lock writes his name into it.
fn listing(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found: Vec<(PathBuf, Vec<u8>)> = WalkDir::new(root)
        .into_iter()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().is_file())
        .map(|entry| (entry.path().to_owned(), fs::read(entry.path()).unwrap()))
        .collect();
    found.sort();
    found
}

#[test]
fn a_rig_that_was_killed_and_damaged_is_mended_and_runs_on_to_its_end() {
    let mut rig = Rig::new(1);
    let gated = "until [ -e \"$RIGOR_PLAN_DIR/go\" ]; do sleep 0.05; done";
    let plan = rig.plan(
        "mended",
        &format!(
            "### first\n\n- **task_class**: cpu\n- **foreach**: `items.txt`\n{}\n\
             ### gate\n\n- **task_class**: cpu\n- **depends_on**: first\n{}\n\
             ### last\n\n- **task_class**: cpu\n- **depends_on**: gate\n{}",
            command(&noted("true")),
            command(&noted(gated)),
            command(&noted("true")),
        ),
    );
    let items: String = (0..ITEMS).map(|n| format!("i{n}\n")).collect();
    fs::write(plan.join("items.txt"), items).unwrap();
    rig.start_all();
    let batch = rig.submit(&plan);
    rig.wait("the gate runs", |_| journal::read(&plan).len() == ITEMS + 1);

    let refused = rig.rigor(&["fsck"]);
    assert_eq!(
        (refused.code, refused.stdout.as_str()),
        (1, ""),
        "{refused:?}"
    );
    assert!(refused.stderr.contains("rigor down") && refused.stderr.contains("--dry-run"));
    let told = rig.rigor(&["fsck", "--dry-run"]);
    assert_eq!(told.code, 0, "a rig that runs is sound: {told:?}");
    assert!(
        told.stderr.contains("brain, gpu-1 running"),
        "{}",
        told.stderr
    );

    rig.kill("gpu-1");
    rig.kill(BRAIN);
    // Unfinished writing, a copy of what is done, something foreign, a sequence that was lost, and
    // a plan in two lanes.
    let queue = rig.rig.dir(Place::Queue(Class::Cpu));
    fs::write(queue.join(".new-half"), "half").unwrap();
    fs::write(queue.join("notes.txt"), "mine").unwrap();
    let done = rig.list(Place::Complete(&batch))[0];
    fs::copy(
        rig.rig.path(Place::Complete(&batch), &done),
        queue.join(done.to_string()),
    )
    .unwrap();
    let sequence = rig.rig.brain_dir().join("sequence");
    fs::write(&sequence, "1\n").unwrap();
    let id = TaskId::derive(&batch, PLAN_TASK, None);
    let plans = rig.list(Place::Processing(BRAIN));
    let [name] = plans[..] else {
        panic!("{plans:?}")
    };
    assert_eq!(name.id, id);
    let submitted = rig.rig.path(Place::Queue(Class::Brain), &name);
    fs::copy(rig.rig.path(Place::Processing(BRAIN), &name), &submitted).unwrap();

    let before = listing(rig.root());
    let told = rig.rigor(&["fsck", "--dry-run", "--json"]);
    assert_eq!(told.code, 1, "{told:?}");
    assert!(listing(rig.root()) == before, "a look changes nothing");
    let told: serde_json::Value = serde_json::from_str(&told.stdout).unwrap();
    let mut checks: Vec<&str> = told["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| finding["check"].as_str().unwrap())
        .collect();
    checks.sort_unstable();
    assert_eq!(
        checks,
        ["litter", "name", "one_lane", "one_lane", "sequence"]
    );
    let mended = rig.rigor(&["fsck"]);
    assert_eq!(mended.code, 0, "{mended:?}");
    assert!(
        mended.stdout.ends_with("5 violations, 5 mended, 0 left\n"),
        "{}",
        mended.stdout
    );
    assert!(!submitted.exists());
    assert_eq!(
        rig.list(Place::Processing(BRAIN)),
        [name],
        "the plan that is active stays"
    );
    assert!(rig.list(Place::Complete(&batch)).contains(&done));
    assert_eq!(
        rig.list(Place::Processing("gpu-1")).len(),
        1,
        "what ran is the agent's to take back"
    );
    let again = rig.rigor(&["fsck"]);
    assert_eq!(
        (again.code, again.stdout.as_str()),
        (0, "every invariant holds\n")
    );

    rig.start_all();
    fs::write(plan.join("go"), "").unwrap();
    assert_eq!(rig.wait_short_batch(&batch), 0);
    let attempts = journal::read(&plan);
    let of = |attempt: u32| attempts.iter().filter(|one| one.attempt == attempt).count();
    // The gate, which was killed, ran once more, and no number was given twice.
    assert_eq!((of(1), of(2)), (ITEMS + 2, 1), "{attempts:?}");
    for copy in [done, name] {
        fs::remove_file(rig.rig.path(Place::Quarantine, &copy)).unwrap();
    }
}
