//! What users write, what they are told, and that `rigor init`'s file and the documentation are true.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rigor_config::{
    Config, ConfigError, Durability, InitAnswers, InitGpu, Model, ModelKind, Notify, NotifyEvent,
    Secret, Serving, render,
};

/// The example of the design, which other programs rely on.
const GARAGE: &str = r#"
[rig]
name = "garage"
[[gpu]]
name = "gpu-1"
uuid = "GPU-1"
port = 11435
model = "qwen2.5:7b"
[[model]]
id = "qwen2.5:7b"
kind = "chat"
runtime = "llama-server"
file = "models/qwen2.5-7b-q4_k_m.gguf"
slots = 4
context = 8192
args = []
[limits]
[timing]
stuck_after = "5m"
heartbeat_warn = "60s"
load_warn = "60s"
monitor_every = "30s"
"#;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("/srv/rig/rig.toml"))
}

/// Checks that `text` is refused with exactly these lines; each is `LINE: message`, in order.
#[track_caller]
fn refused(text: &str, expected: &[&str]) {
    let ConfigError::Invalid { problems, .. } = parse(text).expect_err("the file must be refused")
    else {
        panic!("another error than a list of mistakes");
    };
    let found: Vec<String> = problems
        .iter()
        .map(|problem| format!("{}: {}", problem.line, problem.message))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn the_design_s_example_is_read() {
    let config = parse(GARAGE).unwrap();
    assert_eq!(config.rig.name, "garage");
    assert_eq!(config.rig.durability, Durability::Default);
    let gpu = config.gpu("gpu-1").unwrap();
    assert_eq!(
        (gpu.port, gpu.model.as_deref()),
        (11435, Some("qwen2.5:7b"))
    );
    let model = config.model("qwen2.5:7b").unwrap();
    assert_eq!(
        model.serving,
        Serving::LlamaServer {
            file: "/srv/rig/models/qwen2.5-7b-q4_k_m.gguf".into()
        }
    );
    assert_eq!((model.slots, model.context), (4, Some(8192)));
    assert_eq!(config.timing.stuck_after, Duration::from_secs(300));
    assert_eq!(config.load_timeout(model), Duration::from_secs(600));
    assert!((config.vram_share(gpu) - 0.8).abs() < 1e-9);
    assert!(config.limits.cpu_slots >= 1);
}

#[test]
fn every_mistake_is_reported_at_once_with_line_and_remedy() {
    refused(
        r#"[rig]
nam = "garage"
[[gpu]]
name = "GPU 1"
uuid = "0000:01:00.0"
prot = 11435
model = "quen2.5:7b"
[[model]]
id = "qwen2.5:7b"
runtime = "lama-server"
slots = "4"
[limits]
vram_share = 1.5
temperature_c = 800
output_cap = "ten"
[timing]
stuck_after = 300
grace = "10 parsecs"
lock_poll = "0s"
[limit]
"#,
        &[
            "2: unknown key `nam` in [rig]; the nearest known one is `name`",
            "3: [[gpu]] has no `port`: add port = 11435",
            "4: \"GPU 1\" is no agent name: it is a directory's name too; at most 32 of a-z, 0-9, - and _, the first a letter or a digit, such as \"gpu-1\"",
            "5: `uuid` must begin with GPU- or MIG-, not \"0000:01:00.0\": `nvidia-smi -L` lists them",
            "6: unknown key `prot` in [[gpu]]; the nearest known one is `port`",
            "7: no [[model]] has the id \"quen2.5:7b\"; the nearest is \"qwen2.5:7b\"",
            "10: `runtime` must be one of \"llama-server\", \"command\", \"ollama\", \"vllm\", not \"lama-server\" (the nearest is \"llama-server\")",
            "11: `slots` must be a whole number from 1 to 4096 (slots), not a string",
            "13: `vram_share` must be a share above 0 and at most 1, such as 0.8, not 1.5",
            "14: `temperature_c` must be a whole number from 30 to 120 (degrees Celsius), not 800",
            "15: `output_cap` must be a size such as \"10MB\" or \"512KiB\" and above zero, not \"ten\"",
            "17: `stuck_after` must be a duration such as \"30s\", \"5m\" or \"1h 30m\", not a whole number",
            "18: `grace` must be a duration such as \"30s\", \"5m\" or \"1h 30m\" and above zero, not \"10 parsecs\"",
            "19: `lock_poll` must be a duration such as \"30s\", \"5m\" or \"1h 30m\" and above zero, not \"0s\"",
            "20: unknown key `limit`; the nearest known one is `limits`",
        ],
    );
}

#[test]
fn what_an_attempt_may_take_has_bounds() {
    let limits = |text: &str| parse(&format!("[limits]\n{text}\n"));
    let none = limits("").unwrap().limits;
    assert_eq!((none.processes, none.memory_bytes), (10_000, None));
    let some = limits("processes = 64\nmemory = \"2GiB\"\nfile_size = \"1MB\"");
    let some = some.unwrap().limits;
    assert_eq!(some.processes, 64);
    assert_eq!(some.memory_bytes, Some(2 << 30));
    assert_eq!(some.file_size_bytes, Some(1_000_000));
    refused(
        "[limits]\nprocesses = 2\nmemory = \"1MB\"\n",
        &[
            "2: `processes` must be a whole number from 16 to 4194304 (processes and threads), not 2",
            "3: `memory` must be at least \"16MB\": a shell alone needs some of it",
        ],
    );
}

/// A prompt that names no model would be answered with a vector.
#[test]
fn an_embedding_model_is_no_gpus_default() {
    let text = |kind: &str| {
        format!(
            "[[gpu]]\nname = \"gpu-1\"\nuuid = \"GPU-1\"\nport = 12001\nmodel = \"embed\"\n\
             [[model]]\nid = \"embed\"\nkind = \"{kind}\"\nruntime = \"command\"\ncommand = \"x {{PORT}}\"\n"
        )
    };
    assert!(parse(&text("chat")).is_ok());
    refused(
        &text("embedding"),
        &[
            "5: \"embed\" is of kind \"embedding\": a prompt that names no model would get a vector for an answer; leave `model` out, or name a chat model",
        ],
    );
}

#[test]
fn the_message_names_file_line_and_column() {
    let message = parse("[timing]\n  stuck_afer = \"5m\"\n")
        .unwrap_err()
        .to_string();
    assert_eq!(
        message,
        "/srv/rig/rig.toml:2:3: unknown key `stuck_afer` in [timing]; the nearest known one is `stuck_after`"
    );
}

#[test]
fn duplicates_and_reserved_names_are_refused() {
    refused(
        r#"
[[gpu]]
name = "gpu-1"
uuid = "GPU-1"
port = 2000
[[gpu]]
name = "gpu-2"
uuid = "GPU-1"
port = 2000
[[gpu]]
name = "brain"
uuid = "GPU-3"
port = 1024
[[cpu_agent]]
name = "gpu-1"
[[cpu_agent]]
name = "_rig"
"#,
        &[
            "8: the uuid \"GPU-1\" is taken since line 4: each needs its own",
            "9: the port \"2000\" is taken since line 5: each needs its own",
            "11: \"brain\" is reserved: write another name, such as \"gpu-1\"",
            "13: `port` must be a whole number from 1025 to 65535 (port), not 1024",
            "15: the agent name \"gpu-1\" is taken since line 3: each needs its own",
            "17: \"_rig\" is reserved: write another name, such as \"cpu-1\"",
        ],
    );
}

#[test]
fn ollama_and_vllm_take_a_reference() {
    let config = parse(
        r#"
[[model]]
id = "qwen2.5:7b"
runtime = "ollama"
[[model]]
id = "small"
runtime = "ollama"
reference = "llama3.2:1b"
[[model]]
id = "big"
runtime = "vllm"
reference = "Qwen/Qwen2.5-72B-Instruct"
split_gpu = 4
args = ["--dtype", "half"]
[[model]]
id = "own"
runtime = "vllm"
reference = "./models/own"
[runtime]
ollama = "bin/ollama"
"#,
    )
    .unwrap();
    let served = |id| {
        let model = config.model(id).unwrap();
        (model.runtime_name(), model.reference(), model.split_gpu)
    };
    assert_eq!(served("qwen2.5:7b"), ("ollama", Some("qwen2.5:7b"), 1));
    assert_eq!(served("small"), ("ollama", Some("llama3.2:1b"), 1));
    assert_eq!(
        served("big"),
        ("vllm", Some("Qwen/Qwen2.5-72B-Instruct"), 4)
    );
    assert_eq!(served("own"), ("vllm", Some("/srv/rig/./models/own"), 1));
    assert_eq!(config.runtime.ollama, PathBuf::from("/srv/rig/bin/ollama"));
    assert_eq!(config.runtime.vllm, PathBuf::from("vllm"));
}

#[test]
fn keys_of_another_runtime_are_refused() {
    refused(
        r#"
[[model]]
id = "a"
runtime = "ollama"
file = "models/a.gguf"
args = ["--x"]
[[model]]
id = "b"
runtime = "vllm"
file = "models/b"
split_gpu = 1
[[model]]
id = "c"
runtime = "llama-server"
file = "models/c.gguf"
reference = "c"
"#,
        &[
            "5: `file` is not for \"ollama\", which has its own store: make a tag of it with `ollama create`: remove it, or change `runtime`",
            "6: `args` is not for \"ollama\", whose server takes none: use `env`: remove it, or change `runtime`",
            "7: [[model]] has no `reference`: add reference = \"Qwen/Qwen2.5-7B-Instruct\"",
            "10: `file` is not for \"vllm\": name the model or its directory in `reference`: remove it, or change `runtime`",
            "11: `split_gpu` must be a whole number from 2 to 8 (GPUs; without it one), not 1",
            "16: `reference` is for \"ollama\" and \"vllm\"; llama-server has a `file`: remove it, or change `runtime`",
        ],
    );
}

#[test]
fn command_models_are_checked() {
    refused(
        r#"
[[model]]
id = "a"
runtime = "command"
command = "serve --model {MODLE} {FILE}"
url = "localhost:{PORT}"
[[model]]
id = "b"
runtime = "command"
command = "serve 'unclosed {PORT}"
[[model]]
id = "c"
runtime = "llama-server"
url = "http://127.0.0.1:{PORT}"
"#,
        &[
            "5: unknown variable {MODLE}; the nearest known one is {MODEL}",
            "5: {FILE} is used, but this model has no `file`: add file = \"models/...\"",
            "5: `command` never uses {PORT}: it must serve the OpenAI API on the port that it is given",
            "6: `url` must begin with http:// or https://, not \"localhost:{PORT}\"",
            "10: `command` cannot be split into words: missing closing quote",
            "11: [[model]] has no `file`: add file = \"models/qwen2.5-7b-q4_k_m.gguf\"",
            "14: `url` is for runtime = \"command\": remove it, or change `runtime`",
        ],
    );
}

#[test]
fn a_warning_must_come_before_the_kill() {
    refused(
        "[timing]\nheartbeat_every = \"60s\"\nheartbeat_warn = \"60s\"\nheartbeat_hung = \"30s\"\n",
        &[
            "3: `heartbeat_warn` (60s) must be longer than `heartbeat_every` (60s)",
            "4: `heartbeat_hung` (30s) must be longer than `heartbeat_warn` (60s)",
        ],
    );
}

#[test]
fn who_is_told_of_what_is_read_and_checked() {
    assert!(parse("").unwrap().notify.is_none());
    assert!(parse("[notify]\n").unwrap().notify.is_none());
    let told = |text: &str| parse(&format!("[notify]\n{text}")).unwrap().notify.unwrap();
    let shell = told("command = \"cat > /tmp/x\"\n");
    assert_eq!(shell.command, ["bash", "-c", "cat > /tmp/x"]);
    assert_eq!(shell.on.len(), 4, "all by default");
    assert_eq!(shell.gpu_idle_after, Duration::from_secs(600));
    assert_eq!(
        (shell.every, shell.timeout),
        (Duration::from_secs(60), Duration::from_secs(30))
    );
    let list =
        told("command = [\"notify\", \"-q\"]\non = [\"gpu_idle\"]\ngpu_idle_after = \"1h\"\n");
    assert_eq!(list.command, ["notify", "-q"]);
    assert_eq!(list.on, [NotifyEvent::GpuIdle].into());
    assert_eq!(list.gpu_idle_after, Duration::from_secs(3600));
    assert!(told("command = [\"x\"]\non = []\n").on.is_empty());
    let events = "\"batch_finished\", \"batch_failed\", \"agent_dead\", \"gpu_idle\"";
    refused(
        "[notify]\non = [\"gpu_idle\", \"agent_daed\", 3]\nevery = \"1\"\nevry = 1\n",
        &[
            "1: [notify] has no `command`: add command = \"mail -s rigor me@example.org\"",
            &format!("2: `on` knows {events}, not \"agent_daed\" (the nearest is \"agent_dead\")"),
            &format!("2: `on` must be a list of {events}; this one is a whole number"),
            "3: `every` must be a duration such as \"30s\", \"5m\" or \"1h 30m\" and above zero, not \"1\"",
            "4: unknown key `evry` in [notify]; the nearest known one is `every`",
        ],
    );
    refused(
        "[notify]\ncommand = \" \"\non = \"gpu_idle\"\n",
        &[
            "2: `command` is empty: write a string that bash runs, or a list such as [\"program\", \"argument\"]",
            &format!("3: `on` must be a list of {events}, not a string"),
        ],
    );
    refused(
        "[notify]\ncommand = [\"\", \"x\"]\n",
        &["2: `command` names no program: its first word is empty"],
    );
}

#[test]
fn broken_toml_is_reported_without_follow_up_complaints() {
    let ConfigError::Invalid { problems, .. } =
        parse("[rig]\nname = \n[[gpu]]\nfoo = 1\n").unwrap_err()
    else {
        panic!("another error");
    };
    assert!(
        problems
            .iter()
            .all(|problem| problem.message.starts_with("not valid TOML: ")),
        "{problems:?}"
    );
    assert_eq!(problems[0].line, 2);
}

#[test]
fn a_table_in_the_wrong_form_is_refused() {
    refused(
        "limits = 3\n[gpu]\nname = \"gpu-1\"\n",
        &[
            "1: `limits` must be a table written as [limits], not a whole number",
            "2: `gpu` must be written as [[gpu]], once for each, not as one table",
        ],
    );
}

#[test]
fn without_an_id_one_is_derived_from_the_path() {
    let at = |path: &str| Config::parse("", Path::new(path)).unwrap().rig;
    assert_eq!(at("/a/rig.toml").id, at("/a/rig.toml").id);
    assert_ne!(at("/a/rig.toml").id, at("/b/rig.toml").id);
    assert_eq!(at("/b/rig.toml").name, "b");
    assert_eq!(at("/a/rig.toml").id.len(), 16);
}

#[test]
fn load_names_the_rig_alike_by_any_path() {
    let dir = tempfile::tempdir().unwrap();
    let rig = dir.path().join("rig");
    std::fs::create_dir(&rig).unwrap();
    Config::write_new(&rig.join("rig.toml"), GARAGE).unwrap();
    std::os::unix::fs::symlink(&rig, dir.path().join("link")).unwrap();
    let (one, other) = (
        Config::load(&rig).unwrap(),
        Config::load(&dir.path().join("link/../rig/.")).unwrap(),
    );
    assert_eq!(one, other);
    assert_eq!(one, Config::load(&dir.path().join("link")).unwrap());
    assert_eq!(one.rig_dir(), rig.canonicalize().unwrap());
}

#[test]
fn a_missing_file_says_what_to_run() {
    let dir = tempfile::tempdir().unwrap();
    for rig in [dir.path().to_owned(), dir.path().join("none")] {
        let error = Config::load(&rig).unwrap_err();
        assert!(matches!(error, ConfigError::Missing { .. }), "{error}");
        assert!(error.to_string().contains("rigor init"), "{error}");
    }
}

#[test]
fn a_file_is_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rig.toml");
    Config::write_new(&path, "first").unwrap();
    assert!(matches!(
        Config::write_new(&path, "second"),
        Err(ConfigError::Write { .. })
    ));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "first");
}

#[test]
fn literal_secrets_must_not_be_readable_by_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rig.toml");
    let chmod =
        |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    Config::write_new(
        &path,
        "[secrets]\nTOKEN = \"hunter2\"\nOTHER = { file = \"t\" }\n",
    )
    .unwrap();
    let config = Config::load(dir.path()).unwrap();
    assert_eq!(
        config.secret("TOKEN").unwrap().resolve().unwrap().reveal(),
        "hunter2"
    );
    assert_eq!(
        config.secret("OTHER").unwrap(),
        &Secret::File(dir.path().canonicalize().unwrap().join("t"))
    );
    assert_eq!(
        config.secret("TOKNE").unwrap_err().nearest.as_deref(),
        Some("TOKEN")
    );
    chmod(0o644);
    let error = Config::load(dir.path()).unwrap_err();
    assert!(
        matches!(error, ConfigError::SecretsExposed { mode: 0o644, .. }),
        "{error}"
    );
    assert!(!error.to_string().contains("hunter2"));
    // References may be read by all.
    std::fs::write(&path, "[secrets]\nTOKEN = { env = \"TOKEN\" }\n").unwrap();
    Config::load(dir.path()).unwrap();
}

#[test]
fn a_wrong_secret_is_not_repeated() {
    refused(
        "[secrets]\nA = 12345\nB = { fiel = \"x\" }\n\"C D\" = \"x\"\n",
        &[
            "2: `A` in [secrets] must be \"text\", { file = \"path\" } or { env = \"VARIABLE\" }, not a whole number",
            "3: `B` in [secrets] must be \"text\", { file = \"path\" } or { env = \"VARIABLE\" }, not a table",
            "4: `C D` in [secrets] must be a variable's name: letters, digits and _",
        ],
    );
}

fn answers() -> InitAnswers {
    let mut answers = InitAnswers {
        rig_name: "the \"garage\"".into(),
        rig_id: "k3v9x0qa".into(),
        gpus: vec![
            InitGpu {
                name: "gpu-1".into(),
                uuid: "GPU-1".into(),
                port: 11435,
                model: Some("stand-in".into()),
                remarks: vec!["5100 MB held by ollama (pid 2210)\n[evil]".into()],
            },
            InitGpu {
                name: "gpu-2".into(),
                uuid: "GPU-2".into(),
                port: 11436,
                ..InitGpu::default()
            },
        ],
        cpu_agents: vec!["cpu-1".into()],
        models: vec![Model {
            id: "stand-in".into(),
            kind: ModelKind::Chat,
            serving: Serving::Command {
                words: vec!["serve it".into(), "--port={PORT}".into(), "{FILE}".into()],
                url: Some("http://127.0.0.1:{PORT}".into()),
                file: Some("/models/a.bin".into()),
            },
            slots: 2,
            context: Some(512),
            args: vec!["a \"b\"".into()],
            env: [("LANG".to_owned(), "C".to_owned())].into(),
            tier: 3,
            vram_mb: Some(900),
            load_timeout: Some(Duration::from_secs(90)),
            split_gpu: 1,
        }],
        llama_server: Some("/opt/llama/llama-server".into()),
        nvml_library: Some("lib/libnvidia-ml.so.1".into()),
        simulated: true,
    };
    answers.models.push(Model {
        id: "embed".into(),
        kind: ModelKind::Embedding,
        ..answers.models[0].clone()
    });
    answers
}

#[test]
fn what_init_writes_is_read_back() {
    let answers = answers();
    let config = parse(&render(&answers)).unwrap();
    assert_eq!(
        (&config.rig.name, &config.rig.id),
        (&answers.rig_name, &answers.rig_id)
    );
    assert_eq!(config.models, answers.models);
    assert_eq!(
        config.agent_names().collect::<Vec<_>>(),
        ["gpu-1", "gpu-2", "cpu-1"]
    );
    assert_eq!(
        config.nvml.library,
        Some(PathBuf::from("/srv/rig/lib/libnvidia-ml.so.1"))
    );
    assert!(config.nvml.simulated);
    assert_eq!(
        config.runtime.llama_server,
        PathBuf::from("/opt/llama/llama-server")
    );
    assert!(config.gpu("gpu-2").unwrap().model.is_none());
    // Nothing chosen at all is a file too.
    parse(&render(&InitAnswers {
        rig_name: "x".into(),
        rig_id: "y".into(),
        ..InitAnswers::default()
    }))
    .unwrap();
}

#[test]
fn the_defaults_in_the_comments_are_the_defaults() {
    let text = render(&answers());
    let uncommented: String = text
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest)
                if rest
                    .split_once(" = ")
                    .is_some_and(|(key, _)| !key.contains(' ')) =>
            {
                rest
            }
            _ => line,
        })
        .filter(|line| !line.starts_with("model = \"...\""))
        .fold(String::new(), |all, line| all + line + "\n");
    let (shown, default) = (parse(&uncommented).unwrap(), parse(&text).unwrap());
    let mut expected = default.clone();
    // These have no default, or the machine's.
    expected.limits.power_w = Some(250);
    expected.limits.cpu_slots = 8;
    expected.limits.script_slots = Some(2);
    expected.limits.memory_bytes = Some(24_000_000_000);
    expected.limits.file_size_bytes = Some(50_000_000_000);
    expected.stuck.abort_after = Some(Duration::from_secs(1800));
    expected.retention.keep = Some(Duration::from_secs(90 * 24 * 3600));
    expected.notify = Some(Notify {
        command: vec![
            "bash".into(),
            "-c".into(),
            "mail -s rigor me@example.org".into(),
        ],
        ..parse("[notify]\ncommand = [\"true\"]\n")
            .unwrap()
            .notify
            .unwrap()
    });
    expected.secrets = shown.secrets.clone();
    assert_eq!(shown.secrets.len(), 1);
    assert_eq!(shown, expected);
}

/// The documentation's blocks of TOML are read as they stand, and every key has its row.
#[test]
fn the_documentation_is_true() {
    let document = include_str!("../../../docs/configuration.md");
    let blocks: Vec<&str> = document
        .split("```toml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert!(!blocks.is_empty());
    for block in blocks {
        parse(block).unwrap();
        for key in block
            .lines()
            .filter_map(|line| line.split_once(" = "))
            .map(|(key, _)| key)
        {
            if key.chars().all(|c| c.is_ascii_lowercase() || c == '_') {
                assert!(
                    document.contains(&format!("| `{key}`")),
                    "`{key}` has no row"
                );
            }
        }
    }
}
