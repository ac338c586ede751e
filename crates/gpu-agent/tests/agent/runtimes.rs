//! The runtime of an agent that is killed, wedged or fails to load, with the stand-in for all of
//! them in llama-server's and ollama's place.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rigor_queue::heartbeat::LlmBeat;
use rigor_queue::name::FileName;
use rigor_queue::record::Outcome;
use rigor_queue::rig::{Place, RIG_BATCH};
use rigor_queue::task::{Class, Prompt, PromptPart, TooLong, Work};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::models::load;
use crate::rig::{BATCH, TestRig};

fn stand_in() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_gpu-agent")).with_file_name("runtime-stand-in");
    if !program.exists() {
        let built = Command::new(env!("CARGO"))
            .args(["build", "-p", "runtime-stand-in"])
            .status();
        assert!(
            built.is_ok_and(|status| status.success()),
            "cargo build -p runtime-stand-in"
        );
    }
    program
}

/// A rig whose model `m` the stand-in serves; `entry` is more of its entry, `rest` of rig.toml.
fn rig(behaviour: Value, entry: &str, rest: &str) -> TestRig {
    let folder = tempfile::tempdir().expect("a folder").keep();
    let file = folder.join("behaviour.json");
    fs::write(&file, behaviour.to_string()).expect("write");
    fs::write(folder.join("m.gguf"), "no weights").expect("write");
    let entry = if entry.contains("runtime =") {
        entry.to_owned()
    } else {
        format!(
            "runtime = \"llama-server\"\nfile = {:?}\nvram_mb = 200\n{entry}",
            folder.join("m.gguf")
        )
    };
    let rig = TestRig::new(
        1,
        &format!(
            "[[model]]\nid = \"m\"\n{entry}\nslots = 2\n[model.env]\nRIGOR_RUNTIME_STAND_IN = {file:?}\nOLLAMA_MODELS = {folder:?}\n\
             [runtime]\nllama_server = {0:?}\nollama = {0:?}\n{rest}",
            stand_in()
        ),
    );
    rig.set_folder(folder);
    rig
}

fn tell(rig: &TestRig, behaviour: Value) {
    let folder = rig.folder();
    let new = folder.join("new");
    fs::write(&new, behaviour.to_string()).expect("write");
    fs::rename(new, folder.join("behaviour.json")).expect("rename");
}

fn prompt(rig: &TestRig, name: &str) -> FileName {
    let mut spec = rig.spec(Class::Llm, name, "");
    spec.work = Work::Prompt(Prompt {
        user: vec![PromptPart::Text("Say something.".into())],
        system: vec![],
        temperature: None,
        max_tokens: Some(4),
        seed: None,
        too_long: TooLong::Fail,
        output: None,
    });
    rig.queue(&spec)
}

fn runtime_pid(rig: &TestRig) -> i64 {
    let manifest = fs::read(rig.root().join("agents/gpu-1/runtime.json")).expect("read");
    let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    manifest["pid"].as_i64().expect("a number")
}

/// A zombie has no command line any more; its new parent may take its time.
fn is_gone(pid: i64) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.is_empty())
        || !Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn a_restarted_agent_adopts_its_runtime_and_serves_without_a_load() {
    let rig = rig(json!({"vram_mb": 200}), "", "");
    rig.meta("load", load(&["gpu-1"]));
    let mut agent = rig.agent("gpu-1");
    rig.wait_for_line("gpu-1", "is now HOT");
    rig.wait("the load is recorded", || {
        rig.count(Place::Complete(RIG_BATCH)) == 1
    });
    let pid = runtime_pid(&rig);
    agent.signal(Signal::KILL);
    agent.ended();
    assert!(!is_gone(pid), "it outlives its agent");

    let asked = prompt(&rig, "p");
    let mut agent = rig.agent("gpu-1");
    rig.wait_for_line(
        "gpu-1",
        &format!("Adopted the runtime of m (pid {pid}), loaded "),
    );
    rig.wait("the answer", || rig.complete() == 1);
    assert_eq!(rig.record(&asked).outcome, Outcome::Succeeded);
    let log = rig.log("gpu-1");
    assert!(log.contains("s ago - gpu-1 is HOT"), "{log}");
    assert_eq!(log.matches("model ready in").count(), 1, "{log}");
    let beat = rig.heartbeat("gpu-1").unwrap();
    assert!(matches!(&beat.llm, LlmBeat::Hot { model, slots: 2, .. } if model == "m"));
    let gpu = beat.gpu.unwrap();
    assert!(
        gpu.available_mb <= gpu.budget_mb - 200,
        "its memory is in the ledger: {gpu:?}"
    );
    // A stop in order leaves nothing for a successor.
    agent.terminate();
    assert!(agent.ended().success());
    assert!(is_gone(pid), "the runtime lives");
}

#[test]
fn a_load_that_lost_its_agent_is_done_again() {
    let rig = rig(json!({"never_ready": true}), "", "");
    rig.meta("load", load(&["gpu-1"]));
    let mut agent = rig.agent("gpu-1");
    rig.wait("the runtime", || {
        rig.root().join("agents/gpu-1/runtime.json").exists()
    });
    rig.wait("its process", || {
        let text = fs::read_to_string(rig.root().join("agents/gpu-1/runtime.json"));
        text.is_ok_and(|text| {
            serde_json::from_str::<Value>(&text).is_ok_and(|manifest| manifest["pid"].is_i64())
        })
    });
    let pid = runtime_pid(&rig);
    agent.signal(Signal::KILL);
    agent.ended();
    tell(&rig, json!({}));
    let mut agent = rig.agent("gpu-1");
    rig.wait_for_line("gpu-1", "did not adopt it: it had not finished loading");
    rig.wait_for_line("gpu-1", "is now HOT");
    assert!(is_gone(pid));
    rig.wait("the load is recorded", || {
        rig.count(Place::Complete(RIG_BATCH)) == 1
    });
    agent.terminate();
    assert!(agent.ended().success());
}

#[test]
fn a_runtime_that_hangs_under_a_task_is_removed_and_the_task_is_not_charged() {
    let rig = rig(
        json!({"hang_generation": 2}),
        "",
        "[timing]\nheartbeat_every = \"200ms\"\ngrace = \"2s\"\nstuck_after = \"400ms\"\n",
    );
    prompt(&rig, "p");
    rig.meta("load", load(&["gpu-1"]));
    let _agent = rig.agent("gpu-1");
    rig.wait_for_line(
        "gpu-1",
        "ERROR The runtime of m is wedged: no llm task has ended for 0s; asked to generate: no answer within 0s",
    );
    rig.wait_for_line("gpu-1", "gpu-1 is now COLD");
    rig.wait("the task is queued again", || {
        rig.count(Place::Queue(Class::Llm)) == 1
    });
    let again = rig.rig.list(Place::Queue(Class::Llm)).unwrap();
    let again = again.names;
    assert_eq!((again[0].attempt, again[0].charged), (2, 0), "{again:?}");
    rig.wait("the state", || {
        rig.heartbeat("gpu-1").is_some_and(
            |beat| matches!(&beat.llm, LlmBeat::Failed { cause, .. } if cause.contains("no answer within")),
        )
    });
}

#[test]
fn a_runtime_whose_answers_fail_is_removed() {
    let rig = rig(json!({"fail_requests": 500, "fail_from": 2}), "", "");
    prompt(&rig, "p");
    rig.meta("load", load(&["gpu-1"]));
    let _agent = rig.agent("gpu-1");
    rig.wait_for_line(
        "gpu-1",
        "ERROR The runtime of m is wedged: an llm task had no answer; asked to generate: /v1/chat/completions: 500",
    );
    rig.wait_for_line("gpu-1", "gpu-1 is now COLD");
}

#[test]
fn memory_that_was_too_small_raises_what_the_model_is_taken_to_need() {
    let rig = rig(json!({"out_of_memory": true}), "", "");
    // As a driver or a desktop has of every real GPU.
    rig.set_state(|state| state.gpus[0].base_used_mb = 300);
    let asked = rig.meta("load", load(&["gpu-1"]));
    let _agent = rig.agent("gpu-1");
    // What is left of the budget of 4915 MB: it could not be tried again with more.
    let words = "it is now taken to need 4615 MB, which this GPU must have free first; not tried again for 30s";
    rig.wait_for_line("gpu-1", words);
    rig.wait("the end of the load", || {
        rig.count(Place::Retry(RIG_BATCH)) == 1
    });
    let record = rig.record_of(RIG_BATCH, &asked);
    assert!(
        record.outcome.reason().is_some_and(|it| it.contains(words)),
        "{record:?}"
    );
}

#[test]
fn a_model_that_is_not_pulled_is_tried_as_soon_as_it_is() {
    let rig = rig(
        json!({"pulled": []}),
        "runtime = \"ollama\"\nreference = \"qwen2.5\"\nvram_mb = 200",
        "",
    );
    rig.meta("load", load(&["gpu-1"]));
    let mut agent = rig.agent("gpu-1");
    rig.wait_for_line(
        "gpu-1",
        "ollama has not pulled \"qwen2.5\": run `ollama pull qwen2.5`",
    );
    rig.wait_for_line("gpu-1", "tried again when the file changes, else in 600s");
    rig.meta("load_again", load(&["gpu-1"]));
    let beat = || rig.heartbeat("gpu-1");
    rig.wait("the reason", || {
        beat().is_some_and(|beat| matches!(beat.llm, LlmBeat::Failed { .. }))
    });
    tell(&rig, json!({"pulled": ["qwen2.5:latest"]}));
    let library = rig
        .folder()
        .join("manifests/registry.ollama.ai/library/qwen2.5");
    fs::create_dir_all(&library).unwrap();
    fs::write(library.join("latest"), "{}").unwrap();
    rig.wait_for_line("gpu-1", "has changed: it may be tried again");
    rig.wait_for_line("gpu-1", "is now HOT");
    // Requests name the tag, whatever the id is.
    rig.run(Class::Llm, "name", "echo \"$RIGOR_LLM_MODEL\" > served_as");
    rig.wait("the task", || rig.complete() == 1);
    let served_as = fs::read_to_string(rig.scratch().join("served_as")).unwrap();
    assert_eq!(served_as.trim(), "qwen2.5");
    assert_eq!(rig.count(Place::Failed(BATCH)), 0);
    agent.terminate();
    assert!(agent.ended().success());
}
