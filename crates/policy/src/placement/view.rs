//! What placement is shown, and what it decides. Both are journaled, so that a decision can be
//! recomputed later: ages are seconds, and nothing here asks for the time.

use std::collections::BTreeSet;

use rigor_queue::heartbeat::{Health, LlmBeat};
use serde::{Deserialize, Serialize};

use super::{Predicted, STARVED_AFTER_LOADS, Splits, Step};

/// The wait after a first failed load of a model on an agent, seconds; it doubles with each further
/// one, as the agent's own does.
const FAILED_WAIT_FIRST_S: f64 = 30.0;
/// The longest wait while it may still mend itself (memory comes free, a disk comes back).
const FAILED_WAIT_MOST_S: f64 = 600.0;
/// A load that failed so often in a row fails for good, as far as can be told.
const FAILED_FOR_GOOD: u32 = 6;
/// The wait from then on: somebody may have mended the file.
const FAILED_FOR_GOOD_WAIT_S: f64 = 3600.0;

/// What the decision is made from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct View {
    /// Models for which work is queued or running, or that an agent holds.
    pub models: Vec<Demand>,
    /// The agents with a GPU.
    pub agents: Vec<Agent>,
    /// Loads that were asked for and that no agent has taken yet.
    pub pending: Vec<Pending>,
    /// Models that tasks need which still wait for others.
    pub upcoming: BTreeSet<String>,
    /// Script tasks that are queued.
    pub scripts_queued: usize,
    /// Seconds of script work queued, on one GPU.
    pub script_seconds: f64,
    /// The longest that script tasks of one kind have been queued while every agent that could
    /// ever hold them refused them for want of memory, seconds.
    pub scripts_waiting_seconds: f64,
    /// Models that are split over several GPUs.
    pub splits: Splits,
}

/// Work for one model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Demand {
    /// Catalogue id.
    pub model: String,
    /// Tasks queued.
    pub queued: usize,
    /// Seconds a task takes (measured, or the prior).
    pub task_seconds: f64,
    /// Whether that was measured.
    pub measured: bool,
    /// Requests an agent serves at once.
    pub slots: u32,
    /// Seconds to load it (measured, or the prior), where an agent has no figure of its own.
    pub load_seconds: f64,
    /// How long work has been queued for it without interruption while nobody serves it, seconds.
    pub waiting_seconds: f64,
}

impl Demand {
    /// W: seconds of queued work on one hot GPU.
    pub fn backlog_seconds(&self) -> f64 {
        self.queued as f64 * self.task_seconds / f64::from(self.slots.max(1))
    }

    /// Its work has waited longer than the ageing bound.
    pub(super) fn starves(&self) -> bool {
        self.waiting_seconds > STARVED_AFTER_LOADS * self.load_seconds
    }

    /// Seconds until it starves.
    pub(super) fn turn_in_seconds(&self) -> f64 {
        (STARVED_AFTER_LOADS * self.load_seconds - self.waiting_seconds).max(0.0)
    }
}

/// One agent with a GPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agent {
    /// Its name.
    pub name: String,
    /// Its lock is held.
    pub alive: bool,
    /// As its heartbeat says.
    pub health: Health,
    /// Why it is not healthy, with the code: `thermal (84C >= 80C)`.
    #[serde(default)]
    pub health_reason: Option<String>,
    /// As its heartbeat says.
    pub llm: LlmBeat,
    /// How long it has held the model that it holds, seconds.
    #[serde(default)]
    pub held_seconds: f64,
    /// llm tasks it runs now.
    #[serde(default)]
    pub llm_running: u32,
    /// It refuses queued script tasks because of the model that it holds.
    #[serde(default)]
    pub scripts_blocked: bool,
    /// Why it cannot hold a model, by model; models not named here it can hold.
    #[serde(default)]
    pub cannot: Vec<(String, String)>,
    /// Loads that failed on it, the last of each model; a load that succeeds ends that.
    #[serde(default)]
    pub failed: Vec<FailedLoad>,
    /// Seconds that each model took to load here, where measured.
    #[serde(default)]
    pub load_seconds: Vec<ModelSeconds>,
    /// Models for which running scripts leave no memory, and the seconds until those are expected
    /// to have ended.
    #[serde(default)]
    pub room_in_seconds: Vec<ModelSeconds>,
}

/// A number of seconds for a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelSeconds {
    /// Catalogue id.
    pub model: String,
    /// See where it stands.
    pub seconds: f64,
}

/// A model whose last load failed on an agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FailedLoad {
    /// Catalogue id.
    pub model: String,
    /// In the runtime's own words.
    pub cause: String,
    /// How often in a row.
    pub times: u32,
    /// It is not asked for again before so many seconds are over; 0: it may be.
    pub retry_in_seconds: f64,
}

/// Seconds until a task ends that takes `takes` on average and has run for `ran`. One that is over its
/// time is as likely to take that long again.
pub fn seconds_left(takes: f64, ran: f64) -> f64 {
    if ran < takes { takes - ran } else { takes }
}

/// How long a load is not asked of an agent again after it failed there so often in a row, seconds.
pub fn failed_load_wait(times: u32) -> f64 {
    if times >= FAILED_FOR_GOOD {
        return FAILED_FOR_GOOD_WAIT_S;
    }
    let doubled = FAILED_WAIT_FIRST_S * f64::from(1u32 << times.saturating_sub(1).min(16));
    doubled.min(FAILED_WAIT_MOST_S)
}

impl Agent {
    /// Seconds to load a model here: its own figure, else the model's.
    pub fn load_seconds(&self, demand: &Demand) -> f64 {
        seconds_for(&self.load_seconds, &demand.model).unwrap_or(demand.load_seconds)
    }

    /// A load of the model that failed here.
    pub(super) fn failed_load(&self, model: &str) -> Option<&FailedLoad> {
        self.failed.iter().find(|failed| failed.model == model)
    }

    /// The scripts that it runs leave no room for the model for longer than a load takes.
    pub(super) fn is_blocked_for_long(&self, demand: &Demand) -> bool {
        seconds_for(&self.room_in_seconds, &demand.model)
            .is_some_and(|seconds| seconds > self.load_seconds(demand))
    }

    /// Seconds for which its model stays yet, whatever else waits: a model serves for at least as
    /// long as it took to load. None where it may go, or where it holds none.
    pub(super) fn resides_for(&self) -> Option<f64> {
        let LlmBeat::Hot { load_ms, .. } = &self.llm else {
            return None;
        };
        let left = *load_ms as f64 / 1000.0 - self.held_seconds;
        (left > 0.0).then_some(left)
    }

    /// It could hold the model, now or once what it holds is gone.
    pub(super) fn could_hold(&self, model: &str) -> bool {
        self.alive
            && self.health == Health::Healthy
            && self.cannot.iter().all(|(of, _)| of != model)
            && self
                .failed_load(model)
                .is_none_or(|failed| failed.retry_in_seconds <= 0.0)
    }
}

fn seconds_for(of: &[ModelSeconds], model: &str) -> Option<f64> {
    of.iter()
        .find(|known| known.model == model)
        .map(|known| known.seconds)
}

/// A load that no agent has taken yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pending {
    /// Catalogue id.
    pub model: String,
    /// The agents that may take it; empty: not known, so any.
    #[serde(default)]
    pub eligible: Vec<String>,
}

impl Pending {
    pub(super) fn may_take(&self, agent: &Agent) -> bool {
        self.eligible.is_empty() || self.eligible.contains(&agent.name)
    }
}

/// What should be done, with the reason in words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "decision", rename_all = "snake_case")]
pub enum Decision {
    /// Ask for `count` loads, each to be taken by one of `eligible`.
    Load {
        /// Catalogue id.
        model: String,
        /// How many.
        count: usize,
        /// Agents that may take one, the fastest first.
        eligible: Vec<String>,
        /// What is expected of it.
        predicted: Predicted,
        /// With numbers.
        reason: String,
    },
    /// Ask an agent to free its model.
    Unload {
        /// The agent.
        agent: String,
        /// The model that it makes room for.
        next: Option<String>,
        /// With numbers.
        reason: String,
    },
    /// It is where it should be, on its way there, or its turn comes: nothing is done.
    Keep {
        /// Catalogue id.
        model: String,
        /// The comparison that decided, with its numbers.
        reason: String,
    },
    /// Gather GPUs for a model that is split over several, or load it.
    Split {
        /// What.
        step: Step,
    },
    /// Work waits and no agent will be able to hold its model by itself.
    Stranded {
        /// Catalogue id.
        model: String,
        /// Agent by agent.
        reason: String,
    },
}
