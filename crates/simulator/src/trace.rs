//! A trace: the GPUs of a rig, its models, and the work that comes, with durations that the
//! policy has to find out.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// A trace file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trace {
    /// What it shows.
    pub about: String,
    /// Durations are drawn from this.
    pub seed: u64,
    /// GPUs.
    #[serde(rename = "gpu")]
    pub gpus: Vec<Gpu>,
    /// Models.
    #[serde(rename = "model", default)]
    pub models: Vec<Model>,
    /// Work, in the order of its numbers in the queue.
    pub work: Vec<Work>,
    /// GPUs that go and come.
    #[serde(rename = "outage", default)]
    pub outages: Vec<Outage>,
    /// What a real rig takes besides the work; nothing where it is not there.
    #[serde(default)]
    pub costs: Costs,
    /// What `--check` demands besides a makespan near the lower bound.
    #[serde(default)]
    pub target: Target,
}

/// What a rig takes besides the work itself, measured on one. The lower bound knows nothing of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Costs {
    /// Seconds from a submission to its first task in the queue.
    #[serde(default)]
    pub submit_s: f64,
    /// Seconds for which a task holds its slot besides its own: the claim, the start of its worker, its record.
    #[serde(default)]
    pub task_s: f64,
    /// Seconds of a load besides the model's own: the start of the runtime, its proof.
    #[serde(default)]
    pub load_s: f64,
}

/// See [`Trace::target`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Why the lower bound cannot be reached, where that is so: then it is no target.
    #[serde(default)]
    pub unreachable: Option<String>,
    /// The LLM phase is to be so many times as fast as with one hot GPU.
    #[serde(default)]
    pub llm_speedup: Option<f64>,
    /// The most loads.
    #[serde(default)]
    pub loads_most: Option<usize>,
}

/// Some GPUs of one kind.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// How many.
    #[serde(default = "one")]
    pub count: usize,
    /// What tasks and models may use of its memory, MiB.
    pub budget_mb: u64,
    /// CPU slots of its agent.
    #[serde(default = "eight")]
    pub cpu_slots: u32,
}

/// A model.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Its name.
    pub id: String,
    /// What it takes, MiB.
    pub vram_mb: u64,
    /// Seconds to load it.
    pub load_s: f64,
    /// Seconds to unload it.
    #[serde(default = "two")]
    pub unload_s: f64,
    /// Requests at once.
    #[serde(default = "one_slot")]
    pub slots: u32,
}

/// Tasks of one name.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Work {
    /// Its name.
    pub name: String,
    /// The model it needs; none: a script.
    #[serde(default)]
    pub model: Option<String>,
    /// How many tasks.
    pub count: usize,
    /// Seconds of a task, on average.
    pub seconds: f64,
    /// Durations lie between `seconds * (1 - spread)` and `seconds * (1 + spread)`.
    #[serde(default)]
    pub spread: f64,
    /// This share of the tasks takes `long_factor` times as long.
    #[serde(default)]
    pub long_share: f64,
    /// See `long_share`.
    #[serde(default = "ten")]
    pub long_factor: f64,
    /// Memory of a script, MiB.
    #[serde(default)]
    pub vram_mb: u64,
    /// When it comes, seconds.
    #[serde(default)]
    pub at: f64,
    /// Seconds between two tasks that come; 0: all at once.
    #[serde(default)]
    pub every: f64,
    /// It starts when all of that work has ended.
    #[serde(default)]
    pub after: Option<String>,
    /// Its n-th task starts when the n-th of that work has ended.
    #[serde(default)]
    pub each: Option<String>,
}

/// A GPU that is gone for a while.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outage {
    /// Which, from 0.
    pub gpu: usize,
    /// From when, seconds.
    pub at: f64,
    /// For how long; none: for good.
    #[serde(default)]
    pub seconds: Option<f64>,
}

fn one() -> usize {
    1
}

fn one_slot() -> u32 {
    1
}

fn eight() -> u32 {
    8
}

fn two() -> f64 {
    2.0
}

fn ten() -> f64 {
    10.0
}

impl Trace {
    /// Reads and checks a trace; a file whose name ends in `.json` is one in JSON.
    pub fn read(path: &Path) -> Result<Trace> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let trace = match path.extension().is_some_and(|end| end == "json") {
            true => serde_json::from_str(&text).map_err(anyhow::Error::from),
            false => toml::from_str(&text).map_err(anyhow::Error::from),
        };
        let checked = trace.and_then(Trace::checked);
        checked.with_context(|| format!("in {}", path.display()))
    }

    /// Checks the text of a trace.
    pub fn parse(text: &str) -> Result<Trace> {
        toml::from_str::<Trace>(text)?.checked()
    }

    fn checked(self) -> Result<Trace> {
        let trace = self;
        let gpus: usize = trace.gpus.iter().map(|gpu| gpu.count).sum();
        ensure!(gpus > 0, "a trace needs a [[gpu]]");
        let mut names = BTreeSet::new();
        for work in &trace.work {
            let known = |name: &Option<String>| name.as_ref().is_none_or(|it| names.contains(it));
            ensure!(
                known(&work.after) && known(&work.each),
                "{}: what it follows must stand above it",
                work.name
            );
            ensure!(
                names.insert(work.name.clone()),
                "{} stands twice",
                work.name
            );
            if let Some(each) = &work.each {
                let before = trace.work.iter().find(|other| other.name == *each);
                ensure!(
                    before.is_some_and(|before| before.count >= work.count),
                    "{}: {each} has fewer tasks",
                    work.name
                );
            }
            let fits = match &work.model {
                Some(model) => match trace.model(model) {
                    Some(model) => trace.gpus.iter().any(|gpu| gpu.budget_mb >= model.vram_mb),
                    None => bail!("{}: there is no [[model]] {model}", work.name),
                },
                None => trace.gpus.iter().any(|gpu| gpu.budget_mb >= work.vram_mb),
            };
            ensure!(fits, "{} fits no GPU", work.name);
        }
        for outage in &trace.outages {
            ensure!(outage.gpu < gpus, "there is no GPU {}", outage.gpu);
        }
        Ok(trace)
    }

    /// The model of that name.
    pub fn model(&self, id: &str) -> Option<&Model> {
        self.models.iter().find(|model| model.id == id)
    }

    /// Each GPU of its own.
    pub fn each_gpu(&self) -> Vec<&Gpu> {
        self.gpus
            .iter()
            .flat_map(|gpu| std::iter::repeat_n(gpu, gpu.count))
            .collect()
    }

    /// The duration of every task of every work: the same for the same seed.
    pub fn durations(&self) -> Vec<Vec<f64>> {
        let mut random = fastrand::Rng::with_seed(self.seed);
        let mut one = |work: &Work| {
            let spread = (random.f64() * 2.0 - 1.0) * work.spread;
            let long = random.f64() < work.long_share;
            let factor = if long { work.long_factor } else { 1.0 };
            work.seconds * (1.0 + spread) * factor
        };
        self.work
            .iter()
            .map(|work| (0..work.count).map(|_| one(work)).collect())
            .collect()
    }
}
