//! The INFO line of an agent that does nothing although tasks are queued.

use std::time::Instant;

use rigor_queue::heartbeat::{Refusal, Verdict};
use rigor_queue::{outlook, presence};

use crate::agent::Agent;
use crate::judged::{Judged, wants_model};

/// What the words of a remedy are made from.
struct Situation<'a> {
    agent: &'a str,
    /// The model that queued tasks need.
    model: Option<&'a str>,
    /// A model is in VRAM.
    loaded: bool,
    /// An operator asked it to drain, and can undo that.
    drained: bool,
    /// Nothing can be claimed because of the rig's directory or of the worker's program.
    trouble: bool,
    brain_runs: bool,
}

impl Agent {
    /// Says why nothing is done, once it has not been done for a while.
    pub(crate) fn say_idle(&mut self, now: Instant) {
        let queued = self.queues.total();
        // Whatever is queued then is not for the GPU, and the rest of the agent is at it.
        let matters = |verdict: &Verdict| verdict.code != Refusal::QueueEmpty;
        let Some(verdict) = self.idle().filter(|it| queued > 0 && matters(it)) else {
            self.waiting_since = None;
            self.lines.reset_idle();
            return;
        };
        let since = *self.waiting_since.get_or_insert(now);
        let waited = now - since;
        if waited < self.config.timing.idle_warn || !self.lines.idle_is_news(verdict.code, now) {
            return;
        }
        let model = self.judged.as_ref().and_then(Judged::wanted_model);
        let (mut placement, mut brain_runs) = (None, true);
        if wants_model(verdict.code) {
            brain_runs = matches!(
                presence::is_held(&self.rig, "brain"),
                Ok(Some(true)) | Err(_)
            );
            placement = model
                .filter(|_| brain_runs)
                .and_then(|model| self.placement(model));
        }
        let remedy = remedy(
            verdict.code,
            &Situation {
                agent: &self.name,
                model,
                loaded: self.llm.served().is_some(),
                drained: self.drained.is_some(),
                trouble: self.refusing().is_some() || self.beat.failing.is_some(),
                brain_runs,
            },
        );
        let placement = placement.map_or(String::new(), |reason| format!("; {reason}"));
        let remedy = remedy.map_or(String::new(), |remedy| format!(". {remedy}"));
        tracing::info!(
            "Idle {}s with {queued} queued: {} - {}{placement}{remedy}",
            waited.as_secs(),
            verdict.code.as_str(),
            verdict.detail
        );
    }

    /// What the brain says of where that model goes. Only for this line, so one that cannot be
    /// read is none.
    fn placement(&self, model: &str) -> Option<String> {
        let outlook = outlook::read(&self.rig).ok()??;
        let of_model = outlook.models.into_iter().find(|one| one.model == model)?;
        Some(of_model.reason).filter(|reason| !reason.is_empty())
    }
}

/// What an operator can do about it, where a command helps.
fn remedy(code: Refusal, now: &Situation<'_>) -> Option<String> {
    let agent = now.agent;
    match code {
        Refusal::ModelNotLoaded | Refusal::WrongModel if !now.brain_runs => {
            Some("The brain, which places models, does not run: rigor up".to_owned())
        }
        Refusal::ModelNotLoaded => now
            .model
            .map(|model| format!("Override: rigor load {agent} {model}")),
        Refusal::WrongModel => now.model.map(|model| {
            format!("Override: rigor unload {agent}, then rigor load {agent} {model}")
        }),
        Refusal::HoldingModel => Some(format!("Override: rigor unload {agent}")),
        Refusal::VramShort if now.loaded => Some(format!("Override: rigor unload {agent}")),
        Refusal::Paused => Some(format!("Override: rigor resume {agent}")),
        Refusal::Draining if now.drained => Some(format!("Override: rigor resume {agent}")),
        Refusal::Backoff if now.trouble => {
            Some("See: rigor doctor; where the disk is full, free space on it".to_owned())
        }
        Refusal::Backoff | Refusal::RuntimeFailing => {
            Some(format!("See: logs/{agent}-runtime, rigor doctor"))
        }
        Refusal::GpuLost => Some(format!("See: rigor doctor; then restart {agent}")),
        Refusal::QueueEmpty
        | Refusal::NoSuitableClass
        | Refusal::VramShort
        | Refusal::SlotsFull
        | Refusal::CpuSlotsFull
        | Refusal::Thermal
        | Refusal::Power
        | Refusal::Draining
        | Refusal::LostRace => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remedy_is_a_command_that_helps_then() {
        let now = || Situation {
            agent: "gpu-1",
            model: Some("m"),
            loaded: false,
            drained: false,
            trouble: false,
            brain_runs: true,
        };
        let of = |code, now: Situation<'_>| remedy(code, &now).unwrap_or_default();
        assert_eq!(
            of(Refusal::ModelNotLoaded, now()),
            "Override: rigor load gpu-1 m"
        );
        let model = None;
        assert_eq!(
            of(Refusal::ModelNotLoaded, Situation { model, ..now() }),
            ""
        );
        let brain_runs = false;
        let alone = of(
            Refusal::WrongModel,
            Situation {
                brain_runs,
                ..now()
            },
        );
        assert!(alone.ends_with("rigor up"), "{alone}");
        assert_eq!(of(Refusal::VramShort, now()), "");
        let loaded = true;
        assert_eq!(
            of(Refusal::VramShort, Situation { loaded, ..now() }),
            "Override: rigor unload gpu-1"
        );
        assert_eq!(of(Refusal::Draining, now()), "", "it is stopping");
        let trouble = true;
        let full = of(Refusal::Backoff, Situation { trouble, ..now() });
        assert!(full.contains("free space"), "{full}");
        assert!(of(Refusal::Backoff, now()).contains("gpu-1-runtime"));
    }
}
