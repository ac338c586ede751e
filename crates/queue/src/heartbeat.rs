//! `agents/<agent>/heartbeat.json`: what an agent (or the brain) says of itself.
//!
//! Replaced whole (tmp + rename). Staleness is the observer's own time since `sequence` last
//! moved, never a comparison of clocks.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::task::Class;

/// One heartbeat.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// 1; a reader refuses a newer one by name.
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
    /// Why it claims nothing now; none while it works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle: Option<Verdict>,
    /// The last verdict on each class that has anything queued.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub verdicts: BTreeMap<Class, Verdict>,
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
            LlmBeat::Draining { .. } => "draining",
            LlmBeat::Unloading { .. } => "unloading",
            LlmBeat::Failed { .. } => "failed",
        }
    }

    /// The model concerned.
    pub fn model(&self) -> Option<&str> {
        match self {
            LlmBeat::Cold => None,
            LlmBeat::Loading { model, .. }
            | LlmBeat::Hot { model, .. }
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
