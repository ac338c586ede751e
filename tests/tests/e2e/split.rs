//! A model over the GPUs of two agents, beside a model on one GPU and scripts.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::replay::replay;
use rigor_queue::heartbeat::LlmBeat;
use rigor_tests::journal::{self, command, noted};
use rigor_tests::{Rig, Setup, parts};

/// Tasks of each batch.
const TASKS: usize = 16;

/// Three GPUs of 6 GB; `big` fits two of them, `small` one.
fn rig() -> Rig {
    let rig = Setup {
        gpus: 3,
        ..Setup::default()
    }
    .make();
    rig.edit_toml(|mut text| {
        for (model, vram_mb, split) in [("big", 6000, "split_gpu = 2\n"), ("small", 3000, "")] {
            text += &format!(
                "\n[[model]]\nid = \"{model}\"\nkind = \"chat\"\nruntime = \"llama-server\"\nfile = {:?}\nslots = 1\ncontext = 2048\n\
                 vram_mb = {vram_mb}\n{split}env = {{ RIGOR_SIM_VRAM_MB = \"{vram_mb}\" }}\n",
                parts::fixture("model")
            );
        }
        text
    });
    rig
}

fn plan(rig: &Rig, name: &str, head: &str, work: &str) -> PathBuf {
    let plan = rig.plan(
        name,
        &format!(
            "### work\n\n{head}- **foreach**: `items.txt`\n{}",
            command(&noted(work))
        ),
    );
    let items: String = (1..=TASKS).map(|n| format!("i{n}\n")).collect();
    fs::write(plan.join("items.txt"), items).unwrap();
    plan
}

fn asking(rig: &Rig, model: &str) -> PathBuf {
    let ask = format!(
        "sleep 0.3; curl -sf \"$OPENAI_BASE_URL/chat/completions\" -H 'Content-Type: application/json' \
         -d '{{\"model\":\"{model}\",\"max_tokens\":8,\"messages\":[{{\"role\":\"user\",\"content\":\"Hello\"}}]}}' -o /dev/null"
    );
    let head = format!("- **task_class**: llm\n- **llm_model**: {model}\n- **retries**: 5\n");
    plan(rig, &format!("ask-{model}"), &head, &ask)
}

/// Every task came to its end once.
#[track_caller]
fn each_ended_once(plan: &Path) {
    let mut ended = journal::read(plan);
    ended.retain(|one| one.ended);
    let tasks: BTreeSet<&str> = ended.iter().map(|one| one.task.as_str()).collect();
    assert_eq!((ended.len(), tasks.len()), (TASKS, TASKS));
}

/// The agent that runs `big`, and the one that lends to it; none while it is not loaded.
fn group(rig: &Rig) -> Option<(String, String)> {
    let group = rig
        .agents()
        .into_iter()
        .find_map(|name| match rig.heartbeat(&name)?.llm {
            LlmBeat::Hot { model, lenders, .. } if model == "big" => Some((name, lenders)),
            _ => None,
        });
    let (leader, lenders) = group?;
    assert_eq!(lenders.len(), 1, "{leader} runs a part of it");
    Some((leader, lenders[0].clone()))
}

fn ended(plan: &Path) -> usize {
    journal::read(plan).iter().filter(|one| one.ended).count()
}

#[test]
fn a_split_model_runs_beside_others_and_outlives_its_agents() {
    let mut rig = rig();
    let big = asking(&rig, "big");
    let small = asking(&rig, "small");
    let head = "- **task_class**: script\n- **vram_estimate_mb**: 500\n";
    let scripts = plan(&rig, "scripts", head, "sleep 0.2");
    let batches = [&big, &small, &scripts].map(|plan| (plan.clone(), rig.submit(plan)));
    rig.start_brain();
    for agent in ["gpu-1", "gpu-2", "gpu-3"] {
        rig.start_agent(agent);
    }
    rig.wait("big runs", |rig| group(rig).is_some() && ended(&big) >= 2);
    let (leader, lender) = group(&rig).unwrap();
    rig.wait("its lender says so", |rig| {
        matches!(rig.heartbeat(&lender).map(|beat| beat.llm), Some(LlmBeat::Lent { model, to, .. }) if model == "big" && to == leader)
    });
    let why = rig.rigor(&["why", &lender]);
    let first = why.stdout.lines().next().unwrap_or_default();
    assert_eq!(
        first,
        format!("{lender} lends its GPU to {leader}, which runs big over 2 GPUs")
    );
    rig.wait("the third serves the others", |_| {
        ended(&small) + ended(&scripts) >= 2
    });

    // The runtime has lost hold of a GPU: it goes, and is gathered anew.
    rig.kill(&lender);
    rig.wait_for_line("brain", &format!("{lender} is not running"));
    rig.start_agent(&lender);
    let before = ended(&big);
    rig.wait("big runs again", |rig| {
        group(rig).is_some() && ended(&big) > before
    });

    let (leader, lender) = group(&rig).unwrap();
    rig.kill(&leader);
    rig.wait("the lender has its GPU again", |rig| {
        !matches!(rig.heartbeat(&lender).map(|beat| beat.llm), Some(LlmBeat::Lent { to, .. }) if to == leader)
    });
    rig.start_agent(&leader);
    for (plan, batch) in &batches {
        assert_eq!(rig.wait_batch(batch), 0, "{}", plan.display());
        each_ended_once(plan);
    }
    let time = rig.summary(&big, &batches[0].1)["gpu_time"].to_string();
    assert!(time.contains("\"lent\""), "{time}");
    let log = rig.log("brain");
    for text in [
        "Gathering ",
        "All GPUs for big are reserved",
        "big runs on ",
    ] {
        assert!(log.contains(text), "{text:?} is not in the brain's log");
    }
    // Groups that were gathered and given back are decided again as they were.
    let journal = rig.root().join("brain/placement.jsonl");
    let (code, report, shown) = replay(&rig, &journal);
    assert_eq!(code, 0, "{}", shown.stdout);
    assert_eq!(report["equal"], report["decisions"]);
    assert!(fs::read_to_string(journal).unwrap().contains("\"lend\""));
}
