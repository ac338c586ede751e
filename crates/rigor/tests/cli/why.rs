use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use rigor_queue::heartbeat::{Health, Heartbeat, Refusal, RunningBeat, Verdict};
use rigor_queue::outlook::{self, Outlook};
use rigor_queue::presence::{self, ComponentLock, Role};
use rigor_queue::reasons::{Cause, Reason, ReasonLog};
use rigor_queue::rig::{BRAIN, Place};
use rigor_queue::task::Class;

use crate::hand_made::HandMade;

/// A component that holds its lock, in this process.
fn alive(made: &HandMade, name: &str) -> (ComponentLock, Heartbeat) {
    let lock = ComponentLock::acquire(&made.rig, name, Role::Running).expect("a lock");
    let since = Timestamp::now() - SignedDuration::from_mins(30);
    let beat = Heartbeat::alive(1, since, Health::Healthy);
    presence::beat(&made.rig, name, &beat).expect("a heartbeat");
    (lock, beat)
}

fn refusal(code: Refusal, detail: &str) -> Verdict {
    Verdict {
        code,
        detail: detail.to_owned(),
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[test]
fn a_queued_task_is_explained_from_files_alone() {
    let made = HandMade::new();
    let (batch, _plan) = made.running_batch();
    let names = made.queued(&batch, "tag", &["v1", "v2"]);
    let short = names[1].id.short();
    let done = made.rigor(&["why", &short]).ok();
    let line = first_line(&done.stdout);
    assert!(
        line.starts_with("not yet: the brain is not running")
            || line.starts_with("not yet: no agent that may run it is there"),
        "{line}"
    );
    assert!(done.stdout.contains("rigor up"), "{}", done.stdout);

    let _brain = alive(&made, BRAIN);
    let (_lock, mut beat) = alive(&made, "gpu-1");
    let detail = "8 of 8 CPU slots";
    beat.shapes = BTreeMap::from([(names[1].shape, refusal(Refusal::CpuSlotsFull, detail))]);
    presence::beat(&made.rig, "gpu-1", &beat).unwrap();
    let name = format!("{batch}/tag_v2");
    let json = made.rigor(&["why", &name, "--json"]).ok().json();
    assert_eq!(json["schema"], 1);
    assert_eq!(
        (&json["kind"], &json["verdict"], &json["reason"]),
        (&"task".into(), &"not_yet".into(), &"cpu_slots_full".into())
    );
    assert_eq!(json["id"], names[1].id.to_string());
    assert_eq!(json["lane"], "queue");
    let gates = json["gates"].as_array().unwrap();
    let gate = |kind: &str, of: &str| {
        gates
            .iter()
            .find(|gate| gate["gate"] == kind && (of.is_empty() || gate["subject"] == of))
            .unwrap_or_else(|| panic!("{kind} {of}: {json:#}"))
    };
    assert_eq!(gate("agent", "gpu-1")["code"], "cpu_slots_full");
    assert_eq!(gate("agent", "gpu-2")["state"], "unknown");
    assert!(
        gate("queue", "")["words"]
            .as_str()
            .unwrap()
            .starts_with("1 task ahead")
    );
    let text = made.rigor(&["why", &name]).ok().stdout;
    assert_eq!(
        first_line(&text),
        "not yet: cpu_slots_full on gpu-1: 8 of 8 CPU slots; 1 ahead of it"
    );

    let never = "needs 64 CPU slots, the most is 8 on gpu-1";
    let outlook = Outlook {
        schema: 1,
        never: BTreeMap::from([(names[1].shape, never.to_owned())]),
        ..Outlook::default()
    };
    outlook::write(&made.rig, &outlook).unwrap();
    let text = made.rigor(&["why", &name]).ok().stdout;
    assert_eq!(first_line(&text), format!("never: {never}"));
    let json = made.rigor(&["why", &batch, "--json"]).ok().json();
    assert_eq!(json["verdict"], "never");
}

#[test]
fn failed_running_and_quarantined_tasks_are_explained() {
    let made = HandMade::new();
    let (batch, _plan) = made.running_batch();
    let names = made.queued(&batch, "tag", &["v1", "v2", "v3"]);
    let held = made.claim(Class::Cpu, &names[0], "gpu-1");
    std::fs::write(
        made.rig.output_path(&batch, names[0].id, 1),
        "one\ntwo\nthree\nno such file\x1b[31m\n",
    )
    .unwrap();
    made.fail(held, "exit code 3: no such file");
    let text = made.rigor(&["why", &names[0].id.short()]).ok().stdout;
    let line = first_line(&text);
    assert!(line.starts_with("over: failed"), "{line}");
    assert!(
        line.ends_with("after 1 attempt: exit code 3: no such file"),
        "{line}"
    );
    assert!(text.contains("no such file [31m"), "{text}");
    assert!(!text.contains(" one\n"), "three lines are enough: {text}");
    assert!(
        text.contains(&format!("rigor retry {}", names[0].id.short())),
        "{text}"
    );

    let _running = made.claim(Class::Cpu, &names[1], "gpu-1");
    let text = made.rigor(&["why", &names[1].id.short()]).ok().stdout;
    let line = first_line(&text);
    assert!(line.starts_with("not yet: gpu-1 is down"), "{line}");
    let (_lock, mut beat) = alive(&made, "gpu-1");
    let since = Timestamp::now() - SignedDuration::from_mins(12);
    beat.running = vec![RunningBeat {
        id: names[1].id,
        attempt: 1,
        name: "tag_v2".to_owned(),
        batch: batch.clone(),
        class: Class::Cpu,
        since,
        active_at: Timestamp::now(),
        output_at: None,
        cpu_percent: Some(97),
        gpu_percent: None,
        timeout_s: None,
        kill_if_silent_s: None,
    }];
    presence::beat(&made.rig, "gpu-1", &beat).unwrap();
    let json = made
        .rigor(&["why", &names[1].id.short(), "--json"])
        .ok()
        .json();
    assert_eq!(json["verdict"], "running");
    let summary = json["summary"].as_str().unwrap();
    assert!(summary.starts_with("running on gpu-1 for 12m"), "{summary}");
    assert!(summary.contains("no output yet, CPU 97%"), "{summary}");
    assert!(summary.ends_with("no timeout"), "{summary}");

    let path = made.rig.path(Place::Queue(Class::Cpu), &names[2]);
    rigor_queue::claim::quarantine(&made.rig, &path, "its checksum is wrong").unwrap();
    let text = made.rigor(&["why", &names[2].id.short()]).ok().stdout;
    assert_eq!(
        first_line(&text),
        "never: its file is in quarantine: its checksum is wrong"
    );
    let text = made.rigor(&["why", &batch]).ok().stdout;
    assert!(
        text.contains("1 failed: exit_code: exit code 3: no such file"),
        "{text}"
    );
}

#[test]
fn an_agent_is_explained_dead_or_alive() {
    let made = HandMade::new();
    let text = made.rigor(&["why", "gpu-1"]).ok().stdout;
    let line = first_line(&text);
    assert_eq!(
        line,
        "gpu-1 is down: it was never started. Start it: rigor up"
    );
    let (lock, mut beat) = alive(&made, "gpu-1");
    beat.idle_since = Some(Timestamp::now() - SignedDuration::from_mins(4));
    beat.idle = Some(refusal(Refusal::Paused, "paused by the operator"));
    beat.health = Health::Paused;
    beat.health_reason = Some("paused by the operator".to_owned());
    presence::beat(&made.rig, "gpu-1", &beat).unwrap();
    let status = made.rigor(&["status"]).ok().stdout;
    let said = status.matches("paused by the operator").count();
    assert_eq!((said, status.contains("paused: ")), (1, false), "{status}");
    let mut journal = ReasonLog::open(&made.rig, "gpu-1").unwrap();
    let note = |journal: &mut ReasonLog, minutes, cause, detail: &str| {
        let since = Timestamp::now() - SignedDuration::from_mins(minutes);
        let reason = Reason {
            since,
            cause,
            code: None,
            detail: detail.to_owned(),
            batches: Vec::new(),
        };
        assert!(journal.note(reason).unwrap());
    };
    note(&mut journal, 20, Cause::NoWork, "nothing queued");
    note(&mut journal, 4, Cause::Paused, "by the operator");
    let json = made.rigor(&["why", "gpu-1", "--json"]).ok().json();
    assert_eq!(
        (&json["kind"], &json["verdict"], &json["reason"]),
        (&"agent".into(), &"idle".into(), &"paused".into())
    );
    let changes = json["gates"].as_array().unwrap();
    let changes = changes.iter().filter(|gate| gate["gate"] == "changed");
    assert_eq!(changes.count(), 2);
    let text = made.rigor(&["why", "gpu-1"]).ok().stdout;
    let line = first_line(&text);
    assert_eq!(line, "gpu-1 idle for 4m: paused - paused by the operator");
    assert!(text.contains("rigor resume gpu-1"), "{text}");

    let past = made
        .rigor(&["why", "gpu-1", "--since", "10m", "--json"])
        .ok()
        .json();
    assert_eq!(past["schema"], 1);
    let gpu = &past["gpus"][0];
    let causes: Vec<&str> = gpu["spans"]
        .as_array()
        .unwrap()
        .iter()
        .map(|span| span["cause"].as_str().unwrap())
        .collect();
    assert_eq!(causes, ["no_work", "paused"]);
    let total: f64 = gpu["totals"]
        .as_object()
        .unwrap()
        .values()
        .map(|seconds| seconds.as_f64().unwrap())
        .sum();
    assert!((total - 600.0).abs() < 0.001, "{past:#}");
    let at = (Timestamp::now() - SignedDuration::from_mins(6)).to_string();
    let text = made.rigor(&["why", "gpu-1", "--at", &at]).ok().stdout;
    assert!(
        first_line(&text).ends_with("no work - nothing queued"),
        "{text}"
    );
    assert!(text.contains("In all: "), "{text}");
    made.rigor(&["why", "gpu-1", "--at", "soon"])
        .exits(1)
        .says("write 21:45");

    drop(lock);
    let text = made.rigor(&["why", "gpu-1"]).ok().stdout;
    let line = first_line(&text);
    assert!(line.starts_with("gpu-1 is down: dead since "), "{line}");
    assert!(line.ends_with("Start it: rigor up"), "{line}");
    let text = made.rigor(&["why", "brain"]).ok().stdout;
    assert!(first_line(&text).contains("Start it: rigor up"), "{text}");
}

#[test]
fn a_waiting_task_says_what_its_dependency_is_at() {
    let made = HandMade::new();
    let (batch, _plan) = made.running_batch();
    let _brain = alive(&made, BRAIN);
    let (_lock, mut beat) = alive(&made, "gpu-1");
    beat.cpu_slots = (0, 4);
    presence::beat(&made.rig, "gpu-1", &beat).unwrap();
    let names = made.waiting(&batch, "two", &["v1"]);
    let view = serde_json::json!({
        "id": batch, "plan": "video-tags", "state": "running", "total": 12, "done": 2,
        "tasks": [
            {"id": "one", "class": "cpu", "foreach": true, "expanded": true, "total": 10,
             "done": 2, "running": 8},
            {"id": "two", "class": "cpu", "foreach": true, "expanded": true, "total": 1,
             "waiting": 1, "depends_on": ["one"]},
        ],
    });
    let brain = made.rig.brain_dir();
    std::fs::create_dir_all(brain.join("batches")).unwrap();
    std::fs::write(
        brain.join("batches").join(format!("{batch}.json")),
        view.to_string(),
    )
    .unwrap();
    let line = |what: &str| {
        let text = made.rigor(&["why", what]).ok().stdout;
        first_line(&text).to_owned()
    };
    let short = names[0].id.short();
    assert_eq!(
        line(&short),
        "not yet: waits for one: 2/10 done, 8 queued; ETA unknown: nothing measured for one"
    );
    let measured = r#"{"video-tags/one": {"seconds": 30.0, "runs": 2}}"#;
    std::fs::write(brain.join("measured.json"), measured).unwrap();
    assert_eq!(
        line(&short),
        "not yet: waits for one: 2/10 done, 8 queued; about 1m (8 left x 30s measured over \
         2 runs, on 4 CPU slots)"
    );
    let text = made.rigor(&["why", &batch]).ok().stdout;
    assert!(text.contains("critical path"), "{text}");
    assert!(text.contains("one 1m -> two 20s"), "{text}");
    std::fs::write(brain.join("held").join(&batch), "").unwrap();
    let held = format!("not yet: its batch is held by an operator (rigor release {batch})");
    assert_eq!(line(&short), held);
    // The word for a whole name is as good as its id.
    assert_eq!(line(&format!("{batch}/two_v1")), held);
}

#[test]
fn a_name_that_is_not_there_is_answered_with_the_nearest_of_all() {
    let made = HandMade::new();
    let (batch, _plan) = made.running_batch();
    made.queued(&batch, "transcribe", &["v1"]);
    for (text, near) in [
        ("gpu-11", "gpu-1".to_owned()),
        ("transcribe_v2", format!("{batch}/transcribe_v1")),
        ("vidoe-tags", batch.clone()),
    ] {
        made.rigor(&["why", text])
            .exits(1)
            .says(&format!("did you mean {near}?"));
    }
}

#[test]
fn the_log_level_is_a_signal() {
    let made = HandMade::new();
    made.rigor(&["log-level", "gpu-1", "debug", "--for", "10m"])
        .ok()
        .says("gpu-1 logs at DEBUG for 10m");
    let signals = made.signals("gpu-1");
    assert_eq!(signals[0].0, "log-level");
    let content: serde_json::Value = serde_json::from_str(&signals[0].1).unwrap();
    assert_eq!(content["level"], "DEBUG");
    let until: Timestamp = content["until"].as_str().unwrap().parse().unwrap();
    let left = until.duration_since(Timestamp::now());
    assert!((590..=600).contains(&left.as_secs()), "{left}");
    let shown = made.rigor(&["log-level", "gpu-1"]).ok();
    assert!(shown.line().starts_with("DEBUG for 9m"), "{}", shown.stdout);
    made.rigor(&["log-level", "gpu-1", "loud"])
        .exits(2)
        .says("use DEBUG, INFO, WARNING or ERROR");
    made.rigor(&["log-level", "gpu-1", "--reset"])
        .ok()
        .says("at its own level again");
    assert!(made.signals("gpu-1").is_empty());
    assert_eq!(
        made.rigor(&["log-level", "gpu-1"]).ok().line(),
        "as it was started"
    );
    made.rigor(&["log-level", "brain", "debug"]).ok();
    assert_eq!(made.signals(BRAIN)[0].0, "log-level");
    made.rigor(&["log-level", "gpu-9", "debug"])
        .exits(1)
        .says("did you mean");
}
