use rigor_queue::claim::peek;
use rigor_queue::lane::Lane;
use rigor_queue::rig::Place;
use rigor_queue::task::{Class, Work};

use crate::hand_made::HandMade;

#[test]
fn a_plan_becomes_one_file_of_the_brains_and_its_id_a_line() {
    let made = HandMade::new();
    made.plan();
    let done = made
        .rigor(&["submit", "plan", "--set", "LANGUAGE=de", "--limit", "3"])
        .ok();
    let batch = done.line().to_owned();
    assert!(batch.starts_with("video-tags-20"), "{batch}");
    assert!(done.stderr.contains("brain is not running") && done.stderr.contains("rigor up"));

    let names = made.rig.list(Place::Queue(Class::Brain)).unwrap().names;
    assert_eq!(names.len(), 1);
    let spec = peek(&made.rig, Place::Queue(Class::Brain), &names[0])
        .unwrap()
        .unwrap();
    assert_eq!(
        (spec.batch.as_str(), spec.task.as_str(), spec.plan.as_str()),
        (&*batch, "_plan", "video-tags")
    );
    let plan_dir = made.path().canonicalize().unwrap().join("plan");
    assert_eq!(spec.plan_dir, plan_dir);
    assert_eq!(spec.batch_dir, plan_dir.join("history").join(&batch));
    assert!(spec.batch_dir.is_dir());
    let Work::Plan(submission) = spec.work else {
        panic!("no plan")
    };
    assert_eq!(submission.inputs["LANGUAGE"], "de");
    assert_eq!(submission.limit, Some(3));
    assert!(submission.source.contains("### two"));
    assert!(made.rig.dir(Place::Complete(&batch)).is_dir());
}

#[test]
fn json_names_the_batch_and_a_config_fills_inputs() {
    let made = HandMade::new();
    made.plan();
    let config = r#"{"LANGUAGE": 7}"#;
    let done = made
        .rigor(&["submit", "plan", "--json", "--hold", "--config", config])
        .ok();
    let json = done.json();
    let batch = json["batch_id"].as_str().unwrap();
    assert_eq!(json["schema"], 1);
    assert!(made.rig.brain_dir().join("held").join(batch).exists());
    let status = made.rigor(&["status", "--json"]).ok().json();
    assert_eq!(status["batches"][0]["id"], batch);
}

#[test]
fn a_wrong_plan_is_shown_with_its_line_and_nothing_is_submitted() {
    let made = HandMade::new();
    made.plan_of("# Plan: x\n\n## Tasks\n\n### one\n- **task_class**: cpu\n- **comand**: `true`\n");
    for command in ["check", "submit"] {
        let done = made
            .rigor(&[command, "plan"])
            .exits(1)
            .says("plan/plan.md:7")
            .says("^^^");
        assert_eq!(done.stdout, "");
    }
    let json = made.rigor(&["check", "plan", "--json"]).exits(1).json();
    assert_eq!(
        (json["ok"].as_bool(), json["problems"][0]["line"].as_u64()),
        (Some(false), Some(7))
    );
    assert_eq!(made.rig.count(Place::Queue(Class::Brain)).unwrap(), 0);
    assert_eq!(made.rig.subdirs(Lane::Complete).unwrap(), [""; 0]);
    assert!(!made.path().join("plan/history").exists());
    made.rigor(&["submit", "nowhere"]).exits(1).says("nowhere");
}

#[test]
fn the_rig_is_part_of_the_check() {
    let made = HandMade::new();
    made.plan_of("# Plan: x\n\n## Tasks\n\n### one\n- **prompt**: hello\n- **llm_model**: tinny\n");
    made.rigor(&["check", "plan"])
        .exits(1)
        .says("tinny")
        .says("tiny");
    made.plan_of("# Plan: x\n\n## Tasks\n\n### one\n- **prompt**: hello\n");
    let unseen = "GPU memory of gpu-1, gpu-2 is not checked: no agent has run there yet";
    made.rigor(&["check", "plan"]).ok().says(unseen);
    let json = made.rigor(&["check", "plan", "--json"]).ok().json();
    assert!(
        json["notes"][0].as_str().unwrap().contains(unseen),
        "{json}"
    );
    // Without a rig only the plan itself is checked.
    let alone = made
        .rigor(&["--rig", "no-rig", "check", "plan"])
        .ok()
        .says("No rig at no-rig");
    assert!(alone.stdout.contains("1 task"), "{}", alone.stdout);
}

#[test]
fn wrong_usage_exits_2() {
    let made = HandMade::new();
    made.plan();
    for words in [
        &["submit", "plan", "--set", "LANGUAGE"][..],
        &["submit", "plan", "--config", "[1]"],
        &["submit", "plan", "--limit", "0"],
        &["submit"],
        &["tasks", "--lane", "compleet"],
        &["nonsense"],
    ] {
        made.rigor(words).exits(2);
    }
    made.rigor(&["tasks", "--lane", "compleet"])
        .exits(2)
        .says("did you mean complete?");
}

#[test]
fn one_command_becomes_a_batch_that_runs_here() {
    let made = HandMade::new();
    let words = [
        "run", "--class", "script", "--vram", "512", "--", "echo", "a b", "{ITEM}",
    ];
    let batch = made.rigor(&words).ok().line().to_owned();
    let held = made.take_up(&batch);
    let Work::Plan(submission) = &held.spec.work else {
        panic!("no plan")
    };
    assert!(
        submission.source.contains("\necho 'a b' '{{ITEM}}'\n"),
        "{}",
        submission.source
    );
    assert!(submission.source.contains("vram_estimate_mb**: 512"));
    let here = made.path().canonicalize().unwrap();
    assert!(
        submission
            .source
            .contains(&format!("workdir**: `{}`", here.display()))
    );
    assert!(held.spec.plan_dir.starts_with(made.rig.runs_dir()));
    made.rigor(&["run", "--vram", "1", "--", "true"])
        .exits(1)
        .says("--class script");
    made.rigor(&["run"]).exits(2);
}
