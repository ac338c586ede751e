use rigor_queue::claim::peek;
use rigor_queue::heartbeat::{Health, Heartbeat, LlmBeat};
use rigor_queue::lane::Move;
use rigor_queue::name::{FileName, TaskId};
use rigor_queue::presence;
use rigor_queue::rig::Place;
use rigor_queue::submit::{Durability, submit};
use rigor_queue::task::{Class, TaskSpec, Work};

use crate::hand_made::HandMade;

#[test]
fn the_brain_is_told_by_signals() {
    let made = HandMade::new();
    let (batch, plan) = made.running_batch();
    let names = made.queued(&batch, "tag", &["v1", "v2"]);
    let (failed, queued) = (names[0].id, names[1].id);
    let held = made.claim(Class::Cpu, &names[0], "gpu-1");
    made.fail(held, "exit code 3");
    let mut sent = Vec::new();
    for (words, signal, content) in [
        (vec!["hold", "video"], format!("{batch}.hold"), ""),
        (vec!["release", &batch], format!("{batch}.release"), ""),
        (vec!["cancel", &batch], format!("{batch}.cancel"), ""),
        (
            vec!["cancel", &queued.to_string()],
            format!("{queued}.cancel"),
            "",
        ),
        (
            vec!["retry", &failed.to_string()[..8]],
            format!("{failed}.retry"),
            &*batch,
        ),
        (
            vec!["retry", &batch, "--failed"],
            format!("{batch}.retry"),
            r#"{"failed":true}"#,
        ),
    ] {
        let done = made.rigor(&words).ok().says("The brain is not running");
        assert_eq!(done.stdout, "");
        sent.push((signal, content.to_owned()));
        sent.sort();
        assert_eq!(made.signals("brain"), sent, "{words:?}");
    }
    made.rigor(&["retry", &batch]).exits(1).says("--failed");
    made.rigor(&["retry", &queued.to_string()])
        .exits(1)
        .says("lies in queue");
    made.rigor(&["cancel", &failed.to_string()])
        .exits(1)
        .says("over already");
    made.rigor(&["cancel", "gpu-1"])
        .exits(1)
        .says("is an agent");
    made.rigor(&["cancel", &batch, "nothing-like-it"]).exits(1);
    plan.close(&made.rig, Move::CloseFailed).unwrap();
    made.rigor(&["hold", &batch])
        .exits(1)
        .says("over already: failed");
    assert_eq!(made.signals("brain"), sent, "what is refused is not sent");
}

#[test]
fn agents_are_paused_and_resumed_even_before_they_ever_ran() {
    let made = HandMade::new();
    let none: Vec<(String, String)> = Vec::new();
    made.rigor(&["pause", "gpu-1"])
        .ok()
        .says("gpu-1 is not running");
    made.rigor(&["drain", "gpu-1"]).ok();
    let sent: Vec<String> = made
        .signals("gpu-1")
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(sent, ["drain", "pause"]);
    made.rigor(&["resume", "gpu-1"])
        .ok()
        .says("takes work again");
    assert_eq!(made.signals("gpu-1"), none);
    made.rigor(&["resume", "gpu-1"])
        .ok()
        .says("neither paused nor draining");
    made.rigor(&["pause", "gpu1"])
        .exits(1)
        .says("did you mean gpu-1?");
}

#[test]
fn a_load_is_a_meta_task_for_one_agent() {
    let made = HandMade::new();
    let id = made
        .rigor(&["load", "gpu-2", "tiny"])
        .ok()
        .line()
        .to_owned();
    let again = made
        .rigor(&["load", "gpu-2", "tiny"])
        .ok()
        .line()
        .to_owned();
    assert_ne!(id, again, "each is a task of its own");
    made.rigor(&["unload", "gpu-1"]).ok();
    let names = made.rig.list(Place::Queue(Class::Meta)).unwrap().names;
    assert_eq!(names.len(), 3);
    let name = names.iter().find(|name| name.id.to_string() == id).unwrap();
    let spec = peek(&made.rig, Place::Queue(Class::Meta), name)
        .unwrap()
        .unwrap();
    assert_eq!(
        (spec.batch.as_str(), spec.name.as_str(), spec.retries),
        ("_rig", "load_llm", 0)
    );
    assert_eq!(spec.on, ["gpu-2"]);
    let Work::LoadLlm {
        model,
        eligible,
        lenders: _,
        expires,
    } = spec.work
    else {
        panic!("no load")
    };
    assert_eq!(
        (model.as_str(), eligible),
        ("tiny", vec!["gpu-2".to_owned()])
    );
    assert!(expires > jiff::Timestamp::now());
    assert!(
        made.rigor(&["show", &id])
            .ok()
            .stdout
            .lines()
            .next()
            .unwrap()
            .contains("load_llm")
    );

    made.rigor(&["load", "gpu-2", "tinny"])
        .exits(1)
        .says("\"tiny\"");
    made.rigor(&["load", "gpu-9", "tiny"])
        .exits(1)
        .says("no GPU is named");
    made.rigor(&["unload", "gpu-1", "tiny"])
        .exits(1)
        .says("holds no model");
    assert_eq!(made.rig.count(Place::Queue(Class::Meta)).unwrap(), 3);
}

#[test]
fn a_batch_of_which_everything_is_done_is_not_retried() {
    let made = HandMade::new();
    let (batch, plan) = made.running_batch();
    let names = made.queued(&batch, "tag", &["v1"]);
    made.complete(made.claim(Class::Cpu, &names[0], "gpu-1"));
    plan.close(&made.rig, Move::Complete).unwrap();
    for words in [vec!["retry", &batch], vec!["retry", &batch, "--failed"]] {
        made.rigor(&words)
            .exits(1)
            .says("there is nothing to retry");
    }
    assert!(made.signals("brain").is_empty());
}

#[test]
fn a_split_model_is_unloaded_where_it_runs_and_loaded_by_nobody_alone() {
    let made = HandMade::new();
    let toml = made.rig.root().join("rig.toml");
    let text = std::fs::read_to_string(&toml).unwrap();
    let big = "[[model]]\nid = \"big\"\nkind = \"chat\"\nruntime = \"command\"\ncommand = \"true {PORT}\"\nslots = 1\nsplit_gpu = 2\n";
    std::fs::write(&toml, text.replace("[nvml]", &format!("{big}[nvml]"))).unwrap();
    made.rigor(&["load", "gpu-1", "big"])
        .exits(1)
        .says("split over 2 GPUs, which the brain gathers");
    assert_eq!(made.rig.count(Place::Queue(Class::Meta)).unwrap(), 0);

    let beat = |agent: &str, llm: LlmBeat| {
        made.rig.prepare_agent(agent).unwrap();
        let mut beat = Heartbeat::alive(1, jiff::Timestamp::now(), Health::Healthy);
        beat.llm = llm;
        presence::beat(&made.rig, agent, &beat).unwrap();
    };
    let since = jiff::Timestamp::now();
    beat(
        "gpu-1",
        LlmBeat::Lent {
            model: "big".to_owned(),
            to: "gpu-2".to_owned(),
            since,
        },
    );
    let unloaded = |made: &HandMade| {
        let id = made.rigor(&["unload", "gpu-1"]).ok().line().to_owned();
        let names = made.rig.list(Place::Queue(Class::Meta)).unwrap().names;
        let name = names.iter().find(|name| name.id.to_string() == id).unwrap();
        let spec = peek(&made.rig, Place::Queue(Class::Meta), name)
            .unwrap()
            .unwrap();
        match spec.work {
            Work::UnloadLlm { agent, .. } => agent,
            other => panic!("{other:?}"),
        }
    };
    beat("gpu-2", LlmBeat::Cold);
    assert_eq!(unloaded(&made), "gpu-1", "nobody runs it: the lend ends");
    beat(
        "gpu-2",
        LlmBeat::Hot {
            model: "big".to_owned(),
            slots: 1,
            load_ms: 1,
            since,
            lenders: vec!["gpu-1".to_owned()],
        },
    );
    assert_eq!(unloaded(&made), "gpu-2");
}

#[test]
fn a_load_that_never_fits_is_refused_before_anything_is_unloaded() {
    let made = HandMade::new();
    let toml = made.rig.root().join("rig.toml");
    let text = std::fs::read_to_string(&toml).unwrap();
    let huge = "[[model]]\nid = \"huge\"\nkind = \"chat\"\nruntime = \"command\"\ncommand = \"true {PORT}\"\nslots = 1\nvram_mb = 90000\n";
    std::fs::write(&toml, text.replace("[nvml]", &format!("{huge}[nvml]"))).unwrap();
    made.rig.prepare_agent("gpu-1").unwrap();
    let mut beat = Heartbeat::alive(1, jiff::Timestamp::now(), Health::Healthy);
    beat.gpu = Some(rigor_queue::heartbeat::GpuBeat {
        index: 0,
        uuid: "GPU-1".to_owned(),
        name: "card".to_owned(),
        stand_in: true,
        used_mb: 0,
        total_mb: 6144,
        budget_mb: 4915,
        available_mb: 4915,
        foreign: None,
        temperature_c: None,
        utilization: None,
        power_w: None,
    });
    beat.llm = LlmBeat::Hot {
        model: "tiny".to_owned(),
        slots: 1,
        load_ms: 1,
        since: jiff::Timestamp::now(),
        lenders: Vec::new(),
    };
    presence::beat(&made.rig, "gpu-1", &beat).unwrap();
    made.rigor(&["load", "gpu-1", "huge"])
        .exits(1)
        .says("needs 90000 MB, the GPU has 4915 MB for tasks and models, short by 85085 MB");
    assert_eq!(made.rig.count(Place::Queue(Class::Meta)).unwrap(), 0);
}

#[test]
fn an_operators_load_is_cancelled_while_it_is_queued_and_the_brains_is_not() {
    let made = HandMade::new();
    let load = made.rigor(&["load", "gpu-2", "tiny"]).ok();
    assert!(load.stderr.contains("within 1h"), "{}", load.stderr);
    let id = load.line().to_owned();
    made.rigor(&["cancel", &id]).ok();
    let sent = made.signals("brain");
    assert_eq!(sent, [(format!("{id}.cancel"), String::new())]);

    let names = made.rig.list(Place::Queue(Class::Meta)).unwrap().names;
    let _held = made.claim(Class::Meta, &names[0], "gpu-2");
    made.rigor(&["cancel", &id])
        .exits(1)
        .says("`rigor unload gpu-2` frees the GPU");

    let spec = TaskSpec::new(
        TaskId::derive("_rig", "load_llm", Some("brain-1")),
        "_rig",
        "load_llm",
        Class::Meta,
        Work::LoadLlm {
            model: "tiny".to_owned(),
            eligible: vec!["gpu-1".to_owned()],
            lenders: Vec::new(),
            expires: jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1),
        },
    );
    let name = FileName::first(spec.priority, 9, spec.shape(), spec.id);
    let queue = Place::Queue(Class::Meta);
    submit(&made.rig, queue, &name, &spec, Durability::Process).unwrap();
    made.rigor(&["cancel", &spec.id.to_string()])
        .exits(1)
        .says("cancel the tasks that need tiny");
    assert_eq!(made.signals("brain").len(), 1);
}
