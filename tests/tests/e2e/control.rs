//! What an operator does to a batch, and what failures of single tasks do to it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use rigor_queue::rig::Place;
use rigor_queue::task::Class;
use rigor_tests::journal::{self, command, noted, ticking};
use rigor_tests::{Rig, Setup};

#[test]
fn a_running_batch_is_cancelled() {
    let mut rig = Setup {
        gpus: 1,
        limits: "cpu_slots = 1",
        ..Setup::default()
    }
    .make();
    let plan = rig.plan(
        "doomed",
        &format!(
            "### each\n\n- **task_class**: cpu\n- **foreach**: `items.txt`\n{}\n\
             ### after\n\n- **task_class**: cpu\n- **depends_on**: each\n- **command**: `true`\n",
            command(&ticking(600)),
        ),
    );
    fs::write(plan.join("items.txt"), "a\nb\nc\n").unwrap();
    rig.start_all();
    let batch = rig.submit(&plan);
    rig.wait("one runs", |_| !journal::read(&plan).is_empty());
    let running = rig.list(Place::Processing("gpu-1"))[0];
    let said = rig.rigor(&["cancel", &batch]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    assert_eq!(rig.wait_short_batch(&batch), 3);
    assert_eq!(
        rig.tasks(&batch, "cancelled")
            .iter()
            .filter(|name| name.starts_with("each_"))
            .count(),
        3
    );
    assert_eq!(rig.processes_of(running.id, 1), []);
    assert_eq!(journal::read(&plan).len(), 1, "nothing else was started");
    assert!(rig.list(Place::Queue(Class::Cpu)).is_empty());
    let summary = rig.summary(&plan, &batch);
    assert_eq!(summary["state"], "cancelled");
    assert_eq!(
        (&summary["done"], &summary["cancelled"]),
        (&0.into(), &4.into()),
        "{summary}"
    );
}

#[test]
fn a_batch_is_held_and_released() {
    let mut rig = Setup {
        gpus: 1,
        limits: "cpu_slots = 1",
        ..Setup::default()
    }
    .make();
    let plan = rig.plan(
        "pausing",
        &format!(
            "### each\n\n- **task_class**: cpu\n- **foreach**: `items.txt`\n{}",
            command(&ticking(1))
        ),
    );
    let items: String = (0..15).map(|n| format!("i{n}\n")).collect();
    fs::write(plan.join("items.txt"), items).unwrap();
    rig.start_all();
    // Held from the beginning.
    let batch = rig.submit_with(&plan, &["--hold"]);
    let other = rig.plan(
        "other",
        "### runs\n\n- **task_class**: cpu\n- **command**: `true`\n",
    );
    let other = rig.submit(&other);
    assert_eq!(rig.wait_short_batch(&other), 0, "another batch is not held");
    assert_eq!(journal::read(&plan), []);
    assert_eq!(rig.rigor(&["release", &batch]).code, 0);
    // Held in the middle.
    rig.wait("some are done", |_| journal::read(&plan).len() >= 3);
    assert_eq!(rig.rigor(&["hold", &batch]).code, 0);
    let state = |rig: &Rig| {
        let status = rig.status();
        let batches = status["batches"].as_array().unwrap().clone();
        batches
            .into_iter()
            .find(|one| one["id"] == batch.as_str())
            .unwrap()["state"]
            .clone()
    };
    rig.wait("nothing of it is queued or running", |rig| {
        state(rig) == "held"
            && rig.list(Place::Queue(Class::Cpu)).is_empty()
            && rig.list(Place::Processing("gpu-1")).is_empty()
    });
    let held_at = journal::read(&plan).len();
    assert!(held_at < 15, "the batch was over before it was held");
    let other = rig.plan(
        "more",
        "### runs\n\n- **task_class**: cpu\n- **command**: `true`\n",
    );
    let other = rig.submit(&other);
    assert_eq!(rig.wait_short_batch(&other), 0);
    assert_eq!(
        journal::read(&plan).len(),
        held_at,
        "a held batch starts nothing"
    );
    assert_eq!(rig.rigor(&["release", &batch]).code, 0);
    assert_eq!(rig.wait_short_batch(&batch), 0);
    assert_eq!(journal::read(&plan).len(), 15);
}

/// Four in a chain by item; `gate` decides who fails.
const CHAIN: &str = "\
- **retries**: 0

### first

- **task_class**: cpu
- **foreach**: `items.txt`
- **command**: `echo first {ITEM} >> \"$RIGOR_PLAN_DIR/done\"; test ! -e \"$RIGOR_PLAN_DIR/bad-\"{ITEM}`

### second

- **task_class**: cpu
- **foreach**: `items.txt`
- **depends_on**: first_{ITEM.id}
- **command**: `echo second {ITEM} >> \"$RIGOR_PLAN_DIR/done\"`

### last

- **task_class**: cpu
- **depends_on**: second
- **command**: `echo last >> \"$RIGOR_PLAN_DIR/done\"`
";

#[test]
fn failed_tasks_are_retried_with_those_that_were_cancelled_because_of_them() {
    let mut rig = Rig::new(2);
    let plan = rig.plan("chain", CHAIN);
    fs::write(plan.join("items.txt"), "a\nb\nc\nd\n").unwrap();
    for bad in ["bad-b", "bad-c"] {
        fs::write(plan.join(bad), "").unwrap();
    }
    rig.start_all();
    let batch = rig.submit(&plan);
    assert_eq!(rig.wait_short_batch(&batch), 1);
    let failed: Vec<String> = rig
        .tasks(&batch, "failed")
        .into_iter()
        .filter(|name| name.starts_with("first"))
        .collect();
    assert_eq!(failed, ["first_b", "first_c"]);
    assert_eq!(
        rig.tasks(&batch, "cancelled"),
        ["last", "second_b", "second_c"]
    );
    let shown = rig.json(&["show", &format!("{batch}/second_b"), "--json"]);
    assert!(
        shown.to_string().contains("dependency first_b failed"),
        "{shown}"
    );

    // One of the two by its name: the other still fails the batch.
    fs::remove_file(plan.join("bad-b")).unwrap();
    let said = rig.rigor(&["retry", &format!("{batch}/first_b")]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    rig.wait("second_b is done", |rig| {
        rig.tasks(&batch, "complete")
            .contains(&"second_b".to_owned())
    });
    assert_eq!(rig.wait_short_batch(&batch), 1);
    assert_eq!(rig.tasks(&batch, "cancelled"), ["last", "second_c"]);

    // The rest with --failed.
    fs::remove_file(plan.join("bad-c")).unwrap();
    let said = rig.rigor(&["retry", &batch, "--failed"]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    rig.wait("last is done", |rig| {
        rig.tasks(&batch, "complete").contains(&"last".to_owned())
    });
    assert_eq!(rig.wait_short_batch(&batch), 0);
    assert_eq!(rig.summary(&plan, &batch)["state"], "complete");
    let mut lines: BTreeMap<String, usize> = BTreeMap::new();
    for line in fs::read_to_string(plan.join("done")).unwrap().lines() {
        *lines.entry(line.to_owned()).or_default() += 1;
    }
    let expected: BTreeMap<String, usize> = [
        ("first a", 1),
        ("first b", 2),
        ("first c", 2),
        ("first d", 1),
        ("second a", 1),
        ("second b", 1),
        ("second c", 1),
        ("second d", 1),
        ("last", 1),
    ]
    .map(|(line, times)| (line.to_owned(), times))
    .into();
    assert_eq!(lines, expected);
}

#[test]
fn the_last_retry_of_a_group_splits_it_so_that_the_bad_item_fails_alone() {
    let mut rig = Rig::new(2);
    let plan = rig.plan(
        "groups",
        &format!(
            "### each\n\n- **task_class**: cpu\n- **foreach**: `items.txt`\n- **batch_size**: 5\n- **retries**: 1\n\
             - **backoff**: 1s..1s\n- **max_failed**: 1\n{}\n\
             ### after\n\n- **task_class**: cpu\n- **depends_on**: each\n- **command**: `cp {{FAILED_FILE:each}} failed-items`\n",
            command(&noted("printf '%s\\n' {ITEMS} >> groups.out; ! grep -q '\"i7\"' {ITEMS_FILE}")),
        ),
    );
    let items: String = (0..10).map(|n| format!("i{n}\n")).collect();
    fs::write(plan.join("items.txt"), items).unwrap();
    rig.start_all();
    let batch = rig.submit(&plan);
    assert_eq!(
        rig.wait_short_batch(&batch),
        0,
        "one failure is within max_failed"
    );
    assert_eq!(rig.summary(&plan, &batch)["state"], "complete");
    let failed: Vec<String> = rig
        .tasks(&batch, "failed")
        .into_iter()
        .filter(|name| name.starts_with("each"))
        .collect();
    assert_eq!(failed, ["each_i7"]);
    let complete = rig.tasks(&batch, "complete");
    assert!(complete.contains(&"after".to_owned()), "{complete:?}");
    for good in ["each_i5", "each_i6", "each_i8", "each_i9"] {
        assert!(complete.contains(&good.to_owned()), "{good}: {complete:?}");
    }
    let listed = fs::read_to_string(plan.join("failed-items")).unwrap();
    assert!(listed.contains("i7") && !listed.contains("i6"), "{listed}");
    // The good group once, the bad one as a group, then its items one by one.
    let groups = fs::read_to_string(plan.join("groups.out")).unwrap();
    assert_eq!(
        groups.lines().filter(|line| line.contains("i2")).count(),
        1,
        "{groups}"
    );
    assert_eq!(
        groups.lines().filter(|line| line.contains("i6")).count(),
        2,
        "{groups}"
    );
}

/// A rig.toml that somebody breaks under a running rig hinders nobody from looking at it or stopping it.
#[test]
fn a_broken_rig_toml_is_named_and_the_running_rig_can_be_seen_and_told() {
    let mut rig = Rig::new(2);
    let plan = rig.plan(
        "goes_on",
        &format!(
            "### one\n\n- **task_class**: cpu\n{}",
            command(&noted("true"))
        ),
    );
    rig.start_all();
    rig.edit_toml(|text| text.replace("[rig]", "[rig"));
    let batch = rig.rigor(&["submit", &plan.to_string_lossy()]);
    assert_eq!(batch.code, 1);
    assert!(batch.stderr.contains("rig.toml"), "{}", batch.stderr);
    for words in [
        &["status"][..],
        &["why", "gpu-1"],
        &["tasks"],
        &["pause", "gpu-1"],
        &["why", "brain"],
    ] {
        let told = rig.rigor(words);
        assert_eq!(told.code, 0, "{words:?}: {}", told.stderr);
        let said = "goes by the rig.toml that the brain started with";
        assert!(told.stderr.contains(said), "{words:?}: {}", told.stderr);
    }
    rig.wait("the pause is shown", |rig| {
        let shown = rig.rigor(&["status"]).stdout;
        shown.contains("gpu-2") && shown.contains("paused")
    });
    rig.edit_toml(|text| text.replace("[rig", "[rig]"));
    assert_eq!(rig.rigor(&["status"]).stderr, "");
}

/// Who waits while nobody can run anything is told so, by `wait` itself and by `why`.
#[test]
fn who_waits_for_a_batch_that_nobody_runs_is_told_why() {
    let mut rig = Rig::new(2);
    let plan = rig.plan(
        "alone",
        &format!(
            "### one\n\n- **task_class**: cpu\n{}",
            command(&noted("true"))
        ),
    );
    rig.start_brain();
    let batch = rig.submit(&plan);
    let mut waiting = rig
        .rigor_command(&["wait", &batch])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = String::new();
    let said = BufReader::new(waiting.stderr.take().unwrap()).read_line(&mut told);
    assert!(said.unwrap() > 0, "it ended and said nothing");
    let why = "1 queued, and no agent is there (rigor up)";
    assert!(told.starts_with(&batch) && told.contains(why), "{told}");
    for of in ["brain", &batch] {
        let shown = rig.rigor(&["why", of]);
        assert!(shown.stdout.contains(why), "{}", shown.stdout);
    }
    rig.start_agent("gpu-1");
    assert_eq!(waiting.wait().unwrap().code(), Some(0));
}

/// Also by a brain that finds the submission and the wish when it starts.
#[test]
fn a_batch_that_no_brain_has_seen_yet_is_cancelled_or_held() {
    let mut rig = Rig::new(1);
    let plan = rig.plan(
        "one",
        "### one\n\n- **task_class**: cpu\n- **command**: `echo ran >> \"$RIGOR_PLAN_DIR/done\"`\n",
    );
    let cancelled = rig.submit(&plan);
    let held = rig.submit(&plan);
    for (word, batch) in [("cancel", &cancelled), ("hold", &held)] {
        let said = rig.rigor(&[word, batch]);
        assert_eq!(said.code, 0, "{}", said.stderr);
    }
    rig.start_all();
    assert_ne!(rig.wait_batch(&cancelled), 0);
    assert_eq!(rig.summary(&plan, &cancelled)["state"], "cancelled");
    rig.wait("the other is held", |rig| {
        let status = rig.status();
        let batches = status["batches"].as_array().unwrap();
        let one = batches.iter().find(|one| one["id"] == held.as_str());
        one.is_some_and(|one| one["state"] == "held")
    });
    assert!(!plan.join("done").exists(), "nothing ran");
    assert_eq!(rig.rigor(&["release", &held]).code, 0);
    assert_eq!(rig.wait_batch(&held), 0);
}
