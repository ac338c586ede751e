//! `agents/<agent>/heartbeat.json`: what an agent (or the brain) says of itself.
//!
//! Replaced whole (tmp + rename). Staleness is the observer's own time since `sequence` last
//! moved, never a comparison of clocks.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::name::{Shape, TaskId};
use crate::task::Class;

/// Shapes of which a heartbeat tells the verdict.
pub const SHAPES_MOST: usize = 64;

/// One heartbeat.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// 1; of a newer one a reader takes what it knows, and names it where that is not enough.
    pub schema: u32,
    /// Rises with each heartbeat of this process.
    pub sequence: u64,
    /// When it was written (for people).
    pub at: Timestamp,
    /// The process.
    pub pid: u32,
    /// When the process started.
    pub started: Timestamp,
    /// The agent's health.
    pub health: Health,
    /// Why, where health is not `healthy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_reason: Option<String>,
    /// The agent's GPU; none for a CPU-only agent and for the brain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuBeat>,
    /// What its LLM runtime is doing.
    pub llm: LlmBeat,
    /// Every model whose load failed and that is not tried again yet. [`LlmBeat::Failed`] names one
    /// of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed_loads: Vec<FailedLoadBeat>,
    /// Why it claims nothing now; none while it works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle: Option<Verdict>,
    /// The last verdict on each class that has anything queued.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub verdicts: BTreeMap<Class, Verdict>,
    /// The last verdict on each shape of queued task that it refuses, the first
    /// [`SHAPES_MOST`] in claim order. A shape that is queued and not here would be claimed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shapes: BTreeMap<Shape, Verdict>,
    /// More shapes than that are queued: one that is not in `shapes` may be refused too.
    #[serde(default, skip_serializing_if = "is_false")]
    pub shapes_cut: bool,
    /// The tasks that it runs, the longest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub running: Vec<RunningBeat>,
    /// Since when it has claimed and finished nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_since: Option<Timestamp>,
    /// Tasks finished since the process started.
    #[serde(default)]
    pub completed: u64,
    /// Attempts that failed since the process started.
    #[serde(default)]
    pub failed: u64,
    /// CPU slots: in use and in all.
    #[serde(default)]
    pub cpu_slots: (u32, u32),
    /// LLM slots: in use and in all.
    #[serde(default)]
    pub llm_slots: (u32, u32),
}

impl Heartbeat {
    /// A heartbeat of this process that says no more than that it lives.
    pub fn alive(sequence: u64, started: Timestamp, health: Health) -> Heartbeat {
        Heartbeat {
            schema: 1,
            sequence,
            at: Timestamp::now(),
            pid: std::process::id(),
            started,
            health,
            health_reason: None,
            gpu: None,
            llm: LlmBeat::Cold,
            failed_loads: Vec::new(),
            idle: None,
            verdicts: BTreeMap::new(),
            shapes: BTreeMap::new(),
            shapes_cut: false,
            running: Vec::new(),
            idle_since: None,
            completed: 0,
            failed: 0,
            cpu_slots: (0, 0),
            llm_slots: (0, 0),
        }
    }

    /// The load of a model that failed, if that is not tried again yet.
    pub fn failed_load(&self, model: &str) -> Option<FailedLoadBeat> {
        let mut failed = self.failed_loads();
        let at = failed.iter().position(|failed| failed.model == model)?;
        Some(failed.swap_remove(at))
    }

    /// All that `failed_loads` lists, and what the runtime's state names.
    pub fn failed_loads(&self) -> Vec<FailedLoadBeat> {
        let mut failed = self.failed_loads.clone();
        if let LlmBeat::Failed {
            model,
            cause,
            until,
        } = &self.llm
            && failed.iter().all(|failed| failed.model != *model)
        {
            failed.push(FailedLoadBeat {
                model: model.clone(),
                cause: cause.clone(),
                until: *until,
            });
        }
        failed
    }
}

fn is_false(flag: &bool) -> bool {
    !*flag
}

/// A model whose load failed, and that is not tried again yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FailedLoadBeat {
    /// Catalogue id.
    pub model: String,
    /// The runtime's own cause.
    pub cause: String,
    /// It is not tried again before.
    pub until: Timestamp,
}

/// A task that an agent runs, and when it last showed a sign of life.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunningBeat {
    /// The task.
    pub id: TaskId,
    /// Which attempt.
    pub attempt: u32,
    /// The instance's name.
    pub name: String,
    /// Its batch.
    pub batch: String,
    /// Its class.
    pub class: Class,
    /// When its worker was started. This time and the next two are reckoned back from the moment of
    /// writing ([`Heartbeat::at`]) by the monotonic clock, so what lies between them and `at` is right
    /// whatever was done to the wall clock.
    pub since: Timestamp,
    /// The last sign of life: output, CPU time of its process tree, or work of the GPU that it
    /// has. Its start where there was none yet.
    pub active_at: Timestamp,
    /// When it last printed something; none: it printed nothing yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_at: Option<Timestamp>,
    /// CPU of its process tree over the last sample, percent of one CPU; none: not known yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<u32>,
    /// Utilization of the GPU over the last sample; none for a cpu task, or where NVML has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_percent: Option<u32>,
    /// Its timeout, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u64>,
    /// Its `kill_if_silent`, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kill_if_silent_s: Option<u64>,
}

/// Whether an agent may take work, and how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Takes all that its state allows.
    Healthy,
    /// Over a limit of temperature, power or VRAM: meta and cpu only.
    Constrained,
    /// Paused by an operator: nothing new.
    Paused,
    /// Finishing what it has, then exiting or cooling.
    Draining,
    /// Its GPU cannot be trusted: nothing new.
    Quarantined,
}

impl Health {
    /// As it is written in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Health::Healthy => "healthy",
            Health::Constrained => "constrained",
            Health::Paused => "paused",
            Health::Draining => "draining",
            Health::Quarantined => "quarantined",
        }
    }
}

/// A reading of the agent's GPU.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GpuBeat {
    /// NVML index at the time of the reading.
    pub index: u32,
    /// `GPU-...`.
    pub uuid: String,
    /// The product's name.
    pub name: String,
    /// A stand-in, not a real GPU.
    #[serde(default)]
    pub stand_in: bool,
    /// Memory in use, MiB.
    pub used_mb: u64,
    /// Memory in all, MiB.
    pub total_mb: u64,
    /// What tasks and models may use in all, MiB.
    pub budget_mb: u64,
    /// Of that, what can be leased now, MiB.
    #[serde(default)]
    pub available_mb: u64,
    /// Memory that processes besides Rigor's hold: `5100 MB held by ollama (pid 2210)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foreign: Option<String>,
    /// Celsius.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_c: Option<u32>,
    /// Percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub utilization: Option<u32>,
    /// Watt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_w: Option<u32>,
}

/// What an agent's LLM runtime is doing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum LlmBeat {
    /// No model in VRAM.
    Cold,
    /// On its way in.
    Loading {
        /// Catalogue id.
        model: String,
        /// Since when.
        since: Timestamp,
        /// Agents whose GPUs it is loaded over besides its own.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        lenders: Vec<String>,
    },
    /// In VRAM and proven to answer.
    Hot {
        /// Catalogue id.
        model: String,
        /// Requests it serves at once.
        slots: u32,
        /// How long the load took, milliseconds.
        load_ms: u64,
        /// Since when.
        since: Timestamp,
        /// Agents whose GPUs it is loaded over besides its own.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        lenders: Vec<String>,
    },
    /// Its GPU is kept for another agent's runtime, which splits a model over several.
    Lent {
        /// Catalogue id.
        model: String,
        /// The agent whose runtime uses the GPU.
        to: String,
        /// Since when.
        since: Timestamp,
    },
    /// Running requests end, no new ones start.
    Draining {
        /// Catalogue id.
        model: String,
    },
    /// On its way out.
    Unloading {
        /// Catalogue id.
        model: String,
    },
    /// The last load failed; not tried again before `until`.
    Failed {
        /// Catalogue id.
        model: String,
        /// The runtime's own cause.
        cause: String,
        /// The end of the backoff.
        until: Timestamp,
    },
}

impl LlmBeat {
    /// The state's name.
    pub fn as_str(&self) -> &'static str {
        match self {
            LlmBeat::Cold => "cold",
            LlmBeat::Loading { .. } => "loading",
            LlmBeat::Hot { .. } => "hot",
            LlmBeat::Lent { .. } => "lent",
            LlmBeat::Draining { .. } => "draining",
            LlmBeat::Unloading { .. } => "unloading",
            LlmBeat::Failed { .. } => "failed",
        }
    }

    /// Agents whose GPUs its model is on besides its own.
    pub fn lenders(&self) -> &[String] {
        match self {
            LlmBeat::Loading { lenders, .. } | LlmBeat::Hot { lenders, .. } => lenders,
            LlmBeat::Cold
            | LlmBeat::Lent { .. }
            | LlmBeat::Draining { .. }
            | LlmBeat::Unloading { .. }
            | LlmBeat::Failed { .. } => &[],
        }
    }

    /// The model concerned.
    pub fn model(&self) -> Option<&str> {
        match self {
            LlmBeat::Cold => None,
            LlmBeat::Loading { model, .. }
            | LlmBeat::Hot { model, .. }
            | LlmBeat::Lent { model, .. }
            | LlmBeat::Draining { model }
            | LlmBeat::Unloading { model }
            | LlmBeat::Failed { model, .. } => Some(model),
        }
    }
}

/// Why nothing (of a class) is claimed: one code and its numbers in words. The function that
/// decides is the one that says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The code.
    pub code: Refusal,
    /// The numbers, in words.
    pub detail: String,
}

/// The codes of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(
    missing_docs,
    reason = "the names are the vocabulary; docs/architecture.md explains each"
)]
pub enum Refusal {
    QueueEmpty,
    NoSuitableClass,
    ModelNotLoaded,
    WrongModel,
    HoldingModel,
    VramShort,
    SlotsFull,
    CpuSlotsFull,
    Thermal,
    Power,
    Paused,
    Draining,
    RuntimeFailing,
    Backoff,
    LostRace,
    GpuLost,
}

impl Refusal {
    /// As it is written in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Refusal::QueueEmpty => "queue_empty",
            Refusal::NoSuitableClass => "no_suitable_class",
            Refusal::ModelNotLoaded => "model_not_loaded",
            Refusal::WrongModel => "wrong_model",
            Refusal::HoldingModel => "holding_model",
            Refusal::VramShort => "vram_short",
            Refusal::SlotsFull => "slots_full",
            Refusal::CpuSlotsFull => "cpu_slots_full",
            Refusal::Thermal => "thermal",
            Refusal::Power => "power",
            Refusal::Paused => "paused",
            Refusal::Draining => "draining",
            Refusal::RuntimeFailing => "runtime_failing",
            Refusal::Backoff => "backoff",
            Refusal::LostRace => "lost_race",
            Refusal::GpuLost => "gpu_lost",
        }
    }
}
