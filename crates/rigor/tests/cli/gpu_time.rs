//! What GPUs' time went into, as `rigor status` and `rigor report` say it.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rigor_queue::outlook::{self, Outlook, StuckTask};
use rigor_queue::reasons::{Cause, Reason, ReasonLog};
use rigor_queue::record::{AttemptRecord, FailureKind, Outcome};
use rigor_queue::records;
use rigor_queue::rig::BRAIN;
use rigor_queue::task::Class;

use crate::hand_made::{HandMade, until};

fn ago(seconds: i64) -> Timestamp {
    Timestamp::now() - SignedDuration::from_secs(seconds)
}

fn journal(made: &HandMade, agent: &str, entries: &[(i64, Cause)]) {
    made.rig.prepare_agent(agent).unwrap();
    let mut log = ReasonLog::open(&made.rig, agent).unwrap();
    for (seconds, cause) in entries {
        let reason = Reason {
            since: ago(*seconds),
            cause: *cause,
            code: None,
            detail: String::new(),
            batches: Vec::new(),
        };
        log.note(reason).unwrap();
    }
}

#[test]
fn status_says_what_each_gpu_did_and_which_tasks_are_stuck() {
    let made = HandMade::new();
    let silent = made.rigor(&["status"]).ok().stdout;
    assert!(!silent.contains("GPU time"), "{silent}");
    // Neither runs, so what follows the last entry is agent_down.
    journal(
        &made,
        "gpu-1",
        &[
            (7200, Cause::Running),
            (1800, Cause::ModelNotLoaded),
            (900, Cause::NoWork),
            (450, Cause::AgentDown),
        ],
    );
    journal(
        &made,
        "gpu-2",
        &[(600, Cause::Paused), (1, Cause::AgentDown)],
    );
    let text = made.rigor(&["status"]).ok().stdout;
    for line in [
        "gpu-1  last 1h: 50% running, 25% model not loaded, ",
        "gpu-2  last 10m",
        "% paused, ",
    ] {
        assert!(text.contains(line), "{line:?} is not in:\n{text}");
    }
    let json = made.rigor(&["status", "--json"]).ok().json();
    let time = &json["agents"][0]["gpu_time"];
    let seconds = &time["seconds"];
    assert!((seconds["running"].as_f64().unwrap() - 1800.0).abs() < 60.0);
    let sum: f64 = seconds
        .as_object()
        .unwrap()
        .values()
        .map(|value| value.as_f64().unwrap())
        .sum();
    assert!((sum - 3600.0).abs() < 1e-6, "{time}");
    assert!(json["disk"]["free_mb"].is_u64(), "{}", json["disk"]);
    assert_eq!(json["schema"], 1);

    let (batch, _plan) = made.running_batch();
    let names = made.queued(&batch, "tag", &["v1"]);
    let held = made.claim(Class::Cpu, &names[0], "gpu-1");
    let stuck = StuckTask {
        id: held.spec.id,
        name: held.spec.name.clone(),
        agent: "gpu-1".to_owned(),
        since: ago(720),
        quiet_since: ago(370),
        end: "nothing will stop it (no timeout)".to_owned(),
    };
    let outlook = Outlook {
        schema: 1,
        stuck: vec![stuck],
        ..Outlook::default()
    };
    outlook::write(&made.rig, &outlook).unwrap();
    let text = made.rigor(&["status"]).ok().stdout;
    let id = held.spec.id.short();
    let line = format!("stuck: tag_v1 ({id}) on gpu-1, processing 12m");
    assert!(text.contains(&line), "{text}");
    let line = format!("nothing will stop it (no timeout). See: rigor logs {id}");
    assert!(text.contains(&line), "{text}");
    let json = made.rigor(&["status", "--json"]).ok().json();
    assert_eq!(json["queue"]["stuck"], 1);
    assert_eq!(json["queue"]["stuck_details"][0]["agent"], "gpu-1");
}

#[test]
fn a_report_without_its_summary_says_what_is_known() {
    let made = HandMade::new();
    journal(&made, "gpu-1", &[(7200, Cause::ModelNotLoaded)]);
    made.rig.prepare_agent("gpu-2").unwrap();
    let (batch, plan) = made.running_batch();
    let names = made.queued(&batch, "tag", &["v1", "v2"]);
    made.complete(made.claim(Class::Cpu, &names[0], "gpu-1"));
    made.fail(
        made.claim(Class::Cpu, &names[1], "gpu-1"),
        "exit code 3\x1b[31m",
    );
    let submitted = plan.spec.created;
    until("the batch took a moment", || {
        Timestamp::now().duration_since(submitted) > SignedDuration::from_millis(50)
    });
    let outcome = Outcome::Failed {
        kind: FailureKind::Plan,
        reason: "1 of 2 tasks complete".to_owned(),
    };
    let record = AttemptRecord::without_worker(BRAIN, &plan.name, &plan.spec, outcome);
    records::replace(&made.rig, &record).unwrap();
    let folder = plan.spec.batch_dir.clone();
    plan.close(&made.rig, rigor_queue::lane::Move::CloseFailed)
        .unwrap();
    std::fs::remove_dir_all(folder).unwrap();

    let report = made
        .rigor(&["report", &batch])
        .ok()
        .says("is gone (there is no ");
    for words in [
        &format!("# {batch}: failed"),
        "1 of 2 tasks complete, 1 failed, 0 cancelled, in ",
        "Largest loss: gpu-",
        "- gpu-2: 100% agent down",
        "- tag_v2 (",
        "): exit code 3 [31m",
    ] {
        assert!(
            report.stdout.contains(words),
            "{words:?}: {}",
            report.stdout
        );
    }
    let json = made.rigor(&["report", &batch, "--json"]).ok().json();
    assert_eq!(json["id"], batch);
    let time = &json["gpu_time"];
    let wall = time["wall_ms"].as_i64().unwrap();
    assert!(wall >= 50, "{time}");
    for gpu in time["gpus"].as_array().unwrap() {
        let parts = gpu["ms"].as_object().unwrap().values();
        assert_eq!(parts.map(|ms| ms.as_i64().unwrap()).sum::<i64>(), wall);
    }
    assert!(Duration::from_millis(wall as u64) < Duration::from_secs(60));
    made.rigor(&["report", &batch, "--path"])
        .exits(1)
        .says("is gone");
}
