//! A checked plan: what `plan.md` says, typed, in an order in which it can run.

use std::collections::BTreeMap;

use rigor_queue::task::{Backoff, Class, TooLong, Vram};

use crate::shell::Context;

/// A plan that passed every check.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// From `# Plan: <name>`.
    pub name: String,
    /// The prose of `## Goal` or `## Objective`; may be empty.
    pub goal: String,
    /// Every input that has a value: the caller's, else the plan's default.
    pub inputs: BTreeMap<String, String>,
    /// The tasks, each after all that it depends on; among those that are free, as in the file.
    pub tasks: Vec<PlanTask>,
    /// What the failure of a task that says nothing itself does.
    pub on_failure: OnFailure,
    /// The texts of the prompt files that the plan names, by their path as written: part of the
    /// plan, so part of what a submission keeps.
    pub prompt_files: BTreeMap<String, String>,
}

impl Plan {
    /// The task with that id.
    pub fn task(&self, id: &str) -> Option<&PlanTask> {
        self.tasks.iter().find(|task| task.id == id)
    }

    /// The tasks that depend on `id` directly.
    pub fn dependants<'a>(&'a self, id: &'a str) -> impl Iterator<Item = &'a PlanTask> {
        self.tasks
            .iter()
            .filter(move |task| task.deps.iter().any(|dep| dep.task == id))
    }
}

/// A task of a plan; with `foreach` it stands for one task for each item.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanTask {
    /// `### <id>`: letters, digits, `_` and `-`, at most 64.
    pub id: String,
    /// The line of its heading in plan.md, from 1.
    pub line: usize,
    /// Who may run it; [`Class::Brain`] for `executor: brain`.
    pub class: Class,
    /// Where it is run.
    pub executor: Executor,
    /// What it does, with its variables.
    pub work: WorkTemplate,
    /// What it waits for, in the order of the file, each once.
    pub deps: Vec<Dependency>,
    /// Where its items come from.
    pub foreach: Option<Foreach>,
    /// Items that share one task; 1 without `foreach`.
    pub batch_size: usize,
    /// At most so many of its tasks run at once.
    pub max_parallel: Option<u32>,
    /// Items that may fail before dependants of the whole foreach are cancelled.
    pub max_failed: MaxFailed,
    /// What its failure does to the batch.
    pub on_failure: OnFailure,
    /// CPU slots.
    pub cpus: u32,
    /// Agents it may run on; empty: any.
    pub on: Vec<String>,
    /// Catalogue id of its model.
    pub model: Option<String>,
    /// The lowest capability tier of a model that will do.
    pub min_tier: Option<u32>,
    /// How its model must lie on GPUs; none: as rig.toml has it.
    pub placement: Option<LlmPlacement>,
    /// What it needs of GPU memory.
    pub vram: Vram,
    /// Wall-clock limit of an attempt, seconds.
    pub timeout_s: Option<u64>,
    /// Silence after which an attempt is ended, seconds.
    pub kill_if_silent_s: Option<u64>,
    /// Attempts after the first.
    pub retries: u32,
    /// The wait between attempts.
    pub backoff: Backoff,
    /// 0 to 10, higher first.
    pub priority: u8,
    /// Variables of its environment.
    pub env: BTreeMap<String, Template>,
    /// A file of `NAME=value` lines.
    pub env_file: Option<Template>,
    /// A Python virtual environment.
    pub venv: Option<Template>,
    /// A conda environment.
    pub conda: Option<Template>,
    /// Names of secrets of the rig.
    pub secrets: Vec<String>,
    /// Its working directory.
    pub workdir: Option<Template>,
    /// Paths or globs that have to be there before it starts.
    pub requires: Vec<Template>,
    /// Paths or globs that have to be there when it is done.
    pub produces: Vec<Template>,
}

impl PlanTask {
    /// The name of its instance for an item: `<id>`, or `<id>_<item id>`.
    pub fn instance(&self, item: Option<&str>) -> String {
        match item {
            Some(item) => format!("{}_{item}", self.id),
            None => self.id.clone(),
        }
    }
}

/// Where a task is run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Executor {
    /// By a worker of an agent.
    #[default]
    Worker,
    /// By the brain.
    Brain,
}

/// What a task does.
#[derive(Clone, Debug, PartialEq)]
pub enum WorkTemplate {
    /// A command for bash.
    Command(CommandTemplate),
    /// A prompt for the model.
    Prompt(Box<PromptTemplate>),
}

/// A prompt whose variables are not filled in yet.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptTemplate {
    /// The user message.
    pub user: Template,
    /// The system message.
    pub system: Option<Template>,
    /// Sampling temperature.
    pub temperature: Option<f64>,
    /// The longest answer, tokens.
    pub max_tokens: Option<u32>,
    /// Sampling seed.
    pub seed: Option<i64>,
    /// What to do with a prompt over the model's context.
    pub too_long: TooLong,
    /// The file that gets the answer.
    pub output: Option<Template>,
}

/// What a task waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependency {
    /// The id of a task of the plan.
    pub task: String,
    /// `other_{ITEM.id}`: only that task's instance for the same item.
    pub per_item: bool,
}

/// The source of a task's items, whose path may still hold `{BATCH_PATH}` and the like:
/// [`foreach_source`](crate::foreach_source) fills them in.
#[derive(Clone, Debug, PartialEq)]
pub struct Foreach {
    /// The source as the plan names it, inputs filled in.
    pub source: ForeachSource,
    pub(crate) path: Template,
}

/// Where the items of a foreach come from. Paths are relative to the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForeachSource {
    /// A list within a JSON file.
    Json {
        /// The file.
        path: String,
        /// Dotted key of the list; none: the file is the list.
        key: Option<String>,
    },
    /// A file with one JSON value on each line.
    JsonLines(String),
    /// A file of comma-separated values whose first row names the columns.
    Csv(String),
    /// A file with one item on each line.
    Lines(String),
    /// The files that match a pattern.
    Glob(String),
}

impl ForeachSource {
    /// The path of the file, or the pattern.
    pub fn path(&self) -> &str {
        match self {
            ForeachSource::Json { path, .. }
            | ForeachSource::JsonLines(path)
            | ForeachSource::Csv(path)
            | ForeachSource::Lines(path)
            | ForeachSource::Glob(path) => path,
        }
    }

    /// The part of the path that has to be there: the file, or the folder above the first
    /// wildcard of a pattern (empty: the plan's own).
    pub fn base(&self) -> &str {
        match self {
            ForeachSource::Glob(pattern) => {
                let literal = pattern.find(['*', '?', '[', '{']).unwrap_or(pattern.len());
                pattern[..literal]
                    .rfind('/')
                    .map_or("", |slash| &pattern[..slash])
            }
            other => other.path(),
        }
    }

    /// Reads `path.json:dotted.key`, `path.jsonl`, `path.csv`, `path.txt` or `glob:pattern`.
    pub(crate) fn parse(text: &str) -> Result<ForeachSource, String> {
        let help =
            "a source is `path.json:key`, `path.jsonl`, `path.csv`, `path.txt` or `glob:pattern`";
        if let Some(pattern) = text.strip_prefix("glob:") {
            let pattern = pattern.trim();
            // Variables are no part of the pattern's own syntax; everything else is checked.
            let tried = pattern.replace(['{', '}'], "");
            return match globset::Glob::new(if pattern.contains(',') {
                pattern
            } else {
                &tried
            }) {
                _ if pattern.is_empty() => {
                    Err("`glob:` needs a pattern: `glob:videos/*.mp4`".to_owned())
                }
                Ok(_) => Ok(ForeachSource::Glob(pattern.to_owned())),
                Err(error) => Err(error.to_string()),
            };
        }
        let (path, key) = match text.rfind(".json:") {
            Some(at) => (&text[..at + 5], Some(&text[at + 6..])),
            None => (text, None),
        };
        let path = path.to_owned();
        match path
            .rsplit_once('.')
            .map(|(_, extension)| extension.to_ascii_lowercase())
            .as_deref()
        {
            _ if key.is_some_and(|key| key.is_empty() || key.split('.').any(str::is_empty)) => {
                Err("the key after `.json:` is dotted: `index.json:videos.new`".to_owned())
            }
            Some("json") => Ok(ForeachSource::Json {
                path,
                key: key.map(str::to_owned),
            }),
            Some("jsonl" | "ndjson") => Ok(ForeachSource::JsonLines(path)),
            Some("csv") => Ok(ForeachSource::Csv(path)),
            Some("txt") => Ok(ForeachSource::Lines(path)),
            _ => Err(help.to_owned()),
        }
    }

    pub(crate) fn with_path(&self, path: String) -> ForeachSource {
        match self {
            ForeachSource::Json { key, .. } => ForeachSource::Json {
                path,
                key: key.clone(),
            },
            ForeachSource::JsonLines(_) => ForeachSource::JsonLines(path),
            ForeachSource::Csv(_) => ForeachSource::Csv(path),
            ForeachSource::Lines(_) => ForeachSource::Lines(path),
            ForeachSource::Glob(_) => ForeachSource::Glob(path),
        }
    }
}

impl std::fmt::Display for ForeachSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ForeachSource::Json {
                path,
                key: Some(key),
            } => write!(f, "{path}:{key}"),
            ForeachSource::Glob(pattern) => write!(f, "glob:{pattern}"),
            other => f.write_str(other.path()),
        }
    }
}

/// How many items of a foreach may fail while its dependants still start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MaxFailed {
    /// So many.
    Count(u64),
    /// So many of a hundred.
    Percent(f64),
}

impl MaxFailed {
    /// Whether `failed` of `total` items are few enough.
    pub fn allows(self, failed: u64, total: u64) -> bool {
        match self {
            MaxFailed::Count(most) => failed <= most,
            MaxFailed::Percent(most) => failed as f64 * 100.0 <= most * total as f64,
        }
    }
}

/// What the failure of a task does to the rest of its batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// Its dependants are cancelled, the rest goes on.
    #[default]
    Continue,
    /// The batch stops.
    Stop,
}

/// How many GPUs a task wants its model to lie on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LlmPlacement {
    /// One.
    SingleGpu,
    /// Several (`split_gpu` in rig.toml).
    SplitGpu,
}

impl LlmPlacement {
    pub(crate) fn parse(text: &str) -> Result<LlmPlacement, String> {
        match text {
            "single_gpu" => Ok(LlmPlacement::SingleGpu),
            "split_gpu" => Ok(LlmPlacement::SplitGpu),
            _ => Err("`single_gpu` or `split_gpu`".to_owned()),
        }
    }
}

/// Text with variables, all of which are known to the plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    pub(crate) parts: Vec<Part>,
}

/// A command with variables, each with the place it stands in.
#[derive(Clone, Debug, PartialEq)]
pub struct CommandTemplate {
    /// None for `{NAME:raw}`.
    pub(crate) parts: Vec<(Part, Option<Context>)>,
}

/// A piece of a template.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Part {
    Text(String),
    /// The value of an input: data, never read for variables again.
    Input(String),
    BatchId,
    BatchPath,
    PlanPath,
    /// `{ITEM}` with the fields after it.
    Item(Vec<String>),
    Items,
    ItemsFile,
    /// The file that lists the failed items of that task.
    FailedFile(String),
    /// A file's content, at that path; in prompts only.
    File(Template),
}
