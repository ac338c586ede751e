//! `[notify]`: a command of the operator's is told of what happened, as JSON.

use std::fs;

use rigor_queue::rig::BRAIN;
use rigor_tests::{Rig, Setup, journal};
use serde_json::Value;

/// What the command was told so far.
fn told(rig: &Rig) -> Vec<Value> {
    let text = fs::read_to_string(rig.plans().with_file_name("told")).unwrap_or_default();
    text.lines()
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

#[test]
fn a_command_is_told_of_a_dead_agent_and_of_a_finished_batch() {
    let mut rig = Setup {
        gpus: 2,
        ..Setup::default()
    }
    .make();
    // A real program reads the JSON from its standard input.
    let told_at = rig.plans().with_file_name("told");
    let command = format!("cat >> {told_at:?}; echo >> {told_at:?}");
    rig.edit_toml(|text| {
        text.replace(
            "[notify]\n",
            &format!("[notify]\ncommand = '''{command}'''\n"),
        )
    });
    let work = "if [ \"$RIGOR_ATTEMPT\" = 1 ]; then sleep 600; fi";
    let plan = rig.plan(
        "long",
        &format!(
            "### long\n\n- **task_class**: cpu\n{}",
            journal::command(&journal::noted(work))
        ),
    );
    rig.start_all();
    let batch = rig.submit(&plan);
    rig.wait("it runs", |_| !journal::read(&plan).is_empty());
    let agent = journal::read(&plan).remove(0).agent;
    rig.kill(&agent);
    let events = |rig: &Rig, event: &str| -> Vec<Value> {
        let mut all = told(rig);
        all.retain(|one| one["event"] == event);
        all
    };
    rig.wait("it is told of the dead agent", |rig| {
        fs::read_to_string(&told_at)
            .unwrap_or_default()
            .ends_with('\n')
            && !events(rig, "agent_dead").is_empty()
    });
    let dead = events(&rig, "agent_dead").remove(0);
    assert_eq!(dead["subject"], agent.as_str(), "{dead}");
    assert_eq!(dead["schema"], 1, "{dead}");
    let message = dead["message"].as_str().unwrap();
    assert!(
        message.contains(&format!("{agent} is dead")) && message.contains("requeued 1 task"),
        "{message}"
    );
    assert!(rig.log(BRAIN).contains(message), "the log's own words");
    assert_eq!(rig.wait_batch(&batch), 0);
    rig.wait("it is told of the batch", |rig| {
        fs::read_to_string(&told_at)
            .unwrap_or_default()
            .ends_with('\n')
            && !events(rig, "batch_finished").is_empty()
    });
    let finished = events(&rig, "batch_finished").remove(0);
    assert_eq!(finished["subject"], batch.as_str(), "{finished}");
    assert!(finished["at"].is_string() && finished["rig"].is_string());
    println!("{dead}\n{finished}");
    assert_eq!(events(&rig, "agent_dead").len(), 1, "once");
    assert_eq!(events(&rig, "batch_failed").len(), 0);
}
