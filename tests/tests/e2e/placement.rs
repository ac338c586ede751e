//! Several models on several GPUs: who gets which, whatever dies meanwhile.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rigor_queue::heartbeat::LlmBeat;
use rigor_queue::reasons::Cause;
use rigor_tests::journal::{self, command, noted};
use rigor_tests::{Rig, Setup, parts};
use serde_json::{Value, json};

/// Tasks of each batch.
const TASKS: usize = 24;
/// The agent that is killed, and the other one.
const VICTIM: &str = "gpu-1";
const OTHER: &str = "gpu-2";
/// The stand-in runtime's load: long enough to be killed in.
const LOAD_MS: u64 = 2500;

/// Two GPUs on which one of two models fits at a time, served by that program.
fn rig_with(server: Option<PathBuf>) -> Rig {
    let rig = Setup {
        gpus: 2,
        ..Setup::default()
    }
    .make();
    let behaviour = rig.root().join("runtime-stand-in.json");
    let told = json!({"load_ms": LOAD_MS, "latency_ms": 300, "vram_mb": 3000});
    fs::write(&behaviour, told.to_string()).unwrap();
    rig.edit_toml(|mut text| {
        if let Some(server) = server {
            let llama = parts::fixture("llama_server").display().to_string();
            assert!(text.contains(&llama), "{text}");
            text = text.replace(&llama, &server.display().to_string());
        }
        for model in ["a", "b"] {
            text += &format!(
                "\n[[model]]\nid = \"{model}\"\nkind = \"chat\"\nruntime = \"llama-server\"\nfile = {:?}\nslots = 1\ncontext = 2048\n\
                 vram_mb = 3000\nenv = {{ RIGOR_SIM_VRAM_MB = \"3000\", RIGOR_RUNTIME_STAND_IN = {behaviour:?} }}\n",
                parts::fixture("model")
            );
        }
        text
    });
    rig
}

/// A plan whose tasks each ask the model once, and note that they do.
fn asking(rig: &Rig, model: &str) -> PathBuf {
    let ask = format!(
        "curl -sf \"$OPENAI_BASE_URL/chat/completions\" -H 'Content-Type: application/json' \
         -d '{{\"model\":\"{model}\",\"max_tokens\":8,\"messages\":[{{\"role\":\"user\",\"content\":\"Hello\"}}]}}' -o /dev/null"
    );
    let plan = rig.plan(
        &format!("ask-{model}"),
        &format!(
            "### ask\n\n- **task_class**: llm\n- **llm_model**: {model}\n- **foreach**: `items.txt`\n{}",
            command(&noted(&ask))
        ),
    );
    let items: String = (1..=TASKS).map(|n| format!("i{n}\n")).collect();
    fs::write(plan.join("items.txt"), items).unwrap();
    plan
}

/// Every task came to its end, once, in its first attempt.
#[track_caller]
fn each_once(plan: &Path) {
    let attempts = journal::read(plan);
    let tasks: BTreeSet<&str> = attempts.iter().map(|one| one.task.as_str()).collect();
    assert_eq!((attempts.len(), tasks.len()), (TASKS, TASKS));
    let wrong: Vec<_> = attempts
        .iter()
        .filter(|one| one.attempt != 1 || !one.ended)
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// Each GPU's time by cause sums up to the wall time, to the millisecond; the victim's is given.
#[track_caller]
fn every_second_has_its_cause(summary: &Value) -> Value {
    let time = &summary["gpu_time"];
    let gpus = time["gpus"].as_array().expect("gpu_time.gpus");
    assert_eq!(gpus.len(), 2, "{time}");
    for gpu in gpus {
        let causes = gpu["ms"].as_object().expect("ms").values();
        let sum: i64 = causes.map(|ms| ms.as_i64().expect("whole ms")).sum();
        assert_eq!(Some(sum), time["wall_ms"].as_i64(), "{time}");
    }
    let victim = gpus.iter().find(|gpu| gpu["agent"] == VICTIM);
    victim.expect("every GPU is there")["ms"].clone()
}

fn is_loading(rig: &Rig, agent: &str) -> bool {
    rig.heartbeat(agent)
        .is_some_and(|beat| matches!(beat.llm, LlmBeat::Loading { .. }))
}

/// Both batches are there before the brain: the first look at the rig sees two models.
fn submitted(rig: &mut Rig) -> [(PathBuf, String); 2] {
    let batches = ["a", "b"].map(|model| {
        let plan = asking(rig, model);
        let batch = rig.submit(&plan);
        (plan, batch)
    });
    rig.start_brain();
    rig.start_agent(VICTIM);
    rig.start_agent(OTHER);
    batches
}

#[test]
fn two_batches_with_two_models_survive_an_agent_killed_in_a_load() {
    let mut rig = rig_with(Some(parts::program("runtime-stand-in")));
    let batches = submitted(&mut rig);
    rig.wait("both load", |rig| {
        [VICTIM, OTHER].iter().all(|agent| is_loading(rig, agent))
    });
    rig.kill(VICTIM);
    let ended = |agent: &str| {
        let all = batches.iter().flat_map(|(plan, _)| journal::read(plan));
        all.filter(|one| one.ended && one.agent == agent).count()
    };
    rig.wait("the other one works", |_| ended(OTHER) >= 5);
    assert_eq!(ended(VICTIM), 0, "it was killed before it could work");
    rig.start_agent(VICTIM);
    let mut down_ms = 0;
    for (plan, batch) in &batches {
        assert_eq!(rig.wait_batch(batch), 0);
        each_once(plan);
        let summary = rig.summary(plan, batch);
        assert_eq!(
            (&summary["done"], &summary["failed"]),
            (&TASKS.into(), &0.into())
        );
        let victim = every_second_has_its_cause(&summary);
        let down = victim[Cause::AgentDown.as_str()].as_i64().unwrap_or(0);
        down_ms = down_ms.max(down);
    }
    // It was not there from the kill until the other one had loaded and done five tasks.
    assert!(down_ms >= 1000, "{VICTIM} was down for {down_ms} ms");
}

/// The same over llama.cpp. Its load of a tiny model is over in a moment: the kill hits that or
/// what comes right after it.
#[test]
fn the_same_over_llama_cpp() {
    let mut rig = rig_with(None);
    let batches = submitted(&mut rig);
    rig.wait("it begins a load", |rig| {
        rig.log(VICTIM).contains("] INFO  Loading ") || is_loading(rig, VICTIM)
    });
    rig.kill(VICTIM);
    rig.start_agent(VICTIM);
    for (plan, batch) in &batches {
        assert_eq!(rig.wait_batch(batch), 0);
        let mut ended = journal::read(plan);
        ended.retain(|one| one.ended);
        let tasks: BTreeSet<&str> = ended.iter().map(|one| one.task.as_str()).collect();
        assert_eq!((ended.len(), tasks.len()), (TASKS, TASKS));
        every_second_has_its_cause(&rig.summary(plan, batch));
    }
}
