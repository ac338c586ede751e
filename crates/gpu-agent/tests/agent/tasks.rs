use std::collections::BTreeSet;
use std::fs;

use rigor_queue::heartbeat::Refusal;
use rigor_queue::presence;
use rigor_queue::record::{FailureKind, Outcome};
use rigor_queue::rig::Place;
use rigor_queue::task::{Class, Vram};

use crate::rig::{BATCH, TestRig};

#[test]
fn cpu_tasks_run_with_their_environment() {
    let rig = TestRig::new(1, "");
    let early = rig.run(
        Class::Cpu,
        "early",
        "echo \"$RIGOR_AGENT $RIGOR_ATTEMPT [$CUDA_VISIBLE_DEVICES]\" > early",
    );
    let agent = rig.agent("gpu-1");
    rig.wait("the task that was there first", || rig.complete() == 1);
    for n in 0..4 {
        rig.run(Class::Cpu, &format!("late_{n}"), "true");
    }
    rig.wait("the tasks that came later", || rig.complete() == 5);
    assert_eq!(
        fs::read_to_string(rig.scratch().join("early")).unwrap(),
        "gpu-1 1 []\n"
    );
    let record = rig.record(&early);
    assert_eq!(
        (record.outcome, record.agent.as_str()),
        (Outcome::Succeeded, "gpu-1")
    );

    rig.wait("the counts in the heartbeat", || {
        rig.heartbeat("gpu-1")
            .is_some_and(|beat| beat.completed == 5)
    });
    let short = early.id.short();
    for line in [
        "INFO  GPU agent initialized: gpu-1 (stand-in GPU 0), port ".to_owned(),
        "INFO  GPU agent gpu-1 starting".to_owned(),
        format!("DEBUG Attempting claim: {short}"),
        format!("INFO  Claimed cpu task: {short} (early)"),
        format!("INFO  Spawned worker {short}.a1 (PID "),
        format!("INFO  Worker {short}.a1 finished: OK ("),
        "DEBUG Queue empty".to_owned(),
        "DEBUG Heartbeat sent - status: idle, idle: 0s, GPU: 40C 0MB/6144MB 0%".to_owned(),
    ] {
        // Lines are written behind the agent's back, so the last ones may still be on their way.
        rig.wait_for_line("gpu-1", &line);
    }
    drop(agent);
}

#[test]
fn a_failure_goes_to_retry_with_its_reason() {
    let rig = TestRig::new(0, "");
    let name = rig.run(Class::Cpu, "bad", "exit 3");
    let mut spec = rig.spec(Class::Cpu, "secretive", "true");
    spec.secrets = vec!["token".into()];
    let secretive = rig.queue(&spec);
    let _agent = rig.agent("cpu-1");
    rig.wait("both in retry", || rig.count(Place::Retry(BATCH)) == 2);
    let Outcome::Failed { kind, .. } = rig.record(&name).outcome else {
        panic!("it did not fail")
    };
    assert_eq!(kind, FailureKind::ExitCode);
    let Outcome::Failed { kind, reason } = rig.record(&secretive).outcome else {
        panic!("it did not fail")
    };
    assert_eq!(kind, FailureKind::Setup);
    assert!(reason.contains("token"), "{reason}");
    rig.wait("the count", || {
        rig.heartbeat("cpu-1").is_some_and(|beat| beat.failed == 2)
    });
}

#[test]
fn three_agents_share_two_hundred_tasks_and_run_each_once() {
    let rig = TestRig::new(3, "");
    for n in 0..200 {
        rig.run(
            Class::Cpu,
            &format!("t_{n}"),
            &format!("echo x >> ran_{n}; echo $RIGOR_AGENT >> agents"),
        );
    }
    let _agents = ["gpu-1", "gpu-2", "gpu-3"].map(|name| rig.agent(name));
    rig.wait("200 complete", || rig.complete() == 200);
    for n in 0..200 {
        let ran = fs::read_to_string(rig.scratch().join(format!("ran_{n}"))).unwrap();
        assert_eq!(ran, "x\n", "task {n}");
    }
    let agents = fs::read_to_string(rig.scratch().join("agents")).unwrap();
    let agents: BTreeSet<&str> = agents.lines().collect();
    assert_eq!(agents.len(), 3, "{agents:?}");
    assert_eq!(rig.count(Place::Queue(Class::Cpu)), 0);
}

#[test]
fn an_unmeasured_script_runs_alone_and_measured_ones_side_by_side() {
    let rig = TestRig::new(1, "[limits]\ncpu_slots = 8\n");
    // Each waits until it has been alone, or with others, long enough to be seen.
    let command = "echo \"$CUDA_VISIBLE_DEVICES\" > gpu; touch running_$RIGOR_TASK_ID; \
                   sleep 0.7; ls running_* | wc -l >> together; sleep 0.3; rm running_$RIGOR_TASK_ID";
    let mut names = Vec::new();
    for n in 0..4 {
        let mut spec = rig.spec(Class::Script, &format!("s_{n}"), command);
        spec.env.insert("RIGOR_SIM_VRAM_MB".into(), "1000".into());
        names.push(rig.queue(&spec));
    }
    let _agent = rig.agent("gpu-1");
    rig.wait("all complete", || rig.complete() == 4);
    let together = fs::read_to_string(rig.scratch().join("together")).unwrap();
    let together: Vec<&str> = together.split_whitespace().collect();
    assert_eq!(together[0], "1", "the first ran alone: {together:?}");
    assert!(
        together.contains(&"3"),
        "then the others together: {together:?}"
    );
    assert_eq!(
        fs::read_to_string(rig.scratch().join("gpu"))
            .unwrap()
            .trim(),
        rig.state.gpus[0].uuid
    );
    assert_eq!(rig.record(&names[0]).peaks.vram_mb, Some(1000));
    let log = rig.log("gpu-1");
    assert!(log.contains("[alone on the GPU until measured]"), "{log}");
    assert!(
        log.contains(") [1100MB, ") && log.contains("MB remaining]"),
        "{log}"
    );
    assert!(log.contains(", VRAM peak 1000MB)"), "{log}");
    assert!(log.contains("Not claiming: vram_short"), "{log}");
}

#[test]
fn what_needs_more_memory_than_there_is_is_refused_with_numbers() {
    let rig = TestRig::new(1, "");
    let mut spec = rig.spec(Class::Script, "large", "true");
    spec.vram = Vram::Fixed { mb: 9000 };
    rig.queue(&spec);
    let _agent = rig.agent("gpu-1");
    rig.wait("the verdict", || {
        rig.heartbeat("gpu-1")
            .is_some_and(|beat| beat.idle.is_some_and(|it| it.code == Refusal::VramShort))
    });
    let beat = rig.heartbeat("gpu-1").unwrap();
    assert_eq!(
        beat.verdicts[&Class::Script].detail,
        "script:1 need 9000MB, have 4915MB of 4915MB, short by 4085MB: never fits here"
    );
    assert_eq!(rig.count(Place::Queue(Class::Script)), 1);
}

#[test]
fn cpu_slots_are_never_exceeded() {
    let rig = TestRig::new(0, "[limits]\ncpu_slots = 2\n");
    for n in 0..6 {
        rig.run(
            Class::Cpu,
            &format!("t_{n}"),
            "touch on_$RIGOR_TASK_ID; ls on_* | wc -l >> seen; sleep 0.1; rm on_$RIGOR_TASK_ID",
        );
    }
    let _agent = rig.agent("cpu-1");
    rig.wait("all complete", || rig.complete() == 6);
    let seen = fs::read_to_string(rig.scratch().join("seen")).unwrap();
    assert!(
        seen.split_whitespace().all(|n| n == "1" || n == "2"),
        "{seen}"
    );
    let log = rig.log("cpu-1");
    assert!(log.contains("Not claiming: cpu_slots_full 2/2 ("), "{log}");
    assert!(log.contains(" - Queue: [cpu:4]"), "{log}");
}

#[test]
fn an_attempt_is_aborted_and_killed_by_signal() {
    let rig = TestRig::new(0, "");
    let names = [
        rig.run(Class::Cpu, "a", "sleep 600"),
        rig.run(Class::Cpu, "k", "sleep 600"),
    ];
    let _agent = rig.agent("cpu-1");
    for name in &names {
        rig.wait_for_line("cpu-1", &format!("Spawned worker {}", name.id.short()));
    }
    let note = r#"{"reason":"enough"}"#;
    presence::send(
        &rig.rig,
        "cpu-1",
        &format!("{}.abort", names[0].attempt_stem()),
        note,
    )
    .unwrap();
    presence::send(
        &rig.rig,
        "cpu-1",
        &format!("{}.kill", names[1].attempt_stem()),
        note,
    )
    .unwrap();
    rig.wait("both in retry", || rig.count(Place::Retry(BATCH)) == 2);
    for name in &names {
        let outcome = rig.record(name).outcome;
        assert_eq!(
            outcome,
            Outcome::Failed {
                kind: FailureKind::Aborted,
                reason: "enough".into()
            }
        );
    }
    rig.wait("the signals are consumed", || {
        presence::signals(&rig.rig, "cpu-1").unwrap().is_empty()
    });
}

#[test]
fn a_damaged_file_is_quarantined_and_the_others_run() {
    let rig = TestRig::new(0, "");
    let bad = rig.run(Class::Cpu, "bad", "true");
    fs::write(rig.rig.path(Place::Queue(Class::Cpu), &bad), "{ torn").unwrap();
    // Named as one shape, saying another.
    let mut liar = rig.spec(Class::Cpu, "liar", "true");
    liar.cpus = 2;
    let name = rigor_queue::name::FileName::first(5, 900_000, bad.shape, liar.id);
    rigor_queue::submit::submit(
        &rig.rig,
        Place::Queue(Class::Cpu),
        &name,
        &liar,
        rigor_queue::submit::Durability::Process,
    )
    .unwrap();
    rig.run(Class::Cpu, "good", "true");
    let _agent = rig.agent("cpu-1");
    rig.wait("the good one", || rig.complete() == 1);
    rig.wait("the bad ones", || rig.count(Place::Quarantine) == 2);
    let log = rig.log("cpu-1");
    assert!(log.contains("WARNING Quarantined task file"), "{log}");
    assert_eq!(rig.count(Place::Queue(Class::Cpu)), 0);
}
