//! The task file: an immutable specification of one unit of work.
//!
//! On disk: `{"schema":1,"sum":"<16 hex digits>","body":{...}}`. `sum` is the start of the SHA-256
//! over the exact bytes of `body`, so a flipped bit is seen before anything is believed.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::name::{PRIORITY_DEFAULT, Shape, TaskId};
use crate::record::RaisedNeed;

/// What a task needs in kind, and so who may claim it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Handled by the agent itself: `load_llm`, `unload_llm`, `lend_gpu`.
    Meta,
    /// A prompt, or a command that talks to the model: needs the model in VRAM.
    Llm,
    /// GPU compute without an LLM.
    Script,
    /// CPU only.
    Cpu,
    /// Run by the brain.
    Brain,
}

impl Class {
    /// Every class, in the order displays use.
    pub const ALL: [Class; 5] = [
        Class::Meta,
        Class::Llm,
        Class::Script,
        Class::Cpu,
        Class::Brain,
    ];

    /// The class as it is written in plans, lanes and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Class::Meta => "meta",
            Class::Llm => "llm",
            Class::Script => "script",
            Class::Cpu => "cpu",
            Class::Brain => "brain",
        }
    }

    /// The class of that name.
    pub fn parse(text: &str) -> Option<Class> {
        Class::ALL.into_iter().find(|class| class.as_str() == text)
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One unit of work, complete in itself: a worker needs nothing else to run it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskSpec {
    /// Equal to the id in the file's name.
    pub id: TaskId,
    /// The batch it belongs to.
    pub batch: String,
    /// The name of the plan, under which durations and memory peaks are remembered.
    pub plan: String,
    /// The task's id in the plan (shared by all items of a foreach).
    pub task: String,
    /// The instance: the task's id, and for a foreach `_<item id>`.
    pub name: String,
    /// Who may claim it.
    pub class: Class,
    /// What is to be done.
    pub work: Work,
    /// The item (or items, with `batch_size`) of a foreach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<Item>,
    /// Claim order, 0 to 10, higher first.
    #[serde(default = "default_priority")]
    pub priority: u8,
    /// CPU slots it takes.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub cpus: u32,
    /// Agents it may run on; empty: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub on: Vec<String>,
    /// The catalogue id of the model an `llm` task needs; none: the agent's own default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The lowest capability tier of a model that will do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_tier: Option<u32>,
    /// What it needs of GPU memory.
    #[serde(default)]
    pub vram: Vram,
    /// Wall-clock limit of an attempt, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u64>,
    /// An attempt that prints nothing for this many seconds is ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kill_if_silent_s: Option<u64>,
    /// Attempts after the first that may be charged to the task.
    #[serde(default = "default_retries")]
    pub retries: u32,
    /// How long to wait between attempts.
    #[serde(default)]
    pub backoff: Backoff,
    /// Variables for the task's environment, over everything else.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// A file of `NAME=value` lines, relative to the plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env_file: Option<String>,
    /// A Python virtual environment to put on PATH, relative to the plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub venv: Option<String>,
    /// A conda environment (name or path) to run in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conda: Option<String>,
    /// Names of secrets of the rig that become environment variables.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// The working directory, relative to the plan; none: the plan's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Paths or globs that must exist before an attempt starts, relative to the plan.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<String>,
    /// Paths or globs that must exist after a successful attempt, relative to the plan.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub produces: Vec<String>,
    /// The plan's folder, absolute.
    pub plan_dir: PathBuf,
    /// `{BATCH_PATH}`: the batch's folder, absolute.
    pub batch_dir: PathBuf,
    /// When the task file was written.
    pub created: Timestamp,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Work {
    /// A shell command, run by bash.
    Command {
        /// The command, every variable filled in and quoted.
        command: String,
    },
    /// A prompt to the model of the agent.
    Prompt(Prompt),
    /// Put a model into the VRAM of the claiming agent's GPU.
    LoadLlm {
        /// Catalogue id.
        model: String,
        /// Agents that may take it; each cold one takes at most one.
        eligible: Vec<String>,
        /// Agents whose GPUs it loads the model over besides its own, which lend them to it; empty:
        /// its own alone.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        lenders: Vec<String>,
        /// Unclaimed by then, the brain withdraws it.
        expires: Timestamp,
    },
    /// Free the VRAM that the agent's runtime holds.
    UnloadLlm {
        /// The agent whose model goes.
        agent: String,
        /// Catalogue id of the model that it makes room for: its file is read into the page cache
        /// meanwhile.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next: Option<String>,
    },
    /// Keep the claiming agent's share of a model that is split over several GPUs free, for the
    /// runtime of another agent; an `unload_llm` ends it.
    LendGpu {
        /// The agent whose GPU is lent.
        agent: String,
        /// The agent whose runtime uses it.
        to: String,
        /// Catalogue id.
        model: String,
        /// The GPUs that the model is split over, this one among them.
        gpus: u32,
        /// Unclaimed by then, the brain withdraws it.
        expires: Timestamp,
    },
    /// A submitted plan: the brain holds it in `processing/brain/` while its batch is active.
    Plan(Box<Submission>),
}

/// A prompt whose variables are filled in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompt {
    /// The user message.
    pub user: Vec<PromptPart>,
    /// The system message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub system: Vec<PromptPart>,
    /// Sampling temperature; none: the model's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// The longest answer, tokens; none: the model's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Sampling seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// What to do with a prompt over the model's context.
    #[serde(default)]
    pub too_long: TooLong,
    /// The file that gets the answer, relative to the plan, written whole or not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
}

/// A piece of a prompt: substitution happened once, when the task was made; only files are read
/// when it runs, and what they hold is never read as a variable again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptPart {
    /// Literal text.
    Text(String),
    /// The content of a file, relative to the plan, read when the attempt starts.
    File(String),
}

/// What to do with a prompt over the model's context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TooLong {
    /// Fail, with the token counts.
    #[default]
    Fail,
    /// Cut the user message's longest file (else the message) until it fits, and say so.
    Truncate,
}

/// A submitted plan, as it was when it was submitted: later edits do not reach a running batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Submission {
    /// The text of plan.md.
    pub source: String,
    /// Texts of the prompt files that the plan names, by their path in the plan.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
    /// Values of inputs, over their defaults.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub inputs: BTreeMap<String, String>,
    /// Only the first so many items of each source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Take the class inferred from a command where a task names none.
    #[serde(default)]
    pub infer: bool,
}

/// The item (or items) that a foreach task is for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// Unique in its foreach; part of the task's id.
    pub id: String,
    /// The item; with `batch_size` over 1 the list of items.
    pub value: serde_json::Value,
    /// Ids of the items of a task with `batch_size` over 1, else empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<String>,
}

/// What a task needs of GPU memory, megabytes (MiB, as NVML and nvidia-smi count).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "policy", rename_all = "lowercase", deny_unknown_fields)]
pub enum Vram {
    /// The estimate where there is one, until attempts of that name were measured; without
    /// either the task runs alone on its GPU.
    Default {
        /// The plan's estimate.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        estimate_mb: Option<u64>,
    },
    /// The measured peak alone; the task runs alone on its GPU until there is one.
    #[default]
    Infer,
    /// The estimate, whatever was measured.
    Fixed {
        /// The plan's figure.
        mb: u64,
    },
}

/// How long to wait before attempt after attempt: `first_s`, doubling, at most `most_s`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backoff {
    /// After the first failure, seconds.
    pub first_s: u64,
    /// The longest, seconds.
    pub most_s: u64,
}

impl Default for Backoff {
    /// `10s..5m`.
    fn default() -> Self {
        Backoff {
            first_s: 10,
            most_s: 300,
        }
    }
}

/// `retries` of a task that names none.
pub const RETRIES_DEFAULT: u32 = 2;

impl TaskSpec {
    /// A task with nothing but what every task has: the batch is its plan too, it has no item, no
    /// folders, the default priority and retries, and was written now.
    pub fn new(id: TaskId, batch: &str, task: &str, class: Class, work: Work) -> TaskSpec {
        TaskSpec {
            id,
            batch: batch.to_owned(),
            plan: batch.to_owned(),
            task: task.to_owned(),
            name: task.to_owned(),
            class,
            work,
            item: None,
            priority: default_priority(),
            cpus: 1,
            on: Vec::new(),
            model: None,
            min_tier: None,
            vram: Vram::default(),
            timeout_s: None,
            kill_if_silent_s: None,
            retries: RETRIES_DEFAULT,
            backoff: Backoff::default(),
            env: BTreeMap::new(),
            env_file: None,
            venv: None,
            conda: None,
            secrets: Vec::new(),
            workdir: None,
            requires: Vec::new(),
            produces: Vec::new(),
            plan_dir: PathBuf::new(),
            batch_dir: PathBuf::new(),
            created: Timestamp::now(),
        }
    }

    /// What the task needs, hashed: class, model, tier, agents, memory and CPU slots, and for a
    /// script its plan and task name, under which its memory is measured.
    pub fn shape(&self) -> Shape {
        self.shape_needing(None)
    }

    /// The shape of the task while it needs other GPU memory than its file says, having run out of
    /// that: see [`RaisedNeed`].
    pub fn raised_shape(&self, need: RaisedNeed) -> Shape {
        self.shape_needing(Some(need))
    }

    fn shape_needing(&self, raised: Option<RaisedNeed>) -> Shape {
        let measured_as = match self.class {
            Class::Script => self.measured_as(),
            _ => String::new(),
        };
        let vram = match (raised, self.vram) {
            (Some(RaisedNeed::Mb { mb }), _) => format!("raised {mb}"),
            (Some(RaisedNeed::Alone { budget_mb }), _) => format!("alone {budget_mb}"),
            (None, Vram::Default { estimate_mb: None }) => "default".to_owned(),
            (
                None,
                Vram::Default {
                    estimate_mb: Some(mb),
                },
            ) => format!("default {mb}"),
            (None, Vram::Infer) => "infer".to_owned(),
            (None, Vram::Fixed { mb }) => format!("fixed {mb}"),
        };
        // A meta task is decided by what it says, so each is a shape of its own.
        let meta = match &self.work {
            Work::LoadLlm { .. } | Work::UnloadLlm { .. } | Work::LendGpu { .. } => {
                self.id.to_string()
            }
            Work::Command { .. } | Work::Prompt(_) | Work::Plan(_) => String::new(),
        };
        Shape::of(&[
            self.class.as_str().as_bytes(),
            self.model.as_deref().unwrap_or("").as_bytes(),
            format!("{} {}", self.min_tier.unwrap_or(0), self.cpus).as_bytes(),
            self.on.join("\n").as_bytes(),
            vram.as_bytes(),
            measured_as.as_bytes(),
            meta.as_bytes(),
        ])
    }

    /// The key under which this task's durations and peaks are remembered: `plan/task`.
    pub fn measured_as(&self) -> String {
        format!("{}/{}", self.plan, self.task)
    }
}

fn default_priority() -> u8 {
    PRIORITY_DEFAULT
}

fn default_retries() -> u32 {
    RETRIES_DEFAULT
}

fn one() -> u32 {
    1
}

fn is_one(n: &u32) -> bool {
    *n == 1
}
