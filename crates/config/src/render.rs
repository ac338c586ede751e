//! The commented rig.toml that `rigor init` leaves.

use std::fmt::Write as _;

use crate::model::{Model, ModelKind, Serving};

/// What `rigor init` found out or chose.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InitAnswers {
    /// `rig.name`.
    pub rig_name: String,
    /// `rig.id`: random, new for each rig.
    pub rig_id: String,
    /// One entry for each GPU.
    pub gpus: Vec<InitGpu>,
    /// Names of agents without a GPU.
    pub cpu_agents: Vec<String>,
    /// The catalogue; where it is empty a commented example is written.
    pub models: Vec<Model>,
    /// `runtime.llama_server`, where it is not simply on PATH.
    pub llama_server: Option<String>,
    /// `nvml.library`, where it is not the system's.
    pub nvml_library: Option<String>,
    /// `nvml.simulated`.
    pub simulated: bool,
}

/// A GPU as `rigor init` found it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InitGpu {
    /// The agent's name.
    pub name: String,
    /// NVML's identity of the device.
    pub uuid: String,
    /// The port of its LLM runtime.
    pub port: u16,
    /// Its default model.
    pub model: Option<String>,
    /// Lines to put above it as comments: `NVIDIA GeForce RTX 3060, 12288 MB`,
    /// `5100 MB held by ollama (pid 2210)`.
    pub remarks: Vec<String>,
}

/// The text of a new rig.toml. What is left at its default stands there as a comment.
pub fn render(answers: &InitAnswers) -> String {
    let mut text = String::from(
        "# The configuration of this rig. Every key is explained in docs/configuration.md.\n\
         # A key that Rigor does not know is an error. Restart the brain and the agents after a change.\n\n\
         [rig]\n",
    );
    pair(&mut text, "name", &answers.rig_name);
    text.push_str(
        "# Tells this rig's processes from another's: leave it alone while anything runs.\n",
    );
    pair(&mut text, "id", &answers.rig_id);
    text.push_str("# durability = \"default\"       # \"strict\": claims are on the disk too; \"process\": no power cut is survived\n");
    for gpu in &answers.gpus {
        text.push('\n');
        for remark in &gpu.remarks {
            comment(&mut text, remark);
        }
        text.push_str("[[gpu]]\n");
        pair(&mut text, "name", &gpu.name);
        pair(&mut text, "uuid", &gpu.uuid);
        line(&mut text, "port", &gpu.port.to_string());
        match &gpu.model {
            Some(model) => pair(&mut text, "model", model),
            None => text.push_str(
                "# model = \"...\"              # the [[model]] it loads when a task names none\n",
            ),
        }
    }
    for name in &answers.cpu_agents {
        text.push_str("\n# Runs cpu tasks; has no GPU.\n[[cpu_agent]]\n");
        pair(&mut text, "name", name);
    }
    for model in &answers.models {
        render_model(&mut text, model);
    }
    if answers.models.is_empty() {
        text.push_str(MODEL_EXAMPLE);
    }
    if let Some(program) = &answers.llama_server {
        text.push_str("\n[runtime]\n");
        pair(&mut text, "llama_server", program);
    }
    if answers.nvml_library.is_some() || answers.simulated {
        text.push_str("\n[nvml]\n");
        if let Some(library) = &answers.nvml_library {
            pair(&mut text, "library", library);
        }
        if answers.simulated {
            line(
                &mut text,
                "simulated",
                "true               # these GPUs are stand-ins",
            );
        }
    }
    text.push_str(DEFAULTS);
    text
}

const MODEL_EXAMPLE: &str = r#"
# The catalogue of models. Fill one in and name it in a [[gpu]].
# [[model]]
# id = "qwen2.5:7b"
# kind = "chat"                # "chat" or "embedding"
# runtime = "llama-server"     # "ollama" and "vllm" with a reference, "command" with command = "my-server --port {PORT}"
# file = "models/qwen2.5-7b-q4_k_m.gguf"
# slots = 4                    # requests at once
# context = 8192               # tokens, all slots together
# args = []
"#;

/// The defaults, as comments. A test takes the comment signs off and compares.
const DEFAULTS: &str = r#"
[limits]
# temperature_c = 80           # a hotter GPU claims meta and cpu tasks only
# power_w = 250                # likewise above this draw; not limited by default
# vram_share = 0.8             # of each GPU's memory
# cpu_slots = 8                # of each agent; the number of CPUs by default
# script_slots = 2             # script tasks at once on a GPU; by default as many as its memory holds
# output_cap = "10MB"          # kept of an attempt's output
# processes = 10000            # of an attempt at once, threads too
# memory = "24GB"              # of an attempt; nine tenths of the machine's by default
# file_size = "50GB"           # of each file that an attempt writes; not limited by default
# uncharged_attempts = 10      # attempts that end through no fault of the task before it fails

[timing]
# heartbeat_every = "5s"
# heartbeat_warn = "60s"       # a heartbeat this old is warned about
# heartbeat_hung = "5m"        # an agent this silent is killed and its tasks are requeued
# stuck_after = "5m"           # a task this long without output, CPU or GPU activity is stuck
# load_warn = "60s"            # a model load that nobody picked up for this long is warned about
# load_timeout = "10m"         # for a model to load
# monitor_every = "30s"
# idle_warn = "60s"            # an agent that claims nothing for this long says why
# gpu_hung = "15s"             # a driver that has not answered for this long hangs
# grace = "10s"                # from SIGTERM to SIGKILL
# abort_grace = "2m"           # from an abort to the kill
# lock_poll = "1s"             # how often the brain looks for dead agents

[stuck]
# abort_after = "30m"          # abort a task that has been stuck this long; never by default

[retention]
# compact_after = "1h"         # a batch that has been over for this long is archived: a few files instead of several for each task
# keep = "90d"                 # an archived batch is removed this long after its end; kept for ever by default

[log]
# max_size = "100MB"
# keep = 5                     # rotated files

[notify]
# command = "mail -s rigor me@example.org"   # run by bash when something happens, with a JSON object on its input
# on = ["batch_finished", "batch_failed", "agent_dead", "gpu_idle"]
# gpu_idle_after = "10m"       # a GPU that is idle this long while work is queued
# every = "1m"                 # at most one of each event and subject in this time
# timeout = "30s"              # then the command is killed

[secrets]
# HF_TOKEN = { file = "/home/me/.hf-token" }   # or { env = "HF_TOKEN" }, or the text itself if this file is yours alone
"#;

fn render_model(text: &mut String, model: &Model) {
    text.push_str("\n[[model]]\n");
    pair(text, "id", &model.id);
    let kind = match model.kind {
        ModelKind::Chat => "chat",
        ModelKind::Embedding => "embedding",
    };
    pair(text, "kind", kind);
    pair(text, "runtime", model.runtime_name());
    if let Serving::Command { words, url, .. } = &model.serving {
        pair(text, "command", &shell_words::join(words));
        if let Some(url) = url {
            pair(text, "url", url);
        }
    }
    if let Some(file) = model.file() {
        pair(text, "file", &file.to_string_lossy());
    }
    if let Some(reference) = model.reference() {
        pair(text, "reference", reference);
    }
    line(text, "slots", &model.slots.to_string());
    let numbers = [
        ("context", model.context),
        ("vram_mb", model.vram_mb),
        ("tier", Some(model.tier).filter(|tier| *tier > 0)),
        ("split_gpu", Some(model.split_gpu).filter(|gpus| *gpus > 1)),
    ];
    for (key, number) in numbers {
        if let Some(number) = number {
            line(text, key, &number.to_string());
        }
    }
    if !model.args.is_empty() {
        let args: Vec<String> = model.args.iter().map(|arg| quoted(arg)).collect();
        line(text, "args", &format!("[{}]", args.join(", ")));
    }
    if !model.env.is_empty() {
        let env: Vec<String> = model
            .env
            .iter()
            .map(|(name, value)| format!("{} = {}", quoted(name), quoted(value)))
            .collect();
        line(text, "env", &format!("{{ {} }}", env.join(", ")));
    }
    if let Some(limit) = model.load_timeout {
        pair(
            text,
            "load_timeout",
            &format!("{}s", limit.as_secs().max(1)),
        );
    }
}

fn pair(text: &mut String, key: &str, value: &str) {
    line(text, key, &quoted(value));
}

fn line(text: &mut String, key: &str, value: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{key} = {value}");
}

/// A remark from outside must not end its comment and become configuration.
fn comment(text: &mut String, remark: &str) {
    let printable: String = remark
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let _ = writeln!(text, "# {printable}");
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
