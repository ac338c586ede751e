//! From the text of a rig.toml to a [`Config`], or to every mistake in it.

mod catalogue;
mod notify;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use toml::de::{DeTable, DeValue};

use crate::problem::{ConfigError, nearest};
use crate::secret::{Secret, SecretText};
use crate::section::{Section, Source, kind};
use crate::{
    Config, CpuAgent, Durability, Gpu, Limits, Log, Model, ModelKind, Nvml, RESERVED_AGENT_NAMES,
    Retention, Rig, Runtime, Stuck, Timing,
};

/// Above the ports that only root may take.
const PORT_MIN: u32 = 1025;
/// No machine that this runs on has more CPUs; catches a slip of the pen.
const SLOTS_MAX: u32 = 4096;
const AGENT_NAME_MAX: usize = 32;

pub(crate) fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
    let source = Source::new(text);
    let (document, syntax_errors) = DeTable::parse_recoverable(text);
    for error in &syntax_errors {
        let offset = error.span().map_or(0, |span| span.start);
        source.problem(offset, format!("not valid TOML: {}", error.message()));
    }
    let config = if syntax_errors.is_empty() {
        Some(config(
            &Section::root(&source, document.get_ref()),
            &source,
            path,
        ))
    } else {
        // What could be made out of broken text would only bring follow-up complaints.
        None
    };
    let problems = source.into_problems();
    match config {
        Some(config) if problems.is_empty() => Ok(config),
        _ => Err(ConfigError::Invalid {
            path: path.to_owned(),
            problems,
        }),
    }
}

fn config(root: &Section<'_, '_>, source: &Source<'_>, path: &Path) -> Config {
    let rig_dir = path.parent().unwrap_or(Path::new("."));
    let mut names = Unique::new("agent name");
    let (mut ports, mut uuids, mut ids) = (
        Unique::new("port"),
        Unique::new("uuid"),
        Unique::new("model id"),
    );
    let models = root.tables("model");
    let models: Vec<Model> = models
        .iter()
        .filter_map(|section| catalogue::model(section, rig_dir, &mut ids))
        .collect();
    let embeddings: Vec<String> = models
        .iter()
        .filter(|model| model.kind == ModelKind::Embedding)
        .map(|model| model.id.clone())
        .collect();
    let gpus = root.tables("gpu");
    let gpus: Vec<Gpu> = gpus
        .iter()
        .filter_map(|section| {
            gpu(
                section,
                &mut names,
                &mut ports,
                &mut uuids,
                &ids,
                &embeddings,
            )
        })
        .collect();
    let cpu_agents = root.tables("cpu_agent");
    let cpu_agents: Vec<CpuAgent> = cpu_agents
        .iter()
        .filter_map(|section| cpu_agent(section, &mut names))
        .collect();
    let config = Config {
        path: path.to_owned(),
        rig: rig(&root.table("rig"), rig_dir),
        gpus,
        cpu_agents,
        models,
        runtime: runtime(&root.table("runtime"), rig_dir),
        nvml: nvml(&root.table("nvml"), rig_dir),
        limits: limits(&root.table("limits")),
        timing: timing(&root.table("timing")),
        stuck: stuck(&root.table("stuck")),
        retention: retention(&root.table("retention")),
        log: log(&root.table("log")),
        notify: notify::notify(&root.table("notify")),
        secrets: secrets(&root.table("secrets"), source, rig_dir),
    };
    root.refuse_unknown_keys();
    config
}

fn rig(section: &Section<'_, '_>, rig_dir: &Path) -> Rig {
    let id = section.text("id", "k3v9x0qa").filter(|id| {
        let fits = id.len() <= 64
            && id
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        if !fits {
            section.problem(
                "id",
                "`id` must be at most 64 letters, digits, `-` and `_`: it is part of cgroup names",
            );
        }
        fits
    });
    let rig = Rig {
        name: section.text("name", "garage").unwrap_or_else(|| {
            let last = rig_dir
                .file_name()
                .map(|name| name.to_string_lossy().into_owned());
            last.unwrap_or_else(|| "rig".to_owned())
        }),
        id: id.unwrap_or_else(|| derived_id(rig_dir)),
        durability: section
            .choice(
                "durability",
                &[
                    ("default", Durability::Default),
                    ("strict", Durability::Strict),
                    ("process", Durability::Process),
                ],
            )
            .unwrap_or(Durability::Default),
    };
    section.refuse_unknown_keys();
    rig
}

/// 16 hexadecimal digits of the path's SHA-256.
fn derived_id(rig_dir: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let hash = Sha256::digest(rig_dir.as_os_str().as_bytes());
    hash.iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn gpu(
    section: &Section<'_, '_>,
    names: &mut Unique,
    ports: &mut Unique,
    uuids: &mut Unique,
    models: &Unique,
    embeddings: &[String],
) -> Option<Gpu> {
    let name = agent_name(section, names, "gpu-1");
    let uuid = section.required("uuid", "GPU-0f3c2a9e-...").filter(|uuid| {
        let known_form = uuid.starts_with("GPU-") || uuid.starts_with("MIG-");
        if !known_form {
            section.problem("uuid", format!("`uuid` must begin with GPU- or MIG-, not \"{uuid}\": `nvidia-smi -L` lists them"));
        }
        known_form
    });
    if let Some(uuid) = &uuid {
        uuids.add(section, "uuid", uuid);
    }
    section.require("port", "11435");
    let port = section.number("port", PORT_MIN..=u32::from(u16::MAX), "port");
    if let Some(port) = port {
        ports.add(section, "port", &port.to_string());
    }
    let model = section.text("model", "qwen2.5:7b");
    if let Some(model) = &model
        && !models.seen.contains_key(model)
    {
        let known = models.seen.keys().map(String::as_str);
        let near = nearest(model, known)
            .map(|near| format!("; the nearest is \"{near}\""))
            .unwrap_or_default();
        section.problem(
            "model",
            format!("no [[model]] has the id \"{model}\"{near}"),
        );
    }
    if let Some(model) = &model
        && embeddings.contains(model)
    {
        section.problem(
            "model",
            format!("\"{model}\" is of kind \"embedding\": a prompt that names no model would get a vector for an answer; leave `model` out, or name a chat model"),
        );
    }
    let vram_share = section.share("vram_share");
    section.refuse_unknown_keys();
    let port = u16::try_from(port?).ok()?;
    Some(Gpu {
        name: name?,
        uuid: uuid?,
        port,
        model,
        vram_share,
    })
}

fn cpu_agent(section: &Section<'_, '_>, names: &mut Unique) -> Option<CpuAgent> {
    let name = agent_name(section, names, "cpu-1");
    let cpu_slots = section.number("cpu_slots", 1..=SLOTS_MAX, "slots");
    section.refuse_unknown_keys();
    Some(CpuAgent {
        name: name?,
        cpu_slots,
    })
}

fn agent_name(section: &Section<'_, '_>, names: &mut Unique, example: &str) -> Option<String> {
    let name = section.required("name", example)?;
    if RESERVED_AGENT_NAMES.contains(&name.as_str()) {
        section.problem(
            "name",
            format!("\"{name}\" is reserved: write another name, such as \"{example}\""),
        );
        return None;
    }
    let low = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let fits = name.len() <= AGENT_NAME_MAX
        && name.starts_with(low)
        && name.chars().all(|c| low(c) || c == '-' || c == '_');
    if !fits {
        section.problem(
            "name",
            format!(
                "\"{name}\" is no agent name: it is a directory's name too; at most {AGENT_NAME_MAX} of a-z, 0-9, - \
                 and _, the first a letter or a digit, such as \"{example}\""
            ),
        );
        return None;
    }
    names.add(section, "name", &name);
    Some(name)
}

fn runtime(section: &Section<'_, '_>, rig_dir: &Path) -> Runtime {
    let program = |key, usual: &str| {
        let program = section.text(key, usual).unwrap_or_else(|| usual.to_owned());
        // As in a shell: a name without a slash is looked for on PATH.
        if program.contains('/') {
            rig_dir.join(program)
        } else {
            PathBuf::from(program)
        }
    };
    let runtime = Runtime {
        llama_server: program("llama_server", "llama-server"),
        ollama: program("ollama", "ollama"),
        vllm: program("vllm", "vllm"),
    };
    section.refuse_unknown_keys();
    runtime
}

fn nvml(section: &Section<'_, '_>, rig_dir: &Path) -> Nvml {
    let nvml = Nvml {
        library: section
            .text("library", "libnvidia-ml.so.1")
            .map(|library| rig_dir.join(library)),
        simulated: section.flag("simulated").unwrap_or(false),
    };
    section.refuse_unknown_keys();
    nvml
}

fn limits(section: &Section<'_, '_>) -> Limits {
    const MB: u64 = 1_000_000;
    /// Linux never has more (PID_MAX_LIMIT).
    const PROCESSES_MAX: u32 = 4_194_304;
    const MEMORY_MIN: u64 = 16 * MB;
    let limits = Limits {
        temperature_c: section
            .number("temperature_c", 30..=120, "degrees Celsius")
            .unwrap_or(80),
        power_w: section.number("power_w", 1..=10_000, "watts"),
        vram_share: section.share("vram_share").unwrap_or(0.8),
        cpu_slots: section
            .number("cpu_slots", 1..=SLOTS_MAX, "slots")
            .unwrap_or_else(cpus),
        script_slots: section.number("script_slots", 1..=SLOTS_MAX, "slots"),
        output_cap_bytes: section.size("output_cap").unwrap_or(10 * MB),
        processes: section
            .number("processes", 16..=PROCESSES_MAX, "processes and threads")
            .unwrap_or(10_000),
        memory_bytes: section.size("memory"),
        file_size_bytes: section.size("file_size"),
        uncharged_attempts: section
            .number("uncharged_attempts", 0..=10_000, "attempts")
            .unwrap_or(10),
    };
    if limits.memory_bytes.is_some_and(|bytes| bytes < MEMORY_MIN) {
        section.problem(
            "memory",
            "`memory` must be at least \"16MB\": a shell alone needs some of it",
        );
    }
    section.refuse_unknown_keys();
    limits
}

/// The CPUs that this process may use, which is fewer than the machine's in a container.
fn cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1))
}

fn timing(section: &Section<'_, '_>) -> Timing {
    let seconds = |key, default| {
        section
            .duration(key)
            .unwrap_or(Duration::from_secs(default))
    };
    let timing = Timing {
        heartbeat_every: seconds("heartbeat_every", 5),
        heartbeat_warn: seconds("heartbeat_warn", 60),
        heartbeat_hung: seconds("heartbeat_hung", 300),
        stuck_after: seconds("stuck_after", 300),
        load_warn: seconds("load_warn", 60),
        load_timeout: seconds("load_timeout", 600),
        monitor_every: seconds("monitor_every", 30),
        idle_warn: seconds("idle_warn", 60),
        gpu_hung: seconds("gpu_hung", 15),
        grace: seconds("grace", 10),
        abort_grace: seconds("abort_grace", 120),
        lock_poll: seconds("lock_poll", 1),
    };
    section.refuse_unknown_keys();
    // A missed heartbeat must not look like a dead agent, nor a warning come after the kill.
    let order = [
        (
            "heartbeat_every",
            timing.heartbeat_every,
            "heartbeat_warn",
            timing.heartbeat_warn,
        ),
        (
            "heartbeat_warn",
            timing.heartbeat_warn,
            "heartbeat_hung",
            timing.heartbeat_hung,
        ),
    ];
    for (lower_key, lower, upper_key, upper) in order {
        if lower >= upper {
            section.problem(
                upper_key,
                format!("`{upper_key}` ({upper:?}) must be longer than `{lower_key}` ({lower:?})"),
            );
        }
    }
    timing
}

fn stuck(section: &Section<'_, '_>) -> Stuck {
    let stuck = Stuck {
        abort_after: section.duration("abort_after"),
    };
    section.refuse_unknown_keys();
    stuck
}

fn retention(section: &Section<'_, '_>) -> Retention {
    let retention = Retention {
        compact_after: section
            .age("compact_after")
            .unwrap_or(Duration::from_secs(60 * 60)),
        keep: section.age("keep"),
    };
    if retention
        .keep
        .is_some_and(|keep| keep < retention.compact_after)
    {
        section.problem(
            "keep",
            "`keep` must not be shorter than `compact_after`: only what is archived is removed",
        );
    }
    section.refuse_unknown_keys();
    retention
}

fn log(section: &Section<'_, '_>) -> Log {
    const MB: u64 = 1_000_000;
    let log = Log {
        max_size_bytes: section.size("max_size").unwrap_or(100 * MB),
        keep: section.number("keep", 0..=1000, "files").unwrap_or(5),
    };
    section.refuse_unknown_keys();
    log
}

fn secrets(
    section: &Section<'_, '_>,
    source: &Source<'_>,
    rig_dir: &Path,
) -> BTreeMap<String, Secret> {
    const EXPECTED: &str = "must be \"text\", { file = \"path\" } or { env = \"VARIABLE\" }";
    let mut secrets = BTreeMap::new();
    for (name, span, value) in section.entries() {
        let variable = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty()
            || name.starts_with(|c: char| c.is_ascii_digit())
            || !name.chars().all(variable)
        {
            source.problem(
                span.start,
                format!("`{name}` in [secrets] must be a variable's name: letters, digits and _"),
            );
        }
        let secret = match value {
            DeValue::String(text) => Some(Secret::Literal(SecretText::new(text.to_string()))),
            DeValue::Table(table) if table.len() == 1 => {
                let (key, value) = match table.iter().next() {
                    Some((key, value)) => (key.get_ref().as_ref(), value.get_ref().as_str()),
                    None => ("", None),
                };
                match (key, value) {
                    ("file", Some(path)) => Some(Secret::File(rig_dir.join(path))),
                    ("env", Some(variable)) => Some(Secret::Env(variable.to_owned())),
                    _ => None,
                }
            }
            _ => None,
        };
        match secret {
            Some(secret) => drop(secrets.insert(name.to_owned(), secret)),
            // The value is not repeated: it may be the secret.
            None => source.problem(
                span.start,
                format!("`{name}` in [secrets] {EXPECTED}, not {}", kind(value)),
            ),
        }
    }
    secrets
}

/// Values that may be there once only, with the place of the first.
struct Unique {
    what: &'static str,
    seen: HashMap<String, usize>,
}

impl Unique {
    fn new(what: &'static str) -> Unique {
        Unique {
            what,
            seen: HashMap::new(),
        }
    }

    fn add(&mut self, section: &Section<'_, '_>, key: &str, value: &str) {
        let line = section.line_of(key);
        if let Some(first) = self.seen.get(value) {
            let what = self.what;
            section.problem(
                key,
                format!("the {what} \"{value}\" is taken since line {first}: each needs its own"),
            );
        } else {
            self.seen.insert(value.to_owned(), line);
        }
    }
}
