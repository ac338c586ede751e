//! GPUs that are lent to another agent's runtime.

use std::fs;

use jiff::{SignedDuration, Timestamp};
use rigor_queue::heartbeat::{LlmBeat, Refusal};
use rigor_queue::reasons::{self, Cause};
use rigor_queue::record::{FailureKind, Outcome};
use rigor_queue::rig::{Place, RIG_BATCH};
use rigor_queue::task::{Class, Vram, Work};

use crate::models::SERVER;
use crate::rig::TestRig;

/// Two GPUs, and a model over both of them.
fn rig() -> TestRig {
    let rig = TestRig::new(2, "");
    let server = rig.root().join("server.py");
    fs::write(&server, SERVER).expect("write the server");
    let path = rig.root().join("rig.toml");
    let text = fs::read_to_string(&path).expect("read rig.toml");
    let command = format!("python3 {} {{PORT}}", server.display());
    let model = format!(
        "\n[[model]]\nid = \"m\"\nkind = \"chat\"\nruntime = \"command\"\ncommand = {command:?}\nslots = 2\nsplit_gpu = 2\nvram_mb = 8000\nenv = {{ RIGOR_SIM_VRAM_MB = \"8000\" }}\n"
    );
    fs::write(&path, text + &model).expect("write rig.toml");
    rig
}

fn lend(agent: &str, to: &str) -> Work {
    Work::LendGpu {
        agent: agent.into(),
        to: to.into(),
        model: "m".into(),
        gpus: 2,
        expires: Timestamp::now() + SignedDuration::from_mins(10),
    }
}

fn load_over(on: &str, lenders: &[&str]) -> Work {
    Work::LoadLlm {
        model: "m".into(),
        eligible: vec![on.into()],
        lenders: lenders.iter().map(|name| (*name).to_owned()).collect(),
        expires: Timestamp::now() + SignedDuration::from_mins(10),
    }
}

fn unload(agent: &str) -> Work {
    Work::UnloadLlm {
        agent: agent.into(),
        next: None,
    }
}

fn is_lent(rig: &TestRig, agent: &str) -> bool {
    rig.heartbeat(agent)
        .is_some_and(|beat| matches!(beat.llm, LlmBeat::Lent { ref to, .. } if to == "gpu-1"))
}

#[test]
fn two_agents_lend_and_one_runs_the_model_over_both() {
    let rig = rig();
    let _leader = rig.agent("gpu-1");
    let _lender = rig.agent("gpu-2");
    rig.meta("lend_2", lend("gpu-2", "gpu-1"));
    rig.meta("lend_1", lend("gpu-1", "gpu-1"));
    rig.wait("both lend", || {
        is_lent(&rig, "gpu-1") && is_lent(&rig, "gpu-2")
    });
    // Half of the model is promised of each.
    let available = |agent: &str| {
        rig.heartbeat(agent)
            .and_then(|beat| beat.gpu)
            .map(|gpu| gpu.available_mb)
    };
    assert!(available("gpu-2") < Some(1000), "{:?}", available("gpu-2"));
    let mut script = rig.spec(Class::Script, "script", "true");
    script.vram = Vram::Fixed { mb: 100 };
    script.on = vec!["gpu-2".into()];
    rig.queue(&script);
    rig.wait("the script is refused", || {
        let verdict = rig
            .heartbeat("gpu-2")
            .and_then(|beat| beat.verdicts.get(&Class::Script).cloned());
        verdict.is_some_and(|it| {
            it.code == Refusal::HoldingModel && it.detail.contains("lent to gpu-1 for m")
        })
    });

    rig.meta("load", load_over("gpu-1", &["gpu-2"]));
    rig.wait("it is hot over both", || {
        rig.heartbeat("gpu-1").is_some_and(
            |beat| matches!(beat.llm, LlmBeat::Hot { ref lenders, .. } if *lenders == ["gpu-2"]),
        )
    });
    rig.wait("the runtime has memory of the lender's GPU", || {
        let gpu = rig.heartbeat("gpu-2").and_then(|beat| beat.gpu);
        gpu.is_some_and(|gpu| gpu.used_mb >= 4000 && gpu.foreign.is_none())
    });
    let journal = reasons::read(&rig.rig, "gpu-2", Timestamp::MIN).unwrap();
    let lent = journal.iter().find(|entry| entry.cause == Cause::Lent);
    assert_eq!(lent.map(|entry| entry.detail.as_str()), Some("m on gpu-1"));

    rig.meta("unload_1", unload("gpu-1"));
    rig.wait("it is cold", || {
        rig.heartbeat("gpu-1")
            .is_some_and(|beat| beat.llm == LlmBeat::Cold)
    });
    assert!(is_lent(&rig, "gpu-2"), "it is given back by its own task");
    rig.meta("unload_2", unload("gpu-2"));
    rig.wait("the script", || rig.complete() == 1);
    assert_eq!(rig.count(Place::Complete(RIG_BATCH)), 5);
}

#[test]
fn a_load_over_a_gpu_that_nobody_lends_fails_by_name() {
    let rig = rig();
    let _leader = rig.agent("gpu-1");
    rig.meta("lend", lend("gpu-1", "gpu-1"));
    rig.wait("it lends", || is_lent(&rig, "gpu-1"));
    let load = rig.meta("load", load_over("gpu-1", &["gpu-2"]));
    rig.wait("the failure", || rig.count(Place::Retry(RIG_BATCH)) == 1);
    let Outcome::Failed { kind, reason } = rig.record_of(RIG_BATCH, &load).outcome else {
        panic!("it did not fail")
    };
    // No failure of the model's, after which nobody would try it for a while.
    assert_eq!(kind, FailureKind::Setup);
    assert!(
        reason.contains("gpu-2 does not lend its GPU any more"),
        "{reason}"
    );
    assert!(is_lent(&rig, "gpu-1"), "the group may still be completed");
    rig.meta("unload", unload("gpu-1"));
    rig.wait("its own memory is free again", || {
        let gpu = rig.heartbeat("gpu-1").and_then(|beat| beat.gpu);
        gpu.is_some_and(|gpu| gpu.available_mb > 4000)
    });
}
