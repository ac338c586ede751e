//! A GPU that is kept for a model which one agent's runtime splits over several agents' GPUs.
//!
//! The brain gathers the GPUs: each agent, the one that is to run the model among them, leases its
//! share and says so in its heartbeat. Only when all do does the brain ask for the load. An
//! `unload_llm` to an agent that lends ends the lend. The agent itself never looks whether the
//! other runtime still uses its GPU: the brain unloads there first, and memory that is in use is
//! not available, whoever has it.

use jiff::Timestamp;
use rigor_policy::admission::LlmState;
use rigor_queue::claim::Held;
use rigor_queue::heartbeat::LlmBeat;
use rigor_queue::presence;
use rigor_queue::record::Outcome;
use rigor_queue::task::Class;

use crate::agent::Agent;
use crate::device::Device;
use crate::llm::{Duty, Phase};

/// What a GPU is kept for.
#[derive(Clone, Debug)]
pub(crate) struct Lent {
    model: String,
    to: String,
    since: Timestamp,
}

impl Lent {
    pub(crate) fn state(&self) -> LlmState {
        LlmState::Lent {
            model: self.model.clone(),
            to: self.to.clone(),
        }
    }

    pub(crate) fn beat(&self) -> LlmBeat {
        LlmBeat::Lent {
            model: self.model.clone(),
            to: self.to.clone(),
            since: self.since,
        }
    }
}

impl Agent {
    /// Keeps the GPU: its memory was leased with the claim.
    pub(crate) fn lend(&mut self, held: Held, model: String, to: String) {
        let duty = Duty::begin(held);
        // Admission lets it through only when cold, or lent as it is to be.
        if let Phase::Cold = self.llm.phase {
            if to == self.name {
                tracing::info!("{} is kept for {model}", self.name);
            } else {
                tracing::info!("{} is lent to {to} for {model}", self.name);
            }
            self.llm.phase = Phase::Lent(Lent {
                model,
                to,
                since: Timestamp::now(),
            });
        }
        rigor_queue::crash_point!("lent");
        self.end_lend_duty(duty);
    }

    /// The GPU is the agent's own again.
    pub(crate) fn end_lend(&mut self, lent: &Lent, duty: Duty) {
        tracing::info!(
            "{} is no longer kept for {} on {}",
            self.name,
            lent.model,
            lent.to
        );
        self.llm.phase = Phase::Cold;
        self.release_model_memory();
        self.end_lend_duty(duty);
    }

    fn end_lend_duty(&mut self, duty: Duty) {
        // Whoever sees that the task is done must not see the state of before it.
        self.send_beat(std::time::Instant::now());
        self.end_duty(duty, Outcome::Succeeded, None);
    }

    /// UUIDs of the GPUs that these agents lend for `model`, or who does not any more: it has died
    /// since the load was asked for.
    pub(crate) fn lent_gpus(&self, model: &str, lenders: &[String]) -> Result<Vec<String>, String> {
        let gpu = |name: &String| {
            let lends = match presence::heartbeat(&self.rig, name) {
                Ok(Some(beat)) => {
                    matches!(&beat.llm, LlmBeat::Lent { model: of, to, .. } if of == model && *to == self.name)
                }
                Ok(None) | Err(_) => false,
            };
            let alive = presence::is_held(&self.rig, name).ok().flatten() == Some(true);
            if !lends || !alive {
                return Err(format!("{name} does not lend its GPU any more"));
            }
            let gpu = self.config.gpu(name).map_err(|error| error.to_string())?;
            Ok(gpu.uuid.clone())
        };
        lenders.iter().map(gpu).collect()
    }

    /// NVML's indices of this agent's GPU and of those of `lenders`, as far as all are known. None of
    /// stand-ins: CUDA does not count those.
    pub(crate) fn gpu_indices(&self, lenders: &[String]) -> Vec<u32> {
        let own = self.device.as_ref().map(Device::beat);
        let lent = |name: &String| presence::heartbeat(&self.rig, name).ok()??.gpu;
        let all = std::iter::once(own).chain(lenders.iter().map(lent));
        let real = all.map(|gpu| gpu.filter(|gpu| !gpu.stand_in).map(|gpu| gpu.index));
        real.collect::<Option<Vec<u32>>>().unwrap_or_default()
    }

    /// Whether none of these agents runs a script, whose end would falsify the memory that proves a
    /// load over their GPUs.
    pub(crate) fn are_quiet(&self, lenders: &[String]) -> bool {
        lenders.iter().all(|name| {
            let beat = presence::heartbeat(&self.rig, name);
            let scripts =
                |running: &rigor_queue::heartbeat::RunningBeat| running.class == Class::Script;
            matches!(beat, Ok(Some(beat)) if !beat.running.iter().any(scripts))
        })
    }

    /// What the runtime of another agent has of this one's GPU, MiB: it was lent before this agent
    /// was started anew.
    pub(crate) fn foreign_model_mb(&self) -> u64 {
        match (&self.llm.phase, &self.device) {
            (Phase::Cold, Some(device)) => device.model_mb,
            _ => 0,
        }
    }
}
