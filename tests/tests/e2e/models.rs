//! Models: kinds, runtimes, loads that fail, and who gets which.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use rigor_queue::rig::BRAIN;
use rigor_tests::{Rig, Setup, parts, processes};

fn chat_model(id: &str, more: &str) -> String {
    format!(
        "\n[[model]]\nid = \"{id}\"\nkind = \"chat\"\nruntime = \"llama-server\"\nfile = {:?}\nslots = 1\ncontext = 2048\n{more}",
        parts::fixture("model")
    )
}

fn prompt(id: &str, model: &str) -> String {
    format!(
        "### {id}\n\n- **llm_model**: {model}\n- **prompt**: Hello\n- **max_tokens**: 8\n- **output**: `{{BATCH_PATH}}/{id}.txt`\n\n"
    )
}

fn answer(plan: &Path, batch: &str, id: &str) -> String {
    let path = plan.join("history").join(batch).join(format!("{id}.txt"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The model answered: by the server's own count of tokens, and its text is where the plan wants it. The text may be
/// empty: to the fixtures' model, whose weights are random, the end of the answer is one token among the others.
#[track_caller]
fn assert_answered(rig: &Rig, plan: &Path, batch: &str, id: &str) {
    answer(plan, batch, id);
    let shown = rig.json(&["show", &format!("{batch}/{id}"), "--json"]);
    let tokens = shown.pointer("/attempts/0/llm/completion_tokens");
    assert!(
        tokens.and_then(serde_json::Value::as_u64) > Some(0),
        "{shown}"
    );
}

/// A rig with the embedding model of the fixtures, `vectors`.
fn with_embedding_model() -> Rig {
    let tables = format!(
        "\n[[model]]\nid = \"vectors\"\nkind = \"embedding\"\nruntime = \"llama-server\"\nfile = {:?}\nslots = 1\ncontext = 512\n",
        parts::fixture("embedding_model")
    );
    Setup {
        gpus: 1,
        tables,
        ..Setup::default()
    }
    .make()
}

#[track_caller]
fn assert_is_vector(value: Option<&serde_json::Value>) {
    let vector = value
        .and_then(|vector| vector.as_array())
        .expect("a vector");
    assert!(
        vector.len() > 1 && vector.iter().all(|number| number.is_f64()),
        "{vector:?}"
    );
}

#[test]
fn a_prompt_to_an_embedding_model_gets_a_vector() {
    let mut rig = with_embedding_model();
    let plan = rig.plan(
        "vectors",
        &prompt("embed", "vectors").replace("- **max_tokens**: 8\n", ""),
    );
    rig.start_all();
    let batch = rig.submit(&plan);
    assert_eq!(rig.wait_short_batch(&batch), 0);
    let vector: serde_json::Value = serde_json::from_str(&answer(&plan, &batch, "embed")).unwrap();
    assert_is_vector(Some(&vector));
}

#[test]
fn a_command_reaches_an_embedding_model() {
    let mut rig = with_embedding_model();
    let plan = rig.plan(
        "vectors",
        "### embed\n\n- **task_class**: llm\n- **llm_model**: vectors\n- **command**: `curl -sf \"$OPENAI_BASE_URL/embeddings\" \
         -H 'Content-Type: application/json' -d '{\"model\":\"vectors\",\"input\":\"hello\"}' > \"$RIGOR_BATCH_DIR/vector.json\"`\n",
    );
    rig.start_all();
    let batch = rig.submit(&plan);
    assert_eq!(rig.wait_short_batch(&batch), 0);
    let text = fs::read(plan.join("history").join(&batch).join("vector.json")).unwrap();
    let reply: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert_is_vector(reply.pointer("/data/0/embedding"));
}

#[test]
fn a_command_runtime_serves_a_chat_model() {
    let tables = format!(
        "\n[[model]]\nid = \"served\"\nkind = \"chat\"\nruntime = \"command\"\ncommand = \"{} -m {{FILE}} --host 127.0.0.1 --port {{PORT}} --alias {{MODEL}} -c 2048 -np 2 -t 1\"\nfile = {:?}\nslots = 2\n",
        parts::fixture("llama_server").display(),
        parts::fixture("model"),
    );
    let mut rig = Setup {
        gpus: 1,
        tables,
        ..Setup::default()
    }
    .make();
    let plan = rig.plan("served", &prompt("say", "served"));
    rig.start_all();
    let batch = rig.submit(&plan);
    assert_eq!(rig.wait_short_batch(&batch), 0);
    assert_answered(&rig, &plan, &batch, "say");
}

/// Fault table 32: the cause is said, nothing hangs in silence, and the rest goes on.
#[test]
fn a_model_that_cannot_be_loaded_is_named_with_its_cause_and_the_rest_goes_on() {
    let mut tables = chat_model("good", "");
    tables += "\n[[model]]\nid = \"gone\"\nkind = \"chat\"\nruntime = \"llama-server\"\nfile = \"models/gone.gguf\"\nslots = 1\n";
    let mut rig = Setup {
        gpus: 2,
        tables,
        ..Setup::default()
    }
    .make();
    let plan = rig.plan("mixed", &(prompt("lost", "gone") + &prompt("fine", "good")));
    rig.start_all();
    let refused = rig.rigor(&["submit", &plan.to_string_lossy()]);
    assert_ne!(refused.code, 0);
    assert!(
        refused.stderr.contains("gone.gguf is not there"),
        "{}",
        refused.stderr
    );
    // It is there, and taken away.
    let file = rig.root().join("models/gone.gguf");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::copy(parts::fixture("model"), &file).unwrap();
    let batch = rig.submit(&plan);
    fs::remove_file(&file).unwrap();
    rig.wait("fine is done", |rig| {
        rig.tasks(&batch, "complete").contains(&"fine".to_owned())
    });
    assert_answered(&rig, &plan, &batch, "fine");
    let told = |rig: &Rig| {
        let log = rig.log(BRAIN);
        log.lines()
            .filter(|line| {
                line.contains(" WARNING ")
                    && line.contains("gone")
                    && line.contains("gpu-")
                    && line.contains("gone.gguf")
            })
            .count()
    };
    rig.wait("the brain warns of model, agent and cause", |rig| {
        told(rig) >= 1
    });
    // Counted before the agents' logs are read, which have each failure first.
    let warnings = told(&rig);
    let agents = rig.log("gpu-1") + &rig.log("gpu-2");
    assert!(
        agents.contains("gone.gguf"),
        "the agent's log has the cause"
    );
    assert!(
        agents.contains("it will fail again until the file, the program or rig.toml is corrected"),
        "it is tried as if it might work the next time"
    );
    // Once for each load that failed, and at most once more for the tasks that wait.
    let failed = agents.matches("Load of gone on gpu-").count();
    assert!(
        warnings <= 2 * failed,
        "{warnings} warnings of {failed} failed loads"
    );
    assert_eq!(rig.rigor(&["cancel", &batch]).code, 0);
    assert_eq!(rig.wait_short_batch(&batch), 3);
}

#[test]
fn one_gpu_serves_two_models_and_scripts_in_turn() {
    // Together they do not fit: each stands for most of the card.
    let more = "vram_mb = 4000\nenv = { RIGOR_SIM_VRAM_MB = \"4000\" }\n";
    let tables = chat_model("a", more) + &chat_model("b", more);
    let mut rig = Setup {
        gpus: 1,
        tables,
        ..Setup::default()
    }
    .make();
    let mut tasks = String::new();
    for n in 0..4 {
        tasks += &prompt(&format!("a{n}"), "a");
        tasks += &prompt(&format!("b{n}"), "b");
    }
    tasks += "### compute\n\n- **task_class**: script\n- **vram_estimate_mb**: 3000\n- **command**: `true`\n\n";
    tasks += "### sum\n\n- **task_class**: cpu\n- **depends_on**: a0, a1, a2, a3, b0, b1, b2, b3, compute\n- **command**: `true`\n";
    let plan = rig.plan("two-models", &tasks);
    rig.start_all();
    let batch = rig.submit(&plan);
    assert_eq!(rig.wait_short_batch(&batch), 0);
    let log = rig.log("gpu-1");
    for model in ["a", "b"] {
        assert!(
            log.contains(&format!("Loading {model} on gpu-1")),
            "{model} was loaded:\n{log}"
        );
    }
    assert!(
        log.matches("gpu-1 is now HOT").count() >= 2 && log.contains("gpu-1 is now COLD"),
        "{log}"
    );
    let done: BTreeSet<String> = rig.summary(&plan, &batch)["tasks"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|task| task["done"] == 1)
        .map(|task| task["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(done.len(), 10, "{done:?}");
}

/// The third of the runs that the logs must tell: one slot each, and everybody says so.
#[test]
fn every_gpu_is_heated_when_the_backlog_says_so() {
    let mut rig = Setup {
        gpus: 3,
        slots: 1,
        ..Setup::default()
    }
    .make();
    let plan = rig.plan(
        "heat",
        "### each\n\n- **foreach**: `items.txt`\n- **prompt**: Say {ITEM}\n- **max_tokens**: 400\n- **output**: `{BATCH_PATH}/{ITEM.id}.txt`\n",
    );
    let items: String = (0..240).map(|n| format!("i{n}\n")).collect();
    fs::write(plan.join("items.txt"), items).unwrap();
    rig.start_all();
    for agent in ["gpu-1", "gpu-2", "gpu-3"] {
        rig.wait_for_line(BRAIN, &format!("Agent {agent} is alive"));
    }
    let batch = rig.submit(&plan);
    assert_eq!(rig.wait_short_batch(&batch), 0);
    assert!(
        rig.log(BRAIN)
            .contains("but no models loaded - inserting 3 load_llm tasks (gpu-1, gpu-2, gpu-3)")
    );
    let summary = rig.summary(&plan, &batch);
    let agents = summary["agents"].as_array().unwrap();
    let shares: Vec<_> = agents
        .iter()
        .map(|one| (one["name"].clone(), one["by_class"]["llm"].clone()))
        .collect();
    println!("{shares:?}");
    assert_eq!(
        shares
            .iter()
            .filter(|(_, llm)| llm.as_u64() > Some(0))
            .count(),
        3,
        "{shares:?}"
    );
    for agent in ["gpu-1", "gpu-2", "gpu-3"] {
        assert!(rig.log(agent).contains("is now HOT"), "{agent}");
    }
}

/// A runtime outlives its agent that is not started again: the brain says whose it is and what ends
/// it. What an operator asks of that agent waits, and can be withdrawn.
#[test]
fn the_runtime_of_a_dead_agent_is_named_and_what_waits_for_the_agent_is_cancelled() {
    let mut rig = Setup {
        gpus: 1,
        tables: chat_model("a", ""),
        ..Setup::default()
    }
    .make();
    rig.start_all();
    assert_eq!(rig.rigor(&["load", "gpu-1", "a"]).code, 0);
    rig.wait_for_line("gpu-1", "a: model ready in ");
    rig.kill("gpu-1");
    let line = rig.wait_for_match(
        BRAIN,
        r"Agent gpu-1 is dead .*its runtime of a still runs and holds VRAM \(pid \d+\): gpu-1 takes it over or ends it when it is started again; if it is not to be, `kill \d+`",
    );
    let pid: u32 = line
        .split("(pid ")
        .nth(1)
        .and_then(|rest| rest.split([' ', ')']).next())
        .and_then(|pid| pid.parse().ok())
        .unwrap();
    let living = |rig: &Rig| rig.processes().iter().any(|one| one.pid == pid);
    assert!(living(&rig), "{line}");

    let asked = rig.rigor(&["load", "gpu-1", "a"]);
    let id = asked.stdout.trim().to_owned();
    assert_eq!(rig.rigor(&["cancel", &id]).code, 0);
    rig.wait_for_match(
        BRAIN,
        &format!("Withdrew load_llm {}: cancelled by the operator", &id[..8]),
    );
    assert!(!rig.log(BRAIN).contains("no active batch has task"));

    processes::send(pid, rustix::process::Signal::KILL);
    rig.wait("the remedy helps", |rig| !living(rig));
}
