//! The example plans, as a user runs them.

use std::fs;
use std::path::Path;

use rigor_tests::{Setup, parts};

/// A copy of an example, so that its history stays out of the source tree.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        if name == "history" || name == "__pycache__" {
            continue;
        }
        let target = to.join(&name);
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}

/// The pain that this project exists for: all GPUs take part in the LLM work.
///
/// That all three do is no accident of timing. The plan is changed in one line: tags wait for all
/// measures, not each for its own, as else the brain rightly keeps a GPU for the scripts that are
/// still queued. So 60 tags of 20 s (the prior) are released at once and justify three loads, which
/// are inserted together; each cold agent claims one; and one slot a GPU leaves tags to be shared.
#[test]
fn digest_over_a_real_llama_cpp_on_three_gpus() {
    const DOCUMENTS: usize = 60;
    let mut rig = Setup {
        gpus: 3,
        slots: 1,
        ..Setup::default()
    }
    .make();
    let plan = rig.plans().join("digest");
    copy(&parts::workspace().join("examples/plans/digest"), &plan);
    let text = fs::read_to_string(plan.join("plan.md")).unwrap();
    let changed = text.replace(
        "- **depends_on**: measure_{ITEM.id}",
        "- **depends_on**: measure",
    );
    assert_ne!(text, changed, "the example has no such line any more");
    fs::write(plan.join("plan.md"), changed).unwrap();
    let docs = rig.plans().join("docs");
    fs::create_dir_all(&docs).unwrap();
    for n in 0..DOCUMENTS {
        let text = format!(
            "# Document {n}\n\nThis is the story of the number {n}. It is short. Nobody reads it twice.\n"
        );
        fs::write(docs.join(format!("doc-{n:02}.md")), text).unwrap();
    }
    rig.start_all();
    let set = format!("DOCS={}", docs.display());
    let batch = rig.submit_with(&plan, &["--set", &set, "--set", "GLOB=**/*.md"]);
    assert_eq!(rig.wait_batch(&batch), 0);
    let folder = plan.join("history").join(&batch);
    let report = fs::read_to_string(folder.join("output/report.md")).unwrap();
    for n in 0..DOCUMENTS {
        assert!(
            report.contains(&format!("doc-{n:02}")),
            "document {n} is not in the report"
        );
    }
    let summary = rig.summary(&plan, &batch);
    let tasks = 2 * DOCUMENTS + 2;
    assert_eq!(
        (&summary["done"], &summary["total"]),
        (&tasks.into(), &tasks.into()),
        "{summary}"
    );
    let agents = summary["agents"].as_array().unwrap();
    let of = |name: &str| {
        agents
            .iter()
            .find(|one| one["name"] == name)
            .unwrap_or_else(|| panic!("{name}: {summary}"))
    };
    let llm: Vec<u64> = ["gpu-1", "gpu-2", "gpu-3"]
        .map(|name| of(name)["by_class"]["llm"].as_u64().unwrap_or(0))
        .into();
    println!("tags by agent: {llm:?}, {}s", summary["wall_seconds"]);
    assert!(llm.iter().all(|count| *count > 0), "{llm:?}");
    assert_eq!(llm.iter().sum::<u64>() as usize, DOCUMENTS);

    // The summary agrees with the records.
    let records = rig.rig.attempts_dir(&batch);
    let mut attempts = std::collections::BTreeMap::new();
    for entry in fs::read_dir(records).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|kind| kind == "json") {
            let record: serde_json::Value =
                serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            let body = record
                .as_object()
                .unwrap()
                .values()
                .find(|value| value.is_object())
                .unwrap();
            if body["name"] != "_plan" {
                *attempts
                    .entry(body["agent"].as_str().unwrap().to_owned())
                    .or_insert(0) += 1;
            }
        }
    }
    for agent in agents {
        let name = agent["name"].as_str().unwrap();
        assert_eq!(agent["attempts"], attempts[name], "{name}: {attempts:?}");
    }
}

/// The plan of the users' day. Its transcriber is the stand-in that comes with it, which recognises
/// nothing.
#[test]
fn transcribe_with_its_stand_in_transcriber() {
    let mut rig = Setup {
        gpus: 2,
        slots: 2,
        ..Setup::default()
    }
    .make();
    let plan = rig.plans().join("transcribe");
    copy(&parts::workspace().join("examples/plans/transcribe"), &plan);
    let recordings = fs::read_dir(plan.join("audio"))
        .unwrap()
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|kind| kind == "wav"))
        .count();
    assert!(recordings > 1, "the example has recordings");
    rig.start_all();
    let transcriber = "TRANSCRIBER=python3 scripts/stand_in_transcriber.py \"$AUDIO\"";
    let batch = rig.submit_with(&plan, &["--set", transcriber]);
    assert_eq!(rig.wait_batch(&batch), 0);
    let output = plan.join("history").join(&batch).join("output");
    let index = fs::read_to_string(output.join("index.md")).unwrap();
    for entry in fs::read_dir(plan.join("audio")).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if name.ends_with(".wav") {
            assert!(
                index.contains(&name),
                "{name} is not in the index:\n{index}"
            );
        }
    }
    let files = |dir: &str| {
        fs::read_dir(output.join(dir))
            .unwrap()
            .flatten()
            .filter(|one| one.path().extension().is_some_and(|kind| kind == "txt"))
            .count()
    };
    assert_eq!(files("transcripts"), recordings);
    assert_eq!(files("topics"), recordings);
    let summary = rig.summary(&plan, &batch);
    assert_eq!(summary["done"], 2 * recordings + 1, "{summary}");
}
