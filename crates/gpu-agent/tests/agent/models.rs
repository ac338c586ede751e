use std::fs;

use jiff::{SignedDuration, Timestamp};
use rigor_queue::heartbeat::{LlmBeat, Refusal};
use rigor_queue::record::{FailureKind, Outcome};
use rigor_queue::rig::{Place, RIG_BATCH};
use rigor_queue::task::{Class, Prompt, PromptPart, TooLong, Vram, Work};

use crate::rig::TestRig;

/// A server of the OpenAI API that answers every prompt alike.
pub(crate) const SERVER: &str = r#"
import http.server, json, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def reply(self, body):
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def do_GET(self):
        self.reply({"status": "ok"} if self.path == "/health" else {"data": [{"id": "m"}]})
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.reply({"choices": [{"message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 1, "completion_tokens": 1}})
    def log_message(self, *args):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"#;

pub(crate) fn with_model(command: &str) -> TestRig {
    let rig = TestRig::new(
        1,
        &format!(
            "[[model]]\nid = \"m\"\nkind = \"chat\"\nruntime = \"command\"\ncommand = {command:?}\nslots = 2\nvram_mb = 200\nenv = {{ RIGOR_SIM_VRAM_MB = \"200\" }}\n"
        ),
    );
    fs::write(rig.root().join("server.py"), SERVER).expect("write the server");
    rig
}

pub(crate) fn load(eligible: &[&str]) -> Work {
    Work::LoadLlm {
        model: "m".into(),
        eligible: eligible.iter().map(|name| (*name).to_owned()).collect(),
        lenders: Vec::new(),
        expires: Timestamp::now() + SignedDuration::from_mins(10),
    }
}

#[test]
fn a_cold_agent_sees_llm_tasks_and_says_why_it_takes_none() {
    let rig = with_model("false {PORT}");
    rig.run(Class::Llm, "a", "true");
    rig.run(Class::Llm, "b", "true");
    let _agent = rig.agent("gpu-1");
    rig.wait_for_line(
        "gpu-1",
        "DEBUG No suitable tasks - Queue: [llm:2], Preferred: [meta, script, cpu], Model loaded: false",
    );
    rig.wait("the verdict", || {
        rig.heartbeat("gpu-1")
            .is_some_and(|beat| beat.verdicts.contains_key(&Class::Llm))
    });
    let beat = rig.heartbeat("gpu-1").unwrap();
    let verdict = &beat.verdicts[&Class::Llm];
    assert_eq!(
        (verdict.code, verdict.detail.as_str()),
        (Refusal::ModelNotLoaded, "llm:2 need m")
    );
    assert_eq!(beat.idle.as_ref(), Some(verdict));
}

#[test]
fn a_model_is_loaded_serves_and_is_unloaded() {
    let rig = with_model("python3 server.py {PORT}");
    // The server is found beside rig.toml, whatever the agent's directory.
    let path = rig.root().join("rig.toml");
    let text = fs::read_to_string(&path).unwrap();
    let server = rig.root().join("server.py").display().to_string();
    fs::write(&path, text.replace("server.py", &server)).unwrap();

    for n in 0..4 {
        rig.run(Class::Llm, &format!("t_{n}"), "echo \"$RIGOR_LLM_MODEL $RIGOR_LLM_URL $OPENAI_BASE_URL $WORKER_OLLAMA_URL $RIGOR_LLM_KIND $OPENAI_API_KEY [$CUDA_VISIBLE_DEVICES]\" > env; \
             touch on_$RIGOR_TASK_ID; ls on_* | wc -l >> seen; sleep 0.2; rm on_$RIGOR_TASK_ID");
    }
    rig.meta("load_other", load(&["gpu-7"]));
    let loading = rig.meta("load", load(&["gpu-1"]));
    let mut agent = rig.agent("gpu-1");
    rig.wait("the llm tasks", || rig.complete() == 4);
    rig.wait("the load is recorded", || {
        rig.count(Place::Complete(RIG_BATCH)) == 1
    });
    assert_eq!(
        rig.record_of(RIG_BATCH, &loading).outcome,
        Outcome::Succeeded
    );
    let env = fs::read_to_string(rig.scratch().join("env")).unwrap();
    let words: Vec<&str> = env.split_whitespace().collect();
    let base = words[1];
    assert_eq!(
        words,
        [
            "m",
            base,
            &format!("{base}/v1"),
            base,
            "chat",
            "rigor",
            "[]"
        ]
    );
    let log = rig.log("gpu-1");
    assert!(
        log.contains(&format!(
            "INFO  Claimed meta task: {} (load_llm)",
            loading.id.short()
        )),
        "{log}"
    );
    assert!(log.contains(" - gpu-1 is now HOT"), "{log}");
    assert!(
        log.contains("DEBUG Not claiming: slots_full 2/2 (")
            && log.contains(" - Queue: [meta:1, llm:2]"),
        "{log}"
    );
    rig.wait("the heartbeat", || {
        rig.heartbeat("gpu-1").is_some_and(|beat| {
            matches!(beat.llm, LlmBeat::Hot { slots: 2, .. }) && beat.llm_slots == (0, 2)
        })
    });

    let seen = fs::read_to_string(rig.scratch().join("seen")).unwrap();
    let seen: Vec<&str> = seen.split_whitespace().collect();
    assert!(
        seen.contains(&"2") && seen.iter().all(|n| ["1", "2"].contains(n)),
        "two slots: {seen:?}"
    );

    // A script runs beside the model where there is room, and waits where there is not.
    let mut beside = rig.spec(Class::Script, "beside", "true");
    beside.vram = Vram::Fixed { mb: 4000 };
    rig.queue(&beside);
    rig.wait("the script beside the model", || rig.complete() == 5);
    let mut large = rig.spec(Class::Script, "large", "true");
    large.vram = Vram::Fixed { mb: 4800 };
    rig.queue(&large);
    rig.wait("the verdict", || {
        rig.heartbeat("gpu-1").is_some_and(|beat| {
            let verdict = beat.verdicts.get(&Class::Script);
            verdict.is_some_and(|it| it.detail.contains("m is loaded and nothing needs it"))
        })
    });

    let unloading = rig.meta(
        "unload",
        Work::UnloadLlm {
            agent: "gpu-1".into(),
            next: None,
        },
    );
    rig.wait("the unload", || rig.count(Place::Complete(RIG_BATCH)) == 2);
    assert_eq!(
        rig.record_of(RIG_BATCH, &unloading).outcome,
        Outcome::Succeeded
    );
    rig.wait("it is cold", || {
        rig.heartbeat("gpu-1")
            .is_some_and(|beat| beat.llm == LlmBeat::Cold)
    });
    rig.wait("the large script", || rig.complete() == 6);
    agent.terminate();
    assert!(agent.ended().success());
}

#[test]
fn a_load_that_fails_is_recorded_with_its_cause_and_not_tried_again_at_once() {
    let rig = with_model("sh -c 'echo no such weights >&2; exit 1' {PORT}");
    rig.run(Class::Llm, "t", "true");
    let first = rig.meta("load", load(&["gpu-1"]));
    let _agent = rig.agent("gpu-1");
    rig.wait("the failure", || rig.count(Place::Retry(RIG_BATCH)) == 1);
    let Outcome::Failed { kind, reason } = rig.record_of(RIG_BATCH, &first).outcome else {
        panic!("it did not fail")
    };
    assert_eq!(kind, FailureKind::LoadFailed);
    assert!(reason.contains("no such weights"), "{reason}");
    rig.meta("load_again", load(&["gpu-1"]));
    rig.wait("the verdicts", || {
        rig.heartbeat("gpu-1")
            .is_some_and(|beat| beat.verdicts.len() == 2)
    });
    let beat = rig.heartbeat("gpu-1").unwrap();
    assert!(
        matches!(&beat.llm, LlmBeat::Failed { cause, .. } if cause.contains("no such weights")),
        "{:?}",
        beat.llm
    );
    assert_eq!(beat.verdicts[&Class::Meta].code, Refusal::Backoff);
    assert_eq!(beat.verdicts[&Class::Llm].code, Refusal::RuntimeFailing);
    assert_eq!(rig.count(Place::Queue(Class::Meta)), 1);
}

#[test]
fn a_runtime_that_dies_leaves_a_cold_agent() {
    let rig = with_model("python3 server.py {PORT}");
    let path = rig.root().join("rig.toml");
    let text = fs::read_to_string(&path).unwrap();
    let server = rig.root().join("server.py").display().to_string();
    fs::write(&path, text.replace("server.py", &server)).unwrap();
    rig.meta("load", load(&["gpu-1"]));
    let _agent = rig.agent("gpu-1");
    rig.wait_for_line("gpu-1", "is now HOT");
    let manifest = fs::read(rig.root().join("agents/gpu-1/runtime.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let pid = rustix::process::Pid::from_raw(manifest["pid"].as_i64().unwrap() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    rig.wait_for_line("gpu-1", "ERROR The runtime of m ended by itself");
    rig.wait("the state", || {
        rig.heartbeat("gpu-1")
            .is_some_and(|beat| matches!(beat.llm, LlmBeat::Failed { .. }))
    });
}

/// What `cargo xtask fixtures` has made, made now if it has not: the real llama.cpp, and a model
/// of random weights.
fn fixture(key: &str) -> String {
    let workspace = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let index = workspace.join("target/fixtures/fixtures.json");
    if !index.exists() {
        let mut make = std::process::Command::new(env!("CARGO"));
        let made = make
            .args(["xtask", "fixtures"])
            .current_dir(&workspace)
            .status()
            .expect("run cargo");
        assert!(made.success(), "cargo xtask fixtures: {made}");
    }
    let fixtures = fs::read(index).expect("read the list of fixtures");
    let fixtures: serde_json::Value =
        serde_json::from_slice(&fixtures).expect("a list of fixtures");
    fixtures[key].as_str().expect("a path").to_owned()
}

#[test]
fn llama_cpp_is_loaded_and_answers_prompts() {
    let rig = TestRig::new(
        1,
        &format!(
            "[[model]]\nid = \"m\"\nruntime = \"llama-server\"\nfile = {:?}\nslots = 2\ncontext = 2048\n\
             args = [\"--threads\", \"1\"]\n[runtime]\nllama_server = {:?}\n",
            fixture("model"),
            fixture("llama_server"),
        ),
    );
    for n in 0..3 {
        let mut spec = rig.spec(Class::Llm, &format!("p_{n}"), "");
        spec.work = Work::Prompt(Prompt {
            user: vec![PromptPart::Text("Say something.".into())],
            system: vec![],
            temperature: Some(0.0),
            max_tokens: Some(8),
            seed: Some(1),
            too_long: TooLong::Fail,
            output: Some(format!("answer_{n}")),
        });
        rig.queue(&spec);
    }
    rig.meta("load", load(&["gpu-1"]));
    let mut agent = rig.agent("gpu-1");
    rig.wait("the answers", || rig.complete() == 3);
    let log = rig.log("gpu-1");
    assert!(
        log.contains("model ready in ") && log.contains(" - gpu-1 is now HOT"),
        "{log}"
    );
    assert!((0..3).all(|n| rig.scratch().join(format!("answer_{n}")).exists()));
    let manifest = fs::read(rig.root().join("agents/gpu-1/runtime.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    agent.terminate();
    assert!(agent.ended().success(), "{}", rig.log("gpu-1"));
    // Nothing of the runtime outlives its agent.
    let pid = manifest["pid"].as_i64().unwrap();
    assert!(
        !std::path::Path::new(&format!("/proc/{pid}/cmdline")).exists(),
        "llama-server lives"
    );
}

/// An operator's unload says what it makes room for: the model that serves is kept where that is in
/// vain.
#[test]
fn nothing_is_unloaded_for_a_model_that_never_fits() {
    let rig = with_model("python3 server.py {PORT}");
    let path = rig.root().join("rig.toml");
    let text = fs::read_to_string(&path).unwrap();
    let server = rig.root().join("server.py").display().to_string();
    let huge = "\n[[model]]\nid = \"huge\"\nkind = \"chat\"\nruntime = \"command\"\ncommand = \"false {PORT}\"\nslots = 1\nvram_mb = 90000\n";
    fs::write(&path, text.replace("server.py", &server) + huge).unwrap();
    rig.meta("load", load(&["gpu-1"]));
    let mut agent = rig.agent("gpu-1");
    rig.wait_for_line("gpu-1", "m: model ready in ");
    let mut spec = rig.spec(Class::Meta, "unload", "");
    spec.batch = RIG_BATCH.into();
    spec.on = vec!["gpu-1".into()];
    spec.work = Work::UnloadLlm {
        agent: "gpu-1".into(),
        next: Some("huge".into()),
    };
    rig.queue(&spec);
    rig.wait_for_line(
        "gpu-1",
        "Nothing is unloaded from gpu-1: huge needs 90000MB and never fits here, where tasks and models have 4915MB",
    );
    rig.wait("the unload is recorded", || {
        rig.count(Place::Retry(RIG_BATCH)) == 1
    });
    let beat = rig.heartbeat("gpu-1").unwrap();
    assert!(matches!(beat.llm, LlmBeat::Hot { .. }), "{:?}", beat.llm);
    agent.terminate();
    assert!(agent.ended().success(), "{}", rig.log("gpu-1"));
}
