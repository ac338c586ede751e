//! Batches that are over are archived; displays do not see the difference, a retry takes them out,
//! `rigor clean` removes them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rigor_queue::archive;
use rigor_tests::journal::{self, command, noted};
use rigor_tests::{Rig, Setup};
use serde_json::Value;
use walkdir::WalkDir;

const ITEMS: usize = 40;

fn plan(rig: &Rig) -> PathBuf {
    let plan = rig.plan(
        "kept",
        &format!(
            "### each\n\n- **task_class**: cpu\n- **foreach**: `items.txt`\n{}\n\
             ### fails\n\n- **task_class**: cpu\n- **retries**: 1\n- **backoff**: 1s..1s\n{}\n\
             ### after\n\n- **task_class**: cpu\n- **depends_on**: fails\n{}\n",
            command(&noted("echo \"of {ITEM.id}\"")),
            command(&noted(
                "echo \"no go\"; test -e \"$RIGOR_PLAN_DIR/go\" || { seq 60000; exit 3; }"
            )),
            command(&noted("echo at last")),
        ),
    );
    let items: String = (0..ITEMS).map(|n| format!("i{n}\n")).collect();
    fs::write(plan.join("items.txt"), items).unwrap();
    plan
}

fn retention(rig: &Rig, keys: &str) {
    rig.edit_toml(|text| text.replacen("[retention]\n", &format!("[retention]\n{keys}\n"), 1));
}

/// What displays say of a batch.
fn said(rig: &Rig, batch: &str) -> Vec<String> {
    let failed = rig.json(&["tasks", "--batch", batch, "--lane", "failed", "--json"]);
    let failed = failed["tasks"][0]["id"].as_str().unwrap().to_owned();
    let mut said = Vec::new();
    for words in [
        &["tasks", "--batch", batch, "--json"][..],
        &["why", &failed, "--json"],
        &["why", batch, "--json"],
        &["report", batch],
    ] {
        let output = rig.rigor(words);
        assert_eq!(output.code, 0, "{words:?}: {output:?}");
        match serde_json::from_str::<Value>(&output.stdout) {
            Ok(value) => said.push(without_times(value).to_string()),
            Err(_) => said.push(output.stdout),
        }
    }
    let status = rig.status();
    let batches = status["batches"].as_array().unwrap();
    let of_batch = batches.iter().find(|one| one["id"] == *batch);
    said.push(of_batch.expect("it is shown").to_string());
    for words in [
        &["logs", &failed][..],
        &["logs", &failed, "--attempt", "1"],
        &["logs", &format!("{batch}/each_i7")],
    ] {
        let output = rig.rigor(words);
        assert_eq!(output.code, 0, "{words:?}: {output:?}");
        said.push(output.stdout);
    }
    said
}

/// What a moment later reads otherwise anyway.
fn without_times(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => {
            fields.retain(|key, _| !["at", "now", "brain", "agents"].contains(&key.as_str()));
            for field in fields.values_mut() {
                *field = without_times(field.take());
            }
        }
        Value::Array(items) => {
            for item in items {
                *item = without_times(item.take());
            }
        }
        // `failed 3s ago` is `failed 4s ago` a second later.
        Value::String(text) if text.contains(" ago") => {
            let words: Vec<&str> = text.split(' ').collect();
            let kept = words.iter().enumerate().filter(|(at, _)| {
                let next = words.get(at + 1);
                next.is_none_or(|next| !next.starts_with("ago"))
            });
            let kept: Vec<&str> = kept.map(|(_, word)| *word).collect();
            *text = kept.join(" ");
        }
        _ => {}
    }
    value
}

/// What is said is the same; what is not is shown in short.
#[track_caller]
fn same(now: &[String], before: &[String]) {
    assert_eq!(now.len(), before.len());
    for (now, before) in now.iter().zip(before) {
        let at = now
            .bytes()
            .zip(before.bytes())
            .take_while(|(a, b)| a == b)
            .count();
        let around = |text: &str| -> String {
            let from = at.saturating_sub(60);
            text.chars().skip(from).take(160).collect()
        };
        assert!(now == before, "{:?}\n{:?}", around(now), around(before));
    }
}

fn files(dir: &Path) -> usize {
    WalkDir::new(dir).into_iter().count()
}

/// Files of tasks and attempts, in the lanes and archived.
fn inodes(rig: &Rig) -> usize {
    let dirs = ["tasks", "attempts", "archive", "brain/batches"];
    dirs.iter().map(|dir| files(&rig.root().join(dir))).sum()
}

fn is_archived(rig: &Rig, batch: &str) -> bool {
    rig.rig.is_archived(batch) && archive::leftovers(&rig.rig).unwrap().is_empty()
}

fn archive_tree(rig: &Rig) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = WalkDir::new(rig.root().join("archive"))
        .into_iter()
        .flatten();
    let files = files.filter(|entry| entry.file_type().is_file());
    files
        .map(|entry| (entry.path().to_owned(), fs::read(entry.path()).unwrap()))
        .collect()
}

#[test]
fn a_batch_is_archived_read_retried_and_removed() {
    let mut rig = Setup {
        gpus: 1,
        ..Setup::default()
    }
    .make();
    let plan = plan(&rig);
    let busy = rig.plan(
        "busy",
        &format!(
            "### waits\n\n- **task_class**: cpu\n{}\n",
            command("until [ -e \"$RIGOR_PLAN_DIR/go\" ]; do sleep 0.1; done"),
        ),
    );
    let empty = inodes(&rig);
    rig.start_all();
    let running = rig.submit(&busy);
    let batch = rig.submit_with(&plan, &["--key", "nightly"]);
    assert_ne!(rig.wait_batch(&batch), 0);
    // By default nothing is archived for an hour.
    let before = said(&rig, &batch);
    let full = inodes(&rig);
    assert!(!rig.rig.is_archived(&batch));

    rig.terminate("brain");
    rig.ended("brain");
    retention(&rig, "compact_after = \"1s\"");
    rig.start_brain();
    rig.wait("it is archived", |rig| is_archived(rig, &batch));
    assert!(!rig.rig.is_archived(&running), "it is not over");
    same(&said(&rig, &batch), &before);
    let left = inodes(&rig);
    // The running batch and the archive take some.
    assert!(
        full > empty + 2 * ITEMS && left < empty + 30,
        "{empty} at first, {full} with the batch, {left} archived"
    );
    assert_eq!(rig.rigor(&["fsck", "--dry-run"]).code, 0);
    let shown = rig.rigor(&["show", &format!("{batch}/fails")]);
    assert!(shown.stdout.contains("archived"), "{shown:?}");
    let known = rig.submit_with(&plan, &["--key", "nightly"]);
    assert_eq!(known, batch, "its key is known");

    // A task of it fails again, and it is archived again.
    let failed = |rig: &Rig| rig.tasks(&batch, "failed");
    assert_eq!(failed(&rig), ["fails"]);
    let retried = rig.rigor(&["retry", &format!("{batch}/fails")]);
    assert_eq!(retried.code, 0, "{retried:?}");
    rig.wait("it has run again", |_| {
        journal::read(&plan).len() >= ITEMS + 4
    });
    rig.wait("it is archived again", |rig| {
        is_archived(rig, &batch) && failed(rig) == ["fails"]
    });
    fs::write(plan.join("go"), "").unwrap();
    let retried = rig.rigor(&["retry", &batch, "--failed"]);
    assert_eq!(retried.code, 0, "{retried:?}");
    rig.wait("all is done", |rig| {
        rig.tasks(&batch, "complete").len() == ITEMS + 2
    });
    rig.wait("it is archived once more", |rig| is_archived(rig, &batch));
    assert_eq!(journal::read(&plan).len(), ITEMS + 6, "no item ran twice");
    let log = rig.rigor(&["logs", &format!("{batch}/after")]);
    assert_eq!(log.stdout, "at last\n");

    // Removing: first nothing, then it.
    let tree = archive_tree(&rig);
    let none = rig.json(&["clean", "--older-than", "1d", "--json"]);
    assert_eq!(none["batches"], serde_json::json!([]));
    let would = rig.json(&["clean", "--older-than", "1ms", "--dry-run", "--json"]);
    assert_eq!(would["batches"][0]["batch"], *batch);
    assert_eq!(would["tasks"], ITEMS + 2);
    assert_eq!(archive_tree(&rig), tree, "a dry run changes nothing");
    let removed = rig.rigor(&["clean", "--older-than", "1ms"]);
    assert_eq!(removed.code, 0, "{removed:?}");
    assert!(removed.stdout.contains(&batch), "{removed:?}");
    rig.forgotten(&batch);
    assert_eq!(files(&rig.root().join("archive")), 2, "the lock alone");
    assert_ne!(rig.rigor(&["why", &batch]).code, 0);
    assert!(
        plan.join("history").join(&batch).is_dir(),
        "it is the plan's own"
    );
    let anew = rig.submit_with(&plan, &["--key", "nightly"]);
    assert_ne!(anew, batch, "its key went with it");

    assert!(!rig.rig.is_archived(&running));
    fs::write(busy.join("go"), "").unwrap();
    assert_eq!(rig.wait_batch(&running), 0);
    assert_eq!(rig.wait_batch(&anew), 0);
}

#[test]
fn what_is_older_than_keep_goes_by_itself() {
    let mut rig = Setup {
        gpus: 1,
        ..Setup::default()
    }
    .make();
    retention(&rig, "compact_after = \"1s\"\nkeep = \"3s\"");
    let plan = rig.plan(
        "short",
        "### one\n\n- **task_class**: cpu\n- **command**: `true`\n",
    );
    rig.start_all();
    let batch = rig.submit(&plan);
    assert_eq!(rig.wait_batch(&batch), 0);
    rig.forgotten(&batch);
    rig.wait_for_line("brain", &format!("Batch {batch} is archived"));
    rig.wait_for_line("brain", &format!("Batch {batch} is removed"));
    assert_eq!(rig.rig.archived_batches().unwrap(), [""; 0]);
}
