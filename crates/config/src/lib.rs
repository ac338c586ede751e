//! rig.toml: the only configuration of a rig.
//!
//! [`Config::load`] reads `RIG/rig.toml`, checks all of it and reports every mistake at once,
//! each with its line and what to write instead. [`render`] writes the commented file that
//! `rigor init` leaves. Users read `docs/configuration.md`.

mod age;
mod model;
mod notify;
mod parse;
mod problem;
mod render;
mod secret;
mod section;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use age::parse_age;
pub use model::{Model, ModelKind, Serving};
pub use notify::{Notify, NotifyEvent};
pub use problem::{ConfigError, Problem, UnknownName, nearest};
pub use render::{InitAnswers, InitGpu, render};
pub use secret::{Secret, SecretError, SecretText};

/// The name of the configuration within a rig directory.
pub const FILE_NAME: &str = "rig.toml";

/// Names that no agent may have.
pub const RESERVED_AGENT_NAMES: [&str; 2] = ["brain", "_rig"];

/// Everything that a rig.toml says, with defaults filled in and paths made absolute where they
/// were relative to the rig directory.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The file this was read from.
    pub path: PathBuf,
    /// `[rig]`.
    pub rig: Rig,
    /// `[[gpu]]`: one agent for each.
    pub gpus: Vec<Gpu>,
    /// `[[cpu_agent]]`: agents without a GPU.
    pub cpu_agents: Vec<CpuAgent>,
    /// `[[model]]`: the catalogue.
    pub models: Vec<Model>,
    /// `[runtime]`.
    pub runtime: Runtime,
    /// `[nvml]`.
    pub nvml: Nvml,
    /// `[limits]`.
    pub limits: Limits,
    /// `[timing]`.
    pub timing: Timing,
    /// `[stuck]`.
    pub stuck: Stuck,
    /// `[retention]`.
    pub retention: Retention,
    /// `[log]`.
    pub log: Log,
    /// `[notify]`; none: nobody is told anything.
    pub notify: Option<Notify>,
    /// `[secrets]`, by name.
    pub secrets: BTreeMap<String, Secret>,
}

/// `[rig]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rig {
    /// For people.
    pub name: String,
    /// Tells this rig's processes and cgroups from another's. Where the file has none it is
    /// derived from the rig's path, which every program of the rig derives alike.
    pub id: String,
    /// What survives a power cut.
    pub durability: Durability,
}

/// What survives a power cut; see `docs/configuration.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Submissions and results are on the disk before they are acknowledged; a claim within a second.
    Default,
    /// A claim is on the disk too before its worker starts.
    Strict,
    /// Nothing is forced to the disk: survives the death of processes, not a power cut.
    Process,
}

/// `[[gpu]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Gpu {
    /// The agent's name.
    pub name: String,
    /// NVML's identity of the device.
    pub uuid: String,
    /// Where the LLM runtime of this GPU listens on the loopback interface.
    pub port: u16,
    /// The model it loads for tasks that name none; in the catalogue.
    pub model: Option<String>,
    /// The share of the memory that tasks may use, 0 to 1, instead of `limits.vram_share`.
    pub vram_share: Option<f64>,
}

/// `[[cpu_agent]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuAgent {
    /// The agent's name.
    pub name: String,
    /// CPU slots, instead of `limits.cpu_slots`.
    pub cpu_slots: Option<u32>,
}

/// `[runtime]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// llama.cpp's server: a name to find on PATH, or an absolute path.
    pub llama_server: PathBuf,
    /// ollama, likewise.
    pub ollama: PathBuf,
    /// vLLM's command, likewise.
    pub vllm: PathBuf,
}

/// `[nvml]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nvml {
    /// The NVML library, where it is not the system's.
    pub library: Option<PathBuf>,
    /// The GPUs are stand-ins; every display says so.
    pub simulated: bool,
}

/// `[limits]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// From this GPU temperature on, in degrees Celsius, only meta and cpu tasks are claimed.
    pub temperature_c: u32,
    /// From this power draw of a GPU on, in watts, likewise; none: not limited.
    pub power_w: Option<u32>,
    /// The share of a GPU's memory that tasks may use, 0 to 1.
    pub vram_share: f64,
    /// CPU slots of each agent.
    pub cpu_slots: u32,
    /// Script tasks at once on one GPU; none: as many as its memory holds.
    pub script_slots: Option<u32>,
    /// Bytes kept of an attempt's output.
    pub output_cap_bytes: u64,
    /// Processes and threads of one attempt at once.
    pub processes: u32,
    /// Main memory of one attempt, bytes; none: most of the machine's.
    pub memory_bytes: Option<u64>,
    /// The size of each file that an attempt's command writes, bytes; none: not limited.
    pub file_size_bytes: Option<u64>,
    /// Attempts of a task that may end through no fault of its own before it fails.
    pub uncharged_attempts: u32,
}

/// `[timing]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// Between two heartbeats of an agent.
    pub heartbeat_every: Duration,
    /// A heartbeat older than this is warned about.
    pub heartbeat_warn: Duration,
    /// An agent that holds its lock and whose heartbeat is older than this is hung: it is killed.
    pub heartbeat_hung: Duration,
    /// A task that is processing and quiet this long is stuck.
    pub stuck_after: Duration,
    /// A load that nobody picked up for this long is warned about.
    pub load_warn: Duration,
    /// How long a model may take to load, where its entry says nothing else.
    pub load_timeout: Duration,
    /// Between two MONITOR lines while anything is active.
    pub monitor_every: Duration,
    /// An agent that has claimed nothing for this long while tasks are queued says so.
    pub idle_warn: Duration,
    /// A driver that has not answered for this long hangs.
    pub gpu_hung: Duration,
    /// From SIGTERM to SIGKILL.
    pub grace: Duration,
    /// From an abort signal to the kill, for a task that is to end itself.
    pub abort_grace: Duration,
    /// How often the brain looks whether an agent's lock is free.
    pub lock_poll: Duration,
}

/// `[stuck]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stuck {
    /// Abort a task that has been stuck this long; none: only say so.
    pub abort_after: Option<Duration>,
}

/// `[retention]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// A batch that has been over for this long is archived.
    pub compact_after: Duration,
    /// An archived batch that ended this long ago is removed; none: never.
    pub keep: Option<Duration>,
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// A log file is rotated at this many bytes.
    pub max_size_bytes: u64,
    /// Rotated files kept of each log.
    pub keep: u32,
}

impl Config {
    /// Reads and checks `rig_dir/rig.toml`.
    ///
    /// # Errors
    /// The file is missing or unreadable, holds literal secrets that every user can read, or
    /// has mistakes: then all of them are in the error.
    pub fn load(rig_dir: &Path) -> Result<Config, ConfigError> {
        Config::load_with_text(rig_dir).map(|(config, _)| config)
    }

    /// As [`load`](Config::load), with the text of the file too.
    pub fn load_with_text(rig_dir: &Path) -> Result<(Config, String), ConfigError> {
        let named = rig_dir.join(FILE_NAME);
        let read = |source| ConfigError::Read {
            path: named.clone(),
            source,
        };
        // The rig's own path, not one of its names: what is derived from it must not depend on
        // the directory that a program was started in.
        let path = match rig_dir.canonicalize() {
            Ok(dir) => dir.join(FILE_NAME),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(ConfigError::Missing { path: named });
            }
            Err(error) => return Err(read(error)),
        };
        let mut file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(ConfigError::Missing { path });
            }
            Err(error) => return Err(read(error)),
        };
        let mode = file.metadata().map_err(read)?.mode() & 0o7777;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(read)?;
        let config = Config::parse(&text, &path)?;
        const READABLE_BY_OTHERS: u32 = 0o004;
        let literal = config
            .secrets
            .values()
            .any(|secret| matches!(secret, Secret::Literal(_)));
        if literal && mode & READABLE_BY_OTHERS != 0 {
            return Err(ConfigError::SecretsExposed { path, mode });
        }
        Ok((config, text))
    }

    /// Reads and checks a copy of `rig_dir/rig.toml` that lies elsewhere. Relative paths in it start
    /// at `rig_dir` all the same.
    ///
    /// # Errors
    /// The copy is missing or unreadable, or has mistakes.
    pub fn load_copy(rig_dir: &Path, copy: &Path) -> Result<Config, ConfigError> {
        let read = |source| ConfigError::Read {
            path: copy.to_owned(),
            source,
        };
        let dir = rig_dir.canonicalize().map_err(read)?;
        let text = std::fs::read_to_string(copy).map_err(read)?;
        Config::parse(&text, &dir.join(FILE_NAME))
    }

    /// Checks the text of a rig.toml. `path` is where it lies: messages name it, and relative
    /// paths in it start at its directory. Touches no file.
    pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
        parse::parse(text, path)
    }

    /// Writes the text of a new rig.toml, readable by its owner alone, and forces it to the disk.
    ///
    /// # Errors
    /// There is one already (it is never replaced), or the file system refuses. After an error
    /// or a crash a part of the file may be left.
    pub fn write_new(path: &Path, text: &str) -> Result<(), ConfigError> {
        let failed = |source| ConfigError::Write {
            path: path.to_owned(),
            source,
        };
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        file.write_all(text.as_bytes()).map_err(failed)?;
        file.sync_all().map_err(failed)
    }

    /// The directory of the rig.
    pub fn rig_dir(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }

    /// The model of that id in the catalogue.
    pub fn model(&self, id: &str) -> Result<&Model, UnknownName> {
        named("model", id, &self.models, |model| &model.id)
    }

    /// The GPU whose agent has that name.
    pub fn gpu(&self, name: &str) -> Result<&Gpu, UnknownName> {
        named("GPU", name, &self.gpus, |gpu| &gpu.name)
    }

    /// The CPU-only agent of that name.
    pub fn cpu_agent(&self, name: &str) -> Result<&CpuAgent, UnknownName> {
        named("CPU-only agent", name, &self.cpu_agents, |agent| {
            &agent.name
        })
    }

    /// The secret of that name.
    pub fn secret(&self, name: &str) -> Result<&Secret, UnknownName> {
        self.secrets
            .get(name)
            .ok_or_else(|| unknown("secret", name, self.secrets.keys().map(String::as_str)))
    }

    /// The names of all agents: those of GPUs in the file's order, then the CPU-only ones.
    pub fn agent_names(&self) -> impl Iterator<Item = &str> {
        let gpus = self.gpus.iter().map(|gpu| gpu.name.as_str());
        gpus.chain(self.cpu_agents.iter().map(|agent| agent.name.as_str()))
    }

    /// The share of that GPU's memory that tasks may use, 0 to 1.
    pub fn vram_share(&self, gpu: &Gpu) -> f64 {
        gpu.vram_share.unwrap_or(self.limits.vram_share)
    }

    /// How long that model may take to load.
    pub fn load_timeout(&self, model: &Model) -> Duration {
        model.load_timeout.unwrap_or(self.timing.load_timeout)
    }

    /// CPU slots of the agent of that name, whether it has a GPU or not.
    pub fn cpu_slots(&self, agent: &str) -> u32 {
        let own = self
            .cpu_agents
            .iter()
            .find(|cpu_agent| cpu_agent.name == agent);
        own.and_then(|cpu_agent| cpu_agent.cpu_slots)
            .unwrap_or(self.limits.cpu_slots)
    }
}

fn named<'a, T>(
    kind: &'static str,
    name: &str,
    items: &'a [T],
    name_of: impl Fn(&'a T) -> &'a str,
) -> Result<&'a T, UnknownName> {
    let found = items.iter().find(|item| name_of(item) == name);
    found.ok_or_else(|| unknown(kind, name, items.iter().map(&name_of)))
}

fn unknown<'a>(
    kind: &'static str,
    name: &str,
    known: impl Iterator<Item = &'a str>,
) -> UnknownName {
    UnknownName {
        kind,
        name: name.to_owned(),
        nearest: nearest(name, known).map(str::to_owned),
    }
}
