//! Placement decisions are journaled with all that they were made from, and come out the same when
//! they are made again.

use std::fs;
use std::path::Path;

use rigor_queue::rig::BRAIN;
use rigor_tests::{Output, Rig, Setup, parts};
use serde_json::Value;

fn chat_model(id: &str) -> String {
    format!(
        "\n[[model]]\nid = \"{id}\"\nkind = \"chat\"\nruntime = \"llama-server\"\nfile = {:?}\nslots = 1\ncontext = 2048\n",
        parts::fixture("model")
    )
}

fn prompt(id: &str, model: &str) -> String {
    format!(
        "### {id}\n\n- **llm_model**: {model}\n- **prompt**: Hello\n- **max_tokens**: 8\n- **output**: `{{BATCH_PATH}}/{id}.txt`\n\n"
    )
}

pub(super) fn replay(rig: &Rig, file: &Path) -> (i32, Value, Output) {
    let run = |words: &[&str]| {
        let mut command = std::process::Command::new(parts::program("brain"));
        command.arg("replay").arg(file).args(words);
        rig.output(command)
    };
    let json = run(&["--json"]);
    let shown = run(&[]);
    assert_eq!(json.code, shown.code, "{}", shown.stderr);
    (
        json.code,
        serde_json::from_str(&json.stdout).unwrap_or_default(),
        shown,
    )
}

#[test]
fn recorded_decisions_are_replayed_and_a_changed_one_is_found() {
    let mut rig = Setup {
        gpus: 1,
        tables: chat_model("one") + &chat_model("two"),
        ..Setup::default()
    }
    .make();
    // The second needs the GPU that has the first: it has to be unloaded for it.
    let second = prompt("second", "two") + "- **depends_on**: first\n\n";
    let plan = rig.plan(
        "both",
        &(prompt("first", "one") + &second.replacen("\n\n- **dep", "\n- **dep", 1)),
    );
    rig.start_all();
    let batch = rig.submit(&plan);
    assert_eq!(rig.wait_short_batch(&batch), 0);
    rig.wait_for_match(
        BRAIN,
        r"INFO  What loading one on gpu-1 came to: load took .* \(predicted .*\), served 1 of 1 tasks in",
    );
    rig.wait_for_match("gpu-1", r"INFO  Read \d+ MB of two into memory in");
    let decisions = rig.log_of("brain_decisions.log");
    assert!(decisions.contains("RESOURCE_OUTCOME"), "{decisions}");
    assert!(decisions.contains("\"next\":\"two\""), "{decisions}");

    let journal = rig.root().join("brain/placement.jsonl");
    let text = fs::read_to_string(&journal).unwrap();
    let (code, report, shown) = replay(&rig, &journal);
    assert_eq!(code, 0, "{}\n{text}", shown.stdout);
    let loads = text.matches("\"decision\":\"load\"").count();
    assert!(loads >= 2, "one for each model: {text}");
    assert!(text.contains("\"decision\":\"unload\""), "{text}");
    assert_eq!(report["decisions"], text.lines().count());
    assert_eq!(report["equal"], report["decisions"]);

    // One number of one view: the decision that it led to is another one now.
    let changed = rig.root().join("changed.jsonl");
    let at = text.find("\"decision\":\"load\"").unwrap();
    let line = text[..at].matches('\n').count() + 1;
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines[line - 1] = lines[line - 1].replace("\"alive\":true", "\"alive\":false");
    fs::write(&changed, lines.join("\n") + "\n").unwrap();
    let (code, report, shown) = replay(&rig, &changed);
    assert_eq!(code, 1, "{}", shown.stdout);
    assert_eq!(report["differences"][0]["line"], line);
    assert!(
        shown.stdout.contains("recorded: load one") && shown.stdout.contains("not running"),
        "{}",
        shown.stdout
    );

    // A line that was not finished is left out and said; one of a newer form cannot be used.
    fs::write(&changed, format!("{text}{}", &text[..text.len().min(40)])).unwrap();
    let (code, report, shown) = replay(&rig, &changed);
    assert_eq!(
        (code, &report["torn"]),
        (0, &Value::Bool(true)),
        "{}",
        shown.stdout
    );
    assert!(shown.stdout.contains("is not finished"), "{}", shown.stdout);
    fs::write(&changed, text.replacen("\"schema\":1", "\"schema\":99", 1)).unwrap();
    let (code, _, shown) = replay(&rig, &changed);
    assert_eq!(code, 2, "{}", shown.stdout);
    assert!(shown.stdout.contains("schema 99"), "{}", shown.stdout);
    let (code, _, shown) = replay(&rig, &rig.root().join("missing.jsonl"));
    assert_eq!(code, 2);
    assert!(shown.stderr.contains("missing.jsonl"), "{}", shown.stderr);
}
